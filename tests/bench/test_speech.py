"""The bench of speech: cases in turns, figures that a reader can check, one JSON line at the end."""

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from muomni.bench import speech as speech_speed
from muomni.bench.process import RefusedError
from muomni.bench.report.sections import QUICK, Target
from muomni.bench.speech import SpeechCase, compare_speaking, measure_speech, speech_cases
from muomni.cli.bench import command
from muomni.config import preset
from muomni.errors import ConfigError, MuOmniError, UserError

COMMON: dict[str, Any] = {"model": "runs/speak", "texts": ("One.", "Two."), "threads": 1}
# Seconds of work for ten of sound, each round; eight rows are four times as fast.
WORK = {"eager": [4.0, 2.0, 3.0, 3.0], "native": [2.0, 1.0, 1.5, 1.5], "auto": [2.0, 1.0, 1.5, 1.5]}


class Process:
    """A case that works as fast as `WORK` says; int8 is not to be had."""

    order: list[str]

    def __init__(self, kind: str, name: str, case: dict[str, Any], threads: int) -> None:
        assert kind == "speech:SpeechSubject.of" and threads >= 1
        self.case = SpeechCase.model_validate(case)
        if self.case.weights == "int8":
            raise RefusedError(name, "no int8 here")
        samples = [len(text) for text in self.case.texts]
        self.first = {"load_s": 1.0, "warm_s": 2.0, "samples": samples}
        self.round = 0

    def ask(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.order.append(self.case.name)
        work = WORK[self.case.runner][self.round] / (4 if self.case.rows == 8 else 1)
        self.round += 1
        first = 100 * work if self.case.rows == 1 else None
        return {"work_s": work, "audio_s": 10.0, "first_ms": first, "peak_bytes": self.round << 20}

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *raised: object) -> None: ...


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    Process.order = []
    monkeypatch.setattr("muomni.bench.rounds.CaseProcess", Process)
    return Process.order


def test_every_way_for_every_number_of_rows() -> None:
    cases = speech_cases([1, 8], COMMON)
    assert len({case.name for case in cases}) == len(cases) == 8
    assert {(case.rows, case.weights, case.runner) for case in cases} == {
        (rows, weights, runner) for rows in (1, 8) for weights in ("float", "int8") for runner in ("eager", "native")
    }
    assert (cases[0].name, cases[-1].name) == ("float, torch's modules, 1 row", "int8, native, 8 rows")


def test_cases_take_turns_and_rounds_are_summed_up(order: list[str]) -> None:
    cases = speech_cases([1, 8], COMMON)
    found = compare_speaking(cases, 3)
    names = [case.name for case in cases if case.weights == "float"]
    assert order == [*names, *names[1:], *names[:1], *names[2:], *names[:2]]
    eager, native, eager8, native8 = found.cases
    assert (eager.real_time, eager.low, eager.high) == (0.3, 0.2, 0.4)
    assert (eager.ratio, eager.ratio_low, eager.ratio_high) == (1, 1, 1)
    assert (native.ratio, eager8.ratio, native8.ratio) == pytest.approx((2, 4, 8))
    assert (native.first_ms, native.first_low, native.first_high) == (150, 100, 200)
    assert native8.first_ms is None and native8.peak_mib == 3
    assert found.unmeasured == {case.name: "no int8 here" for case in cases if case.weights == "int8"}
    assert found.noise.endswith("75% apart")
    json.dumps(found.as_dict())
    with pytest.raises(MuOmniError, match="no int8 here"):
        compare_speaking([case for case in cases if case.weights == "int8"], 2)


def test_the_command_prints_a_table_and_one_json_line(
    order: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talking = type("Config", (), {"talker": object()})
    monkeypatch.setattr("muomni.formats.tensors.resolve_folder", lambda path: path)
    monkeypatch.setattr("muomni.formats.pretrained.read_config", lambda path: (talking, None))
    (tmp_path / "lines.txt").write_text("One.\n\nTwo.\nThree.\n")
    asked = ["speech", "runs/speak", "--rows", "8", "--rounds", "3", "--threads", "1"]
    done = CliRunner().invoke(command, [*asked, "--file", str(tmp_path / "lines.txt")])
    assert done.exit_code == 0, done.output
    assert "0.075 (0.050–0.100)" in done.stdout and "not measured, no int8 here" in done.stdout
    values = json.loads(done.stdout.splitlines()[-1])
    assert (values["texts"], values["rounds"], len(values["cases"])) == (3, 3, 2)
    assert values["cases"][0]["real_time"] == statistics.median([0.1, 0.05, 0.075])
    assert json.loads(CliRunner().invoke(command, [*asked, "--json"]).stdout)["texts"] == len(speech_speed.TEXTS)


def test_the_rows_of_a_report(order: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    talking = type("Config", (), {"talker": object()})
    monkeypatch.setattr(speech_speed, "read_config", lambda path: (talking, None))
    target = Target("runs/speak", preset("nano").thinker, Path("runs/speak"))
    batching, native, int8 = measure_speech(target, QUICK, lambda _: None)
    assert len(order) == 4 * 4  # the baseline twice, torch's modules and eight rows
    assert (batching.key, batching.part, batching.verdict) == ("talker-batching", "speech", "on")
    assert batching.speed is not None and batching.speed.ratio == pytest.approx(4)
    assert native.speed is not None and native.speed.ratio == pytest.approx(2) and native.verdict == "on"
    assert native.equivalence is not None and native.equivalence.equal and native.equivalence.value == 1
    assert (int8.verdict, int8.reason, int8.speed) == ("not measured", "no int8 here", None)
    # Where speech is another one, a faster way is none.
    process = Process.__init__

    def other(self: Process, kind: str, name: str, case: dict[str, Any], threads: int) -> None:
        process(self, kind, name, case, threads)
        if self.case.rows == 8:
            self.first["samples"][:2] = [7, 7]

    monkeypatch.setattr(Process, "__init__", other)
    batching = measure_speech(target, QUICK, lambda _: None)[0]
    assert batching.verdict == "off" and batching.equivalence is not None and batching.equivalence.value == 0.75


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (["no/such/run"], UserError, "no run or model"),
        (["NANO"], UserError, "no talker"),
        (["NANO", "--rows", "0"], ConfigError, "--rows 0"),
        (["NANO", "--out", "x"], UserError, "--out is for a report"),
        (["NANO", "--quick", "--json"], UserError, "--json does not go together with a report"),
        (["NANO", "--file", "no-such-file"], UserError, "cannot be read"),
    ],
)
def test_mistakes_are_named(options: list[str], kind: type[Exception], message: str, nano_folder: Path) -> None:
    done = CliRunner().invoke(command, ["speech", *(str(nano_folder) if each == "NANO" else each for each in options)])
    assert isinstance(done.exception, kind) and message in str(done.exception)
