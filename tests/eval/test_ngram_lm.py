"""The trigram model: probabilities that add up to one, from counts that a reader can check."""

import importlib.util
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.errors import DataError
from muomni.eval.ngram_lm import BEGIN, END, write_lm

TEXTS = ["the cat sat", "the cat ran", "the dog sat", "a dog ran home", "the cat sat", "home"]


def read(path: Path) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
    """Probabilities and back-off weights of an ARPA file."""
    probabilities, weights = {}, {}
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) > 1:
            gram = tuple(fields[1].split())
            probabilities[gram] = 10 ** float(fields[0])
            weights[gram] = 10 ** float(fields[2]) if len(fields) > 2 else 1.0
    return probabilities, weights


def chance(word: str, context: tuple[str, ...], path: Path) -> float:
    """P(word | context) as a reader of ARPA files computes it."""
    probabilities, weights = read(path)
    weight = 1.0
    while (*context, word) not in probabilities:
        weight *= weights.get(context, 1.0)
        context = context[1:]
    return weight * probabilities[(*context, word)]


def write(texts: list[str], folder: Path) -> Path:
    path = folder / "a.arpa"
    write_lm([text.split() for text in texts], path)
    return path


def test_the_header_counts_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "a.arpa"
    assert write_lm([text.split() for text in TEXTS], path) == 7
    probabilities, _ = read(path)
    lines = path.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("\\data\\", "\\end\\")
    for order in (1, 2, 3):
        assert f"ngram {order}={sum(len(gram) == order for gram in probabilities)}" in lines
    assert probabilities[(BEGIN,)] == pytest.approx(1e-99)


def test_what_was_said_is_likely(tmp_path: Path) -> None:
    path = write(TEXTS, tmp_path)
    assert (
        chance("cat", (BEGIN, "the"), path) > 0.4 > chance("dog", (BEGIN, "the"), path) > chance("ran", ("the",), path)
    )
    # "home" follows three different contexts as often as "sat" follows two: the kinds count, not how often.
    assert chance("cat", ("home", "home"), path) < chance("home", ("cat", "cat"), path)


@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=5), min_size=1, max_size=8))
def test_each_context_adds_up_to_one(tmp_path_factory: pytest.TempPathFactory, texts: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("lm") / "a.arpa"
    write_lm(texts, path)
    probabilities, _ = read(path)
    words = [gram[0] for gram in probabilities if len(gram) == 1 and gram != (BEGIN,)]
    for context in [(), (BEGIN,), *(gram for gram in probabilities if len(gram) == 2 and END not in gram)]:
        assert math.fsum(chance(word, context, path) for word in words) == pytest.approx(1, abs=2e-3), context


def test_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no words"):
        write_lm([[], []], tmp_path / "a.arpa")


@pytest.mark.skipif(importlib.util.find_spec("pocketsphinx") is None, reason="needs pip install 'muomni[eval]'")
def test_the_recogniser_reads_it(tmp_path: Path) -> None:
    import numpy as np

    from muomni.eval.recogniser import Recogniser

    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000).astype(np.float32)
    heard = Recogniser(write(TEXTS, tmp_path)).transcribe(noise)
    assert set(heard.split()) <= {word for text in TEXTS for word in text.split()}
