"""Numbers, amounts, years and times in English words, by `inflect`."""

import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import inflect

_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
_PLURALS = {"penny": "pence"}


def numbers_in_words(text: str) -> str:
    """Numbers in English words, by what they look like; what is unclear stays as it is."""
    grouped = r"\d{1,3}(?:,\d{3})+|\d+"
    text = re.sub(rf"([$£€])({grouped})(?:\.(\d\d))?(?![\d.]\d)", _amount, text)
    text = re.sub(rf"\b({grouped})(st|nd|rd|th)\b", lambda match: ordinal(_value(match[1])), text)
    text = re.sub(r"\b([01]?\d|2[0-3]):([0-5]\d)\b(?!:)", _clock, text)
    text = re.sub(rf"(?<![\w.,:/-])({grouped})\.(\d+)(?![\w.:/]*\d)", _decimal, text)
    text = re.sub(r"(?<![\w.,:/-])(1[1-9]|20)(\d\d)(?![\w:/-]|[.,]\d)", _year, text)
    text = re.sub(
        rf"(?<![\w.,:/])(?<!\d-)({grouped})(?![\w:/]|[.,-]\d)", lambda match: cardinal(_value(match[1])), text
    )
    return text.replace("%", " percent")


def _value(digits: str) -> int:
    return int(digits.replace(",", ""))


def cardinal(number: int) -> str:
    """A whole number in English words: 342 is "three hundred and forty-two". From 10^15 on digit by digit."""
    if number < 0:
        return f"minus {cardinal(-number)}"
    if number >= 10**15:
        return _digits(str(number))
    return str(_inflect().number_to_words(str(number), comma=""))


def ordinal(number: int) -> str:
    """A rank in English words: 21 is "twenty-first"."""
    return str(_inflect().ordinal(cardinal(number)))


def _digits(digits: str) -> str:
    """Digits in words, one by one."""
    plain = "".join(str(int(digit)) for digit in digits)  # a digit of any script
    return str(_inflect().number_to_words(plain, group=1, comma=""))


@cache
def _inflect() -> "inflect.engine":
    import inflect  # takes a tenth of a second, which only texts with numbers need

    return inflect.engine()


def _amount(match: re.Match[str]) -> str:
    names = _CURRENCIES[match[1]]
    wholes, parts = _value(match[2]), int(match[3] or 0)
    amounts = [_counted(count, name) for count, name in zip((wholes, parts), names, strict=True) if count]
    return " and ".join(amounts) or _counted(0, names[0])


def _counted(count: int, name: str) -> str:
    return f"{cardinal(count)} {name if count == 1 else _PLURALS.get(name, f'{name}s')}"


def _clock(match: re.Match[str]) -> str:
    hours, minutes = int(match[1]), int(match[2])
    if minutes == 0:
        return f"{cardinal(hours)} o'clock"
    return f"{cardinal(hours)} {'oh ' if minutes < 10 else ''}{cardinal(minutes)}"


def _decimal(match: re.Match[str]) -> str:
    return f"{cardinal(_value(match[1]))} point {_digits(match[2])}"


def _year(match: re.Match[str]) -> str:
    century, rest = int(match[1]), int(match[2])
    if century == 20 and rest < 10:
        return cardinal(century * 100 + rest)
    if rest == 0:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"
