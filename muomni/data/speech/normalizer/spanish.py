"""Spanish."""

import re
from typing import ClassVar

from muomni.data.speech.normalizer.language import Currency, Language, Noun, Rule

_ONES = (
    *(
        "cero",
        "uno",
        "dos",
        "tres",
        "cuatro",
        "cinco",
        "seis",
        "siete",
        "ocho",
        "nueve",
        "diez",
        "once",
        "doce",
        "trece",
    ),
    *("catorce", "quince", "dieciséis", "diecisiete", "dieciocho", "diecinueve", "veinte", "veintiuno", "veintidós"),
    *("veintitrés", "veinticuatro", "veinticinco", "veintiséis", "veintisiete", "veintiocho", "veintinueve"),
)
_TENS = ("treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa")
_HUNDREDS = (
    *("ciento", "doscientos", "trescientos", "cuatrocientos", "quinientos", "seiscientos", "setecientos"),
    *("ochocientos", "novecientos"),
)
_RANKS = ("primero", "segundo", "tercero", "cuarto", "quinto", "sexto", "séptimo", "octavo", "noveno", "décimo")
_MONTHS = (
    *("enero", "febrero", "marzo", "abril", "mayo", "junio", "julio", "agosto", "septiembre", "octubre", "noviembre"),
    "diciembre",
)
_PARTS = {2: "medio", 3: "tercio", 4: "cuarto"}


def _noun(name: str, many: str | None = None, one: str = "un") -> Noun:
    return Noun(f"{one} {name}", many or f"{name}s")


class Spanish(Language):
    """Spanish."""

    digits = _ONES[:10]
    point = "coma"
    minus = "menos"
    plus = "más"
    to = "a"
    dot = "punto"
    per = "por"
    times = "por"
    by = "por"
    power = "elevado a"
    powers: ClassVar = {"2": "al cuadrado", "3": "al cubo"}
    address: ClassVar = {".": "punto", "@": "arroba", "/": "barra", "-": "guion", "_": "guion bajo", ":": "dos puntos"}
    version = "versión"
    symbols: ClassVar = {
        "+": "más",
        "=": "igual a",
        "<": "menor que",
        ">": "mayor que",
        "&": "y",
        "@": "arroba",
        "%": "por ciento",
        "×": "por",
        "÷": "dividido por",
        "±": "más o menos",
        "°": "grados",
        "€": "euro",
        "$": "dólar",
    }
    months = _MONTHS
    units: ClassVar = {
        "kg": _noun("kilogramo"),
        "g": _noun("gramo"),
        "mg": _noun("miligramo"),
        "t": _noun("tonelada", one="una"),
        "km": _noun("kilómetro"),
        "m": _noun("metro"),
        "cm": _noun("centímetro"),
        "mm": _noun("milímetro"),
        "l": _noun("litro"),
        "L": _noun("litro"),
        "ml": _noun("mililitro"),
        "h": _noun("hora", one="una"),
        "min": _noun("minuto"),
        "s": _noun("segundo"),
        "°": _noun("grado"),
        "km/h": _noun("kilómetro por hora", "kilómetros por hora"),
        "°C": _noun("grado Celsius", "grados Celsius"),
        "m/s": _noun("metro por segundo", "metros por segundo"),
        "%": _noun("por ciento", "por ciento"),
        "V": _noun("voltio"),
        "W": _noun("vatio"),
        "kW": _noun("kilovatio"),
        "kWh": _noun("kilovatio hora", "kilovatios hora"),
        "MB": _noun("megabyte"),
        "GB": _noun("gigabyte"),
        "kB": _noun("kilobyte"),
        "Hz": _noun("hercio"),
        "m^2": _noun("metro cuadrado", "metros cuadrados"),
        "m^3": _noun("metro cúbico", "metros cúbicos"),
        "km^2": _noun("kilómetro cuadrado", "kilómetros cuadrados"),
    }
    currencies: ClassVar = {
        **{name: Currency(_noun("euro"), _noun("céntimo")) for name in ("€", "EUR")},
        **{name: Currency(_noun("dólar", "dólares"), _noun("centavo")) for name in ("$", "US$", "USD")},
        **{name: Currency(_noun("libra", one="una"), _noun("penique")) for name in ("£", "GBP")},
        **{name: Currency(_noun("yen", "yenes")) for name in ("¥", "JPY")},
        "CHF": Currency(_noun("franco suizo", "francos suizos"), _noun("céntimo")),
    }
    scales: ClassVar = {
        **dict.fromkeys(("k", "mil"), ("mil", "mil")),
        **dict.fromkeys(("M", "millón", "millones"), ("un millón", "millones")),
    }
    titles: ClassVar = {
        "Sr": "Señor",
        "Sra": "Señora",
        "Srta": "Señorita",
        "Dr": "Doctor",
        "Dra": "Doctora",
        "Ud": "usted",
        "Uds": "ustedes",
    }
    numbered: ClassVar = {"pág": "página", "p": "página", "núm": "número", "fig": "figura", "vol": "volumen"}
    closing: ClassVar = {"etc": "etcétera"}

    @property
    def rules(self) -> tuple[Rule, ...]:
        rank = re.compile(r"(?<![\w.,])(\d{1,15})\.?([oa])\b")  # "º" and "ª" are letters by now
        return (Rule("ordinal", rank, self._rank),)

    def cardinal(self, number: int) -> str:
        millions, rest = divmod(number, 10**6)
        if millions >= 10**6:
            billions, rest = divmod(number, 10**12)
            words = "un billón" if billions == 1 else f"{self.before_noun(self.cardinal(billions))} billones"
            return f"{words} {self.cardinal(rest)}" if rest else words
        if millions:
            words = "un millón" if millions == 1 else f"{self.before_noun(self.cardinal(millions))} millones"
            return f"{words} {self.cardinal(rest)}" if rest else words
        thousands, rest = divmod(number, 1000)
        if thousands:
            words = "mil" if thousands == 1 else f"{self.before_noun(_below_thousand(thousands))} mil"
            return f"{words} {_below_thousand(rest)}" if rest else words
        return _below_thousand(rest)

    def ordinal(self, number: int) -> str:
        return _RANKS[number - 1] if 1 <= number <= 10 else self.cardinal(number)

    def before_noun(self, words: str) -> str:
        if words.endswith("veintiuno"):
            return f"{words[:-3]}ún"
        return words[:-1] if words.endswith("uno") else words

    def scaled_money(self, words: str, currency: Currency) -> str:
        return f"{words} {'' if words.endswith('mil') else 'de '}{currency.whole.many}"

    def money(self, wholes: int, cents: int, currency: Currency) -> str:
        if wholes and cents:
            return f"{self.count(str(wholes), currency.whole)} con {self.cardinal(cents)}"
        return super().money(wholes, cents, currency)

    def fraction(self, numerator: int, denominator: int) -> str:
        if not 2 <= denominator <= 10:
            return f"{self.cardinal(numerator)} sobre {self.cardinal(denominator)}"
        name = _PARTS.get(denominator) or _RANKS[denominator - 1]
        return f"{self.before_noun(self.cardinal(numerator))} {name if numerator == 1 else f'{name}s'}"

    def mixed(self, whole: str, numerator: int, denominator: int) -> str:
        return f"{whole} y {self.fraction(numerator, denominator)}"

    def clock(self, hours: int, minutes: int, seconds: int | None) -> str:
        said = (
            f"{self.cardinal(hours)} {self.cardinal(minutes)}" if minutes else self.count(str(hours), self.units["h"])
        )
        return said if seconds is None else f"{said} y {self.count(str(seconds), self.units['s'])}"

    def date(self, day: int, month: int, year: int | None) -> str:
        return f"{self.cardinal(day)} de {_MONTHS[month - 1]}" + (f" de {self.year(year)}" if year is not None else "")

    def _rank(self, match: re.Match[str]) -> str:
        words = self.ordinal(int(match[1]))
        return f"{words[:-1]}a" if match[2] == "a" and words.endswith("o") else words


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if number == 100:
        return "cien"
    words = _HUNDREDS[hundreds - 1] if hundreds else ""
    if rest == 0 and hundreds:
        return words
    if rest < 30:
        return f"{words} {_ONES[rest]}".strip()
    tens, ones = divmod(rest, 10)
    return f"{words} {_TENS[tens - 3]}".strip() + (f" y {_ONES[ones]}" if ones else "")
