"""What is written for the eye: entities, Markdown, emoji, typography, numerals of other scripts."""

import html
import re
import unicodedata
from collections.abc import Iterator

TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}\N{PRIME}\N{ACUTE ACCENT}", "'"),
        **dict.fromkeys("\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{DOUBLE PRIME}«»„", '"'),
        "\N{EM DASH}": " - ",
        "\N{HORIZONTAL ELLIPSIS}": "...",
        "\N{FRACTION SLASH}": "/",
        "\N{NUMERO SIGN}": "No. ",
        "\N{NO-BREAK SPACE}": " ",
        **dict.fromkeys("\N{SOFT HYPHEN}\N{ZERO WIDTH SPACE}\N{BYTE ORDER MARK}"),
    }
)
SENTENCE_MARKS = (
    ".!?\N{DEVANAGARI DANDA}\N{ARABIC FULL STOP}\N{ARABIC QUESTION MARK}\N{IDEOGRAPHIC FULL STOP}"
    "\N{FULLWIDTH EXCLAMATION MARK}\N{FULLWIDTH QUESTION MARK}"
)
MARKS = frozenset(" \n',;:\"()-\N{IDEOGRAPHIC COMMA}\N{ARABIC COMMA}\N{FULLWIDTH COMMA}" + SENTENCE_MARKS)

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079"
_POWER = re.compile(rf"(?<![^\W\d_])([^\W\d_]{{1,2}}|(?<!\d)\d+)([{_RAISED}]+)")
_INVISIBLE = ("Cf", "Cc", "Cs", "Co", "Cn")
_SKIN = range(0x1F3FB, 0x1F400)

_FENCE = re.compile(r"\s*(?:```|~~~)")
_RULE = re.compile(r"\s*(?:-\s*){3,}$|\s*(?:\*\s*){3,}$|\s*(?:_\s*){3,}$|[\s|:]*-[\s|:-]*\|[\s|:-]*$")
_UNDERLINE = re.compile(r"\s*=+\s*$")
_HEADING = re.compile(r"\s*#{1,6}\s+(.*?)\s*#*\s*$")
_ITEM = re.compile(r"\s*(?:[-*+\N{BULLET}]\s+)+(?:\[[ xX]\]\s+)?")
_NUMBERED = re.compile(r"\s*(\d{1,9})[.)]\s+")
_QUOTE = re.compile(r"\s*(?:>\s+)+")
_ROW = re.compile(r"\s*\|(.*)\|\s*$")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_STRUCK = re.compile(r"~~")
_CLEAN = re.compile(r"[A-Za-z0-9 ',;:\"().!?-]*")
_EMPHASIS = re.compile(r"(?<![\d\s])\*+|\*+(?![\d\s])|`+|(?<![^\W_])_+|_+(?![^\W_])")


def plain_characters(text: str) -> str:
    """Entities, fractions, raised figures and numerals in ASCII; quotes straight; no emoji."""
    while (once := _ENTITY.sub(lambda match: html.unescape(match[0]), text)) != text:
        text = once
    if text.isascii() and text.isprintable():
        return text
    text = _POWER.sub(lambda match: f"{match[1]}^{unicodedata.normalize('NFKC', match[2])}", text)
    text = "".join(map(_plain, text.translate(TYPOGRAPHY)))
    return unicodedata.normalize("NFKC", text)


def _plain(character: str) -> str:
    if character.isascii():
        return character if character.isprintable() or character in "\n\t\r" else " "
    category = unicodedata.category(character)
    if category in _INVISIBLE or 0xFE00 <= ord(character) <= 0xFE0F or category == "Me":
        return " " if category in ("Cc", "Cs", "Co", "Cn") else ""
    if category in ("No", "Nl", "Nd"):
        return _numeral(character)
    if category == "So" and not unicodedata.normalize("NFKC", character).isalpha() and character != "°":
        return "" if ord(character) in _SKIN else " "
    return character if category != "Sk" or not ord(character) >= 0x1F000 else ""


def _numeral(character: str) -> str:
    """A numeral in ASCII; "½" as " 1/2", so that "3½" is "3 1/2"."""
    plain = unicodedata.normalize("NFKC", character).replace("\N{FRACTION SLASH}", "/")
    if "/" in plain and plain.replace("/", "").isascii():
        return f" {plain}" if plain[-1] != "/" else f" {plain[:-1]}"
    value = unicodedata.numeric(character, -1.0)
    return str(int(value)) if value >= 0 and value == int(value) else " "


def plain_lines(text: str, months: tuple[str, ...] = ()) -> Iterator[tuple[str, bool]]:
    """The lines of a text without Markdown's marks, and whether each is a whole of its own: a heading, an item, a row.

    Code in fences is left out; empty lines stay.

    Args:
        text: of any number of lines.
        months: a number with a full stop before one of these begins a date, not an item.
    """
    lines = text.split("\n")
    fenced = False
    for number, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        elif not fenced and not _RULE.match(line) and not _UNDERLINE.match(line):
            underlined = number + 1 < len(lines) and _UNDERLINE.match(lines[number + 1]) is not None
            yield _plain_line(line, underlined, months)


def _plain_line(line: str, heading: bool, months: tuple[str, ...]) -> tuple[str, bool]:
    line = _QUOTE.sub("", line, count=1) if _QUOTE.match(line) else line
    if match := _HEADING.match(line):
        line, heading = match[1], True
    elif match := _ROW.match(line):
        line, heading = ", ".join(cell.strip() for cell in match[1].split("|")), True
    elif match := _ITEM.match(line):
        line, heading = line[match.end() :], True
    elif (match := _NUMBERED.match(line)) and not line.startswith(months, match.end()):
        line, heading = f"{match[1]}, {line[match.end() :]}", True
    return line, heading


def plain_inline(line: str) -> str:
    """A line without links, tags and emphasis; of a link its text stays."""
    return _EMPHASIS.sub("", _STRUCK.sub("", _TAG.sub(" ", _LINK.sub(r"\1", line))))


def clean(line: str, closes: bool) -> str:
    """A line in which all is in words: without signs that nobody says, with a full stop if it is a whole."""
    if not _CLEAN.fullmatch(line):
        line = "".join(c if c.isalpha() or c.isdigit() or c in MARKS or _is_accent(c) else " " for c in line)
        line = re.sub(r"(?<![^\W_])[\u0300-\u036f]+", "", unicodedata.normalize("NFKC", line))
    line = re.sub(r"([!?])[!?]+", r"\1", " ".join(line.split()))
    line = re.sub(r"(?<=\() +| +(?=[,.;:!?)])", "", line).lstrip(" -,;:.!?")
    if not any(c.isalpha() or c.isdigit() for c in line):
        return ""
    if closes and line.rstrip("\"')")[-1] not in SENTENCE_MARKS + ",;:":
        line += "."
    return line


def _is_accent(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"
