"""The kinds of written things that all languages have, in the order in which they are looked for."""

import re
from functools import cache

from muomni.data.speech.normalizer.language import FullLanguage, Language, Rule, alternatives
from muomni.data.speech.normalizer.languages import language_of

_ADDRESS = re.compile(
    r"(?<![\w.@-])(?:https?://|ftp://|www\.)[^\s<>\"'()\[\]{}]*[^\s<>\"'()\[\]{}.,;:!?*_`]"
    r"|(?<![\w.@+-])[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+"
)
_HOST = re.compile(r"(?<![\w.])(\d{1,3}(?:\.\d{1,3}){3})(?::(\d{1,5}))?(?!\w|[.:]\d)")
_VERSION = re.compile(r"(?<![\w.,])(?:v(\d{1,15}(?:\.\d{1,15})*)|(\d{1,15}(?:\.\d{1,15}){2,}))(?!\w|[.,]\d)")
_PHONE = re.compile(
    r"(?<![\w.,+-])(?:\+\d{1,3}(?:[ .-]?\(\d{1,5}\)|[ .-]\d{1,6})(?:[ .-]?\d{2,6}){1,4}"
    r"|(?:\(\d{3}\) ?|\d{3}[.-])\d{3}[.-]\d{4}|\d{3}-\d{4}|\d{3}-\d{2}-\d{4})(?![\w-]|\.\d)"
)
_ISO_DATE = re.compile(r"(?<![\w.,/-])(\d{4})-(\d\d)-(\d\d)(?![\w-]|[.,]\d)")
_SLASH_DATE = re.compile(r"(?<![\w.,/-])(\d{1,2})/(\d{1,2})/(\d{4}|\d\d)(?![\w/-]|[.,]\d)")
_CHAIN = re.compile(r"(?<![\w.,-])\d+(?:-\d+){2,}(?![\w-]|[.,]\d)")
_CLOCK = re.compile(r"(?<![\w:.,])([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?: h\b)?(?![\w:]|[.,]\d)")
_FRACTION = r"(?<![\w.,/])(?:(\d{1,15}) )?(\d{1,3})/(\d{1,3})"
_POWER = re.compile(r"(?<=[\w)])\^(\d{1,15})(?!\d)")
_YEAR = re.compile(r"(?<![\w.,:/-])(1[1-9]\d\d|20\d\d)(?![\w:/-]|[.,]\d)")


@cache
def rules_of(tag: str) -> tuple[Rule, ...]:
    """All rules of a language, none where nothing knows its numbers."""
    language = language_of(tag)
    if language is None:
        return ()
    if not isinstance(language, FullLanguage):
        return (*_number_rules(language), *_sign_rules(language))
    return (
        *language.word_rules,
        *_word_rules(language),
        *_machine_rules(language),
        *_date_rules(language),
        *_range_rules(language),
        *language.rules,
        *_money_rules(language),
        *_measure_rules(language),
        *_number_rules(language),
        *_sign_rules(language),
    )


def _word_rules(language: FullLanguage) -> tuple[Rule, ...]:
    titles, numbered, closing = language.titles, language.numbered, language.closing
    names = [rf"(?<![\w.])({alternatives(words)})\." for words in (titles, numbered, closing)]

    def address(match: re.Match[str]) -> str:
        text = re.sub(r"^(?:https?|ftp)://", "", match[0]).replace("www.", "w w w.")
        text = re.sub(r"\d+", lambda digits: f" {language.whole(digits[0])} ", text)
        return "".join(f" {language.address.get(c, '')} " if not c.isalnum() and c != " " else c for c in text)

    return (
        Rule("address", _ADDRESS, address, digits=False),
        Rule("title", re.compile(rf"{names[0]}(?=\s|$|[,;:)])"), lambda match: titles[match[1]], digits=False),
        Rule(
            "abbreviation before a number",
            re.compile(rf"{names[1]}(?= ?\d| ?[IVXLC]+\b(?! [a-z]))"),
            lambda match: numbered[match[1]],
            digits=False,
        ),
        Rule(
            "abbreviation inside a sentence",
            re.compile(rf"{names[2]}(?=\s+[^\sA-Z\"(]|[,;:)])"),
            lambda match: closing[match[1]],
            digits=False,
        ),
        Rule(
            "abbreviation at the end of a sentence",
            re.compile(rf"{names[2]}(?=\s|$|[\"'])"),
            lambda match: f"{closing[match[1]]}.",
            digits=False,
        ),
    )


def _machine_rules(language: FullLanguage) -> tuple[Rule, ...]:
    dot = language.address["."]
    between = f" {language.point if language.decimal == '.' else dot} "

    def host(match: re.Match[str]) -> str:
        said = f" {dot} ".join(map(language.whole, match[1].split(".")))
        return f"{said} {language.address.get(':', '')} {language.whole(match[2])}" if match[2] else said

    def version(match: re.Match[str]) -> str:
        if match[2] and language.grouping == "." and re.fullmatch(r"\d{1,3}(?:\.\d{3})+", match[2]):
            return match[0]
        said = between.join(map(language.whole, (match[1] or match[2]).split(".")))
        return f"{language.version} {said}" if match[1] else said

    def phone(match: re.Match[str]) -> str:
        said = ", ".join(map(language.spell, re.findall(r"\d+", match[0])))
        return f"{language.symbols['+']} {said}" if match[0][0] == "+" else said

    return (
        Rule("telephone number", _PHONE, phone),
        Rule("address of a machine", _HOST, host),
        Rule("version", _VERSION, version),
    )


def _date_rules(language: FullLanguage) -> tuple[Rule, ...]:
    def date(year: str, month: str, day: str, match: re.Match[str]) -> str:
        if not (1 <= int(month) <= 12 and 1 <= int(day) <= 31):
            return match[0]
        return language.date(int(day), int(month), int(year))

    def slashed(match: re.Match[str]) -> str:
        first_is_day = (language.day_first and int(match[2]) <= 12) or int(match[1]) > 12
        day, month = (match[1], match[2]) if first_is_day else (match[2], match[1])
        return date(match[3], month, day, match)

    return (
        Rule("date", _ISO_DATE, lambda match: date(match[1], match[2], match[3], match)),
        Rule("date with slashes", _SLASH_DATE, slashed),
    )


def _range_rules(language: FullLanguage) -> tuple[Rule, ...]:
    sign = f"(?:{alternatives(language.currencies)})"
    number = language.number_pattern

    def price(match: re.Match[str]) -> str:
        return f"{match[2]} {language.to} {match[3]} {match[1]}"

    def chain(match: re.Match[str]) -> str:
        return ", ".join(map(language.whole, match[0].split("-")))

    return (
        Rule("digits with hyphens", _CHAIN, chain),
        Rule("prices from and to", re.compile(rf"({sign})({number})[-–]({number})(?![\w.,]*\d)"), price),
        Rule(
            "range",
            re.compile(rf"(?<=\d)([ap]m|%|°C?)? ?– ?(?={sign}?[.,]?\d)"),
            lambda match: f"{match[1] or ''} {language.to} ",
        ),
        Rule(
            "range with a hyphen",
            re.compile(r"(?<![\w.,:/$€£¥-])(\d[\d.,:]*+(?:[ap]m|%| ?°[CF]?)?)-(?=\d[\d.,:]*+(?!-))"),
            rf"\1 {language.to} ",
        ),
        Rule("minus before money", re.compile(rf"({sign})[-−](?=\d)"), r"−\1"),
        Rule("minus sign", re.compile(rf"− ?(?={sign}?[.,]?\d)"), f" {language.minus} "),
        Rule(
            "negative number",
            re.compile(rf"(?<![\w)\]\"'.,-])-(?={sign}?[.,]?\d)(?!\d+(?:st|nd|rd|th)\b)"),
            f"{language.minus} ",
        ),
    )


def _money_rules(language: FullLanguage) -> tuple[Rule, ...]:
    sign = alternatives(language.currencies)
    number = language.number_pattern
    short = alternatives(name for name in language.scales if len(name) < 3)
    long = alternatives(name for name in language.scales if len(name) > 2)
    scale = rf"(?:(?:({short})| ?({long}))(?!\w))?"
    per = r"(/(?=[^\W\d_]))?"

    def amount(sign: str, number: str, scale: str, per: str | None) -> str:
        currency = language.currencies[sign]
        wholes, _, cents = number.partition(language.decimal)
        wholes = re.sub(r"\D", "", wholes)
        if scale:
            said = language.scaled_money(language.scaled(number, scale), currency)
        elif len(cents) == 2 and currency.cent and len(wholes) < 16:
            said = language.money(int(wholes or "0"), int(cents), currency)
        else:
            said = language.count(number, currency.whole)
        return f"{said} {language.per} " if per else said

    return (
        Rule(
            "money",
            re.compile(rf"(?<![^\W\d_])({sign}) ?({number}){scale}{per}"),
            lambda match: amount(match[1], match[2], match[3] or match[4], match[5]),
        ),
        Rule(
            "money with the sign behind",
            re.compile(rf"({number}){scale} ?({sign})(?!\w){per}"),
            lambda match: amount(match[4], match[1], match[2] or match[3], match[5]),
        ),
    )


def _measure_rules(language: FullLanguage) -> tuple[Rule, ...]:
    number = language.number_pattern

    def clock(match: re.Match[str]) -> str:
        return language.clock(int(match[1]), int(match[2]), int(match[3]) if match[3] else None)

    def fraction(match: re.Match[str]) -> str:
        numerator, denominator = int(match[2]), int(match[3])
        noun = language.units.get(match[4] or "")
        if match[1]:
            said = language.mixed(language.whole(match[1]), numerator, denominator)
            return f"{said} {noun.many}" if noun else said
        said = language.fraction(numerator, denominator)
        return f"{said} {noun.one.partition(' ')[2]}" if noun else said

    def power(match: re.Match[str]) -> str:
        return f" {language.powers.get(match[1]) or f'{language.power} {language.whole(match[1])}'}"

    def measure(match: re.Match[str]) -> str:
        return language.count(match[1], language.units[match[2]])

    units = alternatives(language.units)
    times = f" {language.symbols['×']} "
    unit = rf"(?<![\w.,])(?<![^\W\d_]-)({number}) ?({units})(?![\w^])"
    return (
        Rule("time of day", _CLOCK, clock),
        Rule("ratio", re.compile(r"(?<=\d):(?=\d)"), f" {language.to} "),
        Rule("product with a result", re.compile(r"(?<=\d) ?x ?(?=\d[\d.,/]*+ ?=)"), times),
        Rule("fraction", re.compile(rf"{_FRACTION}(?: ({units})(?![\w^]))?(?![\w/]|[.,]\d)"), fraction),
        Rule("unit", re.compile(unit), measure),
        Rule(
            "multiplier",
            re.compile(rf"({number})x\b(?!\^)"),
            lambda match: f"{language.number(match[1])} {language.symbols['×']}",
        ),
        Rule("power", _POWER, power),
        Rule("size", re.compile(r"(?<=\d) ?x ?(?=\d)"), f" {language.by} "),
        Rule("product", re.compile(r"(?<=\d) ?[*×] ?(?=\d)"), times),
        Rule("product of words", re.compile(r"(?<=[\w)]) \* (?=[\w(])"), times, digits=False),
        Rule(
            "scale",
            re.compile(rf"({number}) ?({_scale_words(language)})(?!\w)"),
            lambda match: language.scaled(match[1], match[2]),
        ),
    )


def _scale_words(language: FullLanguage) -> str:
    return alternatives(name for name in language.scales if len(name) > 2)


def _number_rules(language: Language) -> tuple[Rule, ...]:
    return (
        Rule("letters before digits", re.compile(r"(?<=[^\W\d_])(?=\d)"), " "),
        Rule("letters behind digits", re.compile(r"(?<=\d)(?=[^\W\d_])"), " "),
        Rule("year", _YEAR, lambda match: language.year(int(match[1]))),
        Rule("number", re.compile(language.number_pattern), lambda match: language.number(match[0])),
        Rule("digits that are left", re.compile(r"\d+"), lambda match: f" {language.spell(match[0])} "),
    )


def _sign_rules(language: Language) -> tuple[Rule, ...]:
    dot = language.address.get(".", "")
    dotted = re.compile(r"(?<=[^\W_])\.(?=[^\W\d_A-Z]{2})")
    comma = re.compile(r"(?<=[^\W\d_]),(?=[^\W\d_])")
    signs = re.compile(alternatives(language.symbols))
    return (
        Rule("dotted name", dotted, f" {dot} ", digits=False),
        Rule("comma without space", comma, ", ", digits=False),
        Rule("sign", signs, lambda match: f" {language.symbols[match[0]]} ", digits=False),
    )
