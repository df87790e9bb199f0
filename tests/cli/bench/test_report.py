"""`muomni bench` from the command line: what each way to call it measures, repeats, claims, and mistakes."""

from typing import Any

import pytest

from muomni.bench import suite
from muomni.bench.report.report import Machine, ModelInfo, Report, ReportRow
from muomni.cli import main

MACHINE = Machine(device="cpu", processor="a CPU", cores=2, threads=2, memory_mib=1024.0, system="Linux")


def called(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *args])
    code = stop.value.code
    return 0 if code is None else int(code)


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[suite.Asked]:
    """What is measured, instead of measuring; verdicts come from `verdicts` in turn."""
    monkeypatch.chdir(tmp_path)
    found: list[suite.Asked] = []
    verdicts: list[Any] = ["on", "no difference", "on", "off"]

    def run(asked: suite.Asked, say) -> Report:
        found.append(asked)
        row = ReportRow(
            key="it", part="train", technique="a technique", verdict=verdicts[len(found) - 1], reason="faster"
        )
        return Report(
            date="2026-01-01T00:00:00+00:00",
            command=asked.command,
            mode=asked.effort.mode,
            seconds=1.0,
            machine=MACHINE,
            model=ModelInfo(name=asked.model, parameters=1, random_weights=True),
            versions={},
            rows=(row,),
            noise=("it is busy",),
            margin=0.05,
        )

    monkeypatch.setattr(suite, "run", run)
    return found


@pytest.mark.parametrize(
    ("args", "model", "parts", "mode"),
    [
        ([], "tiny", ("train", "infer", "speech"), "quick"),
        (["--quick"], "tiny", ("train", "infer", "speech"), "quick"),
        (["nano"], "nano", ("train", "infer", "speech"), "quick"),
        (["all", "nano", "--full"], "nano", ("train", "infer", "speech"), "full"),
        (["nano", "--full"], "nano", ("train", "infer", "speech"), "full"),
        (["train", "nano"], "nano", ("train",), "quick"),
        (["train", "--full"], "tiny", ("train",), "full"),
        (["infer", "nano", "--quick"], "nano", ("infer",), "quick"),
    ],
)
def test_what_is_measured(asked, tmp_path, capsys, args, model, parts, mode):
    assert called(*args) == 0
    (one,) = asked
    assert (one.model, one.parts, one.effort.mode) == (model, parts, mode)
    assert one.command.startswith("muomni bench ") and model in one.command and f"--{mode}" in one.command
    folder = tmp_path / "runs" / f"bench-{model}"
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.html"}
    out = capsys.readouterr().out
    assert "a technique" in out and "on: faster" in out and "A noisy machine: it is busy" in out


def test_repeats_agree_or_say_where_they_do_not(asked, tmp_path, capsys):
    assert called("nano", "--repeat", "3", "--out", str(tmp_path / "three")) == 0
    assert "3 measurements agree" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "three").iterdir()) == ["1", "2", "3"]
    asked.pop(), asked.pop()  # the next ones are "no difference", "on", "off"
    assert called("nano", "--repeat", "3", "--out", str(tmp_path / "more")) == 1
    assert "contradict one another: it: no difference, on, off" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["huge"], "neither a run folder nor a preset"),
        (["all", "{tmp}"], "no model in"),
        (["nano", "--out", "{tmp}/file/x"], "cannot be written"),
        (["train", "nano", "--rounds", "3"], "--rounds does not go together with a report"),
        (["infer", "--quick", "--batch", "2"], "--batch does not go together with a report"),
        (["train", "--out", "x"], "--out is for a report"),
        (["claims", "{tmp}"], "cannot be read"),
        (["nano", "--repeat", "0"], "repeat"),
    ],
)
def test_mistakes_are_told_in_plain_words(asked, tmp_path, capsys, args, message):
    (tmp_path / "file").write_text("x")
    assert called(*(arg.replace("{tmp}", str(tmp_path)) for arg in args)) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and asked == []


def test_claims_are_printed_or_written(asked, tmp_path, capsys):
    called("nano", "--out", str(tmp_path / "one"))
    capsys.readouterr()
    assert called("claims", str(tmp_path / "one")) == 0
    printed = capsys.readouterr().out
    assert called("claims", str(tmp_path / "one"), "--out", str(tmp_path / "claims.md")) == 0
    assert printed.startswith("# Claims") and (tmp_path / "claims.md").read_text() == printed
