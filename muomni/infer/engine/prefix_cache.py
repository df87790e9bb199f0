"""Which slot already holds the beginning of a prompt.

Tokens are cut into blocks; the hash of a block takes in the hash of the block before it, so one look-up says
whether everything up to the block's end is the same. A match is compared token by token before it is used, and
goes on behind its last whole block as far as the tokens agree.

In a prompt with pictures or sounds their tokens, which all have the same id, are numbers made from the content
here (`PromptMedia.keys`).
"""

from collections.abc import Sequence
from itertools import islice

BLOCK = 16
# Slots compared for one block: with more of the same beginning it matters little which is taken.
_COMPARED = 8


def block_hashes(tokens: Sequence[int], before: Sequence[int] = ()) -> list[int]:
    """Hashes of the whole blocks of `tokens`, of which `before` are the first."""
    hashes = list(before)
    last = hashes[-1] if hashes else 0
    for start in range(len(hashes) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        last = hash((last, *tokens[start : start + BLOCK]))
        hashes.append(last)
    return hashes


class PrefixIndex:
    """What each slot holds, found by hash.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(slots)]
        self._hashes: list[list[int]] = [[] for _ in range(slots)]
        self._slots: dict[int, dict[int, None]] = {}

    def insert(self, slot: int, tokens: list[int]) -> None:
        """`slot` now holds exactly these tokens; those it has in common with what it held cost nothing."""
        held, hashes = self.tokens[slot], self._hashes[slot]
        keep = min(len(hashes), _common(tokens, held) // BLOCK)
        for gone in hashes[keep:]:
            del self._slots[gone][slot]
            if not self._slots[gone]:
                del self._slots[gone]
        self.tokens[slot] = tokens
        self._hashes[slot] = block_hashes(tokens, hashes[:keep])
        for new in self._hashes[slot][keep:]:
            self._slots.setdefault(new, {})[slot] = None

    def match(self, tokens: Sequence[int], hashes: Sequence[int]) -> tuple[int, int]:
        """The slot that holds most of the beginning of `tokens`, and how many; (-1, 0) for less than a block.

        Args:
            tokens: looked for.
            hashes: `block_hashes(tokens)`.
        """
        found: dict[int, None] = {}
        for value in hashes:
            slots = self._slots.get(value)
            if not slots:
                break
            found = slots
        best = (-1, 0)
        for slot in islice(found, _COMPARED):
            length = _common(tokens, self.tokens[slot])
            if length > best[1] and length >= BLOCK:
                best = slot, length
        return best


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning; whole blocks are compared at once."""
    length = min(len(a), len(b))
    same = 0
    while same + BLOCK <= length and a[same : same + BLOCK] == b[same : same + BLOCK]:
        same += BLOCK
    while same < length and a[same] == b[same]:
        same += 1
    return same
