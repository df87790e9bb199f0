"""Which languages there are, by their tags: "en", "en-GB", "de"."""

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from typing import ClassVar

from muomni.data.speech.normalizer.english import English
from muomni.data.speech.normalizer.french import French
from muomni.data.speech.normalizer.german import German
from muomni.data.speech.normalizer.language import Language
from muomni.data.speech.normalizer.spanish import Spanish

_KNOWN: Mapping[str, Callable[[], Language]] = {"en": English, "de": German, "fr": French, "es": Spanish}


class OtherLanguage(Language):
    """A language of which num2words knows the numbers; signs, units and money are not put into words."""

    point = dot = ""
    symbols: ClassVar[Mapping[str, str]] = {}
    months = ()

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self.digits = tuple(self.cardinal(digit) for digit in range(10))  # type: ignore[misc]

    def cardinal(self, number: int) -> str:
        from num2words import num2words

        return str(num2words(number, lang=self._tag))


@cache
def language_of(tag: str) -> Language | None:
    """The language of a tag; None where nothing knows its numbers."""
    name = tag.replace("_", "-").split("-")[0].lower()
    if name == "en":
        return English(day_first="-" in tag and not tag.upper().endswith("-US"))
    if name in _KNOWN:
        return _KNOWN[name]()
    return OtherLanguage(name) if name in _extra() else None


@cache
def _extra() -> frozenset[str]:
    """The languages of num2words, where it is installed: it is under the LGPL and never required."""
    if importlib.util.find_spec("num2words") is None:
        return frozenset()
    from num2words import CONVERTER_CLASSES

    return frozenset(CONVERTER_CLASSES)
