# `make demo` and `make test` set everything up by themselves: a virtual environment in .venv, the
# package and what it needs, then the run. `make help` lists the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
# Two workers with one thread each: the tests are many and small. A file's tests share a worker, so that what they
# share is made once; the order of the files stays, in which no long one is the last.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test fuzz lint style types contract format wheel clean help

## demo: train a small model, chat with it and print what came out; DATA=path takes your text
demo: $(VENV)/.installed
	$(PY) -m muomni demo $(if $(DATA),--data "$(DATA)")

## test: run the tests; ARGS="tests/config -k merge" chooses
test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

## fuzz: read 10,000 broken files of every kind; ARGS="--cases 500 --only recipes" chooses
fuzz: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) scripts/fuzz.py $(ARGS)

## lint: style, types and the direction of imports
lint: style types contract

style: $(VENV)/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.installed-test
	$(PY) -m mypy

contract: $(VENV)/.installed-test
	$(VENV)/bin/lint-imports

## format: bring every file into the common style
format: $(VENV)/.installed-test
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

## wheel: build dist/muomni-*.whl
wheel: $(VENV)/.installed-test
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .

## clean: remove the environment, builds and caches; runs stay
clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:
	@grep -E '^## ' $(MAKEFILE_LIST) | sed -E 's/^## ([a-z]+): /  make \1	/' | expand -t 16
	@echo
	@echo "PYTHON=python3.12 names the Python to use (3.11 or newer). On Linux without an NVIDIA GPU, point"
	@echo "PIP_EXTRA_INDEX_URL at PyTorch's CPU index to save some gigabytes of CUDA libraries."

# The stamps say that an installation was completed; a change of pyproject.toml asks for another.
$(VENV)/.installed: pyproject.toml
	@.ci/install "$(VENV)" . "$(PYTHON)" && touch $@

$(VENV)/.installed-test: pyproject.toml
	@.ci/install "$(VENV)" '.[test]' "$(PYTHON)" && touch $@ $(VENV)/.installed
