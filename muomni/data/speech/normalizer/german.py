"""German."""

import re
from typing import ClassVar

from muomni.data.speech.normalizer.language import Currency, Language, Noun, Rule, alternatives

_ONES = (
    *("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn", "elf", "zwölf"),
    *("dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn", "neunzehn"),
)
_TENS = ("zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig")
_SCALES = ((10**12, "Billion"), (10**9, "Milliarde"), (10**6, "Million"))
_RANKS = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}
_MONTHS = (
    *("Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November"),
    "Dezember",
)
_BEFORE_DATIVE = r"(?:\b(?:am|vom|zum|dem|den|im|ab|beim|bis) )"


def _noun(name: str, many: str | None = None, one: str = "ein") -> Noun:
    return Noun(f"{one} {name}", many or name)


class German(Language):
    """German."""

    digits = _ONES[:10]
    point = "Komma"
    minus = "minus"
    plus = "plus"
    to = "bis"
    dot = "Punkt"
    per = "pro"
    times = "mal"
    by = "mal"
    power = "hoch"
    powers: ClassVar = {}
    address: ClassVar = {
        ".": "Punkt",
        "@": "ät",
        "/": "Schrägstrich",
        "-": "Strich",
        "_": "Unterstrich",
        ":": "Doppelpunkt",
    }
    version = "Version"
    symbols: ClassVar = {
        "+": "plus",
        "=": "gleich",
        "<": "kleiner als",
        ">": "größer als",
        "&": "und",
        "@": "ät",
        "%": "Prozent",
        "×": "mal",
        "÷": "geteilt durch",
        "±": "plus minus",
        "°": "Grad",
        "§": "Paragraf",
        "€": "Euro",
        "$": "Dollar",
    }
    months = _MONTHS
    units: ClassVar = {
        "kg": _noun("Kilogramm"),
        "g": _noun("Gramm"),
        "mg": _noun("Milligramm"),
        "t": _noun("Tonne", "Tonnen", "eine"),
        "km": _noun("Kilometer"),
        "m": _noun("Meter"),
        "cm": _noun("Zentimeter"),
        "mm": _noun("Millimeter"),
        "l": _noun("Liter"),
        "L": _noun("Liter"),
        "ml": _noun("Milliliter"),
        "h": _noun("Stunde", "Stunden", "eine"),
        "min": _noun("Minute", "Minuten", "eine"),
        "s": _noun("Sekunde", "Sekunden", "eine"),
        "km/h": _noun("Kilometer pro Stunde"),
        "m/s": _noun("Meter pro Sekunde"),
        "%": _noun("Prozent"),
        "°C": _noun("Grad Celsius"),
        "°F": _noun("Grad Fahrenheit"),
        "°": _noun("Grad"),
        "V": _noun("Volt"),
        "W": _noun("Watt"),
        "kW": _noun("Kilowatt"),
        "kWh": _noun("Kilowattstunde", "Kilowattstunden", "eine"),
        "MB": _noun("Megabyte"),
        "GB": _noun("Gigabyte"),
        "kB": _noun("Kilobyte"),
        "TB": _noun("Terabyte"),
        "Hz": _noun("Hertz"),
        "kHz": _noun("Kilohertz"),
        "MHz": _noun("Megahertz"),
        "GHz": _noun("Gigahertz"),
        "m^2": _noun("Quadratmeter"),
        "km^2": _noun("Quadratkilometer"),
        "m^3": _noun("Kubikmeter"),
    }
    currencies: ClassVar = {
        **{name: Currency(_noun("Euro"), _noun("Cent")) for name in ("€", "EUR", "Euro")},
        **{name: Currency(_noun("Dollar"), _noun("Cent")) for name in ("$", "Dollar")},
        **{name: Currency(_noun("US-Dollar"), _noun("Cent")) for name in ("US$", "USD")},
        **{name: Currency(_noun("Pfund"), _noun("Penny", "Pence")) for name in ("£", "GBP")},
        **{name: Currency(_noun("Franken"), _noun("Rappen")) for name in ("CHF", "Fr.")},
        **{name: Currency(_noun("Yen")) for name in ("¥", "JPY")},
    }
    scales: ClassVar = {
        **dict.fromkeys(("Tsd.", "tausend"), ("eintausend", "tausend")),
        **dict.fromkeys(("Mio.", "Mio", "Million", "Millionen"), ("eine Million", "Millionen")),
        **dict.fromkeys(("Mrd.", "Mrd", "Milliarde", "Milliarden"), ("eine Milliarde", "Milliarden")),
    }
    titles: ClassVar = {
        "Dr": "Doktor",
        "Prof": "Professor",
        "Hr": "Herr",
        "Fr": "Frau",
        "St": "Sankt",
        "ca": "circa",
        "z. B": "zum Beispiel",
        "z.B": "zum Beispiel",
        "d. h": "das heißt",
        "d.h": "das heißt",
        "bzw": "beziehungsweise",
        "z": "z",
        "d": "d",
        "u": "u",
        "vgl": "vergleiche",
        "inkl": "inklusive",
    }
    numbered: ClassVar = {"Nr": "Nummer", "S": "Seite", "Abb": "Abbildung", "Kap": "Kapitel", "Bd": "Band"}
    closing: ClassVar = {"usw": "und so weiter", "etc": "et cetera"}

    @property
    def word_rules(self) -> tuple[Rule, ...]:
        month = alternatives(_MONTHS)
        day = rf"({_BEFORE_DATIVE}?)(?<![\d.,])([12]?\d|3[01])\. ?({month})\b(?: (\d{{4}})\b)?"
        number = rf"({_BEFORE_DATIVE}?)(?<![\d.,])([12]?\d|0\d|3[01])\.(0?[1-9]|1[0-2])\.(\d{{4}}|\d\d)\b"
        return (
            Rule("day and month", re.compile(day), self._day_month),
            Rule("day in figures", re.compile(number), self._day_number),
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (
            Rule("century", re.compile(r"\b(im |des )?(\d{1,2})\. (?=Jahrhundert)"), self._century),
            Rule(
                "hours",
                re.compile(r"(?<![\d:.,])([01]?\d|2[0-4]) Uhr\b"),
                lambda match: self.clock(int(match[1]), 0, None),
            ),
            Rule("clock", re.compile(r"(?<![\d:.,])([01]?\d|2[0-3])[:.]([0-5]\d) Uhr\b"), self._clock),
        )

    def is_day(self, word: str, rest: str) -> bool:
        return word.isdigit() and rest.startswith(_MONTHS)

    def cardinal(self, number: int) -> str:
        for size, name in _SCALES:
            if number >= size:
                count, rest = divmod(number, size)
                many = name + ("n" if name.endswith("e") else "en")
                words = f"eine {name}" if count == 1 else f"{self.cardinal(count)} {many}"
                return f"{words} {self.cardinal(rest)}" if rest else words
        thousands, rest = divmod(number, 1000)
        if thousands:
            return f"{_below_thousand(thousands, 'ein')}tausend" + (_below_thousand(rest, "eins") if rest else "")
        return _below_thousand(rest, "eins")

    def ordinal(self, number: int) -> str:
        rest = number % 100
        if rest in _RANKS:
            return self.cardinal(number).removesuffix(_ONES[rest]) + _RANKS[rest]
        return self.cardinal(number) + ("te" if 0 < rest < 20 else "ste")

    def year(self, number: int) -> str:
        if 1100 <= number < 2000:
            rest = number % 100
            return f"{_ONES[number // 100]}hundert{_below_thousand(rest, 'eins') if rest else ''}"
        return self.cardinal(number).removeprefix("ein") if 1000 <= number < 1100 else self.cardinal(number)

    def money(self, wholes: int, cents: int, currency: Currency) -> str:
        if wholes and cents:
            return f"{self.count(str(wholes), currency.whole)} {self.cardinal(cents)}"
        return super().money(wholes, cents, currency)

    def fraction(self, numerator: int, denominator: int) -> str:
        if not 2 <= denominator <= 100:
            return f"{self.cardinal(numerator)} durch {self.cardinal(denominator)}"
        name = "halb" if denominator == 2 else self.ordinal(denominator).capitalize() + "l"
        return f"{'ein' if numerator == 1 else self.cardinal(numerator)} {name}"

    def clock(self, hours: int, minutes: int, seconds: int | None) -> str:
        said = f"{'ein' if hours == 1 else self.cardinal(hours)} Uhr" + (
            f" {self.cardinal(minutes)}" if minutes else ""
        )
        return said if seconds is None else f"{said} und {self.count(str(seconds), self.units['s'])}"

    def date(self, day: int, month: int, year: int | None) -> str:
        return f"{self.ordinal(day)}r {_MONTHS[month - 1]}" + (f" {self.year(year)}" if year is not None else "")

    def _day_month(self, match: re.Match[str]) -> str:
        return self._day(match[1], int(match[2]), match[3], match[4])

    def _day_number(self, match: re.Match[str]) -> str:
        return self._day(match[1], int(match[2]), _MONTHS[int(match[3]) - 1], match[4])

    def _day(self, before: str, day: int, month: str, year: str | None) -> str:
        return f"{before}{self.ordinal(day)}{'n' if before else 'r'} {month}" + (
            f" {self.year(int(year))}" if year else ""
        )

    def _century(self, match: re.Match[str]) -> str:
        return f"{match[1] or ''}{self.ordinal(int(match[2]))}{'n' if match[1] else 's'} "

    def _clock(self, match: re.Match[str]) -> str:
        return self.clock(int(match[1]), int(match[2]), None)


def _below_thousand(number: int, one: str) -> str:
    hundreds, rest = divmod(number, 100)
    words = f"{'ein' if hundreds == 1 else _ONES[hundreds]}hundert" if hundreds else ""
    if rest == 0 and hundreds:
        return words
    if rest < 20:
        return words + (one if rest == 1 else _ONES[rest])
    tens, ones = divmod(rest, 10)
    return words + (f"{'ein' if ones == 1 else _ONES[ones]}und" if ones else "") + _TENS[tens - 2]
