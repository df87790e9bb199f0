"""A trigram language model from texts, written as an ARPA file for the recogniser.

Interpolated Kneser-Ney smoothing with one discount for each order (Kneser and Ney, 1995; Chen and Goodman, 1999): a
word is likely after an unknown context by how many different words it follows, not by how often it stands there. The
interpolated probabilities are written in the form with back-off weights that ARPA files have, where the weight of a
context is what its discounts left over.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from muomni.errors import DataError
from muomni.files import write_atomic

BEGIN, END = "<s>", "</s>"
ORDER = 3
_Gram = tuple[str, ...]
# The logarithm of zero in ARPA files: the begin of a sentence is never predicted.
_NEVER = -99.0


def write_lm(sentences: Iterable[Sequence[str]], path: Path) -> int:
    """Counts the trigrams of sentences and writes their model.

    Args:
        sentences: the words of each, as the recogniser writes them.
        path: the ARPA file.

    Returns:
        the number of different words.

    Raises:
        DataError: no words are given.
    """
    counts = _count(sentences)
    if not counts[0]:
        raise DataError("there are no words to make a language model of")
    probabilities, weights = _smooth(counts)
    write_atomic(path, _arpa(probabilities, weights))
    return len(counts[0]) - 1  # the end of a sentence is no word


def _count(sentences: Iterable[Sequence[str]]) -> list[Counter[_Gram]]:
    """How often each run of 1, 2 and 3 words stands in the sentences; the shorter ones by how many words they follow.

    What begins a sentence follows nothing else, so there the plain count stays.
    """
    whole: Counter[_Gram] = Counter()
    first: Counter[_Gram] = Counter()
    for sentence in sentences:
        if not sentence:
            continue
        words = (BEGIN, *sentence, END)
        first[words[:2]] += 1
        whole.update(zip(words, words[1:], words[2:], strict=False))
    pairs = Counter(gram[1:] for gram in whole)
    pairs.update(first)
    singles = Counter(gram[1:] for gram in pairs)
    return [singles, pairs, whole]


def _smooth(counts: Sequence[Counter[_Gram]]) -> tuple[list[dict[_Gram, float]], dict[_Gram, float]]:
    """P(word | context) of each order, and for each context the weight of the shorter one."""
    known = len(counts[0])
    probabilities: list[dict[_Gram, float]] = []
    weights: dict[_Gram, float] = {}
    for order, grams in enumerate(counts):
        once, twice = (sum(count == n for count in grams.values()) for n in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        totals: dict[_Gram, int] = defaultdict(int)
        kinds: dict[_Gram, int] = defaultdict(int)
        for gram, count in grams.items():
            totals[gram[:-1]] += count
            kinds[gram[:-1]] += 1
        left = {context: discount * kinds[context] / total for context, total in totals.items()}
        weights |= left
        probabilities.append(
            {
                gram: (count - discount) / totals[gram[:-1]]
                + left[gram[:-1]] * (probabilities[order - 1][gram[1:]] if order else 1 / known)
                for gram, count in grams.items()
            }
        )
    return probabilities, weights


def _arpa(probabilities: Sequence[Mapping[_Gram, float]], weights: Mapping[_Gram, float]) -> str:
    """The file's text: base-10 logarithms of P and of the back-off weights, in the order of the words."""
    first = {(BEGIN,): 0.0, **probabilities[0]}
    orders = [first, *probabilities[1:]]
    lines = ["\\data\\", *(f"ngram {order}={len(grams)}" for order, grams in enumerate(orders, 1))]
    for order, grams in enumerate(orders, 1):
        lines += ["", f"\\{order}-grams:"]
        for gram, p in sorted(grams.items()):
            line = f"{math.log10(p) if p else _NEVER:.5f}\t{' '.join(gram)}"
            if order < ORDER:
                line += f"\t{math.log10(weights.get(gram, 1.0)):.5f}"
            lines.append(line)
    return "\n".join([*lines, "", "\\end\\", ""])
