"""Every kind of mistake in a recipe: one line each that names place, key, value and what is allowed."""

import json
from pathlib import Path
from typing import Any

import pytest

from muomni.config import OmniConfig, load_recipe, parse
from muomni.errors import ConfigError

BASE: dict[str, Any] = {"data": {"train": "book.txt"}, "max_steps": 100}


def lines(folder: Path, recipe: dict[str, Any], *overrides: str) -> list[str]:
    """The error's lines for `recipe.json`, without the folder."""
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe))
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path), overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        # types
        ({"batch_size": True}, "batch_size = true: must be a whole number"),
        ({"batch_size": "8"}, 'batch_size = "8": must be a whole number'),
        ({"batch_size": 8.0}, "batch_size = 8.0: must be a whole number"),
        ({"batch_size": None}, "batch_size = null: must be a whole number"),
        ({"optimizer": {"lr": "3e-4"}}, 'optimizer.lr = "3e-4": must be a number'),
        ({"optimizer": {"lr": True}}, "optimizer.lr = true: must be a number"),
        ({"data": {"train": "a", "shuffle": 1}}, "data.shuffle = 1: must be true or false"),
        ({"name": 5}, "name = 5: must be text in quotes"),
        ({"eval": 5}, "eval = 5: must be an object {...}"),
        ({"eval": {"prompts": "x"}}, 'eval.prompts = "x": must be a list [...]'),
        ({"eval": {"prompts": [5]}}, "eval.prompts[0] = 5: must be text in quotes"),
        ({"data": {"train": ["a", 5]}}, 'data.train[1] = 5: must be a path in quotes, or an object {"path": ...}'),
        # ranges
        ({"batch_size": 0}, "batch_size = 0: must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps = 0: must be at least 1"),
        ({"optimizer": {"lr": 0}}, "optimizer.lr = 0: must be greater than 0"),
        ({"optimizer": {"betas": [0.9, 1]}}, "optimizer.betas[1] = 1: must be less than 1"),
        ({"optimizer": {"betas": [0.9]}}, "optimizer.betas[1] is missing"),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr = Infinity: must be a finite number"),
        ({"schedule": {"min_lr_ratio": 2}}, "schedule.min_lr_ratio = 2: must be at most 1"),
        ({"name": "../x"}, 'name = "../x": must match the pattern ^[A-Za-z0-9_][A-Za-z0-9._-]*$'),
        ({"data": {"train": []}}, "data.train = []: must hold at least 1"),
        ({"data": {"train": ""}}, 'data.train[0].path = "": must not be empty'),
        # words
        (
            {"schedule": {"kind": "cos"}},
            """kind = "cos": must be 'cosine', 'wsd' or 'constant'; did you mean 'cosine'?""",
        ),
        ({"device": "gpu0"}, """device = "gpu0": must be 'auto', 'cuda', 'mps' or 'cpu'"""),
        # keys
        ({"batch_sise": 8}, "batch_sise = 8: unknown key; did you mean batch_size?"),
        ({"lr": 1e-3}, "lr = 0.001: unknown key here; did you mean optimizer.lr?"),
        ({"eval": {"zzz": 1}}, "eval.zzz = 1: unknown key; known here: every, max_rows, prompts, sample_every"),
        ({"data": {"train": [{"path": "a", "pth": "b"}]}}, 'data.train[0].pth = "b": unknown key; did you mean path?'),
        ({"data": {"train": [{"format": "text"}]}}, "data.train[0].path is missing"),
        ({"data": {}}, "data.train is missing: say `--set data.train=FILE`"),
        # combinations
        (
            {"model": {"preset": "nano", "thinker": {"num_attention_heads": 5}}},
            "model.thinker.num_attention_heads = 5: must be a multiple of num_key_value_heads (2)",
        ),
        ({"model": {"preset": "nano", "thinker": {"head_dim": 15}}}, "model.thinker.head_dim = 15: must be even"),
        (
            {"model": {"preset": "nano", "thinker": {"rope_theta": 0}}},
            "model.thinker.rope_theta = 0: must be greater than 0",
        ),
        (
            {"model": {"init_from": "runs/a", "thinker": {"dropout": 0.1, "head_dim": 16}}},
            'model.thinker.head_dim = 16: remove it: "init_from" fixes the sizes',
        ),
        ({"model": {}}, 'model.preset = null: give exactly one of "preset" and "init_from"'),
        ({"epochs": 1}, 'max_steps = 100: give exactly one of "max_steps" and "epochs"'),
        ({"max_steps": 20}, "schedule.warmup_steps = 50: must be at most max_steps (20)"),
        ({"data": {"train": "a", "seq_len": 4096}}, "data.seq_len = 4096: must be at most the model's context"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value),
)
def test_one_mistake_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (line,) = lines(tmp_path, BASE | changes)
    assert line.startswith("recipe.json: ")
    assert said in line
    assert len(line) < 160


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    found = lines(tmp_path, BASE | {"batch_size": 0, "seed": "x", "data": {"train": [{"path": ""}]}})
    assert len(found) == 3
    assert {line.split(" = ")[0] for line in found} == {
        "recipe.json: batch_size",
        "recipe.json: seed",
        "recipe.json: data.train[0].path",
    }


def test_no_data_at_all(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, {"max_steps": 100})
    assert line.startswith("recipe.json: data.train is missing: say `--set data.train=FILE`")


def test_an_error_names_the_file_its_value_came_from(tmp_path: Path) -> None:
    (tmp_path / "base.json").write_text('{"max_steps": 100, "batch_size": 0, "data": {"seq_len": 1}, "seed": -1}')
    recipe = {"extends": "base.json", "data": {"train": "a", "val_fraction": 3}, "seed": -2}
    assert {line.partition(" = ")[0] for line in lines(tmp_path, recipe, "log_every=0", "eval.nope=1")} == {
        "base.json: batch_size",
        "base.json: data.seq_len",
        "recipe.json: data.val_fraction",
        "recipe.json: seed",
        "--set: log_every",
        "--set: eval.nope",
    }


def test_a_conflict_names_the_place_of_its_key(tmp_path: Path) -> None:
    recipe = BASE | {"schedule": {"warmup_steps": 90}}
    assert lines(tmp_path, recipe, "max_steps=80") == [
        "recipe.json: schedule.warmup_steps = 90: must be at most max_steps (80); max_steps comes from --set"
    ]


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, BASE | {"batch_size": "x" * 1000})
    assert len(line) < 160


def test_parse_without_layers() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(OmniConfig, {"thinker": 5}, "config.json")
    assert str(caught.value) == "config.json: thinker = 5: must be an object {...}"
    with pytest.raises(ConfigError, match="^config.json: 5: must be an object"):
        parse(OmniConfig, 5, "config.json")
