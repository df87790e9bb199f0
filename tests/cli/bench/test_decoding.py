"""`muomni bench infer` from the command line: one JSON line at the end, tables for people, mistakes named."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from muomni.bench.decoding.compare import Comparison, Decoding
from muomni.cli.bench import command
from muomni.cli.bench.decoding import print_comparison
from muomni.errors import ConfigError, UserError

NOTHING = ["--no-variants", "--no-attention", "--no-kv-cache", "--no-cold-start"]


def run(*options: str):
    return CliRunner().invoke(command, ["infer", "--shape", "nano", *options])


def test_the_last_line_is_json(tmp_path):
    done = run(*NOTHING, "--work-dir", str(tmp_path), "--threads", "1", "--json")
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout.splitlines()[-1])
    assert values["model"] == "nano" and values["threads"] == 1 and values["comparisons"] == []
    assert (tmp_path / "model" / "config.json").is_file()


def test_a_saved_model_can_be_measured(tmp_path):
    run(*NOTHING, "--work-dir", str(tmp_path), "--json")
    done = run(*NOTHING, "--work-dir", str(tmp_path / "other"), "--model", str(tmp_path / "model"), "--json")
    values = json.loads(done.stdout.splitlines()[-1])
    assert values["model"] == str(tmp_path / "model") and values["parameters"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "0"], "--batch 0"),
        (["--weights", "int4"], "--weights int4"),
        (["--shape", "huge"], "there are nano"),
        (["--model", "no/such/run"], "no run or model"),
    ],
)
def test_mistakes_are_named(options, message):
    done = run(*NOTHING, *options)
    assert isinstance(done.exception, ConfigError | UserError) and message in str(done.exception)


def figures(name: str, **more: Any) -> Decoding:
    numbers = dict.fromkeys(("decode_per_s", "low", "high", "call_per_s", "first_token_ms", "load_s", "peak_mib"), 10.0)
    shares = dict.fromkeys(("gb_per_s", "bandwidth_share", "agreement", "ratio", "ratio_low", "ratio_high"), 1.0)
    rest: dict[str, Any] = {"call_ratio": 1.0, "worst_gap": 0.0, "verdict": "no difference", "settings": ""}
    none = dict.fromkeys(("public_loss", "top1", "kl", "worst"))
    return Decoding(**{"name": name, **numbers, **shares, **rest, **none, **more})


def test_the_table_says_what_was_left_out_and_that_the_machine_is_noisy(capsys):
    cases = (figures("first"), figures("second", kl=0.0123, public_loss=0.05))
    print_comparison("a title", Comparison("g", cases, {"peer": "is not installed: pip [x]"}, 30.0, 29.0, 31.0, "busy"))
    said = capsys.readouterr().out
    for part in ("a title", "second", "1.2e-02", "5.0%", "peer: not measured, is not installed: pip [x]"):
        assert part in said
    assert "A noisy machine: busy." in said and "30.0 GB/s" in said
