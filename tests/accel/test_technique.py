"""One entry in the list of techniques is enough for auto-decline and the README's table."""

from pathlib import Path

import pytest
import torch

from muomni.accel.execution_plan import without_losers
from muomni.accel.measurements.verdicts import Verdict, Verdicts
from muomni.accel.technique import TECHNIQUES, Setting, Technique, measured_by, readme_table
from muomni.config.recipe import Recipe

LOST = Verdict("off", off=100.0, on=80.0, unit="tokens/s", date="2026-01-02T03:04:05")
MADE_UP = Technique(
    key="made-up",
    title="a made-up technique",
    measured_by="training step",
    equivalence="exact",
    off="without it",
    on="with it",
    on_settings={"accumulation": 2},
    claim="3× faster",
    claimed_speed=3.0,
    setting=Setting("compile", "full", instead="off"),
    usage='`"compile": "full"`',
    level="quick",
)
README = Path(__file__).parents[2] / "README.md"


def test_keys_and_titles_name_one_technique_each() -> None:
    for what in ("key", "title"):
        assert len({getattr(technique, what) for technique in TECHNIQUES}) == len(TECHNIQUES)


def test_a_setting_of_training_is_a_recipes_key() -> None:
    for technique in measured_by("training step", mode="table"):
        if technique.setting is not None:
            recipe = {"data": {"train": "x"}, "max_steps": 100, technique.setting.name: technique.setting.value}
            assert getattr(Recipe.model_validate(recipe), technique.setting.name) == technique.setting.value


def test_a_made_up_technique_that_lost_is_declined_with_both_numbers() -> None:
    recipe = Recipe.model_validate({"data": {"train": "x"}, "max_steps": 100})
    known = Verdicts({"made-up": LOST})
    settled, reasons = without_losers(recipe, torch.device("cpu"), known, (*TECHNIQUES, MADE_UP))
    assert settled.compile == "off" and list(reasons) == ["compile"]
    assert "a made-up technique was measured to lose here: 80 tokens/s with it, 100 without" in reasons["compile"]
    assert without_losers(recipe, torch.device("cpu"), known) == (recipe, {})


def test_a_made_up_technique_is_in_the_readmes_table() -> None:
    table = readme_table((*TECHNIQUES, MADE_UP))
    row = '| a made-up technique | without it | 3× faster | exact | `"compile": "full"` |'
    assert table.splitlines()[-1] == row and row not in readme_table()


def test_the_readme_holds_the_table() -> None:
    readme = README.read_text(encoding="utf-8")
    if "<!-- techniques -->" not in readme:
        pytest.skip("the README has no generated table yet")
    assert readme_table() in readme, "README.md: put in what muomni.accel.technique.readme_table() gives"
