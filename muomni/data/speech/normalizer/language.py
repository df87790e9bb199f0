"""What a language must know to say what is written: its words for numbers, units, money, dates and signs."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

# Longer numbers are said digit by digit.
MAX_DIGITS = 15


@dataclass(frozen=True)
class Rule:
    """A kind of written thing and how it is said.

    Attributes:
        name: of the kind.
        pattern: where it stands.
        say: what replaces a match; `match[0]` where it is no such thing after all.
        digits: whether there is none without digits.
    """

    name: str
    pattern: re.Pattern[str]
    say: Callable[[re.Match[str]], str]
    digits: bool = True


@dataclass(frozen=True)
class Noun:
    """Something that is counted.

    Attributes:
        one: with its number, "one foot".
        many: without, "feet".
    """

    one: str
    many: str


@dataclass(frozen=True)
class Currency:
    """Money; `cent` is None where the whole is not divided."""

    whole: Noun
    cent: Noun | None = None


class Language:
    """The words of a language; the methods here suit most of them.

    Attributes:
        decimal: between whole and fraction.
        grouping: characters between groups of three digits.
        digits: words of 0 to 9.
        point, minus, plus, to, per, times, by, power, dot, version: words.
        powers: words for the powers that have one.
        address: what is said for signs in URLs and e-mail addresses.
        and_cents: between the whole and the cents.
        symbols: signs and their words; other signs are not said.
        months: names, January first.
        day_first: whether 10/12 is in December.
        units: by how they are written.
        currencies: by sign and by code.
        scales: "M" or "million" as (word of one, word of many).
        titles: abbreviations before a name, without the full stop; they end no sentence.
        numbered: abbreviations before a number.
        closing: abbreviations that may end a sentence.
        word_rules: kinds that only this language has, before all others.
        rules: likewise, behind dates and ranges.
    """

    decimal: ClassVar[str] = ","
    grouping: ClassVar[str] = "."
    digits: ClassVar[tuple[str, ...]]
    point: ClassVar[str]
    minus: ClassVar[str]
    plus: ClassVar[str]
    to: ClassVar[str]
    dot: ClassVar[str]
    per: ClassVar[str]
    times: ClassVar[str]
    by: ClassVar[str]
    power: ClassVar[str]
    powers: ClassVar[Mapping[str, str]]
    version: ClassVar[str] = "version"
    and_cents: ClassVar[str] = " "
    address: ClassVar[Mapping[str, str]]
    symbols: ClassVar[Mapping[str, str]]
    months: ClassVar[tuple[str, ...]]
    units: ClassVar[Mapping[str, Noun]]
    currencies: ClassVar[Mapping[str, Currency]]
    scales: ClassVar[Mapping[str, tuple[str, str]]]
    titles: ClassVar[Mapping[str, str]] = {}
    numbered: ClassVar[Mapping[str, str]] = {}
    closing: ClassVar[Mapping[str, str]] = {}
    day_first: bool = True

    @property
    def word_rules(self) -> tuple[Rule, ...]:
        return ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        return ()

    def cardinal(self, number: int) -> str:
        """The words of 0 to 10^15, exclusive."""
        raise NotImplementedError

    def ordinal(self, number: int) -> str:
        """The words of a rank."""
        raise NotImplementedError

    def year(self, number: int) -> str:
        """The words of a year."""
        return self.cardinal(number)

    def fraction(self, numerator: int, denominator: int) -> str:
        """The words of a fraction."""
        raise NotImplementedError

    def mixed(self, whole: str, numerator: int, denominator: int) -> str:
        """The words of a whole and a fraction."""
        return f"{whole} {self.fraction(numerator, denominator)}"

    def clock(self, hours: int, minutes: int, seconds: int | None) -> str:
        """The words of a time of day."""
        raise NotImplementedError

    def date(self, day: int, month: int, year: int | None) -> str:
        """The words of a day."""
        raise NotImplementedError

    def whole(self, digits: str) -> str:
        """Digits as one number, or one by one where they begin with 0 or are very many."""
        if len(digits) > MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
            return self.spell(digits)
        return self.cardinal(int(digits))

    def spell(self, digits: str) -> str:
        """Digits one by one."""
        return " ".join(self.digits[int(digit)] for digit in digits)

    def number(self, text: str) -> str:
        """A number with groups and decimals as `number_pattern` matches it."""
        whole, _, fraction = text.partition(self.decimal)
        words = [self.whole(re.sub(r"\D", "", whole))] if whole else []
        return " ".join([*words, self.point, self.spell(fraction)] if fraction else words)

    def before_noun(self, words: str) -> str:
        """How a number changes before a noun."""
        return words

    def count(self, text: str, noun: Noun) -> str:
        """A number of things."""
        return noun.one if text == "1" else f"{self.before_noun(self.number(text))} {noun.many}"

    def scaled(self, text: str, scale: str) -> str:
        """A number of thousands, millions and so on."""
        one, many = self.scales[scale]
        return one if text == "1" else f"{self.before_noun(self.number(text))} {many}"

    def scaled_money(self, words: str, currency: Currency) -> str:
        """Millions of money."""
        return f"{words} {currency.whole.many}"

    def money(self, wholes: int, cents: int, currency: Currency) -> str:
        """Money with cents, of which there are 100."""
        assert currency.cent is not None
        said = [self.count(str(n), noun) for n, noun in ((wholes, currency.whole), (cents, currency.cent)) if n]
        return self.and_cents.join(said) or self.count("0", currency.whole)

    def awaits_number(self, word: str) -> bool:
        """Whether a number behind a word is said otherwise for it: "No", "p", "March", "CHF"."""
        return (
            word in self.months
            or word in self.currencies
            or word[:1].upper() + word[1:] in self.numbered
            or word in self.numbered
        )

    def is_abbreviation(self, word: str) -> bool:
        """Whether a word, given without its full stop, is one that may also end a sentence: "etc", "Jan"."""
        return word in self.closing

    def is_inside(self, word: str) -> bool:
        """Whether a word, given without its full stop, is an abbreviation that ends no sentence: "Dr", "Mio"."""
        return word in self.titles or f"{word}." in self.scales

    def is_day(self, word: str, rest: str) -> bool:
        """Whether a full stop behind a number makes it a day: "3. Mai"."""
        return False

    @property
    def number_pattern(self) -> str:
        """A number without its sign, as a regular expression without groups."""
        grouping, decimal = re.escape(self.grouping), re.escape(self.decimal)
        grouped = rf"\d{{1,3}}(?:[{grouping} ]\d{{3}})+(?!\d)|\d+"
        return rf"(?<!\d)(?:(?:{grouped})(?:{decimal}\d+)?|(?<![\w{decimal}{grouping}]){decimal}\d+)"


def alternatives(names: Iterable[str]) -> str:
    """A regular expression for one of some names, the longest that fits; for none it matches nothing."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"
