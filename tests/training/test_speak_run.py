"""Runs that teach a Talker: alone and beside text, resumed, in two ways of cutting a step, and from wrong input."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from muomni.accel.memory.monitor import Categories
from muomni.accel.memory.out_of_memory import Shortage, Workload, explain, remedies
from muomni.accel.step_config import StepConfig
from muomni.config import Recipe, SourceSpec, parse
from muomni.config.codec import codec_preset
from muomni.data.speech import pairs
from muomni.errors import ConfigError, UserError
from muomni.formats.codec import save_codec
from muomni.formats.pretrained import load_model, read_config
from muomni.model.codec import SpeechCodec
from muomni.training.init_model import initial_model
from muomni.training.reporting.metrics_log import read_lines
from muomni.training.resolve_model import resolve_model
from muomni.training.speech_data import prepare_speech
from muomni.training.stage import train

# The tests are no package (--import-mode=importlib).
_SPEC = importlib.util.spec_from_file_location("made_pairs", Path(__file__).with_name("made_pairs.py"))
assert _SPEC is not None and _SPEC.loader is not None
made_pairs = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(made_pairs)

TALKER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "text_size": 24,
    "text_layers": 1,
    "text_kernel": 3,
    "depth_size": 24,
    "depth_intermediate": 32,
}


@pytest.fixture(autouse=True)
def _pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "prepare_pairs", made_pairs.make_pairs)


@pytest.fixture(scope="module")
def start(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`text`, a run of a model that reads, and `codec`, a codec with random weights."""
    folder = tmp_path_factory.mktemp("start")
    values = {
        "model": {"preset": "nano", "thinker": {"hidden_size": 32, "intermediate_size": 64}},
        "tokenizer": {"vocab_size": 384},
        "data": {"train": str(corpus), "seq_len": 32, "cache_dir": str(folder / "cache")},
        "batch_size": 2,
        "max_steps": 2,
        "schedule": {"warmup_steps": 1},
        "device": "cpu",
        "compile": "off",
    }
    train(parse(Recipe, values, "test"), folder / "text")
    (folder / "codec").mkdir()
    save_codec(SpeechCodec(codec_preset("nano"), torch.Generator().manual_seed(1)), folder / "codec")
    return folder


def recipe_of(start: Path, /, talker: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "model": {
            "init_from": str(start / "text"),
            "talker": {"codec": str(start / "codec"), "dropout": 0.1} | TALKER | (talker or {}),
        },
        "losses": {"text": 0, "speech": 1},
        "freeze": ["thinker"],
        "data": {"speech": {"train": "24-anna-ben", "val_fraction": 0.2}},
        "batch_size": 4,
        "max_steps": 8,
        "optimizer": {"lr": 5e-3},
        "schedule": {"warmup_steps": 2},
        "eval": {"every": 4, "max_rows": 8},
        "checkpoint": {"every": 3, "keep": 4},
        "log_every": 2,
        "device": "cpu",
        "compile": "off",
    }
    return parse(Recipe, values | changes, "test")


def lines_of(run: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == kind]


def test_a_talker_learns_and_nothing_else_does(start: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = train(recipe_of(start, max_steps=40, eval={"every": 20}), run)
    steps = lines_of(run, "train")
    assert steps[-1]["speech"] < 0.7 * steps[0]["speech"]
    assert all(line["frames"] > 0 and not {"loss", "targets"} & line.keys() for line in steps)
    first, last = lines_of(run, "val")
    assert last["speech"] < first["speech"] == pytest.approx(first["speech_codes"] + first["speech_moves"], rel=1e-5)
    assert not {"loss", "bits_per_byte"} & last.keys()
    assert result.progress.best_loss == last["speech"]
    assert all(line["frames_per_s"] > 0 and "tokens_per_s" not in line for line in lines_of(run, "speed"))
    assert result.plot is not None and result.plot.is_file()
    found = load_file(run / "best" / "model.safetensors")
    for folder, prefix in ((start / "text/best", "thinker."), (start / "codec", "codec.")):
        for name, weight in load_file(folder / "model.safetensors").items():
            assert torch.equal(found[f"codec.{name}" if prefix == "codec." else name], weight), name
    config, _ = read_config(run / "best")
    assert config.talker is not None and config.talker.voices == ("anna", "ben")
    assert config.codec == codec_preset("nano")


def test_a_run_resumes_bit_by_bit(start: Path, tmp_path: Path) -> None:
    """With dropout, noise, dropped states and shuffling, over the end of an epoch."""
    recipe = recipe_of(start)
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "again")
    train(recipe, tmp_path / "again", resume_from=tmp_path / "again" / "step-00000003")
    for name in ("model.safetensors", "training/state.safetensors"):
        one, other = (load_file(tmp_path / run / "last" / name) for run in ("whole", "again"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert lines_of(tmp_path / "whole", "train") == lines_of(tmp_path / "again", "train")


def test_how_a_step_is_cut_changes_nothing_but_rounding(start: Path, tmp_path: Path) -> None:
    alike: dict[str, Any] = {
        "talker": {"dropout": 0.0, "code_corruption": 0.0, "conditioning_dropout": 0.0},
        "optimizer": {"lr": 5e-3, "eps": 1e-4},
        "precision": "fp32",
    }
    train(recipe_of(start, **alike), tmp_path / "whole")
    train(recipe_of(start, **alike, batch_size=1, gradient_accumulation_steps=4), tmp_path / "cut")
    whole, cut = (lines_of(tmp_path / name, "train") for name in ("whole", "cut"))
    for one, other in zip(whole, cut, strict=True):
        assert one["batch"] == other["batch"] and one["frames"] == other["frames"]
        assert one["speech"] == pytest.approx(other["speech"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


def test_beside_text(start: Path, corpus: Path, tmp_path: Path) -> None:
    data = {
        "train": str(corpus),
        "seq_len": 32,
        "cache_dir": str(tmp_path),
        "speech": {"train": "24", "pairs_per_sequence": 3},
    }
    recipe = recipe_of(start, data=data, losses={"speech": 0.5}, freeze=[], batch_size=2, max_steps=20)
    train(recipe, tmp_path / "run")
    steps = lines_of(tmp_path / "run", "train")
    for name in ("loss", "speech"):
        assert sum(line[name] for line in steps[-5:]) < 0.9 * sum(line[name] for line in steps[:5]), name
    assert steps[0]["frames"] > 0 and steps[0]["targets"] > 0
    last = lines_of(tmp_path / "run", "val")[-1]
    assert {"loss", "speech", "speech_codes", "speech_moves", "bits_per_byte"} <= last.keys()
    assert lines_of(tmp_path / "run", "speed")[-1]["frames_per_s"] > 0
    before, after = (load_file(path / "best/model.safetensors") for path in (start / "text", tmp_path / "run"))
    assert not torch.equal(before["thinker.norm.weight"], after["thinker.norm.weight"])


def test_blocks_begin_as_the_thinkers_last_where_sizes_agree(start: Path) -> None:
    thinker = read_config(start / "text/best")[0].thinker
    sizes = {name: getattr(thinker, name) for name in TALKER if hasattr(thinker, name) and "layers" not in name}
    for taken in (True, False):
        recipe = recipe_of(start, talker=sizes | {"from_thinker": taken, "num_hidden_layers": 1})
        resolved = resolve_model(recipe)
        from muomni.data import Tokenizer

        config = resolved.fit(Tokenizer.load(start / "text/best"))
        model = initial_model(resolved, config, recipe.seed)
        assert model.talker is not None
        own, last = model.talker.layers[-1].state_dict(), model.thinker.layers[-1].state_dict()
        matrices = [name for name in own if own[name].ndim == 2]
        assert matrices and all(torch.equal(own[name], last[name]) == taken for name in matrices)


@pytest.fixture(scope="module")
def speaking(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a Talker."""
    folder = tmp_path_factory.mktemp("speaking") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "prepare_pairs", made_pairs.make_pairs)
        train(recipe_of(start, max_steps=2), folder)
    return folder


def test_a_talker_goes_on_with_the_voices_it_has(start: Path, speaking: Path, tmp_path: Path) -> None:
    model = {"init_from": str(speaking), "talker": {"code_corruption": 0.2, "head_dim": 16}}
    train(recipe_of(start, model=model, data={"speech": {"train": ["12-ben"], "val": "4-ben"}}), tmp_path / "run")
    before, after = load_model(speaking / "best"), load_model(tmp_path / "run" / "best")
    assert after.config.talker is not None and after.config.talker.voices == ("anna", "ben")
    assert after.config.talker.code_corruption == 0.2
    assert before.codec is not None and after.codec is not None
    for name, weight in before.codec.state_dict().items():
        assert torch.equal(after.codec.state_dict()[name], weight)
    stranger = recipe_of(start, model=model, data={"speech": {"train": "12-ben-carl"}})
    with pytest.raises(ConfigError) as caught:
        train(stranger, tmp_path / "stranger")
    assert str(caught.value) == (
        f"data.speech: the Talker of {speaking} has no voice for carl: it speaks as anna, ben; leave those recordings "
        "out, or train a Talker anew"
    )
    assert not (tmp_path / "stranger").exists()
    german = recipe_of(start, model=model, data={"speech": {"train": "12-ben", "language": "de"}})
    with pytest.raises(ConfigError) as caught:
        train(german, tmp_path / "stranger")
    assert str(caught.value) == (
        f'data.speech: the recordings of ben are in "de", and its voice in {speaking} speaks "en": give the language '
        'of the recordings ("language" in the manifest, or data.speech.language) or another speaker'
    )


def test_a_model_that_speaks_can_go_on_reading(start: Path, speaking: Path, corpus: Path, tmp_path: Path) -> None:
    data = {"train": str(corpus), "seq_len": 32, "cache_dir": str(tmp_path)}
    model = {"init_from": str(speaking)}
    train(recipe_of(start, model=model, data=data, losses={}, freeze=["talker"]), tmp_path / "run")
    before, after = (load_file(run / "last/model.safetensors") for run in (speaking, tmp_path / "run"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert all(name in same for name in before if name.startswith(("talker.", "codec.")))
    assert "thinker.norm.weight" not in same
    idle = recipe_of(start, model=model, data=data, losses={}, freeze=[])
    with pytest.raises(ConfigError, match="losses.speech = 0: no loss trains talker: give this one a weight"):
        train(idle, tmp_path / "idle")


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (
            {"talker": {"codec": "text"}},
            UserError,
            "model.talker.codec: .*holds a model of type 'muomni', not a speech",
        ),
        ({"talker": {"codec": "nothing"}}, UserError, "model.talker.codec: no run or model at .*nothing"),
        ({"talker": {}}, ConfigError, "model.talker.codec is missing: name the run or folder of a trained codec"),
        ({"talker": {"codec": "codec", "thinker_layer": 9}}, ConfigError, "thinker_layer = 9: must be at most the Th"),
        ({"talker": {"codec": "codec", "text_kernel": 4}}, ConfigError, "model.talker: text_kernel = 4: must be odd"),
        ({"talker": None}, ConfigError, 'losses.speech = 1.0: needs a Talker: "model": {"talker": {"codec": '),
    ],
)
def test_what_no_talker_can_be_made_of(
    start: Path, tmp_path: Path, model: dict[str, Any], error: type[Exception], words: str
) -> None:
    for spec in model.values():
        if spec and "codec" in spec:
            spec["codec"] = str(start / spec["codec"])
    with pytest.raises(error, match=words.replace("{", r"\{")):
        train(recipe_of(start, model={"init_from": str(start / "text")} | model), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("talker", "words"),
    [
        ({"codec": "elsewhere"}, 'model.talker.codec = elsewhere: remove it: the model of "init_from" has a Talker'),
        ({"hidden_size": 48}, 'model.talker.hidden_size = 48: remove it: "init_from" fixes it to 32; what may differ'),
    ],
)
def test_a_talker_with_weights_keeps_its_sizes(
    start: Path, speaking: Path, tmp_path: Path, talker: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        train(recipe_of(start, model={"init_from": str(speaking), "talker": talker}), tmp_path / "run")


def test_pairs_to_validate_on_are_prepared_with_the_others(start: Path) -> None:
    recipe = recipe_of(start, data={"speech": {"train": ["5-ben", "6"], "val": ["3-anna"]}})
    found = prepare_speech(recipe.data, resolve_model(recipe), torch.device("cpu"), progress=False)
    assert (len(found.train), len(found.val)) == (11, 3)
    assert tuple(found.voices) == found.val.speakers == ("anna", "ben", "default")
    assert set(found.voices.values()) == {"en"}
    assert set(found.train.texts).isdisjoint(found.val.texts)
    assert made_pairs.make_pairs([SourceSpec(path="3")]).speakers == ("default",)


def test_what_is_advised_where_memory_runs_out_is_of_use_to_pairs(start: Path) -> None:
    step = StepConfig.of(recipe_of(start)).replace(precision="fp32")
    load = Workload(step, 4, None, "adamw", True, layers=2, hidden_size=32, matrix_bytes=1000)
    advice = [str(remedy) for remedy in remedies(load, 10_000_000, "backward")]
    assert any("batch_size" in text for text in advice) and not any("seq_len" in text for text in advice)
    none = Categories(0, 0, 0, 0, 0, 0)
    assert "micro-batches of 4 pairs of text and speech." in explain(
        Shortage("backward", None), load, torch.device("cpu"), none, []
    )


def test_quantize_says_that_a_run_of_pairs_names_no_text(speaking: Path) -> None:
    from muomni import MuOmni
    from muomni.cli.quantize import _rows

    model = MuOmni.from_pretrained(speaking, device="cpu")
    with pytest.raises(UserError, match="recipe.json names no text to compare the models on: give --data FILE"):
        _rows(str(speaking), [], model)
