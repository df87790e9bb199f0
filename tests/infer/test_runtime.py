"""What a model keeps between calls: the engine stays while the model does, and no longer."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muomni import MuOmni
from muomni.model.module_modes import all_modules, fingerprint


@pytest.fixture
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu")


def optimizer_step(model: MuOmni) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ids = torch.arange(8)[None]
    model(ids, labels=ids).loss.backward()
    optimizer.step()


def load_others(model: MuOmni) -> None:
    model.load_state_dict({name: x + 1 if x.is_floating_point() else x for name, x in model.state_dict().items()})


class Twice(nn.Module):
    """Holds the very weights it wraps, and computes something else."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = 2 * self.inner(x)
        return y


class Double(nn.Linear):
    """A layer of the same weights that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def wrap(model: MuOmni) -> None:
    mlp: Any = model.thinker.layers[0].mlp
    mlp.down_proj = Twice(mlp.down_proj)


def exchange(model: MuOmni) -> None:
    mlp: Any = model.thinker.layers[0].mlp
    new = Double(mlp.down_proj.in_features, mlp.down_proj.out_features, bias=False)
    new.weight = mlp.down_proj.weight
    mlp.down_proj = new


def hook(model: MuOmni) -> None:
    model.thinker.layers[0].register_forward_hook(lambda _, args, out: 2 * out)


def pre_hook(model: MuOmni) -> None:
    model.thinker.norm.register_forward_pre_hook(lambda _, args: tuple(2 * x for x in args))


def replace_forward(model: MuOmni) -> None:
    norm: Any = model.thinker.norm
    old = norm.forward
    norm.forward = lambda x: 2 * old(x)


def add_adapter(model: MuOmni) -> None:
    block: Any = model.thinker.layers[0]
    block.self_attn.q_proj.register_parameter("lora_a", nn.Parameter(torch.zeros(2, 2)))


CHANGES: list[Callable[[MuOmni], object]] = [
    optimizer_step,
    load_others,
    lambda model: model.to(torch.bfloat16),
    lambda model: model.quantize("int8"),
    wrap,
    exchange,
    hook,
    pre_hook,
    replace_forward,
    add_adapter,
]
NAMES = ["step", "load", "to", "quantize", "wrap", "exchange", "hook", "pre-hook", "forward", "adapter"]


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_changed_model_gets_another_engine(model: MuOmni, change: Callable[[MuOmni], object]) -> None:
    kept = model.runtime.engine(model, 1, 40)
    assert model.runtime.engine(model, 1, 40) is kept
    change(model)
    assert model.runtime.engine(model, 1, 40) is not kept


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_replies_after_a_change_are_those_of_the_changed_model(
    model: MuOmni, change: Callable[[MuOmni], object]
) -> None:
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
    model.chat("Hello there!", **how)
    change(model)
    ids = torch.tensor([model.encode("Hello there!")])
    plain = model.generate(ids, use_cache=False, **how)[0].tolist()
    assert list(model.chat("Hello there!", **how).tokens) == plain


def test_calls_and_modes_change_nothing(model: MuOmni) -> None:
    before = fingerprint(model)
    model.chat("Hello", max_new_tokens=3)
    model.train()
    assert fingerprint(model) == before


def test_all_modules_are_those_of_torch(model: MuOmni) -> None:
    assert set(all_modules(model)) == set(model.modules())
    assert len(all_modules(model)) == len(list(model.modules()))
    shared = nn.Linear(2, 2)
    loose = nn.ModuleDict({"a": nn.Sequential(shared, nn.Sequential(shared)), "b": shared})
    loose.register_module("none", None)
    assert sorted(map(id, all_modules(loose))) == sorted(map(id, loose.modules()))


def test_a_copy_has_its_own_engine(model: MuOmni) -> None:
    assert copy.deepcopy(model).runtime.engine(model, 1, 40) is not model.runtime.engine(model, 1, 40)
