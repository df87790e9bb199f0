"""Spanish."""

import re
from dataclasses import dataclass

from muomni.data.speech.normalizer.language import Currency, FullLanguage, Rule, roman

_NO_NOUNS = frozenset(
    ["para", "que", "con", "por", "más", "menos", "del", "los", "las", "entre", "sobre", "punto", "coma"]
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Spanish(FullLanguage):
    """Spanish."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Ranks, whose signs are letters by now, centuries and kings."""
        number = re.compile(r"(?<![\w.,])(\d{0,14}1)(?= ([a-záéíóúñ]{3,})\b)")
        return (
            Rule("número", re.compile(r"\b[nN]\.?o\.? ?(?=\d)"), "número "),
            Rule(
                "short ordinal",
                re.compile(r"(?<![\w.,])([13])\.?er\b"),
                lambda match: self.ranks[int(match[1]) - 1][:-1],
            ),
            Rule("number of things", number, self._number),
            Rule(
                "times", re.compile(r"(?<![\w.,])(\d{1,15})x\b(?! ?\d)"), lambda match: f"{self.whole(match[1])} veces"
            ),
            Rule("ordinal", re.compile(r"(?<![\w.,])(\d{1,15})\.?([oa])\b"), self._rank),
            Rule("century", re.compile(r"\b([Ss]iglos?) ([IVX]+)(?!\w)"), self._roman, digits=False),
            Rule("king", re.compile(r"\b([A-ZÁÉÍÓÚ][a-záéíóúñ]+) ([IVX]{2,})(?!\w)"), self._roman, digits=False),
        )

    def below_million(self, number: int) -> str:
        """As in "veintiún mil"."""
        thousands, rest = divmod(number, 1000)
        if not thousands:
            return self._below_thousand(rest)
        words = "mil" if thousands == 1 else f"{self.before_noun(self._below_thousand(thousands))} mil"
        return f"{words} {self._below_thousand(rest)}" if rest else words

    def ordinal(self, number: int) -> str:
        """As in "décimo"; larger ones are said as cardinals."""
        return self.ranks[number - 1] if 1 <= number <= 10 else self.cardinal(number)

    def before_noun(self, words: str) -> str:
        """As in "veintiún" for "veintiuno"."""
        if words.endswith("veintiuno"):
            return f"{words[:-3]}ún"
        return words[:-1] if words.endswith("uno") else words

    def scaled_money(self, words: str, currency: Currency) -> str:
        """As in "dos millones de euros"."""
        return f"{words} {'' if words.endswith('mil') else 'de '}{currency.whole.many}"

    def part(self, numerator: int, denominator: int) -> str:
        """As in "tres cuartos"."""
        name = self.parts.get(str(denominator)) or self.ordinal(denominator)
        return f"{self.before_noun(self.cardinal(numerator))} {name if numerator == 1 else f'{name}s'}"

    def hours(self, hours: int, minutes: int) -> str:
        """As in "catorce treinta"."""
        return (
            f"{self.cardinal(hours)} {self.cardinal(minutes)}" if minutes else self.count(str(hours), self.units["h"])
        )

    def date(self, day: int, month: int, year: int | None) -> str:
        """As in "tres de mayo de dos mil veinte"."""
        return f"{self.cardinal(day)} de {self.months[month - 1]}" + (
            f" de {self.year(year)}" if year is not None else ""
        )

    def _rank(self, match: re.Match[str]) -> str:
        words = self.ordinal(int(match[1]))
        return f"{words[:-1]}a" if match[2] == "a" and words.endswith("o") else words

    def _number(self, match: re.Match[str]) -> str:
        """As in "veintiún años" and "veintiuna casas", by the noun's ending."""
        words, noun = self.whole(match[1]), match[2]
        if match[1].endswith("11") or noun in _NO_NOUNS:
            return words
        if words.endswith("uno") and noun.endswith(("a", "as", "ción", "dad")) and noun not in ("día", "días"):
            return f"{words[:-1]}a"
        return self.before_noun(words)

    def _roman(self, match: re.Match[str]) -> str:
        number = roman(match[2])
        if number is None:
            return match[0]
        return f"{match[1]} {self.cardinal(number) if match[1].lower().startswith('siglo') else self.ordinal(number)}"

    def _below_thousand(self, number: int) -> str:
        hundreds, rest = divmod(number, 100)
        if number == 100:
            return "cien"
        words = self.hundreds[hundreds - 1] if hundreds else ""
        if rest == 0 and hundreds:
            return words
        if rest < 30:
            return f"{words} {self.ones[rest]}".strip()
        tens, ones = divmod(rest, 10)
        return f"{words} {self.tens[tens - 3]}".strip() + (f" y {self.ones[ones]}" if ones else "")
