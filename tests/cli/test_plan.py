"""`muomni plan`: its table, its fragment, and its plain words where nothing fits."""

import functools
import json

import pytest

from muomni.accel.step_config import StepConfig
from muomni.cli import main
from muomni.config import Recipe
from muomni.training import estimate
from muomni.training.forecast import memory, search

NANO = [
    "--set", 'model={"preset": "nano", "thinker": {"num_hidden_layers": 1}}', "--set", "data.seq_len=32",
    "--set", "batch_size=2", "--set", "gradient_accumulation_steps=2", "--set", "tokenizer.vocab_size=512",
    "--set", "precision=fp32", "--no-measure",
]  # fmt: skip


# The commands below forecast the same few setups over and over.
FORECAST = functools.cache(memory.forecast)


@pytest.fixture(autouse=True)
def known_baseline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "forecast", FORECAST)
    monkeypatch.setattr(search, "forecast", FORECAST)
    monkeypatch.setattr(
        estimate, "process_baseline", lambda precision, optimizer, compiled: (400 if compiled else 300) * 2**20
    )


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "text-tiny", *NANO, *arguments])
    return int(ended.value.code or 0)


def test_json_says_what_is_taken_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--memory", "4GB", "--device", "cpu", "--json", "--set", "compile=off") == 0
    found = json.loads(capsys.readouterr().out)
    training = found["training"]
    assert training["baseline_mib"] == 300
    assert training["peak_mib"] == pytest.approx(sum(v for k, v in training.items() if k != "peak_mib"), abs=1)
    step_configs = {
        (o["batch_size"], o["gradient_accumulation_steps"], o["gradient_checkpointing"]) for o in found["options"]
    }
    assert step_configs == {(b, 4 // b, mode) for b in (1, 2, 4) for mode in ("off", "selective", "full")}
    assert all(o["fits"] for o in found["options"])
    assert found["fastest"] == {
        "batch_size": 4, "gradient_accumulation_steps": 1, "gradient_checkpointing": "off", "compile": "off"
    }  # fmt: skip
    assert found["inference"]["weights_fp32_mib"] > found["inference"]["weights_int8_mib"]


def test_words_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--memory", "4GB", "--device", "cpu") == 0
    said = capsys.readouterr().out
    assert "optimizer state" in said and "Fastest that fits" in said and "modelled" in said
    assert '"batch_size": 4' in said


def test_a_rough_forecast_is_said_to_be_rough(capsys: pytest.CaptureFixture[str]) -> None:
    rough = ("--set", "allocator=system", "--set", "compile=off")
    assert run("--memory", "4GB", "--device", "cpu", "--json", *rough) == 0
    assert "±25%" in json.loads(capsys.readouterr().out)["uncertainty"]
    assert run("--memory", "4GB", "--device", "cpu", *rough) == 0
    assert "Uncertainty of the forecast: ±25%" in capsys.readouterr().out


def test_the_best_few_are_measured_and_the_fastest_of_them_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[StepConfig] = []

    def turns(recipe: Recipe, steps: list[StepConfig], on_update: object) -> dict[StepConfig, list[float]]:
        asked.extend(steps)
        # Two rows at a time are fastest, whatever the model says.
        return {step: [1.0 if step.micro_batch == 2 else 2.0] * 3 for step in steps}

    monkeypatch.setattr(estimate, "take_turns", turns)
    assert run("--memory", "4GB", "--device", "cpu", "--json", "--set", "compile=off", "--measure") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(asked) == 3 and {step.rows for step in asked} == {4} and found["not_measured"] is None
    assert found["fastest"]["batch_size"] == 2 and found["fastest"]["gradient_accumulation_steps"] == 2
    assert sum("seconds_measured" in option for option in found["options"]) == 3
    assert run("--memory", "4GB", "--device", "cpu", "--set", "compile=off", "--measure") == 0
    assert "Fastest that fits, measured: 1 s/step" in capsys.readouterr().out


def test_what_would_take_long_is_not_measured(capsys: pytest.CaptureFixture[str]) -> None:
    # One wide block, and a prime number of rows, so that there are few ways to cut a step.
    wide = {"num_hidden_layers": 1, "hidden_size": 16384, "intermediate_size": 65536}
    long = ("--set", f"model.thinker={json.dumps(wide)}", "--set", "batch_size=127", "--set", "compile=off")
    once = ("--set", "gradient_accumulation_steps=1")
    assert run("--memory", "4000GB", "--device", "cpu", "--json", "--measure", *long, *once) == 0
    assert "would take some" in json.loads(capsys.readouterr().out)["not_measured"]


def test_a_gpu_that_is_not_here_needs_memory_to_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--memory", "12GB", "--device", "cuda", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["training"]["baseline_mib"] == found["training"]["gaps_mib"] == 0
    assert not found["rate_measured"]


def test_what_cannot_fit_is_a_mistake_in_plain_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--memory", "100MB", "--device", "cpu") == 2
    said = capsys.readouterr().err
    assert "does not fit in 95 MiB" in said and "model.preset" in said and "Traceback" not in said


@pytest.mark.parametrize("memory", ["much", "0", "-1GB", "", "nan"])
def test_memory_that_is_no_amount(memory: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--memory", memory) == 2
    assert "--memory" in capsys.readouterr().err


def test_other_devices_and_codecs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--device", "mps") == 2
    with pytest.raises(SystemExit) as ended:
        main(["plan", "codec-tiny"])
    assert ended.value.code == 2
    assert "codec" in capsys.readouterr().err
