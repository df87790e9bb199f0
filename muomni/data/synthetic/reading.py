"""Pictures of digits, letters and words in several fonts, to be read."""

import io
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from muomni.data.synthetic.draws import Draw, is_held_out
from muomni.data.synthetic.facts import COLOURS_OF, OPPOSITES
from muomni.data.synthetic.item import Item, sentence

_SIZE = 96
# That matplotlib brings along, so that they are on every machine.
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono", "STIXGeneral", "cmr10", "cmss10", "cmtt10")
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS = tuple(sorted({*OPPOSITES, *OPPOSITES.values(), *COLOURS_OF, *COLOURS_OF.values()}))


def reading(draw: Draw) -> Item:
    """A digit, a letter, a number of two digits or a word."""
    kind = draw.one(("digit", "letter", "number", "word", "word"))
    if kind == "digit":
        # Too few to hold some out: what is held out is the digit in this font.
        text, font = draw.allowed(
            lambda: (str(draw.random.randrange(10)), draw.one(_FONTS)), lambda made: is_held_out(*made)
        )
        questions = ("Which digit is this?", "Read the digit.", "What number is written here?")
        choices = tuple(sentence(str(digit)) for digit in range(10))
    elif kind == "letter":
        text, font = draw.allowed(lambda: (draw.one(_LETTERS), draw.one(_FONTS)), lambda made: is_held_out(*made))
        questions = ("Which letter is this?", "Read the letter.", "What letter do you see?")
        choices = tuple(map(sentence, _LETTERS))
    elif kind == "number":
        text = draw.allowed(lambda: str(draw.random.randrange(10, 100)), lambda made: is_held_out("number", made))
        questions = ("Which number is this?", "Read the number.", "What number is written here?")
        font, choices = draw.one(_FONTS), ()
    else:
        text = draw.allowed(lambda: draw.one(WORDS), lambda made: is_held_out("word", made))
        questions = ("What does it say?", "Read the word.", "Which word is written here?")
        font, choices = draw.one(_FONTS), ()
    question = {"type": "text", "text": draw.one(questions)}
    parts: list[dict[str, Any]] = [{"type": "image", "image": _written(text, font, draw)}, question]
    return Item(f"reading/{kind}", parts, sentence(text), choices)


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


def _written(text: str, font: str, draw: Draw) -> bytes:
    """The text as a PNG of 96 × 96 pixels, dark on light or light on dark, a little turned."""
    if not draw.media:
        return b""
    size = draw.random.randint(44, 76) if len(text) == 1 else min(56, int(140 / len(text)))
    dark = tuple(draw.random.randint(0, 90) for _ in range(3))
    light = tuple(draw.random.randint(190, 255) for _ in range(3))
    ground, ink = (light, dark) if draw.chance(0.75) else (dark, light)
    image = Image.new("RGB", (_SIZE, _SIZE), ground)
    middle = [_SIZE / 2 + draw.random.uniform(-6, 6) for _ in range(2)]
    ImageDraw.Draw(image).text((middle[0], middle[1]), text, font=_font(font, size), fill=ink, anchor="mm")
    turned = image.rotate(draw.random.uniform(-8, 8), Image.Resampling.BILINEAR, fillcolor=ground)
    buffer = io.BytesIO()
    turned.save(buffer, "PNG")
    return buffer.getvalue()
