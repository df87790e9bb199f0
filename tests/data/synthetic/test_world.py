"""Made items: a function of their number, held-out combinations, what is read back from files."""

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from muomni.config import SyntheticSpec, load_recipe
from muomni.config.model import encoder_configs, preset
from muomni.data import SPECIAL, Tokenizer, iter_documents, iter_texts, prepare_rows
from muomni.data.synthetic import scenes, spoken
from muomni.data.synthetic.draws import Draw, is_held_out
from muomni.data.synthetic.facts import COLOURS_OF, OPPOSITES
from muomni.data.synthetic.item import Item
from muomni.data.synthetic.persona import talks
from muomni.data.synthetic.reading import WORDS
from muomni.data.synthetic.world import open_world, rules_digest
from muomni.data.synthetic.writer import write_items
from muomni.errors import ConfigError, DataError

SILENT = ("scene", "reading", "facts", "persona")


def spec_of(**changes: object) -> SyntheticSpec:
    return SyntheticSpec.model_validate({"synthetic": "world", "count": 200, **changes})


@pytest.fixture(scope="module")
def items() -> dict[str, list[Item]]:
    """Some of each part."""
    made = {}
    for part in ("train", "held_out"):
        with open_world(spec_of(part=part)) as world:
            made[part] = [world.item(number) for number in range(400)]
    return made


def text_of(item: Item) -> str:
    return item.texts[0]


@settings(max_examples=20, deadline=None)
@given(number=st.integers(0, 10**12), seed=st.integers(-(2**31), 2**31))
def test_an_item_is_a_function_of_its_number(number: int, seed: int) -> None:
    with open_world(spec_of(seed=seed)) as world, open_world(spec_of(seed=seed)) as again:
        again.item(number + 1)
        assert world.item(number) == again.item(number)


def test_seed_and_part_give_other_items(items: dict[str, list[Item]]) -> None:
    with open_world(spec_of(seed=1)) as world:
        other = [world.item(number) for number in range(400)]
    same = sum(a == b for a, b in zip(items["train"], other, strict=True))
    assert same < 20, "of 400, by chance a few short questions are the same"
    assert items["train"] != items["held_out"]


def test_without_media_the_rest_is_the_same(items: dict[str, list[Item]]) -> None:
    with open_world(spec_of(), media=False) as world:
        for number, item in enumerate(items["train"][:100]):
            bare = world.item(number)
            assert (bare.skill, bare.texts, bare.answer) == (item.skill, item.texts, item.answer)


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_scenes_keep_to_their_part(part: str) -> None:
    for number in range(300):
        draw = Draw(random.Random(number), part)  # type: ignore[arg-type]
        things = scenes.draw_scene(draw)
        assert any(thing.held_out for thing in things) == (part == "held_out")
        places = [(thing.row, thing.column) for thing in things]
        assert len(set(places)) == len(things)
        question = scenes.ask(things, draw)
        assert question.answer in question.choices or not question.choices


def test_every_shape_and_colour_is_seen_in_training() -> None:
    pairs = [(shape, colour) for shape in scenes.SHAPES for colour in scenes.COLOURS]
    kept = [pair for pair in pairs if not scenes.Thing(*pair, True, 0, 0).held_out]
    assert {shape for shape, _ in kept} == set(scenes.SHAPES)
    assert {colour for _, colour in kept} == set(scenes.COLOURS)
    assert len(pairs) - len(kept) == len(scenes.SHAPES)  # a ninth


def test_held_out_words_sums_and_openings(items: dict[str, list[Item]]) -> None:
    for part, made in items.items():
        for item in made:
            if item.skill == "reading/word":
                assert is_held_out("word", item.answer.rstrip(".").lower()) == (part == "held_out"), item
    train = {text_of(item) for item in items["train"] if item.skill.startswith("persona") and "{}" not in text_of(item)}
    held = {text_of(item) for item in items["held_out"] if item.skill.startswith("persona")}
    assert not train & held
    assert {is_held_out("word", word) for word in WORDS} == {True, False}


def test_answers_are_true() -> None:
    """What is asked about in words is right: sums, opposites, colours, the next day."""
    with open_world(spec_of(skills=["facts"]), media=False) as world:
        made = [world.item(number) for number in range(1500)]
    checked = 0
    for item in made:
        text, answer = text_of(item), item.answer.rstrip(".")
        numbers = [int(word.strip("?.,")) for word in text.split() if word.strip("?.,").isdigit()]
        if item.skill == "facts/sum":
            a, b = numbers
            assert int(answer) == (a + b if "plus" in text else a - b if "minus" in text else a * b)
        elif item.skill == "facts/larger":
            assert int(answer) == (min if "smaller" in text or "less" in text else max)(numbers)
        elif item.skill == "facts/count":
            assert answer == ", ".join(map(str, range(numbers[0], numbers[1] + 1)))
        elif item.skill == "facts/opposite":
            word = text.rstrip("?.").split()[-1]
            assert answer.lower() == {**{v: k for k, v in OPPOSITES.items()}, **OPPOSITES}[word]
        elif item.skill == "facts/colour":
            words = text.rstrip("?.").split()
            assert answer.lower() == COLOURS_OF[next(word for word in words if word in COLOURS_OF)]
        else:
            continue
        checked += 1
    assert checked > 400


def test_pictures_show_what_is_asked() -> None:
    """A lone circle's colour is the colour of the pixels in the middle of its cell."""
    for colour, wanted in scenes.COLOURS.items():
        thing = scenes.Thing("circle", colour, True, 1, 1)
        content = scenes.picture([thing], Draw(random.Random(colour), "train"))
        image = Image.open(io.BytesIO(content))
        assert image.size == (scenes.SIZE, scenes.SIZE)
        pixel = image.getpixel((scenes.SIZE // 2, scenes.SIZE // 2))
        assert isinstance(pixel, tuple)
        assert all(abs(seen - value) <= 14 for seen, value in zip(pixel, wanted, strict=True))


def test_talks_are_unambiguous() -> None:
    """Each opening is of one kind, and its reply is one of that kind's."""
    openings = [opening for talk in talks() for opening in talk.openings]
    assert len(openings) == len(set(openings))
    assert all(talk.openings and talk.replies for talk in talks())


@pytest.fixture(scope="module")
def spoken_items() -> Iterator[list[Item]]:
    pytest.importorskip("espeakng_loader")
    with open_world(spec_of(skills=["spoken"])) as world:
        yield [world.item(number) for number in range(20)]


def test_speech_does_not_depend_on_what_was_said_before(spoken_items: list[Item]) -> None:
    with open_world(spec_of(skills=["spoken"])) as world:
        for number in (13, 2, 7):
            assert world.item(number) == spoken_items[number]


def test_held_out_voices_never_speak_in_training() -> None:
    draws = random.Random(0)
    for part in ("train", "held_out"):
        voices = {spoken.voice_of(Draw(draws, part)).variant for _ in range(500)}  # type: ignore[arg-type]
        assert voices.issubset(spoken.HELD_OUT_VARIANTS) == (part == "held_out")
        assert not (part == "train" and voices & set(spoken.HELD_OUT_VARIANTS))


def test_files_hold_what_a_recipe_makes(tmp_path: Path) -> None:
    spec = spec_of(count=12, skills=SILENT)
    manifest = write_items(spec, tmp_path / "world")
    made = list(iter_documents([spec]))
    read = list(iter_documents(load_recipe("see-tiny", [f"data.train={json.dumps(str(manifest))}"]).data.train))
    assert len(read) == len(made) == 12
    for a, b in zip(read, made, strict=True):
        assert a.messages is not None
        assert b.messages is not None
        assert [m["role"] for m in a.messages] == [m["role"] for m in b.messages]
        assert a.messages[-1] == b.messages[-1]
    with pytest.raises(DataError, match="is not empty"):
        write_items(spec, tmp_path / "world")


def test_a_recipe_reads_the_world(tmp_path: Path) -> None:
    world = {"synthetic": "world", "count": 40, "skills": list(SILENT)}
    sets = [f"data.train={json.dumps(world)}", f"data.cache_dir={json.dumps(str(tmp_path))}", "data.seq_len=128"]
    recipe = load_recipe("see-tiny", sets)
    tokenizer = Tokenizer.train(iter_texts(recipe.data.train, 10_000), 400)
    config = preset("nano").replace(vision=encoder_configs("nano")[0], image_token_id=tokenizer.id_of(SPECIAL.image))
    rows = prepare_rows(recipe.data, tokenizer, config, seed=0, progress=False)
    batch = rows.train.batch(0, 2)
    assert not batch.bad
    assert batch.media is not None
    other = recipe.data.replace(train=[{**world, "seed": 1}])
    assert prepare_rows(other, tokenizer, config, seed=0, progress=False).train.key != rows.train.key


def test_mistakes_in_a_recipe_are_told() -> None:
    with pytest.raises(ConfigError, match=r"skills\[0\]"):
        load_recipe("see-tiny", ['data.train={"synthetic": "world", "skills": ["taste"]}'])
    with pytest.raises(ConfigError, match="synthetic"):
        load_recipe("see-tiny", ['data.train={"synthetic": "moon"}'])
    assert len(rules_digest()) == 32
