"""A Talker, its data and its loss in a recipe: what goes together, and what is said where it does not."""

import json
from typing import Any

import pytest

from muomni.config import Recipe, load_recipe, parse, recipe_schema
from muomni.config.loader import merge
from muomni.config.talker import TalkerConfig, TalkerSpec
from muomni.errors import ConfigError

BASE: dict[str, Any] = {
    "model": {"preset": "nano", "talker": {"codec": "codec"}},
    "tokenizer": {"path": "text"},
    "losses": {"text": 0, "speech": 1},
    "freeze": ["thinker"],
    "data": {"speech": {"train": "pairs.jsonl"}},
    "max_steps": 100,
}
TEXT: dict[str, Any] = {"train": "a.jsonl", "seq_len": 64}


def read(**changes: Any) -> Recipe:
    return parse(Recipe, merge(BASE, changes), "test")


def test_alone_beside_text_and_stored() -> None:
    alone, beside = read(), read(data=TEXT, losses={"text": 1}, freeze=[])
    assert alone.data.train == () and alone.data.speech is not None and alone.data.speech.pairs_per_sequence == 2
    assert beside.data.train[0].path == "a.jsonl"
    import jsonschema

    for recipe in (alone, beside):
        stored = json.loads(json.dumps(recipe.model_dump(mode="json", exclude_none=True, by_alias=True)))
        assert parse(Recipe, stored, "stored") == recipe
        jsonschema.Draft202012Validator(recipe_schema()).validate(stored)


def test_every_size_of_a_talker_can_be_changed() -> None:
    own = {"codec", "from_thinker"}
    of_codec = {"num_codebooks", "codebook_size", "voices", "voice_languages"}
    assert set(TalkerSpec.model_fields) - own == set(TalkerConfig.model_fields) - of_codec


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"model": {"talker": None}},
            'losses.speech = 1: needs a Talker: "model": {"talker": {"codec": "runs/codec-tiny"}}',
        ),
        (
            {"model": {"talker": {"codec": None}}},
            "model.talker.codec = null: name the run or folder of a trained codec (muomni train codec-tiny)",
        ),
        ({"freeze": ["talker"]}, 'losses.speech = 1: set it to 0: "talker" is frozen, so this loss trains nothing'),
        (
            {"freeze": ["thinker", "talker"]},
            'freeze = "thinker, talker": remove a part: at least one must be trainable',
        ),
        ({"freeze": []}, "losses.text = 0: no loss trains thinker: give this one a weight, or add them to freeze"),
        (
            {"freeze": [], "losses": {"text": 1}},
            "losses.text = 1: set it to 0: data.train is empty, so this loss has no data",
        ),
        (
            {"data": TEXT},
            (
                'data.train = ["a.jsonl"]: unused without losses.text, ctc or contrastive: remove it '
                "(pairs of text and speech go into data.speech.train)"
            ),
        ),
        (
            {"data": TEXT | {"speech": None}, "losses": {"text": 1}, "freeze": []},
            "losses.speech = 1: has no data: name pairs of text and speech in data.speech",
        ),
        (
            {"data": TEXT, "losses": {"text": 1, "speech": 0}, "freeze": []},
            "losses.speech = 0: data.speech is unused: give this loss a weight, or remove data.speech",
        ),
        (
            {"data": TEXT | {"speech": None}, "losses": {"text": 1, "speech": 0}, "freeze": []},
            "losses.speech = 0: no loss trains talker: give this one a weight, or add talker to freeze",
        ),
        (
            {"tokenizer": {"path": None}},
            "tokenizer.path = null: name the tokenizer's folder: data.train is empty, so none can be trained",
        ),
        (
            {"data": {"seq_len": 64}},
            "data.seq_len = 64: remove it: data.train is empty, and pairs of speech have their own keys in data.speech",
        ),
        ({"data": {"speech": {"train": []}}}, "data.speech.train = []: must hold at least 1"),
        (
            {"data": {"speech": {"train": {"path": "a", "weight": 2}}}},
            "data.speech.train[0].weight = 2: remove it: an epoch reads a pair once",
        ),
        ({"losses": {"speech": -1}}, "losses.speech = -1: must be at least 0"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert str(caught.value).splitlines()[0].startswith(f"test: {line}")


def test_a_codec_learns_from_no_pairs() -> None:
    values = {"codec": {}, "data": {"train": "a", "speech": {"train": "b"}}, "max_steps": 100}
    with pytest.raises(ConfigError, match='data.speech = .*: remove it: it does not go with "codec"'):
        parse(Recipe, values, "test")


def test_the_bundled_recipe_wants_only_pairs() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("speak-tiny")
    assert str(caught.value).endswith(
        "speak-tiny.json: data.speech.train is missing: say `--set data.speech.train=FILE`, or write it into the recipe"
    )
    assert load_recipe("speak-tiny", ["data.speech.train=a.jsonl"]).losses.speech == 1


def test_voices_have_a_language_each_or_one_for_all() -> None:
    sizes = {"thinker_layer": 1, "num_codebooks": 4, "codebook_size": 64, "voices": ["anna", "ben"]}
    config = parse(TalkerConfig, sizes | {"voice_languages": ["de", "en-gb"]}, "test")
    assert [config.language(voice) for voice in (0, 1)] == ["de", "en-gb"]
    assert parse(TalkerConfig, json.loads(config.model_dump_json()), "stored") == config
    assert parse(TalkerConfig, sizes, "test").language(1) == "en"
    for languages, words in ((["de"] * 3, "must be one for all voices, or 2"), (["German"], "voice_languages")):
        with pytest.raises(ConfigError, match=words):
            parse(TalkerConfig, sizes | {"voice_languages": languages}, "test")
