"""What a language must know to say what is written; its words are in `words/TAG.toml`, its grammar in a class."""

import re
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

# Longer numbers are said digit by digit.
MAX_DIGITS = 15
_ROMAN = re.compile(r"(?=[IVXLC])C{0,3}(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})")
_ROMAN_VALUES = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100}


@dataclass(frozen=True)
class Rule:
    """A kind of written thing and how it is said.

    Attributes:
        name: of the kind.
        pattern: where it stands.
        say: what replaces a match, or gives it; `match[0]` where it is no such thing after all.
        digits: whether there is none without digits.
    """

    name: str
    pattern: re.Pattern[str]
    say: str | Callable[[re.Match[str]], str]
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


@dataclass(frozen=True, eq=False, kw_only=True)
class Language(ABC):
    """The words of numbers, and what decides where a number or a sentence ends.

    Attributes:
        decimal: between whole and fraction.
        grouping: characters between groups of three digits.
        ones: words of the numbers from 0 on, 10 or more.
        point: the word of the decimal sign.
        address: what is said for signs in URLs and e-mail addresses.
        symbols: signs and their words; other signs are not said.
        months: names, January first.
        dotted_days: whether "3. Mai" is a day.
        units: by how they are written.
        currencies: by sign and by code.
        scales: "M" or "million" as (word of one, word of many).
        titles: abbreviations before a name, without the full stop; they end no sentence.
        numbered: abbreviations before a number.
        closing: abbreviations that may end a sentence.
        interjections: short sentences that people say.
    """

    decimal: str = ","
    grouping: str = "."
    ones: Sequence[str]
    point: str = ""
    address: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)
    months: tuple[str, ...] = ()
    dotted_days: bool = False
    units: Mapping[str, Noun] = field(default_factory=dict)
    currencies: Mapping[str, Currency] = field(default_factory=dict)
    scales: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    titles: Mapping[str, str] = field(default_factory=dict)
    numbered: Mapping[str, str] = field(default_factory=dict)
    closing: Mapping[str, str] = field(default_factory=dict)
    interjections: Sequence[str] = ()

    @abstractmethod
    def cardinal(self, number: int) -> str:
        """The words of 0 to 10^15, exclusive."""

    def year(self, number: int) -> str:
        """The words of a year."""
        return self.cardinal(number)

    def whole(self, digits: str) -> str:
        """Digits as one number, or one by one where they begin with 0 or are very many."""
        if len(digits) > MAX_DIGITS or (len(digits) > 1 and digits[0] == "0"):
            return self.spell(digits)
        return self.cardinal(int(digits))

    def spell(self, digits: str) -> str:
        """Digits one by one."""
        return " ".join(self.ones[int(digit)] for digit in digits)

    def number(self, text: str) -> str:
        """A number with groups and decimals as `number_pattern` matches it."""
        whole, _, fraction = text.partition(self.decimal)
        words = [self.whole(re.sub(r"\D", "", whole))] if whole else []
        return " ".join([*words, self.point, self.spell(fraction)] if fraction else words)

    def awaits_number(self, word: str) -> bool:
        """Whether a number behind a word is said otherwise for it: "No", "p", "March", "CHF"."""
        return any(word in words for words in (self.months, self.currencies, self.numbered)) or (
            word[:1].upper() + word[1:] in self.numbered
        )

    def is_abbreviation(self, word: str) -> bool:
        """Whether a word, given without its full stop, is one that may also end a sentence: "etc", "Jan"."""
        return word in self.closing

    def is_inside(self, word: str) -> bool:
        """Whether a word, given without its full stop, is an abbreviation that ends no sentence: "Dr", "Mio"."""
        return word in self.titles or f"{word}." in self.scales

    def is_day(self, before: str, rest: str) -> bool:
        """Whether a full stop between two pieces of a text makes the number before it a day: "3. Mai"."""
        return self.dotted_days and before.rpartition(" ")[2].isdigit() and rest.startswith(self.months)

    @property
    def number_pattern(self) -> str:
        """A number without its sign, as a regular expression without groups."""
        grouping, decimal = re.escape(self.grouping), re.escape(self.decimal)
        grouped = rf"\d{{1,3}}(?:[{grouping} ]\d{{3}})+(?!\d)|\d+"
        return rf"(?<!\d)(?:(?:{grouped})(?:{decimal}\d+)?|(?<![\w{decimal}{grouping}]){decimal}\d+)"


@dataclass(frozen=True, eq=False, kw_only=True)
class FullLanguage(Language):
    """A language that has words for units, money, dates and signs too; the methods here suit most of them.

    Attributes:
        tens: words of 20 or 30 to 90.
        hundreds: words of 100 to 900 before other words.
        ranks: words of the first ordinals.
        large: (number, words of one, word of many) of the numbers from a million on, the largest first.
        minus, to, per, by, power, over, version, conjunction: words.
        powers: words for the powers that have one.
        parts: words of the fractions that are no ordinals, by denominator.
        largest_part: the largest denominator that has a word.
        money_format: of money with cents, from `wholes`, `cents` and the `number` of cents.
        day_first: whether 10/12 is in December.
    """

    tens: Sequence[str] = ()
    hundreds: Sequence[str] = ()
    ranks: Sequence[str] = ()
    large: Sequence[tuple[int, str, str]] = ()
    minus: str
    to: str
    per: str
    by: str
    power: str
    over: str
    version: str
    conjunction: str
    powers: Mapping[str, str]
    parts: Mapping[str, str]
    largest_part: int = 100
    money_format: str
    day_first: bool = True

    @property
    def word_rules(self) -> tuple[Rule, ...]:
        """Kinds that only this language has, before all others."""
        return ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Likewise, behind dates and ranges."""
        return ()

    @abstractmethod
    def ordinal(self, number: int) -> str:
        """The words of a rank."""

    @abstractmethod
    def part(self, numerator: int, denominator: int) -> str:
        """The words of a fraction below one whose denominator is not above `largest_part`."""

    @abstractmethod
    def hours(self, hours: int, minutes: int) -> str:
        """The words of hours and minutes."""

    @abstractmethod
    def date(self, day: int, month: int, year: int | None) -> str:
        """The words of a day."""

    @abstractmethod
    def below_million(self, number: int) -> str:
        """The words of a number below those in `large`."""

    def cardinal(self, number: int) -> str:
        """The words of 0 to 10^15, exclusive."""
        for size, one, many in self.large:
            if number >= size:
                count, rest = divmod(number, size)
                words = one if count == 1 else f"{self.before_noun(self.cardinal(count))} {many}"
                return f"{words} {self.cardinal(rest)}" if rest else words
        return self.below_million(number)

    def fraction(self, numerator: int, denominator: int) -> str:
        """The words of a fraction."""
        if max(1, numerator) < denominator <= self.largest_part:
            return self.part(numerator, denominator)
        return f"{self.cardinal(numerator)} {self.over} {self.cardinal(denominator)}"

    def mixed(self, whole: str, numerator: int, denominator: int) -> str:
        """The words of a whole and a fraction."""
        return f"{whole} {self.conjunction} {self.fraction(numerator, denominator)}"

    def clock(self, hours: int, minutes: int, seconds: int | None) -> str:
        """The words of a time of day."""
        said = self.hours(hours, minutes)
        return f"{said} {self.conjunction} {self.count(str(seconds), self.units['s'])}" if seconds else said

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
        counted = self.count(str(wholes), currency.whole), self.count(str(cents), currency.cent)
        if wholes and cents:
            return self.money_format.format(wholes=counted[0], cents=counted[1], number=self.cardinal(cents))
        return counted[1 if cents else 0]


def read_words(tag: str) -> dict[str, Any]:
    """The fields of a `FullLanguage` from `words/TAG.toml`, where names with the same words share a key.

    Raises:
        FileNotFoundError: there are no words of this language.
    """
    text = (resources.files(__package__) / "words" / f"{tag}.toml").read_text(encoding="utf-8")
    words = tomllib.loads(text)
    for table, kind in (("units", _nouns), ("currencies", _nouns), ("scales", tuple)):
        words[table] = {name: kind(said) for names, said in words[table].items() for name in names.split(" ")}
    words["units"] = {name: whole for name, (whole,) in words["units"].items()}
    words["currencies"] = {name: Currency(*nouns) for name, nouns in words["currencies"].items()}
    return words | {"months": tuple(words["months"])}


def _nouns(words: Sequence[str]) -> list[Noun]:
    return [Noun(*pair) for pair in zip(words[::2], words[1::2], strict=True)]


def alternatives(names: Iterable[str]) -> str:
    """A regular expression for one of some names, the longest that fits; for none it matches nothing."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)"


def roman(numeral: str) -> int | None:
    """The value of a Roman numeral below 400, None if it is none."""
    if not _ROMAN.fullmatch(numeral):
        return None
    values = [_ROMAN_VALUES[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))
