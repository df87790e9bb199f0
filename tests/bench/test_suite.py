"""The suites with stubbed measurements: which rows there are, what they say, and what is refused in plain words."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from muomni.accel.device import pick_device
from muomni.accel.execution_plan import without_losers
from muomni.accel.measurements.verdicts import IGNORE, load_verdicts
from muomni.accel.technique import TECHNIQUES, MeasuredBy, Setting, Technique, measured_by, readme_table
from muomni.bench import suite
from muomni.bench.decoding import report_rows
from muomni.bench.decoding.compare import Comparison, Decoding
from muomni.bench.decoding.comparisons import Plan
from muomni.bench.decoding.models import Files
from muomni.bench.process import RefusedError
from muomni.bench.report import recommendations
from muomni.bench.report.claims import claims
from muomni.bench.report.report import ReportRow, Scaling, load_report, not_measured
from muomni.bench.report.sections import FULL, QUICK, Effort, Found, Target
from muomni.bench.training import report_rows as suite_train
from muomni.bench.training.compare import CaseMetrics
from muomni.bench.training.report_rows import BASELINE, TWIN
from muomni.config import preset
from muomni.config.recipe import Recipe
from muomni.errors import UserError

NANO = Target("nano", preset("nano").thinker, None)
SHORT = Effort("quick", 0.0, 0.0, 5)
MIB = 2**20


def quiet(_text: str) -> None:
    """Told what goes on."""


# Training


def figures(speed: float, peak: float = 400.0, error: float = 0.0, first_step_s: float = 1.0) -> CaseMetrics:
    """Of a case whose rounds are all but equal and whose gradients are off by `error`."""
    gradients = {"sha256": str(error), "sketch": [1.0, error]}
    memory = {"weights": 10 * MIB, "gradients": 10 * MIB, "optimizer": 20 * MIB, "other": 200 * MIB}
    first = {"first_step_s": first_step_s, "gradients": gradients, "memory": memory}
    return CaseMetrics([speed * (1 + 0.002 * n) for n in range(5)], peak, first, 1.0)


def stub_turns(monkeypatch, known: dict[str, CaseMetrics], refused_names: tuple[str, ...] = ()) -> list[list[str]]:
    """Instead of measuring: figures by part of a case's name. Returns the names of each group, filled later."""
    groups: list[list[str]] = []

    def turns(cases, rounds, steps, say, refused, enough):
        groups.append([case.name for case in cases])
        assert len({case.name for case in cases}) == len(cases)
        found = {}
        for case in cases:
            if any(part in case.name for part in refused_names):
                refused[case.name] = "memory ran out: 3 GiB wanted"
                continue
            part = next((part for part in known if part in case.name), None)
            found[case.name] = figures(100.0) if part is None else known[part]
        return found

    monkeypatch.setattr(suite_train, "take_turns", turns)
    monkeypatch.setattr(suite_train, "pick_device", lambda: torch.device("cpu"))
    monkeypatch.setattr("muomni.bench.training.case.pick_device", lambda _name: torch.device("cpu"))
    return groups


def by_key(found: Found) -> dict[str, ReportRow]:
    return {row.key: row for row in found.rows}


def test_a_quick_run_measures_every_technique_of_training_in_one_group(monkeypatch):
    monkeypatch.setattr("muomni.accel.compile.blocks.what_is_missing", lambda _device: "no C++ compiler is on the path")
    known = {
        "accumulation": figures(90.0, 300.0),
        "checkpointing": figures(70.0, 250.0),
        "attention": figures(50.0, 500.0, error=1e-6),
        "loss": figures(101.0, 480.0, error=1e-6),
    }
    groups = stub_turns(monkeypatch, known)
    found = suite_train.measure_train(NANO, SHORT, quiet)
    rows = by_key(found)
    assert len(groups) == 1 and groups[0][0] == BASELINE and groups[0][-1] == TWIN
    wanted = {"precision-bf16", "accumulation", "checkpointing-full", "attention", "cross-entropy", "compile"}
    assert wanted <= set(rows)
    assert rows["compile"].verdict == "not measured" and "no C++ compiler" in rows["compile"].reason
    assert rows["checkpointing-full"].verdict == "off" and "38% less memory" in rows["checkpointing-full"].reason
    assert rows["checkpointing-full"].equivalence.equal
    assert rows["attention"].verdict == "on" and rows["attention"].speed.ratio == pytest.approx(2)
    assert rows["attention"].memory[0].off_mib == 500 and not rows["attention"].equivalence.equal
    assert rows["attention"].equivalence.holds
    assert rows["accumulation"].verdict == "no difference" and "25% less memory" in rows["accumulation"].reason
    assert found.noise == () and found.margin == pytest.approx(0.05)
    baseline = next(bar for bar in found.memory if bar.name == BASELINE)
    assert baseline.activations_mib == pytest.approx(400 - 240) and TWIN not in {bar.name for bar in found.memory}


def test_a_technique_with_wrong_results_is_off_however_fast(monkeypatch):
    stub_turns(monkeypatch, {"checkpointing": figures(300.0, error=1e-9), "loss": figures(50.0, error=0.3)})
    rows = by_key(suite_train.measure_train(NANO, SHORT, quiet))
    for key in ("checkpointing-full", "cross-entropy"):
        assert rows[key].verdict == "off" and "results differ" in rows[key].reason


def test_what_a_technique_takes_at_the_start_is_told(monkeypatch):
    monkeypatch.setattr("muomni.accel.compile.blocks.what_is_missing", lambda _device: None)
    stub_turns(monkeypatch, {"compile": figures(150.0, first_step_s=21.0)})
    row = by_key(suite_train.measure_train(NANO, SHORT, quiet))["compile"]
    assert row.compile_s == pytest.approx(20) and row.verdict == "on"


def test_results_are_compared_without_dropout(monkeypatch):
    seen = []
    stub_turns(monkeypatch, {})
    turns = suite_train.take_turns  # type: ignore[attr-defined]
    monkeypatch.setattr(suite_train, "take_turns", lambda cases, *more: seen.extend(cases) or turns(cases, *more))
    suite_train.measure_train(replace(NANO, thinker=NANO.thinker.replace(dropout=0.1)), SHORT, quiet)
    assert seen and all(case.thinker.dropout == 0 for case in seen)


def test_a_case_that_finds_no_memory_is_one_row_less_and_the_baseline_is_all(monkeypatch):
    stub_turns(monkeypatch, {}, refused_names=("attention",))
    rows = by_key(suite_train.measure_train(NANO, SHORT, quiet))
    assert rows["attention"].verdict == "not measured" and "memory ran out" in rows["attention"].reason
    assert rows["accumulation"].verdict != "not measured"
    stub_turns(monkeypatch, {}, refused_names=(BASELINE,))
    with pytest.raises(UserError, match="memory ran out.*GiB are free on cpu: end other programs"):
        suite_train.measure_train(NANO, SHORT, quiet)


def test_a_model_that_cannot_fit_is_refused_before_anything_starts(monkeypatch):
    groups = stub_turns(monkeypatch, {})
    monkeypatch.setattr(suite_train, "free_memory", lambda _device: 100 * MIB)
    with pytest.raises(UserError, match="training nano does not fit: .* at least 0.6 GiB. 0.1 GiB are free"):
        suite_train.measure_train(NANO, SHORT, quiet)
    assert groups == []


def test_little_memory_makes_small_groups_and_every_group_has_the_baseline_twice(monkeypatch):
    groups = stub_turns(monkeypatch, {})
    monkeypatch.setattr(suite_train, "free_memory", lambda _device: 1700 * MIB)
    found = suite_train.measure_train(NANO, SHORT, quiet)
    assert len(groups) > 1 and all(group[0] == BASELINE and group[-1] == TWIN for group in groups)
    assert all(len(group) <= 4 for group in groups)
    assert len({row.key for row in found.rows}) == len(found.rows)


def test_a_full_run_measures_more(monkeypatch):
    stub_turns(monkeypatch, {})
    quick, full = (by_key(suite_train.measure_train(NANO, effort, quiet)) for effort in (SHORT, FULL))
    assert set(quick) < set(full) and {"allocator-retain", "attention-packed", "checkpointing-selective"} <= set(full)
    assert len({row.claim for row in full.values()}) > 5 and all(row.off and row.on for row in full.values())


def test_a_noisy_machine_is_said_to_be_noisy(monkeypatch):
    twin = CaseMetrics([130.0] * 5, 400.0, figures(1.0).first, 1.0)
    stub_turns(monkeypatch, {TWIN: twin, "accumulation": figures(125.0)})
    found = suite_train.measure_train(NANO, SHORT, quiet)
    assert found.margin == pytest.approx(0.3, abs=0.01) and "differs by" in found.noise[0]
    assert by_key(found)["accumulation"].verdict == "no difference"


def test_quick_runs_stop_in_time_but_never_before_there_is_enough():
    enough = replace(QUICK, rounds=7).enough(0.0)
    assert [enough(turns) for turns in (1, 2, 3, 4)] == [False, False, False, True]
    assert not FULL.enough(FULL.train_s)(10)


# Inference


def decoding(name: str, speed: float, **more: Any) -> Decoding:
    numbers = dict.fromkeys(("low", "high", "call_per_s", "first_token_ms", "load_s"), 10.0)
    shares = dict.fromkeys(("gb_per_s", "bandwidth_share", "agreement", "ratio", "ratio_low", "ratio_high"), 1.0)
    rest: dict[str, Any] = {"call_ratio": 1.0, "worst_gap": 0.0, "verdict": "no difference", "settings": "NativeRunner"}
    none = dict.fromkeys(("public_loss", "top1", "kl", "worst"))
    speeds = tuple(speed * (1 + 0.002 * n) for n in range(-2, 3))
    fields: dict[str, Any] = {"name": name, "decode_per_s": speed, "peak_mib": 300.0, "speeds": speeds}
    return Decoding(**{**numbers, **shares, **rest, **none, **fields, **more})


@pytest.fixture
def plan(nano_folder, tmp_path) -> Plan:
    return Plan(preset("nano").thinker, Files(nano_folder, tmp_path), tmp_path, 16, 8, threads=1)


def stub_infer(monkeypatch, plan: Plan, cases: dict[str, Decoding], unmeasured: dict[str, str] | None = None) -> None:
    def measured(group, thinker, reference, rounds, say, enough):
        assert {case.name for case in group.cases} >= set(cases)
        missing = {case.name: "not here" for case in group.cases if case.name not in cases}
        named = tuple(cases[case.name] for case in group.cases if case.name in cases)
        return Comparison("g", named, {**missing, **group.unmeasured, **(unmeasured or {})}, 30.0, 29.0, 31.0, "")

    monkeypatch.setattr(report_rows, "compare_decoding", measured)
    monkeypatch.setattr(report_rows, "scaling", lambda *_: Scaling())
    monkeypatch.setattr(report_rows, "speculation", lambda *_: not_measured(measured_by("speculation")[0], "stub"))
    monkeypatch.setattr(Plan, "task", lambda *_: "task")
    small = plan.work / "int8"
    small.mkdir(exist_ok=True)
    (small / "model.safetensors").write_bytes(b"x" * 1000)


ALL = {
    "as it is": decoding("as it is", 1000.0, load_s=12.0),
    "as it is, again": decoding("as it is, again", 1005.0),
    "cache off": decoding("cache off", 20.0),
    "runner eager": decoding("runner eager", 200.0, load_s=9.0),
    "weights int8": decoding("weights int8", 1500.0, kl=0.001, agreement=0.9),
    "batch 16": decoding("batch 16", 6000.0),
}


def test_every_technique_of_inference_has_a_row(monkeypatch, plan):
    stub_infer(monkeypatch, plan, ALL)
    found = report_rows.measure_infer(replace(NANO, folder=plan.files.folder), plan, SHORT, quiet)
    rows = by_key(found)
    assert list(rows) == ["kv-cache", "decode-step", "int8", "batching", "speculation"]
    assert rows["kv-cache"].speed.ratio == pytest.approx(10) and rows["kv-cache"].verdict == "on"
    assert rows["decode-step"].speed.ratio == pytest.approx(5) and rows["decode-step"].compile_s == pytest.approx(3)
    assert rows["int8"].equivalence.value == 0.001 and rows["int8"].equivalence.claimed == "approximate"
    weights, peak = rows["int8"].memory
    assert (weights.what, peak.what) == ("weights", "peak") and weights.on_mib == pytest.approx(1000 / MIB)
    assert rows["batching"].speed.on == 6000
    assert found.bandwidth == 30 and {point.name for point in found.decode} == set(ALL) - {
        "cache off",
        "as it is, again",
    }
    assert {bar.name for bar in found.memory} == {"decoding, as it is", "decoding, weights int8", "decoding, batch 16"}


def test_without_a_compiler_the_step_is_not_measured_and_the_reason_is_told(monkeypatch, plan):
    eager = decoding("as it is", 200.0, settings="muomni 1, torch 2, EagerRunner no C++ compiler is on the path")
    stub_infer(monkeypatch, plan, {**ALL, "as it is": eager})
    row = by_key(report_rows.measure_infer(replace(NANO, folder=plan.files.folder), plan, SHORT, quiet))["decode-step"]
    assert (row.verdict, row.reason) == ("not measured", "no C++ compiler is on the path")


def test_tokens_that_are_wrong_turn_a_technique_off(monkeypatch, plan):
    wrong = {
        "batch 16": decoding("batch 16", 6000.0, agreement=0.5),
        "weights int8": decoding("weights int8", 1500.0, kl=0.5),
    }
    stub_infer(monkeypatch, plan, {**ALL, **wrong})
    rows = by_key(report_rows.measure_infer(replace(NANO, folder=plan.files.folder), plan, SHORT, quiet))
    assert rows["batching"].verdict == rows["int8"].verdict == "off"


def test_nothing_without_the_baseline(monkeypatch, plan):
    stub_infer(monkeypatch, plan, {"cache off": ALL["cache off"]})
    with pytest.raises(UserError, match="decoding nano cannot be measured here: not here"):
        report_rows.measure_infer(NANO, plan, SHORT, quiet)


def test_short_contexts_are_refused_or_given_short_prompts():
    assert report_rows.lengths(2048) == (64, 100)
    assert report_rows.lengths(128) == (64, 64) and report_rows.lengths(64) == (32, 32)
    with pytest.raises(UserError, match="too short"):
        report_rows.lengths(63)


class FakeProcess:
    """A process that gives what it was told to, by turns."""

    def __init__(self, kind: str, name: str, case: dict, threads: int | None = None) -> None:
        assert json.dumps(case)
        self.first = {"equal": True}
        self.case = case

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def ask(self, command: dict) -> dict:
        if "points" in self.case:
            return {"tokens_per_s": [float(rows * 100 + context) for rows, context in self.case["points"]]}
        return {"off": 100.0, "on": 150.0 + command["speculate_first"]}


def test_speculation_is_on_where_it_is_faster_and_random_weights_are_excused(monkeypatch, plan):
    monkeypatch.setattr(report_rows, "CaseProcess", FakeProcess)
    row = report_rows.speculation(plan, SHORT, 0.05, True, quiet)
    assert row.verdict == "on" and "random weights repeat no text" in row.reason and row.equivalence.equal
    assert "random" not in report_rows.speculation(plan, SHORT, 0.05, False, quiet).reason

    def refuse(*_args: object) -> None:
        raise RefusedError("speculative decoding", "no tokenizer")

    monkeypatch.setattr(report_rows, "CaseProcess", refuse)
    assert report_rows.speculation(plan, SHORT, 0.05, True, quiet).reason == "no tokenizer"


def test_scaling_stays_within_the_context(monkeypatch, plan):
    monkeypatch.setattr(report_rows, "CaseProcess", FakeProcess)
    found = report_rows.scaling(plan, SHORT, quiet)
    room = plan.thinker.max_position_embeddings
    assert [point.at for point in found.batch] == [1, 2, 4, 8, 16]
    assert found.context and all(point.at + 32 <= room for point in found.context)
    assert found.batch[-1].tokens_per_s == 1600 + found.batch_context


# All of it


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("huge", "neither a run folder nor a preset; presets: nano, tiny"),
        ("{tmp}/file", "is a file"),
        ("{tmp}", "no model in"),
    ],
)
def test_a_model_that_is_none_is_a_mistake_of_the_user(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "..")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=message) as caught:
        suite.find_target(name.replace("{tmp}", str(tmp_path)))
    assert caught.value.exit_code == 2


def test_a_run_is_found_by_its_folder(nano_folder):
    found = suite.find_target(str(nano_folder))
    assert found.folder == nano_folder and found.thinker.hidden_size == preset("nano").thinker.hidden_size
    assert suite.find_target("tiny").folder is None


def test_a_report_is_put_together_and_written(monkeypatch, tmp_path, nano_folder):
    train = not_measured(next(t for t in TECHNIQUES if t.key == "precision-bf16"), "stub")
    infer = not_measured(next(t for t in TECHNIQUES if t.key == "int8"), "stub")
    monkeypatch.setattr(suite, "measure_train", lambda *_: Found((train,), noise=("busy",), margin=0.2))
    monkeypatch.setattr(suite, "measure_infer", lambda *_: Found((infer,), bandwidth=30.0, settings=(("new", 8),)))
    asked = suite.Asked(str(nano_folder), ("train", "infer", "speech"), SHORT, "muomni bench")
    report = suite.run(asked, quiet)
    assert [row.key for row in report.rows] == ["precision-bf16", "int8", "talker-batching"]
    assert report.rows[2].reason == "this model does not speak" and not report.model.random_weights
    assert report.margin == 0.2 and report.noise == ("busy",) and report.settings == {"infer.new": 8}
    written = suite.write(report, tmp_path / "out")
    assert [path.name for path in written] == ["report.json", "report.html"]
    assert load_report(tmp_path / "out").verdicts == report.verdicts


def test_memory_that_runs_out_while_measuring_is_told_in_plain_words(monkeypatch):
    def fail(*_args: object) -> None:
        raise RefusedError("as it is", "memory ran out: CUDA out of memory")

    monkeypatch.setattr(suite, "measure_train", fail)
    with pytest.raises(UserError, match="nano: case 'as it is' cannot be measured here: memory ran out.*end other"):
        suite.run(suite.Asked("nano", ("train",), SHORT, "muomni bench"), quiet)


def test_a_worker_without_memory_says_so_and_goes_on_to_live(monkeypatch):
    """At the start and in a turn; a bug still ends it with its traceback."""
    from muomni.accel.measurements import worker

    class Hungry:
        first: dict[str, int] = {}  # noqa: RUF012 - the protocol's

        def turn(self, error: str) -> dict[str, int]:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried much") if error == "memory" else ValueError(error)

    monkeypatch.setattr(worker, "_find", lambda _subject: Hungry)
    monkeypatch.setattr(worker, "reset_peak", lambda: None)
    answer = worker.Worker()
    assert answer({"subject": "hungry"}) == {}
    assert answer({"error": "memory"}) == {"refused": "memory ran out: CUDA out of memory.", "short": True}
    with pytest.raises(ValueError, match="bug"):
        answer({"error": "bug"})


def test_a_folder_that_cannot_be_written_is_said_before_measuring(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="--out .*file/out: cannot be written"):
        suite.make_folder(tmp_path / "file" / "out")


# The list of techniques


def made_up(measured_by: MeasuredBy, on: dict[str, object], setting: Setting) -> Technique:
    return Technique(
        f"made-up {measured_by}", f"a made-up technique of {measured_by}", measured_by, "rounding",
        off="without it", on="with it", on_settings=on, claim="3× faster", claim_rows=(f"made-up {measured_by}",),
        setting=setting, usage="`--made-up`", level="quick",
    )  # fmt: skip


def test_one_entry_in_the_list_is_enough(monkeypatch, plan, tmp_path):
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(IGNORE)
    listed = (
        *TECHNIQUES,
        made_up("training step", {"accumulation": 2}, Setting("compile", "full", instead="off")),
        made_up("decode", {"runner": "compiled"}, Setting("runner", "compiled", instead="eager")),
    )
    keys = [technique.key for technique in listed[-2:]]
    # It is measured, and loses.
    stub_turns(monkeypatch, {"accumulation 2": figures(50.0, error=1e-6)})
    stub_infer(monkeypatch, plan, {**ALL, "runner compiled": decoding("runner compiled", 100.0)})
    found = (
        suite_train.measure_train(NANO, SHORT, quiet, listed),
        report_rows.measure_infer(replace(NANO, folder=plan.files.folder), plan, SHORT, quiet, listed),
    )
    rows = {row.key: row for each in found for row in each.rows}
    assert [rows[key].verdict for key in keys] == ["off", "off"]
    monkeypatch.setattr(suite, "measure_train", lambda *_: found[0])
    monkeypatch.setattr(suite, "measure_infer", lambda *_: found[1])
    report = suite.run(suite.Asked("nano", ("train", "infer"), SHORT, "muomni bench"), quiet)
    # Its verdict is stored, and `auto` declines it.
    assert set(keys) <= set(recommendations.remember(report, NANO, listed))
    device, recipe = torch.device("cpu"), Recipe.model_validate({"data": {"train": "x"}, "max_steps": 100})
    known = load_verdicts(pick_device(), NANO.thinker)
    settled, reasons = without_losers(recipe, device, known, listed)
    assert settled.compile == "off" and "a made-up technique of training step was measured" in reasons["compile"]
    declined = known.declined("runner", "compiled", listed)
    assert declined is not None and declined.instead == "eager" and "a made-up technique of decode" in declined.reason
    # It is among the claims, and in the README's table.
    page, table = claims([report], listed), readme_table(listed)
    for technique in listed[-2:]:
        assert f"| {technique.title} | 3× faster | 0." in page
        assert f"| {technique.title} | without it | 3× faster | rounding | `--made-up` |" in table
