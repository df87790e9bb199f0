"""Word error rates on cases worked out by hand, and against the recursion that defines the distance."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.eval.wer import spoken_words, word_errors


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Press 1 for A.M, or 2 for P.M.", "press one for a m or two for p m"),
        ("dial 411 or 42; the 10 second loop, 05", "dial four one one or forty two the ten second loop zero five"),
        ("It's Barthélemy\N{RIGHT SINGLE QUOTATION MARK}s 'dog' -- 12-digit", "it's barthelemy's dog twelve digit"),
        ("...", ""),
    ],
)
def test_words_are_as_they_are_said(text: str, words: str) -> None:
    assert spoken_words(text) == words.split()


@given(st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_the_distance_is_the_one_defined(said: str, heard: str) -> None:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replace = distance(i - 1, j - 1) + (said[i - 1] != heard[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, replace)

    errors = word_errors([(" ".join(said), " ".join(heard))])
    assert errors.errors == distance(len(said), len(heard)) and errors.words == len(said)


def test_words_said_twice_and_words_left_out_are_errors() -> None:
    assert word_errors([("one two three", "one two two three three")]).errors == 2
    assert word_errors([("one two three", "two")]).errors == 2
    assert word_errors([]).rate == word_errors([("", "")]).rate == 0


def test_errors_add_up_over_clips() -> None:
    found = word_errors([("a b c", "A, b c."), ("a b", "a x b"), ("one two", "2"), ("a", "")])
    assert (found.errors, found.words, found.exact, found.clips) == (3, 8, 1, 4)
    assert found.rate == 3 / 8
