"""What was measured to lose is left off, said with both numbers, and forgotten where machine or model change."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from muomni.accel.compile.trial import measure
from muomni.accel.cpu_allocator import choice as allocator
from muomni.accel.execution_plan import make_plan
from muomni.accel.measurements import hardware, verdicts
from muomni.accel.measurements.verdicts import (
    FILE,
    Verdict,
    Verdicts,
    load_trial,
    load_verdicts,
    save_trial,
    save_verdicts,
)
from muomni.accel.mixed_precision import pick_precision
from muomni.config import preset
from muomni.config.recipe import Recipe
from muomni.errors import ConfigError
from muomni.infer.runners.select import make_runner
from muomni.model import OmniModel, SlotCache
from muomni.training.resolve import DECLINED, resolve

CPU = torch.device("cpu")
NANO_CONFIG = preset("nano")
NANO, TINY = NANO_CONFIG.thinker, preset("tiny").thinker
LOST = Verdict("off", off=100.0, on=80.0, unit="tokens/s", date="2026-01-02T03:04:05")


@pytest.fixture(autouse=True)
def _nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path))
    monkeypatch.delenv(verdicts.IGNORE)


def make_recipe(**more: object) -> Recipe:
    return Recipe.model_validate({"data": {"train": "x"}, "max_steps": 100, "device": "cpu"} | more)


def test_what_was_kept_is_recalled_for_this_model_only() -> None:
    save_verdicts(CPU, NANO, {"compile": LOST})
    assert load_verdicts(CPU, NANO).known == {"compile": LOST}
    assert load_verdicts(CPU, TINY).known == {}
    assert load_verdicts(CPU, NANO, "int8").known == {}


def test_later_findings_replace_those_of_their_keys_only() -> None:
    won = Verdict("on", 1.0, 2.0, "tokens/s", "2026-02-02")
    save_verdicts(CPU, NANO, {"compile": LOST, "allocator": LOST})
    save_verdicts(CPU, NANO, {"compile": won})
    assert load_verdicts(CPU, NANO).known == {"compile": won, "allocator": LOST}


@pytest.mark.parametrize("what", ["torch", "threads", "processor", "muomni"])
def test_another_machine_or_version_knows_nothing(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save_verdicts(CPU, NANO, {"compile": LOST})
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "99")
    elif what == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    elif what == "processor":
        monkeypatch.setattr(hardware, "processor", lambda _: "another")
    else:
        monkeypatch.setattr(verdicts, "version", lambda _name: "99")
    assert load_verdicts(CPU, NANO).known == {}


def test_a_gpus_signature_has_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H9")
    seen = set()
    for driver in ("550.1", "560.2"):
        monkeypatch.setattr(hardware, "driver_version", lambda driver=driver: driver)
        seen.add(hardware.signature(torch.device("cuda")))
    assert len(seen) == 2 and all("H9" in text for text in seen)


@pytest.mark.parametrize("content", ["{", "[]", '{"x": 1}', "null"])
def test_a_broken_file_is_as_none(content: str) -> None:
    FILE.path.write_text(content)
    if content == "{":
        with pytest.warns(UserWarning, match="cannot be used"):
            assert load_verdicts(CPU, NANO).known == {}
    else:
        assert load_verdicts(CPU, NANO).known == {}
    remember_anyway = {"compile": LOST}
    if content == "{":
        with pytest.warns(UserWarning, match="cannot be used"):
            save_verdicts(CPU, NANO, remember_anyway)
    else:
        save_verdicts(CPU, NANO, remember_anyway)
    assert load_verdicts(CPU, NANO).known == remember_anyway


def test_entries_of_another_version_are_passed_over() -> None:
    save_verdicts(CPU, NANO, {"compile": LOST})
    stored = json.loads(FILE.path.read_text())
    (entry,) = stored.values()
    entry["allocator"] = {"verdict": "off", "of another time": 1}
    entry["precision-bf16"] = 3
    FILE.path.write_text(json.dumps(stored))
    assert load_verdicts(CPU, NANO).known == {"compile": LOST}


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("MUOMNI_CACHE", str(blocked))
    with pytest.warns(UserWarning, match="cannot be"):
        save_verdicts(CPU, NANO, {"compile": LOST})
    assert blocked.read_text() == ""
    with pytest.warns(UserWarning, match="measured again"):
        assert load_verdicts(CPU, NANO).known == {}  # nothing was kept, and nothing fails


def test_a_plan_leaves_losers_off_and_says_both_numbers() -> None:
    found = Verdicts(dict.fromkeys(("allocator-retain", "compile", "precision-bf16"), LOST))
    plan = make_plan(make_recipe(), NANO_CONFIG, found)
    assert plan.allocator.mode == "system" and plan.compile.mode == "off" and plan.precision.name == "fp32"
    words = "\n".join(plan.lines)
    assert words.count("80 tokens/s with it, 100 without (muomni bench, 2026-01-02)") == (
        3 if pick_precision("auto", CPU).name == "bf16" else 2
    )


def test_what_a_recipe_names_is_obeyed_whatever_was_measured() -> None:
    found = Verdicts({"allocator-retain": LOST, "compile": LOST})
    recipe = make_recipe(allocator="retain", compile="off", precision="fp32")
    try:
        plan = make_plan(recipe, NANO_CONFIG, found)
    except ConfigError as error:  # not glibc
        pytest.skip(str(error))
    assert plan.allocator.mode == "retain" and plan.allocator.reason == "as asked"
    assert plan.precision.reason == "as asked"


def test_a_pool_that_lost_leaves_memory_kept() -> None:
    plan = make_plan(make_recipe(precision="fp32"), NANO_CONFIG, Verdicts({"allocator-arena": LOST}))
    if not allocator.is_glibc():
        pytest.skip("the C library is not glibc")
    assert plan.allocator.mode == "retain" and "arena for large tensors was measured to lose" in plan.allocator.reason


def test_several_processes_heed_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    several = dataclasses.replace(make_plan(make_recipe(), NANO_CONFIG).parallel, kind="ddp", size=2)
    monkeypatch.setattr("muomni.accel.distributed.choose", lambda *_, **__: several)
    plan = make_plan(make_recipe(), NANO_CONFIG, Verdicts({"allocator-retain": LOST}))
    assert plan.declined == {} and "measured to lose" not in plan.allocator.reason


def test_a_run_goes_on_as_it_began_whatever_was_measured_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe(precision="fp32")
    resolved = resolve(recipe)
    thinker, before = resolved.model.config.thinker, resolved.plan
    (tmp_path / DECLINED).write_text(json.dumps(before.declined))
    save_verdicts(CPU, thinker, {"allocator-retain": LOST, "compile": LOST})
    assert resolve(recipe).plan.declined == {"allocator": "system", "compile": "off"}
    after = resolve(recipe, tmp_path).plan
    assert (after.allocator, after.compile) == (before.allocator, before.compile)
    # And the other way round.
    (tmp_path / DECLINED).write_text(json.dumps(resolve(recipe).plan.declined))
    FILE.path.unlink()
    again = resolve(recipe, tmp_path).plan
    assert again.allocator.mode == "system" and again.compile.mode == "off"


def test_what_won_or_made_no_difference_changes_nothing() -> None:
    won = Verdict("on", 1.0, 2.0, "tokens/s", "2026-02-02")
    same = Verdict("no difference", 1.0, 1.0, "tokens/s", "2026-02-02")
    before = make_plan(make_recipe(), NANO_CONFIG)
    after = make_plan(make_recipe(), NANO_CONFIG, Verdicts({"allocator-retain": won, "compile": same}))
    assert before.lines == after.lines


def test_a_decode_step_that_lost_is_left_to_torchs_modules() -> None:
    torch.manual_seed(0)
    model = OmniModel(preset("nano"))
    cache = SlotCache(model.config.thinker, 1, 16)
    save_verdicts(CPU, NANO, {"decode-step": LOST})
    runners = make_runner(model, cache, "auto")
    assert type(runners.now).__name__ == "EagerRunner" and runners.later is None
    assert "80 tokens/s with it, 100 without" in runners.note
    named = make_runner(model, cache, "eager")
    assert named.note == "as asked"


def test_a_trial_of_compilation_is_not_repeated() -> None:
    figures = {"eager_s": 2.0, "compiled_s": 1.0, "least_saved_s": 1.0, "cost_s": 30.0, "passes": 500.0}
    save_trial(CPU, NANO, "these rows", figures)
    assert load_trial(CPU, NANO, "other rows") is None
    earlier = load_trial(CPU, NANO, "these rows")

    def never(_: int) -> None:
        raise AssertionError("no pass is to be taken")

    model = torch.nn.Linear(2, 2)
    assert measure(model, never, 1000, CPU, earlier).mode == "blocks"
    short = measure(model, never, 44, CPU, earlier)
    assert short.mode == "off" and "an earlier trial here" in short.reason and short.figures["passes"] == 44


def test_nothing_is_recalled_where_it_is_to_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    save_verdicts(CPU, NANO, {"compile": LOST})
    save_trial(CPU, NANO, "x", {"eager_s": 1.0})
    monkeypatch.setenv(verdicts.IGNORE, "1")
    assert load_verdicts(CPU, NANO).known == {} and load_trial(CPU, NANO, "x") is None
