"""What an item is made with: its own random numbers, and whether it may take what is held out."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal, TypeVar

T = TypeVar("T")
Part = Literal["train", "held_out"]
# One combination in so many is held out.
_ONE_IN = 10


@dataclass(frozen=True)
class Draw:
    """The draws of one item.

    Attributes:
        random: its random numbers.
        part: "train" never takes a held-out combination, "held_out" asks for nothing else.
        media: False leaves pictures and sounds empty, for who wants the texts alone. They are made last, so that
            the rest of an item does not depend on it.
    """

    random: random.Random
    part: Part
    media: bool = True

    def one(self, choices: Sequence[T]) -> T:
        """One of them, each as likely."""
        return self.random.choice(choices)

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random.random() < probability

    def allows(self, held_out: bool) -> bool:
        """Whether a combination that is, or is not, held out may be what this item asks for."""
        return held_out == (self.part == "held_out")

    def allowed(self, make: Callable[[], T], held_out: Callable[[T], bool]) -> T:
        """The first that may be asked for, of what `make` draws.

        Raises:
            ValueError: a thousand draws gave none.
        """
        for _ in range(1000):
            made = make()
            if self.allows(held_out(made)):
                return made
        raise ValueError(f"nothing to draw for the part {self.part!r}")


def is_held_out(*key: object) -> bool:
    """Whether a combination is one of the tenth that is held out; the same on every machine."""
    content = "\0".join(map(str, key)).encode()
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "big") % _ONE_IN == 0
