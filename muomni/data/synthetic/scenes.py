"""Pictures of coloured shapes, with questions about them.

A ninth of all pairs of shape and colour is held out, in which every shape and every colour has its part: who answers
questions about them has understood shapes and colours, not pairs.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from muomni.data.synthetic.draws import Draw
from muomni.data.synthetic.item import Item, sentence

SIZE = 96
_FINE = 4  # drawn so many times larger, for smooth edges
COLOURS = {
    "red": (214, 40, 40),
    "orange": (247, 140, 20),
    "yellow": (250, 215, 40),
    "green": (50, 150, 60),
    "blue": (40, 90, 210),
    "purple": (130, 60, 170),
    "pink": (250, 140, 190),
    "brown": (125, 80, 45),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond", "heart")
_GROUNDS = ((255, 255, 255), (240, 240, 235), (225, 235, 245), (245, 235, 220), (230, 245, 230))
_NUMBERS = ("none", "one", "two", "three", "four", "five")
_ROWS = ("top", "middle", "bottom")
_COLUMNS = ("left", "middle", "right")
_UNKNOWN = ("moon", "tree", "dog", "house", "car", "fish")


@dataclass(frozen=True)
class Thing:
    """A shape of a picture.

    Attributes:
        shape, colour: names.
        large: or small.
        row, column: of a 3 × 3 grid.
    """

    shape: str
    colour: str
    large: bool
    row: int
    column: int

    @property
    def name(self) -> str:
        """Colour and shape."""
        return f"{self.colour} {self.shape}"

    @property
    def place(self) -> str:
        """Where it is, in words."""
        row, column = _ROWS[self.row], _COLUMNS[self.column]
        if row == column:
            return "in the middle"
        if row == "middle":
            return f"on the {column}"
        return f"at the {row}" if column == "middle" else f"at the {row} {column}"

    @property
    def held_out(self) -> bool:
        """Whether its pair of shape and colour never occurs in training."""
        return (list(COLOURS).index(self.colour) * 2 + SHAPES.index(self.shape) * 5) % 9 == 0


def draw_scene(draw: Draw) -> list[Thing]:
    """One to five things; in the held-out part at least one pair is held out, in training none is."""
    count = draw.one((1, 1, 2, 2, 3, 3, 4, 5))
    places = draw.random.sample([(row, column) for row in range(3) for column in range(3)], count)

    def thing(place: tuple[int, int]) -> Thing:
        return Thing(draw.one(SHAPES), draw.one(list(COLOURS)), draw.chance(0.5), *place)

    first = draw.allowed(lambda: thing(places[0]), lambda made: made.held_out)
    things = [first]
    for place in places[1:]:
        # Equal things are common enough to be counted.
        if draw.chance(0.3):
            like = draw.one(things)
            things.append(Thing(like.shape, like.colour, draw.chance(0.5), *place))
        else:
            things.append(draw.allowed(lambda place=place: thing(place), lambda made: made.held_out))  # type: ignore[misc]
    return things


def picture(things: Sequence[Thing], draw: Draw) -> bytes:
    """The scene as a PNG of 96 × 96 pixels."""
    if not draw.media:
        return b""
    full = SIZE * _FINE
    image = Image.new("RGB", (full, full), draw.one(_GROUNDS))
    pen = ImageDraw.Draw(image)
    cell = full / 3
    for thing in things:
        radius = cell * (0.42 if thing.large else 0.22) * draw.random.uniform(0.92, 1.08)
        jitter = cell * 0.06
        x = (thing.column + 0.5) * cell + draw.random.uniform(-jitter, jitter)
        y = (thing.row + 0.5) * cell + draw.random.uniform(-jitter, jitter)
        colour = tuple(min(255, max(0, value + draw.random.randint(-12, 12))) for value in COLOURS[thing.colour])
        _draw_shape(pen, thing.shape, x, y, radius, colour)
    buffer = io.BytesIO()
    image.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return buffer.getvalue()


def _draw_shape(pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: tuple[int, ...]) -> None:
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "cross":
        t = r / 3
        pen.rectangle((x - r, y - t, x + r, y + t), fill=colour)
        pen.rectangle((x - t, y - r, x + t, y + r), fill=colour)
    else:
        pen.polygon([(x + r * dx, y + r * dy) for dx, dy in _outline(shape)], fill=colour)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners within the unit circle; y grows downwards."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -1), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "diamond":
        return [(0, -1), (0.65, 0), (0, 1), (-0.65, 0)]
    if shape == "star":
        spikes = [(1.0 if n % 2 == 0 else 0.42, math.pi * n / 5) for n in range(10)]
        return [(r * math.sin(angle), -r * math.cos(angle)) for r, angle in spikes]
    turn = [2 * math.pi * n / 40 for n in range(40)]
    return [
        (math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16)
        for t in turn
    ]


@dataclass(frozen=True)
class SceneQuestion:
    """A question about a picture, its answer, and the answers that such a question can have."""

    kind: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()


_Kind = Callable[[Sequence[Thing], Draw], SceneQuestion]


def ask(things: Sequence[Thing], draw: Draw) -> SceneQuestion:
    """A question about things. What is asked about is held out where the part is."""
    kinds: list[_Kind] = [
        _how_many,
        _is_there,
        _is_there,
        _describe,
        _not_there,
    ]
    about = [thing for thing in things if draw.allows(thing.held_out)]
    if lone := [thing for thing in about if _alone(thing, things, "shape")]:
        kinds += [lambda t, d: _about(d.one(lone), t, d)] * 5
    if lone_colour := [thing for thing in about if _alone(thing, things, "colour")]:
        kinds += [lambda _, d: _which_shape(d.one(lone_colour), d)] * 2
    if len(things) == 1:
        kinds += [lambda t, d: _what(t[0], d)] * 3
    return draw.one(kinds)(things, draw)


def scene(draw: Draw) -> Item:
    """A picture and a question about it."""
    things = draw_scene(draw)
    question = ask(things, draw)
    image: dict[str, Any] = {"type": "image", "image": picture(things, draw)}
    parts = [image, {"type": "text", "text": question.text}]
    return Item(f"scene/{question.kind}", parts, question.answer, question.choices)


def _alone(thing: Thing, things: Sequence[Thing], key: str) -> bool:
    return [getattr(other, key) for other in things].count(getattr(thing, key)) == 1


def _what(thing: Thing, draw: Draw) -> SceneQuestion:
    text = draw.one(("What is this?", "What do you see?", "What is in the picture?", "Name the shape and its colour."))
    return SceneQuestion("name", text, sentence(f"a {thing.name}" if thing.colour[0] != "o" else f"an {thing.name}"))


def _about(thing: Thing, things: Sequence[Thing], draw: Draw) -> SceneQuestion:
    """Colour, place, size or neighbour of the one thing of its shape."""
    the = f"the {thing.shape}"
    kind = draw.one(("colour", "colour", "place", "size", *(("side",) if len(things) > 1 else ())))
    if kind == "colour":
        forms = (f"What colour is {the}?", f"What color is {the}?", f"Which colour does {the} have?")
        return SceneQuestion(kind, draw.one(forms), sentence(thing.colour), tuple(map(sentence, COLOURS)))
    if kind == "place":
        text = draw.one((f"Where is {the}?", f"Where do you see {the}?", f"In which part of the picture is {the}?"))
        places = {Thing("", "", True, row, column).place for row in range(3) for column in range(3)}
        return SceneQuestion(kind, text, sentence(thing.place), tuple(sentence(place) for place in sorted(places)))
    if kind == "size":
        text = draw.one((f"Is {the} large or small?", f"How large is {the}?", f"Is {the} small or large?"))
        return SceneQuestion(kind, text, "Large." if thing.large else "Small.", ("Large.", "Small."))
    other = draw.one([other for other in things if other is not thing])
    if other.column == thing.column:
        word, true = "above", thing.row < other.row
    else:
        word, true = "left of", thing.column < other.column
    if draw.chance(0.5):
        word, true = {"above": "below", "left of": "right of"}[word], not true
    answer = "Yes." if true else "No."
    return SceneQuestion(kind, f"Is {the} {word} the {other.name}?", answer, ("Yes.", "No."))


def _which_shape(thing: Thing, draw: Draw) -> SceneQuestion:
    forms = (f"What shape is the {thing.colour} thing?", f"Which shape is {thing.colour}?", f"What is {thing.colour}?")
    shapes = tuple(sentence(f"the {shape}") for shape in SHAPES)
    return SceneQuestion("shape", draw.one(forms), sentence(f"the {thing.shape}"), shapes)


def _how_many(things: Sequence[Thing], draw: Draw) -> SceneQuestion:
    kind = draw.one(("shapes", "shape", "colour"))
    if kind == "shapes":
        count, what = len(things), draw.one(("shapes", "things"))
    elif kind == "shape":
        shape = draw.one(things).shape if draw.chance(0.8) else draw.one(SHAPES)
        count, what = sum(thing.shape == shape for thing in things), f"{shape}es" if shape[-1] == "s" else f"{shape}s"
    else:
        colour = draw.one(things).colour if draw.chance(0.8) else draw.one(list(COLOURS))
        count, what = sum(thing.colour == colour for thing in things), f"{colour} shapes"
    text = draw.one((f"How many {what} are there?", f"How many {what} do you see?", f"Count the {what}."))
    return SceneQuestion("count", text, sentence(_NUMBERS[count]), tuple(map(sentence, _NUMBERS)))


def _is_there(things: Sequence[Thing], draw: Draw) -> SceneQuestion:
    asked = [thing for thing in things if draw.allows(thing.held_out)]
    there = draw.chance(0.5) and bool(asked)
    if there:
        name = draw.one(asked).name
    else:
        names = {thing.name for thing in things}
        made = draw.allowed(
            lambda: Thing(draw.one(SHAPES), draw.one(list(COLOURS)), True, 0, 0),
            lambda thing: thing.held_out if thing.name not in names else draw.part != "held_out",
        )
        name = made.name
    article = "an" if name[0] == "o" else "a"
    text = draw.one((f"Is there {article} {name}?", f"Do you see {article} {name}?", f"Can you find {article} {name}?"))
    return SceneQuestion("exists", text, "Yes." if there else "No.", ("Yes.", "No."))


def _describe(things: Sequence[Thing], draw: Draw) -> SceneQuestion:
    ordered = sorted(things, key=lambda thing: (thing.row, thing.column))
    parts = [f"a {'large' if thing.large else 'small'} {thing.name} {thing.place}" for thing in ordered]
    text = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    asked = draw.one(("Describe the picture.", "What is in the picture, and where?", "Tell me all that you see."))
    return SceneQuestion("describe", asked, sentence(text))


def _not_there(things: Sequence[Thing], draw: Draw) -> SceneQuestion:
    """What cannot be known from the picture is said to be so."""
    absent = [shape for shape in SHAPES if all(thing.shape != shape for thing in things)]
    name = draw.one((*absent, *_UNKNOWN))
    asked = draw.one((f"What colour is the {name}?", f"Where is the {name}?", f"Is the {name} large or small?"))
    return SceneQuestion("absent", asked, f"There is no {name}.")
