"""`compile: "auto"`: the decision follows the figures, and trying leaves no trace."""

import shutil
from collections.abc import Callable

import pytest
import torch

from muomni.accel.compile import blocks as compilation
from muomni.accel.compile import trial as compile_trial
from muomni.accel.compile.trial import judge, measure, remembered
from muomni.model import OmniModel
from muomni.model.layers import Block
from tests.accel.test_activation_checkpointing import CONFIG, make_model

CPU = torch.device("cpu")
compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.mark.parametrize(
    ("eager", "compiled", "compiling", "passes", "mode"),
    [
        ([1.0, 1.0, 1.0], [0.8, 0.8, 0.8], 11.6, 100, "blocks"),  # saves 20 s for 10 s
        ([1.0, 1.0, 1.0], [0.8, 0.8, 0.8], 11.6, 60, "off"),  # 12 s: inside the margin
        ([1.0, 1.0, 0.8], [0.8, 0.8, 0.79], 11.6, 100, "off"),  # one turn saved next to nothing
        ([1.0, 1.0, 1.0], [0.8, 0.8, 1.1], 11.6, 10**6, "off"),  # the turns disagree
        ([1.0, 1.0, 1.0], [1.2, 1.2, 1.2], 2.4, 10**6, "off"),  # slower, though it cost nothing
    ],
)
def test_compilation_is_kept_where_its_least_saving_pays_for_it(eager, compiled, compiling, passes, mode):
    found = judge(eager, compiled, compiling, passes)
    assert found.mode == mode
    assert (
        f"{found.figures['eager_s']:.3g} s eager" in found.reason and f"{found.figures['cost_s']:.0f} s" in found.reason
    )
    assert found.figures["compiled_s"] == sorted(compiled)[1]


def trial(
    model: OmniModel, seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], Callable[[int], None]]:
    """A trial whose clock says what we want; returns the kinds of passes taken."""
    kinds: list[str] = []

    def one_pass(number: int) -> None:
        ids = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(number))
        model(ids, labels=ids).loss.backward()

    def timed(timer: object, number: int) -> float:
        one_pass(number)
        model.zero_grad(set_to_none=True)
        is_compiled = any(m._compiled_call_impl is not None for m in model.modules())
        eager = not is_compiled or torch._dynamo.eval_frame._stance.stance == "force_eager"
        kinds.append("eager" if eager else "compiled")
        return seconds[kinds[-1]]

    monkeypatch.setattr(compile_trial._Timer, "__call__", timed)
    return kinds, one_pass


@compiler
@pytest.mark.parametrize(("compiled_s", "mode"), [(5.0, "blocks"), (11.0, "off")])
def test_a_trial_changes_neither_weights_nor_gradients_nor_random_states(monkeypatch, compiled_s, mode):
    model = make_model(CONFIG)  # it has dropout
    model.train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    kinds, one_pass = trial(model, {"eager": 10.0, "compiled": compiled_s}, monkeypatch)
    state = torch.get_rng_state()
    found = measure(model, one_pass, 100, CPU)
    assert found.mode == mode
    assert kinds == ["eager", "eager", "compiled", "compiled", *["eager", "compiled"] * 3]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    compiled = [m for m in model.modules() if m._compiled_call_impl is not None]
    assert len(compiled) == (len(list(model.thinker.layers)) if mode == "blocks" else 0)
    assert all(isinstance(m, Block) for m in compiled)


@pytest.mark.parametrize(("passes", "seconds", "taken"), [(19, 1000.0, 0), (100, 0.1, 1), (100, 1.9, 1)])
def test_a_run_that_is_too_short_is_not_measured(monkeypatch, passes, seconds, taken):
    model = make_model(CONFIG)
    kinds, one_pass = trial(model, {"eager": seconds}, monkeypatch)
    found = measure(model, one_pass, passes, CPU)
    assert found.mode == "off" and found.reason.startswith("not measured")
    assert kinds == ["eager"] * taken


def test_a_compiler_that_fails_is_said_and_the_run_is_eager(monkeypatch):
    model = make_model(CONFIG)
    _, one_pass = trial(model, {"eager": 10.0, "compiled": 1.0}, monkeypatch)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("g++ has crashed\nmore")

    monkeypatch.setattr(compilation, "apply", broken)
    found = measure(model, one_pass, 100, CPU)
    assert (found.mode, found.reason) == ("off", "compiling failed: g++ has crashed")


def test_memory_that_runs_out_in_the_trial_does_not_end_the_run(monkeypatch):
    model = make_model(CONFIG)

    def one_pass(_number: int) -> None:
        model(torch.zeros(1, 4, dtype=torch.int64), labels=torch.zeros(1, 4, dtype=torch.int64)).loss.backward()
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")

    found = measure(model, one_pass, 100, CPU)
    assert found.mode == "off" and "memory ran out" in found.reason
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="something else"):
        measure(model, lambda _: (_ for _ in ()).throw(RuntimeError("something else")), 100, CPU)


def test_a_run_goes_on_as_it_decided_or_says_why_not(monkeypatch):
    assert remembered("off", CPU).mode == "off"
    monkeypatch.setattr(compilation, "what_is_missing", lambda _device: None)
    assert remembered("blocks", CPU).mode == "blocks"
    monkeypatch.setattr(compilation, "what_is_missing", lambda _device: "no compiler is here")
    found = remembered("blocks", CPU)
    assert found.mode == "off" and "no compiler is here" in found.reason and "no longer bit by bit" in found.reason


def test_several_processes_are_not_measured():
    assert compilation.choose("auto", CPU, processes=2).mode == "off"
