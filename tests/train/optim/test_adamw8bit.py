"""8-bit AdamW: torchao's own step where it steps, nothing at all where it does not, and a quarter of the memory."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from muomni.accel.memory.monitor import MemoryMonitor
from muomni.config.recipe import OptimizerSpec
from muomni.errors import ConfigError
from muomni.train.objectives.module import LossModule
from muomni.train.optim import adamw8bit
from muomni.train.optim.build import build_optimizers, check_optimizer
from muomni.train.stage import train
from muomni.train.step import TrainStep
from muomni.train.trainer import Trainer
from tests.train.test_stage import Stop, assert_same_run, steps_of
from tests.train.test_step import FP32, make_batch, make_model, make_rows

SPEC = OptimizerSpec(name="adamw8bit", lr=1e-2)
needs = pytest.mark.skipif(
    find_spec("torchao") is None or shutil.which("g++") is None, reason="needs torchao and a C++ compiler"
)


@pytest.fixture
def small_too(monkeypatch):
    """Models of tests have no matrix of 4096 numbers."""
    monkeypatch.setattr(adamw8bit, "SMALLEST", 256)


def make_parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((64, 128), (32, 256))]


def set_gradients(parameters: list[torch.nn.Parameter], step: int) -> None:
    draw = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        # Of many sizes, so that much of the tables is used.
        parameter.grad = torch.randn(parameter.shape, generator=draw) * torch.logspace(0, -1, parameter.shape[1])


def groups_of(parameters: list[torch.nn.Parameter]) -> list[dict]:
    return [
        {"params": [parameters[0]], "weight_decay": 0.1, "lr": torch.tensor(1e-2)},
        {"params": [parameters[1]], "weight_decay": 0.0, "lr": torch.tensor(1e-2)},
    ]


@needs
def test_steps_that_are_taken_are_those_of_torchao():
    from torchao.optim import AdamW8bit as Reference

    ours, theirs = make_parameters(), make_parameters()
    own = adamw8bit.AdamW8bit(groups_of(ours), betas=(0.9, 0.95))
    reference = Reference(groups_of(theirs), betas=(0.9, 0.95))
    own.grad_scale, own.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    for step in range(5):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for parameter in ours:
            parameter.grad *= 4
        own.step()
        with torch.compiler.set_stance("force_eager"):  # torchao compiles once for each shape
            reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        for name in ("exp_avg", "exp_avg_sq"):
            codes = own.state[a][f"{name}_codes"].view(a.shape)
            # A rounding apart in the average may be one code apart, in few places.
            differ = (codes.int() - reference.state[b][name].codes.int()).abs()
            assert differ.max() <= 1 and (differ > 0).float().mean() < 0.01
            torch.testing.assert_close(own.state[a][f"{name}_scale"], reference.state[b][name].scale)
    # Plain AdamW is near, and not the same: the comparison above sees what 8 bits do.
    plain_parameters = make_parameters()
    plain = torch.optim.AdamW(groups_of(plain_parameters), betas=(0.9, 0.95), fused=True)
    for step in range(5):
        set_gradients(plain_parameters, step)
        plain.step()
    gap = (plain_parameters[0] - ours[0]).abs().max()
    assert 1e-5 < gap < 5e-2


@needs
def test_a_skipped_step_leaves_weights_and_state_untouched():
    parameters = make_parameters()
    optimizer = adamw8bit.AdamW8bit(groups_of(parameters))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    set_gradients(parameters, 0)
    optimizer.step()
    weights = [p.detach().clone() for p in parameters]
    states = [{key: value.clone() for key, value in optimizer.state[p].items()} for p in parameters]
    for bad in (float("nan"), float("inf")):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, bad)
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        for parameter, weight, state in zip(parameters, weights, states, strict=True):
            assert torch.equal(parameter, weight)
            assert all(torch.equal(optimizer.state[parameter][key], value) for key, value in state.items())
    optimizer.found_inf = torch.tensor(0.0)
    set_gradients(parameters, 1)
    optimizer.step()
    assert not torch.equal(parameters[0], weights[0]) and float(optimizer.state[parameters[0]]["step"]) == 2


@needs
def test_in_a_training_step_it_skips_counts_and_goes_on(small_too):
    ids, labels = make_rows(2)
    model = make_model().float()
    step = TrainStep(LossModule(model), build_optimizers(model, SPEC, FP32), torch.ones(100), 1.0, FP32)
    first = float(step([make_batch(ids, labels)]).loss)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    poison = model.thinker.norm.weight.register_hook(lambda grad: grad * float("nan"))
    step([make_batch(ids, labels)])
    poison.remove()
    assert int(step.counters.skipped) == 1
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for _ in range(10):
        last = float(step([make_batch(ids, labels)]).loss)
    assert last < first - 0.3 and int(step.counters.applied) == 11


@needs
def test_decay_groups_hold_and_the_small_ones_are_left_to_adamw():
    model = torch.nn.Sequential(torch.nn.Embedding(64, 64), torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
    eight, plain = build_optimizers(model, SPEC, FP32)
    assert isinstance(eight, adamw8bit.AdamW8bit) and isinstance(plain, torch.optim.AdamW)
    assert [(len(g["params"]), g["weight_decay"]) for g in eight.param_groups] == [(1, 0.1), (1, 0.0)]
    assert eight.param_groups[1]["params"][0] is model[0].weight
    assert [(len(g["params"]), g["weight_decay"]) for g in plain.param_groups] == [(1, 0.1), (2, 0.0)]


@needs
def test_the_state_takes_less_than_a_third_of_adamws():
    sizes = {}
    for name in ("adamw", "adamw8bit"):
        model = torch.nn.Linear(512, 256, bias=True)
        optimizers = build_optimizers(model, OptimizerSpec(name=name), FP32)
        model(torch.randn(2, 512)).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        monitor = MemoryMonitor(model, optimizers, torch.device("cpu"))
        sizes[name] = monitor.categories_now(monitor.read()).optimizer
    assert 0.2 < sizes["adamw8bit"] / sizes["adamw"] <= 0.3


@needs
def test_a_killed_run_resumes_bit_by_bit(recipe, tmp_path, monkeypatch, small_too):
    """Codes, scales and tables go through the checkpoint, which holds plain tensors only."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = recipe.replace(optimizer={"name": "adamw8bit", "lr": 1e-2}, compile="off")
    train(recipe, whole)
    steps = steps_of(whole)
    assert steps[-1][1] < steps[0][1] - 0.1
    after_step = Trainer._after_step

    def dies(self):
        after_step(self)
        if self.progress.applied == 7:
            raise Stop

    monkeypatch.setattr(Trainer, "_after_step", dies)
    with pytest.raises(Stop):
        train(recipe, cut)
    monkeypatch.setattr(Trainer, "_after_step", after_step)
    train(recipe, cut, resume=True)
    assert_same_run(whole, cut)
    header = (cut / "last/training/state.safetensors").read_bytes()
    names = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    assert any("exp_avg_codes" in name and entry["dtype"] == "U8" for name, entry in names.items() if "/" in name)


@pytest.mark.parametrize(("gone", "message"), [("torchao", "pip install 'muomni\\[lowbit\\]'"), ("g++", "no C\\+\\+")])
def test_what_is_missing_is_said(monkeypatch, gone, message):
    if gone == "torchao":
        monkeypatch.setattr(adamw8bit, "find_spec", lambda _name: None)
    else:
        monkeypatch.setattr(adamw8bit, "find_spec", lambda name: name)
        monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(ConfigError, match=message):
        check_optimizer(SPEC, FP32)
    check_optimizer(OptimizerSpec(), FP32)
