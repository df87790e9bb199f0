"""English: American spelling; numbers by inflect."""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from muomni.data.speech.normalizer.language import FullLanguage, Noun, Rule, alternatives, roman

if TYPE_CHECKING:
    import inflect

# Names of kings, queens and popes: what follows is a rank.
_REGNAL = (
    "Henry|Louis|Elizabeth|Charles|George|James|William|Edward|Richard|Philip|Paul|Benedict|Pius|Francis|Leo|"
    "Gregory|Clement|Innocent|Urban|Catherine|Nicholas|Alexander|Peter|Frederick|Napoleon|Ramses|Ptolemy|"
    "Xerxes|Darius|Albert|Leopold|Gustav|Christian|Olaf|Haakon|Carlos|Juan|Felipe|Ferdinand|Alfonso|Friedrich|"
    "Wilhelm|Heinrich|Karl|Otto|Ludwig|Mary|Stephen|John|Constantine|Ivan|Rudolf|Joseph|Franz|Harald|Malcolm|"
    "Robert|David|Adrian|Ramesses|Sixtus|Julius|Boniface|Celestine|Victor|Umberto|Baldwin|Amenhotep|Thutmose|Seti|"
    "Michael|Basil|Maximilian|Sigismund|Casimir|Rama|Mehmed|Murad|Selim|Suleiman|Andrew|Edmund|Harold|Margaret|"
    "Isabella|Rudolph|Philippe|Petar|Peder|Eric|Cleopatra|Tiberius"
)
_RULERS = "Pope|King|Queen|Emperor|Empress|Tsar|Czar|Tsarina|Prince|Princess|Pharaoh|Sultan|Shah|Duke"
_PARTS = "Chapter|Part|Book|Act|Scene|Volume|Section|Article|War|Bowl|Phase|Type|Appendix|Canto|Level|Stage|Episode"


@dataclass(frozen=True, eq=False, kw_only=True)
class English(FullLanguage):
    """English as in the United States, or in Britain where the day comes first."""

    @classmethod
    def from_words(cls, words: dict[str, Any], day_first: bool) -> "English":
        """With units by time, area and volume besides those of the table."""
        plain: dict[str, Noun] = words["units"]
        units = dict(plain)
        for unit in ("km", "m", "ft", "mi", "MB", "GB", "kB", "l", "L", "kg", "g"):
            for short, time in (("h", "hour"), ("s", "second"), ("min", "minute")):
                units[f"{unit}/{short}"] = Noun(f"{plain[unit].one} per {time}", f"{plain[unit].many} per {time}")
        for unit in ("km", "m", "cm", "mm", "ft", "mi"):
            for power, name in (("^2", "square"), ("^3", "cubic")):
                one = plain[unit].one.replace("one ", f"one {name} ")
                units[unit + power] = Noun(one, f"{name} {plain[unit].many}")
        for unit in ("kg", "g", "mg"):
            for volume in ("m^3", "cm^3", "l", "L", "ml"):
                per = units[volume].one.removeprefix("one ")
                units[f"{unit}/{volume}"] = Noun(f"{plain[unit].one} per {per}", f"{plain[unit].many} per {per}")
        return cls(**words | {"units": units}, day_first=day_first)

    @property
    def word_rules(self) -> tuple[Rule, ...]:
        """Saints."""
        return (Rule("saint", re.compile(r"\bSt\.(?= [A-Z])"), "Saint", digits=False),)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Prices before a noun, times of day, dates, ranks, Roman numerals."""
        month = alternatives(self.months)
        signs, number = alternatives(self.currencies), self.number_pattern
        scale = rf" (?:{alternatives(name for name in self.scales if len(name) > 2)})"
        meridiem = re.compile(
            r"(?<![\w:.,])(1[0-2]|0?\d)(?::([0-5]\d))?(?::([0-5]\d))? ?([aApP])"
            r"(?:[mM]\b|\.[mM]\b(?:\.(?=\s+[^\sA-Z]|,))?)"
        )
        year = r"(?:,? ((?:1[0-9]|20)\d\d)(?![\d,.]\d))?"
        month_day = re.compile(rf"\b({month}) (\d\d?)(?:st|nd|rd|th)?(?: to (\d\d?))?\b(?![:.,]\d){year}")
        rank = re.compile(r"(?<![\w.])(\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:st|nd|rd|th)\b", re.IGNORECASE)
        rank_of = r"([IVX]{2,}|V(?!\. ?[A-Z])|I(?= of\b))(?!\w)"
        height = re.compile(r"(?<![\w'.,])(\d)(?:'| ?ft\.?) ?(1[01]|\d)(?:\"(?!\w)| ?in\b\.?(?= ?[^\sa-z]|$| tall))")
        return (
            Rule("price", re.compile(rf"\b([Aa]n?) ({signs})({number})({scale})? (?=[a-z])"), self._price),
            Rule("time of day", meridiem, self._meridiem),
            Rule("month and day", month_day, self._month_day),
            Rule("day and month", re.compile(rf"(?<![\d.,:/-])(\d\d?) ({month})\b{year}"), self._day_month),
            Rule("height", height, self._height),
            Rule(
                "plural of a name",
                re.compile(r"(?<=[A-Za-z]-)(\d{1,3})s\b"),
                lambda match: f"{cardinal(int(match[1]))}s",
            ),
            Rule("all the time", re.compile(r"(?<![\d/])24/7(?![\d/])"), "twenty-four seven"),
            Rule("the attacks", re.compile(r"(?<![\d/])9/11(?![\d/])"), "nine eleven"),
            Rule("decade", re.compile(r"(?<![\w.,])'?([2-9]0|[1-9]00|(?:1[0-9]|20)\d0)'?s\b"), self._decade),
            Rule("regnal number", re.compile(rf"\b((?:{_RULERS}) [A-Z][a-z]+) {rank_of}"), self._regnal, digits=False),
            Rule("regnal number", re.compile(rf"\b({_REGNAL}) {rank_of}"), self._regnal, digits=False),
            Rule("numbered part", re.compile(rf"\b({_PARTS}) ([IVXLC]+)\b"), self._roman_cardinal, digits=False),
            Rule("roman numeral", re.compile(r"\b([A-Z][a-z]+) ([IVX]{2,})\b"), self._roman_cardinal, digits=False),
            Rule("ordinal", rank, lambda match: ordinal(int(match[1].replace(",", "")))),
            Rule("C#", re.compile(r"\b([CF])#(?!\w)"), r"\1 sharp", digits=False),
            Rule("number sign", re.compile(r"#(?= ?[A-Z]?\d)"), " number "),
            Rule("about", re.compile(r"~(?=\d)"), "about "),
        )

    def awaits_number(self, word: str) -> bool:
        """Whether a number behind a word is said otherwise for it; short names of months too."""
        return self.closing.get(word) in self.months or super().awaits_number(word)

    def below_million(self, number: int) -> str:
        """All numbers: inflect knows the large ones."""
        return cardinal(number)

    def ordinal(self, number: int) -> str:
        """As in "twenty-first"."""
        return ordinal(number)

    def year(self, number: int) -> str:
        """As in "nineteen oh five"."""
        century, rest = divmod(number, 100)
        if not 10 < century < 21 or (century == 20 and rest < 10):
            return cardinal(number)
        if rest == 0:
            return f"{cardinal(century)} hundred"
        return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"

    def part(self, numerator: int, denominator: int) -> str:
        """As in "three quarters"."""
        name = self.parts.get(str(denominator)) or ordinal(denominator)
        return f"{cardinal(numerator)} {name if numerator == 1 else f'{name}s'}"

    def mixed(self, whole: str, numerator: int, denominator: int) -> str:
        """As in "three and a half"."""
        part = self.fraction(numerator, denominator)
        if numerator == 1 < denominator:
            name = part.removeprefix("one ")
            part = f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
        return f"{whole} and {part}"

    def hours(self, hours: int, minutes: int) -> str:
        """As in "seven oh five"."""
        if hours == minutes == 0:
            return "midnight"
        if not minutes:
            return f"{cardinal(hours)} o'clock"
        return f"{cardinal(hours)} {'oh ' if minutes < 10 else ''}{cardinal(minutes)}"

    def date(self, day: int, month: int, year: int | None) -> str:
        """As in "May third, twenty twenty"."""
        name = self.months[month - 1]
        if self.day_first:
            return f"the {ordinal(day)} of {name}" + (f" {self.year(year)}" if year is not None else "")
        return f"{name} {ordinal(day)}" + (f", {self.year(year)}" if year is not None else "")

    def _price(self, match: re.Match[str]) -> str:
        words = self.scaled(match[3], match[4].strip()) if match[4] else self.number(match[3])
        return f"{match[1]} {words} {self.currencies[match[2]].whole.one.removeprefix('one ')} "

    def _meridiem(self, match: re.Match[str]) -> str:
        hours, minutes, seconds = (int(part or 0) for part in match.group(1, 2, 3))
        said = self.clock(hours, minutes, seconds) if minutes or seconds else cardinal(hours)
        return f"{said} {match[4].lower()} m"

    def _month_day(self, match: re.Match[str]) -> str:
        days = [int(day) for day in (match[2], match[3]) if day]
        if not all(1 <= day <= 31 for day in days):
            return match[0]
        said = f"{match[1]} {' to '.join(map(ordinal, days))}"
        return f"{said}, {self.year(int(match[4]))}" if match[4] else said

    def _day_month(self, match: re.Match[str]) -> str:
        day = int(match[1])
        if not 1 <= day <= 31:
            return match[0]
        return f"the {ordinal(day)} of {match[2]}" + (f" {self.year(int(match[3]))}" if match[3] else "")

    def _height(self, match: re.Match[str]) -> str:
        return f"{self.count(match[1], self.units['ft'])} {self.count(match[2], Noun('one inch', 'inches'))}"

    def _decade(self, match: re.Match[str]) -> str:
        number = int(match[1])
        words = self.year(number) if number > 99 else cardinal(number)
        return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"

    def _regnal(self, match: re.Match[str]) -> str:
        number = roman(match[2])
        return match[0] if number is None else f"{match[1]} the {ordinal(number)}"

    def _roman_cardinal(self, match: re.Match[str]) -> str:
        number = roman(match[2])
        return match[0] if number is None else f"{match[1]} {cardinal(number)}"


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
