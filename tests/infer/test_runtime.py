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


def hidden_write(model: MuOmni) -> None:
    """As an average of weights is swapped in: torch counts no version."""
    for weight in model.parameters():
        weight.data.copy_(weight.data * 0.5)


def written_in_numpy(model: MuOmni) -> None:
    weight: Any = model.thinker.layers[0].mlp.down_proj.weight
    weight.detach().numpy()[3, 5] += 4
    model.weights_changed()


def other_eps(model: MuOmni) -> None:
    norm: Any = model.thinker.norm
    norm.eps = 0.5


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
    hidden_write,
    written_in_numpy,
    other_eps,
]
NAMES = ["step", "load", "to", "quantize", "wrap", "exchange", "hook", "pre-hook", "forward", "adapter"]
NAMES += ["hidden write", "numpy", "eps"]


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
    before = fingerprint([model])
    model.chat("Hello", max_new_tokens=3)
    model.train()
    assert before is not None and fingerprint([model]) == before


def test_all_modules_are_those_of_torch(model: MuOmni) -> None:
    assert set(all_modules(model)) == set(model.modules())
    assert len(all_modules(model)) == len(list(model.modules()))
    shared = nn.Linear(2, 2)
    loose = nn.ModuleDict({"a": nn.Sequential(shared, nn.Sequential(shared)), "b": shared})
    loose.register_module("none", None)
    assert sorted(map(id, all_modules(loose))) == sorted(map(id, loose.modules()))


def test_a_copy_has_its_own_engine(model: MuOmni) -> None:
    assert copy.deepcopy(model).runtime.engine(model, 1, 40) is not model.runtime.engine(model, 1, 40)


HOW: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}
HISTORY = "Hello there! What is this? The cat sat on the mat."


def check_reply(model: MuOmni) -> list[int]:
    """Compares a reply with that of the plain loop, which keeps nothing."""
    plain = model.generate(torch.tensor([model.encode(HISTORY)]), use_cache=False, **HOW)[0].tolist()
    assert list(model.chat(HISTORY, **HOW).tokens) == plain
    assert next(list(reply.tokens) for reply in model.chat_batch([HISTORY, "Hello"], **HOW)) == plain
    return plain


def test_a_switched_adapter_is_seen_and_an_unchanged_one_keeps_the_engine(model: MuOmni) -> None:
    peft = pytest.importorskip("peft")
    options = {"target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**options), "one")
    wrapped.add_adapter("two", peft.LoraConfig(**options))
    layer: Any = model.thinker.layers[0].mlp.down_proj
    replies = [check_reply(model)]
    kept = model.runtime.engine(model, 1, 40)
    assert model.runtime.engine(model, 1, 40) is kept
    wrapped.set_adapter("two")
    replies.append(check_reply(model))
    with wrapped.disable_adapter():
        replies.append(check_reply(model))
    layer.scaling["two"] *= 5
    replies.append(check_reply(model))
    wrapped.set_adapter("one")
    assert check_reply(model) == replies[0]
    assert len({tuple(reply) for reply in replies}) == len(replies)


def test_where_it_cannot_be_known_what_is_computed_nothing_is_kept(model: MuOmni) -> None:
    block = model.thinker.layers[0]
    scale = [1.0]
    replies = [check_reply(model)]
    handle = block.register_forward_hook(lambda _, args, out: scale[0] * out)
    for scale[0] in (0.4, 3.0):  # what a hook closes over
        replies.append(check_reply(model))
    handle.remove()
    block.register_forward_hook(lambda _, args, out: -out)  # another hook in the place of the first
    replies.append(check_reply(model))
    assert len({tuple(reply) for reply in replies}) == len(replies)


def test_after_a_fork_the_child_makes_its_own_engine(model: MuOmni, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = model.runtime.engine(model, 1, 40)
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert model.runtime.engine(model, 1, 40) is not kept
