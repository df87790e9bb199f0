"""Mixed precision: what is taken where, and fp16's scaler in the right order."""

from typing import Literal

import pytest
import torch

from muomni.accel.mixed_precision import Precision, pick_precision
from muomni.config import OmniConfig, ThinkerConfig
from muomni.config.recipe import OptimizerSpec
from muomni.errors import ConfigError
from muomni.model import OmniModel
from muomni.training.objectives.module import LossModule
from muomni.training.optim.build import build_optimizers
from muomni.training.step import TrainStep
from tests.training.test_step import make_batch, make_rows

CPU = torch.device("cpu")
CONFIG = OmniConfig(
    thinker=ThinkerConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
)


def with_features(monkeypatch, **features: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)


def test_auto_takes_bf16_where_the_cpu_multiplies_in_it(monkeypatch):
    with_features(monkeypatch, avx512_bf16=True)
    assert pick_precision("auto", CPU).name == "bf16"
    with_features(monkeypatch, avx512_bf16=False)
    taken = pick_precision("auto", CPU)
    assert taken.name == "fp32" and "neither avx512_bf16 nor amx_bf16" in taken.reason


@pytest.mark.parametrize(("capability", "name"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_goes_by_the_gpus_generation(monkeypatch, capability, name):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: capability)
    taken = pick_precision("auto", torch.device("cuda"))
    assert taken.name == name and f"SM{capability[0]}{capability[1]}" in taken.reason


def test_a_named_precision_that_would_be_emulated_is_refused(monkeypatch):
    with_features(monkeypatch)
    with pytest.raises(ConfigError, match='"bf16": the CPU has neither'):
        pick_precision("bf16", CPU)
    with pytest.raises(ConfigError, match='"fp16": a CPU has no fast fp16'):
        pick_precision("fp16", CPU)
    assert pick_precision("fp32", CPU).name == "fp32"


def make_step(precision: Literal["bf16", "fp16", "fp32"]) -> TrainStep:
    model = OmniModel(CONFIG, torch.Generator().manual_seed(0))
    chosen = Precision(precision, CPU, "test")
    return TrainStep(
        LossModule(model), build_optimizers(model, OptimizerSpec(lr=1e-2), chosen), torch.ones(10), 1.0, chosen
    )


def test_weights_and_moments_stay_in_fp32():
    step = make_step("bf16")
    step([make_batch(*make_rows(2))])
    assert {p.dtype for p in step.model.parameters()} == {torch.float32}
    moments = [v for state in step.optimizers[0].state.values() for v in state.values()]
    assert {v.dtype for v in moments} == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_low_precision_step_is_near_the_fp32_one(precision):
    batch = make_batch(*make_rows(4))
    exact, low = make_step("fp32")([batch]), make_step(precision)([batch])
    assert float(low.loss) == pytest.approx(float(exact.loss), rel=5e-3)
    assert float(low.grad_norm) == pytest.approx(float(exact.grad_norm), rel=2e-2)
    assert float(low.loss) != float(exact.loss)


def test_fp16_scales_the_loss_and_halves_the_scale_after_an_overflow():
    step = make_step("fp16")
    batch = make_batch(*make_rows(2))
    step([batch])
    scale = step.scaler.get_scale()
    assert scale == 2.0**16
    poison = step.model.model.thinker.norm.weight.register_hook(lambda grad: grad * float("inf"))
    before = step.model.model.thinker.norm.weight.detach().clone()
    step([batch])
    assert step.scaler.get_scale() == scale / 2
    assert torch.equal(step.losses.model.thinker.norm.weight, before)
    assert (int(step.counters.applied), int(step.counters.skipped)) == (1, 1)
    poison.remove()
    step([batch])
    assert int(step.counters.applied) == 2
    assert not torch.equal(step.losses.model.thinker.norm.weight, before)


def test_the_scalers_state_resumes():
    one, other = make_step("fp16"), make_step("fp16")
    batch = make_batch(*make_rows(2))
    one.model.model.thinker.norm.weight.register_hook(lambda grad: grad * float("inf"))
    one([batch])
    other.scaler.load_state_dict(one.scaler.state_dict())
    assert other.scaler.get_scale() == 2.0**15
