"""Numbers in English words, by `inflect`."""

from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import inflect


@lru_cache(maxsize=4096)
def cardinal(number: int) -> str:
    """A whole number in English words: 342 is "three hundred and forty-two". From 10^15 on digit by digit."""
    if number < 0:
        return f"minus {cardinal(-number)}"
    return str(_inflect().number_to_words(str(number), comma="", group=int(number >= 10**15)))


@lru_cache(maxsize=4096)
def ordinal(number: int) -> str:
    """A rank in English words: 21 is "twenty-first"."""
    return str(_inflect().ordinal(cardinal(number)))


@cache
def _inflect() -> "inflect.engine":
    import inflect  # takes a tenth of a second, which only texts with numbers need

    return inflect.engine()
