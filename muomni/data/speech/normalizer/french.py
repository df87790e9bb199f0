"""French, as in France."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from muomni.data.speech.normalizer.language import Currency, FullLanguage, Rule, roman


@dataclass(frozen=True, eq=False, kw_only=True)
class French(FullLanguage):
    """French."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Titles, ranks and times of day."""
        first = re.compile(r"(?<![\w.,])1(er|re|ère)\b")
        rank = re.compile(r"(?<![\w.,])(\d{1,15})(?:e|ème|eme)\b")
        hours = re.compile(r"(?<![\w:.,])([01]?\d|2[0-3]) ?h ?([0-5]\d)?\b")
        century = re.compile(r"(?<!\w)([IVX]+)(?:e|ème)(?= |$|[.,])")
        return (
            Rule("century", century, lambda match: self._roman(match, self.ordinal), digits=False),
            Rule(
                "king",
                re.compile(r"(?<=[a-zé] )([IVX]{2,})(?!\w)"),
                lambda match: self._roman(match, self.cardinal),
                digits=False,
            ),
            Rule("first king", re.compile(r"(?<=[a-zé] )Ier(?!\w)"), "premier", digits=False),
            Rule("doctor", re.compile(r"\bDr(?= [A-ZÀ-Ý])"), "Docteur", digits=False),
            Rule("numéro", re.compile(r"\b[nN]°(?= ?\d)"), "numéro "),
            Rule("lady", re.compile(r"\bMme\b"), "Madame", digits=False),
            Rule("young lady", re.compile(r"\bMlle\b"), "Mademoiselle", digits=False),
            Rule("first", first, lambda match: "premier" if match[1] == "er" else "première"),
            Rule("ordinal", rank, lambda match: self.ordinal(int(match[1]))),
            Rule("hours", hours, lambda match: self.hours(int(match[1]), int(match[2] or 0))),
        )

    def below_million(self, number: int) -> str:
        """As in "mille neuf cent quatre-vingt-dix-neuf"."""
        thousands, rest = divmod(number, 1000)
        if not thousands:
            return self._below_thousand(rest)
        # "quatre-vingts" and "cents" lose their s before "mille".
        before = re.sub("(vingt|cent)s$", r"\1", self._below_thousand(thousands))
        words = "mille" if thousands == 1 else f"{before} mille"
        return f"{words} {self._below_thousand(rest)}" if rest else words

    def ordinal(self, number: int) -> str:
        """As in "neuvième"."""
        if number == 1:
            return "premier"
        words = re.sub("(vingt|cent|million|milliard|billion)s$", r"\1", self.cardinal(number))
        if words.endswith("neuf"):
            return f"{words[:-1]}vième"
        return f"{words.removesuffix('e')}{'u' if words.endswith('cinq') else ''}ième"

    def scaled(self, text: str, scale: str) -> str:
        """As in "un virgule cinq million", without the s of many."""
        one, many = self.scales[scale]
        if text != "1" and text.partition(",")[0] in ("0", "1"):
            many = many.removesuffix("s")
        return one if text == "1" else f"{self.number(text)} {many}"

    def scaled_money(self, words: str, currency: Currency) -> str:
        """As in "deux millions d'euros"."""
        many = currency.whole.many
        of = "" if words.endswith("mille") else "d'" if many[0] in "aeiouy" else "de "
        return f"{words} {of}{many}"

    def part(self, numerator: int, denominator: int) -> str:
        """As in "trois quarts"."""
        name = self.parts.get(str(denominator)) or self.ordinal(denominator)
        return f"{self.cardinal(numerator)} {name if numerator == 1 or name.endswith('s') else f'{name}s'}"

    def hours(self, hours: int, minutes: int) -> str:
        """As in "quatorze heures trente"."""
        said = self.count(str(hours), self.units["h"])
        return f"{said} {self.cardinal(minutes)}" if minutes else said

    def date(self, day: int, month: int, year: int | None) -> str:
        """As in "premier mai deux mille vingt"."""
        number = "premier" if day == 1 else self.cardinal(day)
        return f"{number} {self.months[month - 1]}" + (f" {self.year(year)}" if year is not None else "")

    def _roman(self, match: re.Match[str], say: Callable[[int], str]) -> str:
        number = roman(match[1])
        return match[0] if number is None else say(number)

    def _below_thousand(self, number: int) -> str:
        hundreds, rest = divmod(number, 100)
        if not hundreds:
            return self._below_hundred(rest)
        words = "cent" if hundreds == 1 else f"{self.ones[hundreds]} cent"
        return f"{words} {self._below_hundred(rest)}" if rest else words + ("s" if hundreds > 1 else "")

    def _below_hundred(self, number: int) -> str:
        if number < 20:
            return self.ones[number]
        tens, ones = divmod(number, 10)
        name = self.tens[tens - 2]
        ones += 10 * (tens in (7, 9))
        if ones == 0:
            return "quatre-vingts" if tens == 8 else name
        return f"{name} et {self.ones[ones]}" if ones in (1, 11) and tens < 8 else f"{name}-{self.ones[ones]}"
