"""Which languages there are, by their tags: "en", "en-GB", "de"."""

import importlib.util
from dataclasses import dataclass
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

    def cardinal(self, number: int) -> str:
        """The words of a number."""
        return _other_cardinal(number, self.tag)


def _other_cardinal(number: int, tag: str) -> str:
    from num2words import num2words

    return str(num2words(number, lang=tag))


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
        return OtherLanguage(tag=name, ones=[_other_cardinal(digit, name) for digit in range(10)])
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
