"""French, as in France."""

import re
from typing import ClassVar

from muomni.data.speech.normalizer.language import Currency, Language, Noun, Rule

_ONES = (
    *("zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix", "onze", "douze", "treize"),
    *("quatorze", "quinze", "seize", "dix-sept", "dix-huit", "dix-neuf"),
)
_TENS = ("vingt", "trente", "quarante", "cinquante", "soixante", "soixante", "quatre-vingt", "quatre-vingt")
_SCALES = ((10**12, "billion"), (10**9, "milliard"), (10**6, "million"))
_MONTHS = (
    *("janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre", "novembre"),
    "décembre",
)


def _noun(name: str, many: str | None = None, one: str = "un") -> Noun:
    return Noun(f"{one} {name}", many or f"{name}s")


class French(Language):
    """French."""

    digits = _ONES[:10]
    point = "virgule"
    minus = "moins"
    plus = "plus"
    to = "à"
    dot = "point"
    per = "par"
    times = "fois"
    by = "sur"
    power = "puissance"
    powers: ClassVar = {"2": "au carré", "3": "au cube"}
    address: ClassVar = {".": "point", "@": "arobase", "/": "barre", "-": "tiret", "_": "tiret bas", ":": "deux-points"}
    symbols: ClassVar = {
        "+": "plus",
        "=": "égale",
        "<": "inférieur à",
        ">": "supérieur à",
        "&": "et",
        "@": "arobase",
        "%": "pour cent",
        "×": "fois",
        "÷": "divisé par",
        "±": "plus ou moins",
        "°": "degrés",
        "€": "euro",
        "$": "dollar",
    }
    months = _MONTHS
    units: ClassVar = {
        "kg": _noun("kilogramme"),
        "g": _noun("gramme"),
        "mg": _noun("milligramme"),
        "t": _noun("tonne", one="une"),
        "km": _noun("kilomètre"),
        "m": _noun("mètre"),
        "cm": _noun("centimètre"),
        "mm": _noun("millimètre"),
        "l": _noun("litre"),
        "L": _noun("litre"),
        "ml": _noun("millilitre"),
        "h": _noun("heure", one="une"),
        "min": _noun("minute", one="une"),
        "s": _noun("seconde", one="une"),
        "°": _noun("degré"),
        "km/h": _noun("kilomètre par heure", "kilomètres par heure"),
        "°C": _noun("degré Celsius", "degrés Celsius"),
        "m/s": _noun("mètre par seconde", "mètres par seconde"),
        "%": _noun("pour cent", "pour cent"),
        "V": _noun("volt"),
        "W": _noun("watt"),
        "kW": _noun("kilowatt"),
        "kWh": _noun("kilowattheure"),
        "Mo": _noun("mégaoctet"),
        "Go": _noun("gigaoctet"),
        "MB": _noun("mégaoctet"),
        "GB": _noun("gigaoctet"),
        "Hz": _noun("hertz", "hertz"),
        "kHz": _noun("kilohertz", "kilohertz"),
        "m^2": _noun("mètre carré", "mètres carrés"),
        "km^2": _noun("kilomètre carré", "kilomètres carrés"),
        "m^3": _noun("mètre cube", "mètres cubes"),
    }
    currencies: ClassVar = {
        **{name: Currency(_noun("euro"), _noun("centime")) for name in ("€", "EUR")},
        **{name: Currency(_noun("dollar"), _noun("cent")) for name in ("$", "US$", "USD")},
        **{name: Currency(_noun("livre", one="une"), _noun("penny", "pence")) for name in ("£", "GBP")},
        **{name: Currency(_noun("yen")) for name in ("¥", "JPY")},
        "CHF": Currency(_noun("franc suisse", "francs suisses"), _noun("centime")),
    }
    scales: ClassVar = {
        **dict.fromkeys(("k", "mille"), ("mille", "mille")),
        **dict.fromkeys(("M", "million", "millions"), ("un million", "millions")),
        **dict.fromkeys(("Md", "milliard", "milliards"), ("un milliard", "milliards")),
    }
    titles: ClassVar = {"M": "Monsieur", "MM": "Messieurs", "Dr": "Docteur", "Pr": "Professeur"}
    numbered: ClassVar = {
        "p": "page",
        "pp": "pages",
        "fig": "figure",
        "vol": "volume",
        "art": "article",
        "env": "environ",
    }
    closing: ClassVar = {"etc": "et cetera"}

    @property
    def rules(self) -> tuple[Rule, ...]:
        return (
            Rule("lady", re.compile(r"\bMme\b"), lambda match: "Madame", digits=False),
            Rule("young lady", re.compile(r"\bMlle\b"), lambda match: "Mademoiselle", digits=False),
            Rule(
                "first",
                re.compile(r"(?<![\w.,])1(er|re|ère)\b"),
                lambda match: "premier" if match[1] == "er" else "première",
            ),
            Rule(
                "ordinal",
                re.compile(r"(?<![\w.,])(\d{1,15})(?:e|ème|eme)\b"),
                lambda match: self.ordinal(int(match[1])),
            ),
            Rule("hours", re.compile(r"(?<![\w:.,])([01]?\d|2[0-3]) ?h ?([0-5]\d)?\b"), self._hours),
        )

    def cardinal(self, number: int) -> str:
        for size, name in _SCALES:
            if number >= size:
                count, rest = divmod(number, size)
                words = f"{self.cardinal(count)} {name}{'s' if count > 1 else ''}"
                return f"{words} {self.cardinal(rest)}" if rest else words
        thousands, rest = divmod(number, 1000)
        if thousands:
            # "quatre-vingts" and "cents" lose their s before "mille".
            before = re.sub("(vingt|cent)s$", r"\1", _below_thousand(thousands))
            words = "mille" if thousands == 1 else f"{before} mille"
            return f"{words} {_below_thousand(rest)}" if rest else words
        return _below_thousand(rest)

    def ordinal(self, number: int) -> str:
        if number == 1:
            return "premier"
        words = re.sub("(vingt|cent|million|milliard|billion)s$", r"\1", self.cardinal(number))
        if words.endswith("neuf"):
            return f"{words[:-1]}vième"
        return f"{words.removesuffix('e')}{'u' if words.endswith('cinq') else ''}ième"

    def before_noun(self, words: str) -> str:
        return words

    def scaled(self, text: str, scale: str) -> str:
        one, many = self.scales[scale]
        if text != "1" and text.partition(",")[0] in ("0", "1"):
            many = many.removesuffix("s")
        return one if text == "1" else f"{self.number(text)} {many}"

    def scaled_money(self, words: str, currency: Currency) -> str:
        many = currency.whole.many
        return (
            f"{words} {many}"
            if words.endswith("mille")
            else f"{words} d{chr(39) if many[0] in 'aeiouy' else 'e '}{many}"
        )

    def money(self, wholes: int, cents: int, currency: Currency) -> str:
        if wholes and cents:
            return f"{self.count(str(wholes), currency.whole)} {self.cardinal(cents)}"
        return super().money(wholes, cents, currency)

    def fraction(self, numerator: int, denominator: int) -> str:
        if not 2 <= denominator <= 100:
            return f"{self.cardinal(numerator)} sur {self.cardinal(denominator)}"
        name = {2: "demi", 3: "tiers", 4: "quart"}.get(denominator) or self.ordinal(denominator)
        return f"{self.cardinal(numerator)} {name if numerator == 1 or name.endswith('s') else f'{name}s'}"

    def mixed(self, whole: str, numerator: int, denominator: int) -> str:
        return f"{whole} et {self.fraction(numerator, denominator)}"

    def clock(self, hours: int, minutes: int, seconds: int | None) -> str:
        said = self.count(str(hours), self.units["h"]) + (f" {self.cardinal(minutes)}" if minutes else "")
        return said if seconds is None else f"{said} et {self.count(str(seconds), self.units['s'])}"

    def date(self, day: int, month: int, year: int | None) -> str:
        number = "premier" if day == 1 else self.cardinal(day)
        return f"{number} {_MONTHS[month - 1]}" + (f" {self.year(year)}" if year is not None else "")

    def _hours(self, match: re.Match[str]) -> str:
        return self.clock(int(match[1]), int(match[2] or 0), None)


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _below_hundred(rest)
    words = "cent" if hundreds == 1 else f"{_ONES[hundreds]} cent"
    return f"{words} {_below_hundred(rest)}" if rest else words + ("s" if hundreds > 1 else "")


def _below_hundred(number: int) -> str:
    if number < 20:
        return _ONES[number]
    tens, ones = divmod(number, 10)
    name = _TENS[tens - 2]
    ones += 10 * (tens in (7, 9))
    if ones == 0:
        return "quatre-vingts" if tens == 8 else name
    return f"{name} et {_ONES[ones]}" if ones in (1, 11) and tens < 8 else f"{name}-{_ONES[ones]}"
