"""Greetings, manners, and who the model is: one consistent character, friendly, plain and honest."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

from muomni.data.synthetic.draws import Draw, is_held_out
from muomni.data.synthetic.item import Item


@dataclass(frozen=True)
class Talk:
    """Openings of one kind, and the replies that suit each of them.

    Attributes:
        kind: its name.
        openings, replies: texts; `{}` stands for a name.
        names: that are drawn.
    """

    kind: str
    openings: tuple[str, ...]
    replies: tuple[str, ...]
    names: tuple[str, ...] = ("",)


@cache
def talks() -> tuple[Talk, ...]:
    """All kinds of talk (`talk.toml`)."""
    content = resources.files("muomni.data.synthetic").joinpath("talk.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(content).items()
    return tuple(Talk(kind, **{key: tuple(texts) for key, texts in table.items()}) for kind, table in tables)


def persona(draw: Draw) -> Item:
    """An opening of a talk and its reply."""

    def opening() -> tuple[Talk, str, str]:
        talk = draw.one(talks())
        return talk, draw.one(talk.openings), draw.one(talk.names)

    talk, text, name = draw.allowed(opening, lambda made: is_held_out(*made[1:]))
    # An opening has one reply, so that what is learnt is not the throw of a coin.
    replies = [reply.replace("{}", name) for reply in talk.replies]
    reply = replies.pop(sum(text.encode()) % len(replies))
    return Item(f"persona/{talk.kind}", text.replace("{}", name), reply, also=tuple(replies))
