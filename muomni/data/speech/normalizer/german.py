"""German."""

import re
from dataclasses import dataclass

from muomni.data.speech.normalizer.language import FullLanguage, Rule, alternatives, roman

_RANKS = {1: "erste", 3: "dritte", 7: "siebte", 8: "achte"}
_NOMINATIVE = ("der", "die", "das", "Der", "Die", "Das")
_ARTICLES = rf"\b(?:{'|'.join(_NOMINATIVE)}|[Ii]m|[Aa]m|[Vv]om|[Zz]um|[Bb]eim|[Dd]em|[Dd]en|[Dd]es|[Ii]ns)"
_QUEENS = frozenset(["Elisabeth", "Katharina", "Maria", "Margarethe", "Beatrix", "Isabella", "Christina", "Anna"])
_BEFORE_DATIVE = r"(?:\b(?:am|vom|zum|dem|den|im|ab|beim|bis) )"


@dataclass(frozen=True, eq=False, kw_only=True)
class German(FullLanguage):
    """German."""

    @property
    def word_rules(self) -> tuple[Rule, ...]:
        """Days and streets."""
        day = rf"({_BEFORE_DATIVE}?)(?<![\d.,])([12]?\d|3[01])\. ?({alternatives(self.months)})\b(?: (\d{{4}})\b)?"
        number = rf"({_BEFORE_DATIVE}?)(?<![\d.,])([12]?\d|0\d|3[01])\.(0?[1-9]|1[0-2])\.(\d{{4}}|\d\d)\b"
        return (
            Rule("street", re.compile(r"(?<=[a-zäöüß])str\.(?=\s|$|,)"), "straße", digits=False),
            Rule("day and month", re.compile(day), lambda match: self._day(match, match[3])),
            Rule("day in figures", re.compile(number), lambda match: self._day(match, self.months[int(match[3]) - 1])),
        )

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Centuries, ranks behind an article, decades, telephone numbers, times of day."""
        time = re.compile(r"(?<![\d:.,])([01]?\d|2[0-4])(?:[:.]([0-5]\d))? Uhr\b")
        phone = re.compile(r"(?<![\w.,])(?<!\d )0\d{2,4}(?:[ /-]\d{3,}|(?:[ /-]\d{2}){2,})+(?![\w.,]\d)")
        return (
            Rule("king", re.compile(r"\b([A-ZÄÖÜ][a-zäöüß]+) ([IVX]{2,})(\.(?= [a-zäöü]))?"), self._king, digits=False),
            Rule("century", re.compile(r"\b(im |des )?(\d{1,2})\. (?=Jahrhundert)"), self._century),
            Rule("rank", re.compile(rf"({_ARTICLES}) (\d{{1,3}})\. ?(?=[A-ZÄÖÜ]|$)"), self._rank),
            Rule("decade", re.compile(r"(?<![\w.,])(\d{2}|\d{4})er\b"), lambda match: f"{self.year(int(match[1]))}er"),
            Rule("telephone number", phone, lambda match: ", ".join(map(self.spell, re.findall(r"\d+", match[0])))),
            Rule("time of day", time, lambda match: self.hours(int(match[1]), int(match[2] or 0))),
        )

    def is_day(self, before: str, rest: str) -> bool:
        """Whether a full stop behind a number makes it a rank: "3. Mai", "der 2. Weltkrieg"."""
        return super().is_day(before, rest) or re.search(rf"{_ARTICLES} \d{{1,3}}$", before) is not None

    def below_million(self, number: int) -> str:
        """As in "zweitausendfünf"."""
        thousands, rest = divmod(number, 1000)
        words = f"{self._below_thousand(thousands, 'ein')}tausend" if thousands else ""
        return words + (self._below_thousand(rest, "eins") if rest or not words else "")

    def ordinal(self, number: int) -> str:
        """As in "dritte"."""
        rest = number % 100
        if rest in _RANKS:
            return self.cardinal(number).removesuffix(self.ones[rest]) + _RANKS[rest]
        return self.cardinal(number) + ("te" if 0 < rest < 20 else "ste")

    def year(self, number: int) -> str:
        """As in "neunzehnhundertneunundneunzig"."""
        if 1100 <= number < 2000:
            rest = number % 100
            return f"{self.ones[number // 100]}hundert{self._below_thousand(rest, 'eins') if rest else ''}"
        return self.cardinal(number).removeprefix("ein") if 1000 <= number < 1100 else self.cardinal(number)

    def part(self, numerator: int, denominator: int) -> str:
        """As in "drei Viertel"."""
        name = self.parts.get(str(denominator)) or self.ordinal(denominator).capitalize() + "l"
        return f"{'ein' if numerator == 1 else self.cardinal(numerator)} {name}"

    def mixed(self, whole: str, numerator: int, denominator: int) -> str:
        """As in "drei ein halb"."""
        return f"{whole} {self.fraction(numerator, denominator)}"

    def hours(self, hours: int, minutes: int) -> str:
        """As in "ein Uhr fünf"."""
        said = f"{'ein' if hours == 1 else self.cardinal(hours)} Uhr"
        return f"{said} {self.cardinal(minutes)}" if minutes else said

    def date(self, day: int, month: int, year: int | None) -> str:
        """As in "dritter Mai zweitausendzwanzig"."""
        return f"{self.ordinal(day)}r {self.months[month - 1]}" + (f" {self.year(year)}" if year is not None else "")

    def _day(self, match: re.Match[str], month: str) -> str:
        before, day, year = match[1], int(match[2]), match[4]
        said = f"{before}{self.ordinal(day)}{'n' if before else 'r'} {month}"
        return f"{said} {self.year(int(year))}" if year else said

    def _king(self, match: re.Match[str]) -> str:
        number = roman(match[2])
        article = "die" if match[1] in _QUEENS else "der"
        return match[0] if number is None else f"{match[1]} {article} {self.ordinal(number)}"

    def _rank(self, match: re.Match[str]) -> str:
        ending = "" if match[1] in _NOMINATIVE else "n"
        return f"{match[1]} {self.ordinal(int(match[2]))}{ending} "

    def _century(self, match: re.Match[str]) -> str:
        return f"{match[1] or ''}{self.ordinal(int(match[2]))}{'n' if match[1] else 's'} "

    def _below_thousand(self, number: int, one: str) -> str:
        hundreds, rest = divmod(number, 100)
        words = f"{'ein' if hundreds == 1 else self.ones[hundreds]}hundert" if hundreds else ""
        if rest == 0 and hundreds:
            return words
        if rest < 20:
            return words + (one if rest == 1 else self.ones[rest])
        tens, ones = divmod(rest, 10)
        return words + (f"{'ein' if ones == 1 else self.ones[ones]}und" if ones else "") + self.tens[tens - 2]
