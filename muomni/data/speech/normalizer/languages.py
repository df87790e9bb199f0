"""Which languages there are, by their tags: "en", "en-GB", "de"."""

import importlib.util
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

from muomni.data.speech.normalizer.english import English
from muomni.data.speech.normalizer.french import French
from muomni.data.speech.normalizer.german import German
from muomni.data.speech.normalizer.language import FullLanguage, Language, read_words
from muomni.data.speech.normalizer.spanish import Spanish


@dataclass(frozen=True, eq=False, kw_only=True)
class OtherLanguage(Language):
    """A language of which num2words knows the numbers; signs, units and money are not put into words."""

    tag: str

    @classmethod
    def of(cls, tag: str) -> "OtherLanguage":
        """The language of a tag that num2words knows."""
        one, both = _num2words(1, tag) or "", _num2words(Decimal("1.1"), tag) or ""
        between = both.removeprefix(one).removesuffix(one).strip() if one else ""
        known = between if between.isalpha() and between != both else ""
        decimal, grouping = (".", ",") if tag in _POINT_LANGUAGES else (",", ".")
        ones = [_num2words(digit, tag) or "" for digit in range(10)]
        return cls(tag=tag, ones=ones, point=_POINTS.get(tag, known), decimal=decimal, grouping=grouping)

    def cardinal(self, number: int) -> str:
        """The words of a number; of large ones, and of those that num2words fails at, digit by digit."""
        words = _num2words(number, self.tag) if number < _LARGEST else None
        return words or self.spell(str(number))


# num2words does not come to an end with some larger numbers in some languages.
_LARGEST = 10**9
# Words of the decimal sign where num2words does not tell them.
_POINTS = {"it": "virgola", "ru": "запятая", "tr": "virgül", "vi": "phẩy", "hu": "egész"}
# Those that write 3.5, not 3,5.
_POINT_LANGUAGES = frozenset(["am", "bn", "cy", "fa", "he", "ja", "kn", "ko", "te", "th", "tl"])


def _num2words(number: int | Decimal, tag: str) -> str | None:
    """The words of a number, None where num2words has none."""
    from num2words import num2words

    try:
        return str(num2words(number, lang=tag))
    except Exception:  # noqa: BLE001 - whatever its modules of languages raise: TypeError, KeyError, OverflowError
        return None


@cache
def language_of(tag: str) -> Language | None:
    """The language of a tag; None where nothing knows its numbers."""
    name = tag.replace("_", "-").split("-")[0].lower()
    if name == "en":
        return English.from_words(read_words("en"), day_first="-" in tag and not tag.upper().endswith("-US"))
    known: dict[str, type[FullLanguage]] = {"de": German, "fr": French, "es": Spanish}
    if name in known:
        return known[name](**read_words(name))
    if name in _extra():
        return OtherLanguage.of(name)
    return None


def has_num2words() -> bool:
    """Whether the extra "languages" is installed; num2words is under the LGPL and never required."""
    return importlib.util.find_spec("num2words") is not None


@cache
def _extra() -> frozenset[str]:
    if not has_num2words():
        return frozenset()
    from num2words import CONVERTER_CLASSES

    return frozenset(CONVERTER_CLASSES)
