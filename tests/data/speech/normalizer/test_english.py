"""Numbers in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.data.speech.normalizer.english import cardinal, ordinal


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (42, "forty-two"),
        (100, "one hundred"),
        (305, "three hundred and five"),
        (2005, "two thousand and five"),
        (2300, "two thousand three hundred"),
        (1_000_000, "one million"),
        (1_234_567, "one million two hundred and thirty-four thousand five hundred and sixty-seven"),
        (-7, "minus seven"),
    ],
)
def test_cardinals(number: int, words: str) -> None:
    assert cardinal(number) == words


def test_ordinals() -> None:
    said = [ordinal(number) for number in (1, 2, 3, 5, 8, 9, 12, 20, 21, 100, 103)]
    assert said == [
        *("first", "second", "third", "fifth", "eighth", "ninth", "twelfth", "twentieth", "twenty-first"),
        *("one hundredth", "one hundred and third"),
    ]


@given(st.integers(0, 10**16))
def test_every_number_has_words_of_its_own(number: int) -> None:
    words = cardinal(number)
    assert words.replace("-", " ").replace(" ", "").isalpha()
    assert words != cardinal(number + 1)
