"""Memory that is forecast, against the sizes of real tensors and against trainings in processes of their own."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni.accel.cpu_allocator import arena
from muomni.accel.memory.monitor import storage_bytes
from muomni.accel.mixed_precision import pick_precision
from muomni.accel.step_config import StepConfig
from muomni.config import preset
from muomni.config.recipe import OptimizerSpec
from muomni.model import OmniModel
from muomni.training.forecast.memory import CATEGORIES, Setup, forecast, inference_memory, uncertainty
from muomni.training.forecast.search import fastest_modelled, micro_batches, options, parse_memory

STEP = StepConfig(micro_batch=2, accumulation=2, precision="fp32", allocator="arena")
NANO = Setup(preset("nano"), STEP, seq_len=32)
SCRIPT = Path(__file__).parents[3] / "scripts" / "measure_forecast.py"


def with_(**changes: Any) -> Setup:
    """`NANO` with other fields of its own or of its step."""
    of_step = {key: changes.pop(key) for key in list(changes) if key in vars(STEP)}
    return replace(NANO, step=STEP.replace(**of_step), **changes)


def test_weights_and_adamw_are_exact() -> None:
    found = forecast(NANO)
    model = OmniModel(NANO.config)
    assert found.weights == storage_bytes(model.parameters())
    moments = 2 * found.weights
    # And each parameter's step count, the learning rates are the group's.
    assert moments <= found.optimizer <= moments + 64 * len(list(model.parameters()))


def test_nothing_is_allocated() -> None:
    # Weights alone would be 300 GB. Where torch knows no shapes for an operation, it must not take real tensors.
    sizes = {"hidden_size": 8192, "intermediate_size": 32768, "num_hidden_layers": 100, "vocab_size": 8192}
    config = preset("nano")
    deep = config.replace(thinker=config.thinker.model_dump() | sizes)
    found = forecast(with_(config=deep, checkpointing="full"))
    assert found.weights == pytest.approx(4 * deep.thinker.num_parameters(), rel=1e-6)


def test_checkpointing_keeps_fewer_activations() -> None:
    config = preset("nano")
    config = config.replace(thinker=config.thinker.model_dump() | {"vocab_size": 320})
    peaks = {
        mode: forecast(with_(config=config, seq_len=256, micro_batch=16, checkpointing=mode)).peak
        for mode in ("off", "selective", "full")
    }
    assert peaks["off"] > peaks["selective"] > peaks["full"]


def test_muon_keeps_half_of_adamw_and_frozen_parts_nothing() -> None:
    config = preset("nano")
    adamw, muon = (forecast(with_(config=config, optimizer=OptimizerSpec(name=name))) for name in ("adamw", "muon"))
    matrices = sum(
        p.numel() * 4 for n, p in OmniModel(config).named_parameters() if p.ndim == 2 and "embed_tokens" not in n
    )
    assert adamw.optimizer - muon.optimizer == pytest.approx(matrices, rel=0.02)


def test_low_precision_has_copies_of_the_weights() -> None:
    # So long that the peak is inside a pass, where the copies are.
    long = {"seq_len": 256, "micro_batch": 4, "accumulation": 1}
    low, full = (forecast(with_(**long, precision=name)) for name in ("bf16", "fp32"))
    assert full.weight_copies == 0
    assert 0 < low.weight_copies <= full.weights // 2


def test_parts_add_up_and_the_baseline_is_one_of_them() -> None:
    found = forecast(NANO).with_baseline(1000)
    assert found.baseline == 1000
    assert found.peak == 1000 + sum(getattr(found, name) for name in CATEGORIES)
    assert set(found.as_dict()) == {f"{name}_mib" for name in ("peak", "baseline", *CATEGORIES)}


def test_on_a_gpu_there_are_no_gaps() -> None:
    assert forecast(with_(device="cuda")).gaps == 0


def test_without_the_arena_the_forecast_is_said_to_be_rough() -> None:
    assert (
        uncertainty(with_(allocator="arena")) is None and uncertainty(with_(allocator="retain", device="cuda")) is None
    )
    for mode in ("retain", "system"):
        assert "±25%" in (uncertainty(with_(allocator=mode)) or "")


def test_a_deep_model_is_forecast_from_a_few_blocks() -> None:
    config = preset("nano")

    def deep(layers: int) -> Setup:
        # Rows of one length each, so that the blocks decide where the peak is.
        thinker = config.thinker.model_dump() | {"num_hidden_layers": layers, "vocab_size": 320}
        return with_(config=config.replace(thinker=thinker), seq_len=128, micro_batch=4)

    from muomni.training.forecast.memory import _forecast

    whole, few = _forecast(deep(12)), forecast(deep(12))
    assert few.peak == pytest.approx(whole.peak, rel=0.03)
    assert few.weights == whole.weights


def test_inference_is_exact() -> None:
    config = preset("nano")
    found = inference_memory(config)
    weights = storage_bytes(OmniModel(config).parameters()) / 2**20
    assert found["weights_fp32_mib"] == pytest.approx(weights, abs=0.01)
    assert found["weights_bf16_mib"] == pytest.approx(weights / 2, abs=0.01)
    assert 0.25 < found["weights_int8_mib"] / weights < 0.32


def test_options_keep_the_effective_batch_and_the_fastest_fits() -> None:
    found = list(options(NANO, baselines=[0], rate=1e9))
    assert {o.step.rows for o in found} == {4}
    assert {o.step.checkpointing for o in found} == {"off", "selective", "full"}
    peaks = sorted(o.forecast.peak for o in found)
    for memory in (peaks[0], peaks[len(peaks) // 2], peaks[-1]):
        best = fastest_modelled(found, memory)
        assert best is not None and best.fits(memory)
        assert all(o.seconds >= best.seconds for o in found if o.fits(memory))
        assert set(best.step.fragment()) <= {
            "batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "compile"
        }  # fmt: skip
    assert fastest_modelled(found, peaks[0] - 1) is None


def test_micro_batches_divide_the_step() -> None:
    assert micro_batches(12) == [12, 6, 4, 3, 2, 1]
    many = micro_batches(5040)
    assert len(many) <= 12 and many[0] == 5040 and many[-1] == 1
    assert all(5040 % size == 0 for size in many)


@pytest.mark.parametrize(
    ("text", "size"), [("12GB", 12 * 10**9), ("16 GiB", 16 * 2**30), ("800mb", 800 * 10**6), ("1000", 1000)]
)
def test_memory_as_people_write_it(text: str, size: int) -> None:
    assert parse_memory(text) == size


def test_threads_and_random_numbers_are_left_alone() -> None:
    before = torch.get_rng_state()
    forecast(NANO)
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all cases, so that the baseline is measured once for each optimizer."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.skipif(isinstance(arena.load(), str), reason="without the arena the heap is not modelled")
@pytest.mark.parametrize(
    "case",
    [
        {"preset": "nano", "batch_size": 16, "seq_len": 256},
        {"preset": "nano", "batch_size": 32, "seq_len": 256, "precision": "fp32", "checkpointing": "full"},
        {"preset": "nano", "batch_size": 8, "seq_len": 256, "accumulation": 2, "checkpointing": "selective"},
        {"preset": "tiny", "batch_size": 2, "seq_len": 256, "optimizer": "muon"},
        {"preset": "tiny", "batch_size": 2, "seq_len": 512, "checkpointing": "full"},
        {"preset": "tiny", "batch_size": 2, "seq_len": 512, "precision": "bf16"},
    ],
    ids=lambda case: "-".join(str(value) for value in case.values()),
)
def test_the_forecast_is_within_a_tenth_of_what_training_takes(
    case: dict[str, Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUOMNI_CACHE", str(cache))
    if case.get("precision") == "bf16" and pick_precision("auto", torch.device("cpu")).name != "bf16":
        pytest.skip("this CPU has no fast bf16")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--one", json.dumps(case)], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert abs(found["error"]) <= 0.10, found
