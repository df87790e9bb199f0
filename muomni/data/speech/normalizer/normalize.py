"""The one way from what is written to what is said, and where a sentence ends."""

import re
from collections.abc import Sequence

from muomni.data.speech.normalizer.languages import has_num2words, language_of
from muomni.data.speech.normalizer.markup import clean, plain_characters, plain_inline, plain_lines
from muomni.data.speech.normalizer.rules import rules_of

_MAX_PASSES = 8
_DIGIT = re.compile(r"\d")
_ROMAN = re.compile(r"[IVXLC]+(?:\W.*)?")
_OPEN = re.compile(r"\d$|^[$\N{EURO SIGN}\N{POUND SIGN}\N{YEN SIGN}\N{MINUS SIGN}]$|^\(\d+\)$")


def normalize(text: str, language: str = "en") -> str:
    """A text as it is said: words and the marks of sentences, without figures, signs and Markdown.

    What is said already stays as it is, so that it does not matter how often a text passes here. Line breaks stay;
    headings, items of lists and rows of tables end with a full stop. Capitals stay as they are.

    Args:
        text: any string.
        language: a tag like "en" or "en-GB". Where `reads_numbers` is False, figures stay in digits and signs are left
            out.

    Returns:
        Letters with their accents, spaces, line breaks and `' , ; : " ( ) - . ! ?` with their like in other scripts.
        Empty where nothing can be said.
    """
    for _ in range(_MAX_PASSES):
        said = _normalize_once(text, language)
        if said == text:
            break
        text = said
    return text


def _normalize_once(text: str, language: str) -> str:
    known = language_of(language)
    lines: list[str] = []
    for line, closes in plain_lines(plain_characters(text), known.months if known else ()):
        said = clean(in_words(line, language), closes)
        if said or (lines and lines[-1]):  # of several empty lines one
            lines.append(said)
    return "\n".join(lines).strip("\n")


def in_words(line: str, language: str) -> str:
    """A line by the rules of a language."""
    line = " ".join(plain_inline(line).split())
    for rule in rules_of(language):
        if not rule.digits or _DIGIT.search(line):
            line = rule.pattern.sub(rule.say, line)
    return line


def normalize_piece(piece: str, language: str, before: str = "") -> str:
    """A piece of a line as `normalize` says it there; its first character begins no heading and no item.

    Args:
        piece: of one or more words.
        language: see `normalize`.
        before: the word before it, which may decide how numbers are said: "Chapter IV", "am 3. Mai".
    """
    piece = plain_characters(piece)
    said = ""
    if before.isalpha() and (_DIGIT.search(piece) or _ROMAN.fullmatch(piece)):
        both = clean(in_words(f"{before} {piece}", language), False)
        said = both.removeprefix(f"{before} ") if both.startswith(f"{before} ") else ""
    said = said or clean(in_words(piece, language), False)
    known = language_of(language)
    if known is not None and piece.endswith(".") and known.is_abbreviation(piece.rpartition(" ")[2][:-1]):
        return said.removesuffix(".")
    return said


def is_open(piece: str, language: str) -> bool:
    """Whether the word that follows a piece of a line may change how it is said: "5", "$1.5", "No.", "Jan."."""
    known = language_of(language)
    if known is None:
        return False
    last = piece.rpartition(" ")[2]
    if _OPEN.search(last) or known.awaits_number(last.removesuffix(".")):
        return True
    return _DIGIT.search(piece) is not None and (last in known.scales or known.is_day(last[:-1], known.months[0]))


def belong_together(piece: str, word: str, language: str) -> bool:
    """Whether a word is said otherwise behind an open piece than alone, as in "5 kg" or "1 000"."""
    if piece[-1].isdigit() and word[0].isdigit():
        return True
    apart = f"{normalize_piece(piece, language)} {normalize_piece(word, language)}"
    return normalize_piece(f"{piece} {word}", language).split() != apart.split()


def reads_numbers(language: str) -> bool:
    """Whether `normalize` puts numbers of this language into words.

    English, German, French and Spanish; with the extra "languages" (num2words, under the LGPL) those that it knows.
    """
    return language_of(language) is not None


def missing_numbers(language: str) -> str | None:
    """What to do about a text with digits in a language whose numbers have no words; None where they have."""
    if reads_numbers(language):
        return None
    more = "" if has_num2words() else ', or install num2words, which is under the LGPL: pip install "muomni[languages]"'
    return f'numbers in "{language}" cannot be put into words: write them in words{more}'


def interjections(language: str) -> Sequence[str]:
    """Short sentences that people say: "Yes.", "Oh no!"; none where the language has no table of words."""
    known = language_of(language)
    return () if known is None else known.interjections


def is_sentence_end(before: str, mark: str, rest: str, language: str = "en") -> bool:
    """Whether a mark between two pieces of a text ends a sentence, and not an abbreviation or an initial.

    Args:
        before: the text up to the mark.
        mark: one or more of `.!?` and their like, with closing quotes or not.
        rest: the text behind it.
        language: see `normalize`.
    """
    rest = rest.lstrip()
    if not rest or rest[0].islower():
        return not rest
    last = before.rsplit(" ", maxsplit=1)[-1].lstrip("\"'(")
    known = language_of(language)
    if mark[0] != "." or mark[:2] == "..":
        return True
    if (len(last) == 1 and last.isupper() and last != "I") or (known is not None and known.is_inside(last)):
        return False
    return known is None or not (
        known.is_day(before, rest) or (rest[0].isdigit() and (known.is_abbreviation(last) or known.awaits_number(last)))
    )
