"""The small world: an item is a function of its number, the seed and the part alone.

Pictures are drawn and questions are asked from a few rules, so that every kind of input has data without a download,
in any number. What a tenth of all combinations is about (`muomni.data.synthetic.draws`) never occurs in training.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from hashlib import blake2b
from importlib import resources

from muomni.config import SyntheticSpec
from muomni.data.speech.espeak_client import Synthesiser
from muomni.data.synthetic.draws import Draw
from muomni.data.synthetic.facts import facts
from muomni.data.synthetic.item import Item
from muomni.data.synthetic.persona import persona
from muomni.data.synthetic.reading import reading
from muomni.data.synthetic.scenes import scene
from muomni.data.synthetic.spoken import spoken

_MADE: dict[str, Callable[[Draw], Item]] = {"scene": scene, "reading": reading, "facts": facts, "persona": persona}


class World:
    """Items by their numbers.

    Args:
        spec: its skills, seed and part.
        synthesiser: speaks; None leaves all media out.
    """

    def __init__(self, spec: SyntheticSpec, synthesiser: Synthesiser | None = None, *, media: bool = True) -> None:
        self._spec, self._synthesiser, self._media = spec, synthesiser, media

    def __len__(self) -> int:
        """How many items there are."""
        return self._spec.count

    def item(self, number: int) -> Item:
        """The item of a number ≥ 0."""
        spec = self._spec
        draw = Draw(random.Random(f"{spec.seed}/{spec.part}/{number}"), spec.part, self._media)
        skill = draw.one(spec.skills)
        return spoken(draw, self._synthesiser) if skill == "spoken" else _MADE[skill](draw)


@contextmanager
def open_world(spec: SyntheticSpec, *, media: bool = True) -> Iterator[World]:
    """A world, with the synthesiser that its skills need.

    Args:
        spec: what it holds.
        media: False leaves pictures and sounds empty, and the rest as it is.

    Raises:
        UserError: a synthesiser is needed and not installed.
    """
    with ExitStack() as stack:
        speaks = media and "spoken" in spec.skills
        yield World(spec, stack.enter_context(Synthesiser(fresh=True)) if speaks else None, media=media)


@cache
def rules_digest() -> str:
    """A hash of the rules that make items: other rules make other items of the same numbers."""
    content = blake2b(digest_size=16)
    files = resources.files("muomni.data.synthetic").iterdir()
    for file in sorted((file for file in files if file.is_file()), key=lambda file: file.name):
        content.update(file.read_bytes())
    return content.hexdigest()
