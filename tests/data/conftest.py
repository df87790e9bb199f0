"""A tokenizer that the tests of the data package share."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from muomni.data import Tokenizer

# The tests are no package (--import-mode=importlib), so their helpers are put in reach by hand.
_SPEC = importlib.util.spec_from_file_location("data_helpers", Path(__file__).with_name("helpers.py"))
assert _SPEC is not None and _SPEC.loader is not None
helpers = importlib.util.module_from_spec(_SPEC)
sys.modules["data_helpers"] = helpers
_SPEC.loader.exec_module(helpers)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(helpers.STORIES * 3, 500)


@pytest.fixture(scope="session")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer's folder as `save` writes it."""
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


@pytest.fixture(scope="session")
def hugging_face(folder: Path) -> Any:
    """The same folder as transformers reads it."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)
