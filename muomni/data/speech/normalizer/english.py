"""English: American spelling; numbers by inflect."""

import re
from typing import ClassVar

from muomni.data.speech.normalizer.language import Currency, Language, Noun, Rule, alternatives
from muomni.data.speech.number_words import cardinal, ordinal

_CENT = Noun("one cent", "cents")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
    "December",
)
_SHORT_MONTHS = {name[:3]: name for name in _MONTHS if name != "May"} | {"Sept": "September"}
# Names of kings, queens and popes: what follows is a rank.
_REGNAL = (
    "Henry|Louis|Elizabeth|Charles|George|James|William|Edward|Richard|Philip|Paul|Benedict|Pius|Francis|Leo|"
    "Gregory|Clement|Innocent|Urban|Catherine|Nicholas|Alexander|Peter|Frederick|Napoleon|Ramses|Ptolemy|"
    "Xerxes|Darius|Albert|Leopold|Gustav|Christian|Olaf|Haakon|Carlos|Juan|Felipe|Ferdinand|Alfonso|Friedrich|"
    "Wilhelm|Heinrich|Karl|Otto|Ludwig|Mary|Stephen|John|Constantine|Ivan|Rudolf|Joseph|Franz|Harald|Malcolm|"
    "Robert|David"
)
_PARTS = "Chapter|Part|Book|Act|Scene|Volume|Section|Article|War|Bowl|Phase|Type|Appendix|Canto|Level|Stage"
_MONTH_NAMES = frozenset(_MONTHS) | frozenset(_SHORT_MONTHS)
_ROMAN = re.compile(r"(?=[IVXLC])C{0,3}(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}


def _noun(one: str, many: str | None = None) -> Noun:
    return Noun(f"one {one}", many or f"{one}s")


_BASE_UNITS = {
    "kg": _noun("kilogram"),
    "g": _noun("gram"),
    "mg": _noun("milligram"),
    "t": _noun("ton"),
    "lb": _noun("pound"),
    "lbs": _noun("pound"),
    "oz": _noun("ounce"),
    "km": _noun("kilometer"),
    "m": _noun("meter"),
    "cm": _noun("centimeter"),
    "mm": _noun("millimeter"),
    "\N{GREEK SMALL LETTER MU}m": _noun("micrometer"),
    "nm": _noun("nanometer"),
    "ft": _noun("foot", "feet"),
    "yd": _noun("yard"),
    "mi": _noun("mile"),
    "L": _noun("liter"),
    "l": _noun("liter"),
    "ml": _noun("milliliter"),
    "mL": _noun("milliliter"),
    "s": _noun("second"),
    "sec": _noun("second"),
    "ms": _noun("millisecond"),
    "min": _noun("minute"),
    "h": Noun("one hour", "hours"),
    "hr": Noun("one hour", "hours"),
    "hrs": Noun("one hour", "hours"),
    "V": _noun("volt"),
    "W": _noun("watt"),
    "kW": _noun("kilowatt"),
    "MW": _noun("megawatt"),
    "kWh": _noun("kilowatt hour"),
    "Wh": _noun("watt hour"),
    "mA": _noun("milliampere"),
    "Hz": _noun("hertz", "hertz"),
    "kHz": _noun("kilohertz", "kilohertz"),
    "MHz": _noun("megahertz", "megahertz"),
    "GHz": _noun("gigahertz", "gigahertz"),
    "dB": _noun("decibel"),
    "KB": _noun("kilobyte"),
    "kB": _noun("kilobyte"),
    "MB": _noun("megabyte"),
    "GB": _noun("gigabyte"),
    "TB": _noun("terabyte"),
    "GiB": _noun("gibibyte"),
    "MiB": _noun("mebibyte"),
    "Mbps": _noun("megabit per second", "megabits per second"),
    "mph": _noun("mile per hour", "miles per hour"),
    "kcal": _noun("kilocalorie"),
    "px": _noun("pixel"),
    "fps": _noun("frame per second", "frames per second"),
    "rpm": _noun("revolution per minute", "revolutions per minute"),
}
_TIMES = {"h": "hour", "s": "second", "min": "minute"}


def _units() -> dict[str, Noun]:
    units = dict(_BASE_UNITS)
    for unit in ("km", "m", "ft", "mi", "MB", "GB", "kB", "l", "L", "kg", "g"):
        noun = _BASE_UNITS[unit]
        units |= {
            f"{unit}/{short}": Noun(f"{noun.one} per {time}", f"{noun.many} per {time}")
            for short, time in _TIMES.items()
        }
    for unit in ("km", "m", "cm", "mm", "ft", "mi"):
        noun = _BASE_UNITS[unit]
        for power, name in (("^2", "square"), ("^3", "cubic")):
            units[unit + power] = Noun(noun.one.replace("one ", f"one {name} "), f"{name} {noun.many}")
    units |= {"°C": Noun("one degree C", "degrees C"), "°F": Noun("one degree F", "degrees F")}
    return units | {"°": Noun("one degree", "degrees"), "%": Noun("one percent", "percent")}


class English(Language):
    """English as in the United States, or in Britain where the day comes first."""

    decimal = "."
    grouping = ","
    digits = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    point = "point"
    minus = "minus"
    plus = "plus"
    to = "to"
    dot = "dot"
    per = "per"
    times = "times"
    by = "by"
    power = "to the power of"
    powers: ClassVar = {"2": "squared", "3": "cubed"}
    and_cents = " and "
    symbols: ClassVar = {
        "+": "plus", "=": "equals", "<": "less than", ">": "greater than", "&": "and", "@": "at", "%": "percent",
        "×": "times", "÷": "divided by", "±": "plus or minus", "≈": "approximately", "≤": "at most",
        "≥": "at least", "≠": "is not equal to", "°": "degrees", "§": "section", "∞": "infinity", "√": "square root of",
        "$": "dollar", "€": "euro", "£": "pound", "¥": "yen", "#": "hashtag", "¢": "cent",
    }  # fmt: skip
    address: ClassVar = {
        ".": "dot",
        "/": "slash",
        "-": "dash",
        "_": "underscore",
        "?": "question mark",
        "=": "equals",
        "&": "and",
        "#": "hash",
        "~": "tilde",
        ":": "colon",
        "%": "percent",
        "+": "plus",
        "@": "at",
    }
    months = _MONTHS
    units: ClassVar = _units()
    currencies: ClassVar = {
        **{name: Currency(_noun("dollar"), _CENT) for name in ("$",)},
        **{name: Currency(_noun("US dollar"), _CENT) for name in ("US$", "USD")},
        **{name: Currency(_noun("Australian dollar"), _CENT) for name in ("A$", "AU$", "AUD")},
        **{name: Currency(_noun("Canadian dollar"), _CENT) for name in ("C$", "CA$", "CAD")},
        **{name: Currency(_noun("euro"), _CENT) for name in ("€", "EUR")},
        **{name: Currency(_noun("pound"), Noun("one penny", "pence")) for name in ("£", "GBP")},
        **{name: Currency(_noun("yen", "yen")) for name in ("¥", "JPY")},
        **{name: Currency(_noun("rupee"), Noun("one paisa", "paise")) for name in ("₹", "INR")},
        "CHF": Currency(_noun("Swiss franc"), Noun("one centime", "centimes")),
        "₩": Currency(_noun("won", "won")),
        "₽": Currency(_noun("ruble"), Noun("one kopeck", "kopecks")),
        "₿": Currency(_noun("bitcoin")),
        "¢": Currency(_CENT),
        "CNY": Currency(_noun("yuan", "yuan")),
    }
    scales: ClassVar = {
        **dict.fromkeys(("k", "K", "thousand"), ("one thousand", "thousand")),
        **dict.fromkeys(("m", "M", "mn", "million"), ("one million", "million")),
        **dict.fromkeys(("b", "B", "bn", "billion"), ("one billion", "billion")),
        **dict.fromkeys(("T", "tn", "trillion"), ("one trillion", "trillion")),
    }
    titles: ClassVar = {
        "Mr": "Mister",
        "Mrs": "Missus",
        "Ms": "Ms",
        "Dr": "Doctor",
        "Prof": "Professor",
        "Sgt": "Sergeant",
        "Capt": "Captain",
        "Lt": "Lieutenant",
        "Gen": "General",
        "Col": "Colonel",
        "Rev": "Reverend",
        "Sen": "Senator",
        "Gov": "Governor",
        "Mt": "Mount",
        "Ft": "Fort",
        "Jr": "Junior",
        "Sr": "Senior",
        "vs": "versus",
        "approx": "approximately",
        "Dept": "Department",
        "dept": "department",
        "e.g": "for example",
        "i.e": "that is",
        "E.g": "For example",
        "I.e": "That is",
        "Messrs": "Messieurs",
        "Pres": "President",
    }
    numbered: ClassVar = {
        "No": "number",
        "Nos": "numbers",
        "p": "page",
        "pp": "pages",
        "Fig": "figure",
        "fig": "figure",
        "Vol": "volume",
        "vol": "volume",
        "Ch": "chapter",
        "ch": "chapter",
        "Sec": "section",
        "sec": "section",
        "Art": "article",
        "Figs": "figures",
        "figs": "figures",
        "ca": "circa",
        "Eq": "equation",
        "eq": "equation",
    }
    closing: ClassVar = {
        "etc": "et cetera",
        "Inc": "Incorporated",
        "Ltd": "Limited",
        "Corp": "Corporation",
        "Co": "Company",
        "Blvd": "Boulevard",
        "Ave": "Avenue",
        "Rd": "Road",
        "St": "Street",
        "a.m": "a m",
        "p.m": "p m",
        "lbs": "lbs",
        "oz": "oz",
        "ft": "ft",
        **_SHORT_MONTHS,
    }

    def __init__(self, day_first: bool = False) -> None:
        self.day_first = day_first

    @property
    def word_rules(self) -> tuple[Rule, ...]:
        return (Rule("saint", re.compile(r"\bSt\.(?= [A-Z])"), lambda match: "Saint", digits=False),)

    @property
    def rules(self) -> tuple[Rule, ...]:
        month = alternatives(_MONTHS)
        signs, number = alternatives(self.currencies), self.number_pattern
        scale = rf" (?:{alternatives(name for name in self.scales if len(name) > 2)})"
        meridiem = re.compile(
            r"(?<![\w:.,])(1[0-2]|0?\d)(?::([0-5]\d))?(?::([0-5]\d))? ?([aApP])"
            r"(?:[mM]\b|\.[mM]\b(?:\.(?=\s+[^\sA-Z]|,))?)"
        )
        year = r"(?:,? ((?:1[0-9]|20)\d\d)(?![\d,.]\d))?"
        month_day = re.compile(rf"\b({month}) (\d\d?)(?:st|nd|rd|th)?(?: to (\d\d?))?\b(?![:.,]\d){year}")
        rank = re.compile(r"(?<![\w.])(\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:st|nd|rd|th)\b", re.IGNORECASE)
        return (
            Rule("price", re.compile(rf"\b([Aa]n?) ({signs})({number})({scale})? (?=[a-z])"), self._price),
            Rule("time of day", meridiem, self._meridiem),
            Rule("month and day", month_day, self._month_day),
            Rule("day and month", re.compile(rf"(?<![\d.,:/-])(\d\d?) ({month})\b{year}"), self._day_month),
            Rule("height", re.compile(r"(?<![\w'.,])(\d)' ?(1[01]|\d)\"(?!\w)"), self._height),
            Rule("all the time", re.compile(r"(?<![\d/])24/7(?![\d/])"), lambda match: "twenty-four seven"),
            Rule("the attacks", re.compile(r"(?<![\d/])9/11(?![\d/])"), lambda match: "nine eleven"),
            Rule("decade", re.compile(r"(?<![\w.,])'?([2-9]0|(?:1[0-9]|20)\d0)'?s\b"), self._decade),
            Rule("regnal number", re.compile(rf"\b({_REGNAL}) ([IVX]{{2,}})\b"), self._regnal, digits=False),
            Rule("numbered part", re.compile(rf"\b({_PARTS}) ([IVXLC]+)\b"), self._roman_cardinal, digits=False),
            Rule("roman numeral", re.compile(r"\b([A-Z][a-z]+) ([IVX]{2,})\b"), self._roman_cardinal, digits=False),
            Rule("ordinal", rank, self._rank),
            Rule("C#", re.compile(r"\b([CF])#(?!\w)"), lambda match: f"{match[1]} sharp", digits=False),
            Rule("number sign", re.compile(r"#(?=\d)"), lambda match: "number "),
            Rule("about", re.compile(r"~(?=\d)"), lambda match: "about "),
        )

    def awaits_number(self, word: str) -> bool:
        return word in _MONTH_NAMES or super().awaits_number(word)

    def cardinal(self, number: int) -> str:
        return cardinal(number)

    def ordinal(self, number: int) -> str:
        return ordinal(number)

    def year(self, number: int) -> str:
        century, rest = divmod(number, 100)
        if not 10 < century < 21 or (century == 20 and rest < 10):
            return self.cardinal(number)
        if rest == 0:
            return f"{self.cardinal(century)} hundred"
        return f"{self.cardinal(century)} {'oh ' if rest < 10 else ''}{self.cardinal(rest)}"

    def fraction(self, numerator: int, denominator: int) -> str:
        if numerator >= denominator or denominator > 100:
            return f"{self.cardinal(numerator)} over {self.cardinal(denominator)}"
        name = {2: "half", 4: "quarter"}.get(denominator) or self.ordinal(denominator)
        return f"{self.cardinal(numerator)} {name if numerator == 1 else f'{name}s'}"

    def mixed(self, whole: str, numerator: int, denominator: int) -> str:
        part = self.fraction(numerator, denominator)
        if numerator == 1 < denominator:
            name = part.removeprefix("one ")
            part = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        return f"{whole} and {part}"

    def clock(self, hours: int, minutes: int, seconds: int | None) -> str:
        if hours == minutes == 0 and not seconds:
            return "midnight"
        said = self.cardinal(hours)
        if minutes or seconds is not None:
            said += f" {'oh ' if minutes < 10 else ''}{self.cardinal(minutes)}"
        else:
            said += " o'clock"
        return said if seconds is None else f"{said} and {self.count(str(seconds), self.units['s'])}"

    def date(self, day: int, month: int, year: int | None) -> str:
        name = _MONTHS[month - 1]
        if self.day_first:
            return f"the {self.ordinal(day)} of {name}" + (f" {self.year(year)}" if year is not None else "")
        return f"{name} {self.ordinal(day)}" + (f", {self.year(year)}" if year is not None else "")

    def _price(self, match: re.Match[str]) -> str:
        words = self.scaled(match[3], match[4].strip()) if match[4] else self.number(match[3])
        return f"{match[1]} {words} {self.currencies[match[2]].whole.one.removeprefix('one ')} "

    def _meridiem(self, match: re.Match[str]) -> str:
        hours, minutes = int(match[1]), int(match[2] or 0)
        seconds = int(match[3]) if match[3] else None
        said = self.clock(hours, minutes, seconds) if minutes or seconds else self.cardinal(hours)
        return f"{said} {match[4].lower()} m"

    def _month_day(self, match: re.Match[str]) -> str:
        days = [int(day) for day in (match[2], match[3]) if day]
        if not all(1 <= day <= 31 for day in days):
            return match[0]
        said = f"{match[1]} {' to '.join(map(self.ordinal, days))}"
        return f"{said}, {self.year(int(match[4]))}" if match[4] else said

    def _day_month(self, match: re.Match[str]) -> str:
        day = int(match[1])
        if not 1 <= day <= 31:
            return match[0]
        return f"the {self.ordinal(day)} of {match[2]}" + (f" {self.year(int(match[3]))}" if match[3] else "")

    def _height(self, match: re.Match[str]) -> str:
        return f"{self.count(match[1], self.units['ft'])} {self.count(match[2], _noun('inch', 'inches'))}"

    def _decade(self, match: re.Match[str]) -> str:
        number = int(match[1])
        words = self.year(number) if number > 99 else self.cardinal(number)
        return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"

    def _regnal(self, match: re.Match[str]) -> str:
        number = roman(match[2])
        return match[0] if number is None else f"{match[1]} the {self.ordinal(number)}"

    def _roman_cardinal(self, match: re.Match[str]) -> str:
        number = roman(match[2])
        return match[0] if number is None else f"{match[1]} {self.cardinal(number)}"

    def _rank(self, match: re.Match[str]) -> str:
        return self.ordinal(int(match[1].replace(",", "")))


def roman(numeral: str) -> int | None:
    """The value of a Roman numeral below 400, None if it is none."""
    if not _ROMAN.fullmatch(numeral):
        return None
    values = [_VALUES[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))
