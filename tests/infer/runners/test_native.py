"""The native runner against the eager one, over the same cache, and what it declines."""

import os
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from muomni import MuOmni
from muomni.config import OmniConfig, ThinkerConfig
from muomni.infer.runners.native import NativeRunner, make_native_runner, why_not
from muomni.infer.runners.select import EagerRunner
from muomni.model import OmniModel, SlotCache
from muomni.model.int8_layers import to_int8
from muomni.ops.native import Unavailable

SLOTS, CAPACITY = 3, 48


def make_model(dtype: torch.dtype = torch.float32, tied: bool = True, seed: int = 0) -> OmniModel:
    thinker = ThinkerConfig(
        vocab_size=211,
        hidden_size=80,
        intermediate_size=144,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = OmniModel(OmniConfig(thinker=thinker), torch.Generator().manual_seed(seed))
    return model.to(dtype).eval().requires_grad_(False)


def make_runner(model: OmniModel, cache: SlotCache) -> NativeRunner:
    runner = make_native_runner(model, cache, threads=2)
    if isinstance(runner, Unavailable):
        pytest.skip(runner.reason)
    return runner


def make_cache(model: OmniModel, dtype: torch.dtype = torch.float32) -> SlotCache:
    return SlotCache(model.config.thinker, SLOTS, CAPACITY, dtype)


def prompt(slot: int, start: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(slot)
    tokens = torch.randint(211, (CAPACITY,), generator=generator)[start : start + count]
    return tokens, torch.full((count,), slot), torch.arange(start, start + count)


def mixed(*chunks: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    tokens, slots, positions = (torch.cat(x) for x in zip(*(prompt(*chunk) for chunk in chunks), strict=True))
    return tokens, slots, positions


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
@torch.inference_mode()
def test_takes_turns_with_the_eager_runner(kind: str, tied: bool) -> None:
    model = make_model(torch.bfloat16 if kind == "bfloat16" else torch.float32, tied)
    if kind == "int8":
        to_int8(model)
    cache, eager_cache = make_cache(model, model.dtype), make_cache(model, model.dtype)
    eager, native = EagerRunner(model, cache), make_runner(model, cache)
    reference = EagerRunner(model, eager_cache)
    bound = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.1}[kind]
    schedule = [(0, 0, 9)], [(0, 9, 4), (2, 0, 6)], [(0, 13, 1), (2, 6, 1)], [(1, 0, 20), (2, 7, 3)], [(1, 20, 1)]
    for step, chunks in enumerate(schedule):
        batch = mixed(*chunks)
        wanted = torch.arange(len(batch[0]))
        expected = reference.forward(*batch, wanted)
        got = (eager if step % 2 else native).forward(*batch, wanted)
        assert (got - expected).norm() <= bound * expected.norm()
    new, slots, at = torch.tensor([5, 6]), torch.tensor([2, 0]), torch.tensor([10, 14])
    if kind == "float32":
        assert torch.equal(native.greedy(new, slots, at, 20), reference.greedy(new, slots, at, 20))


@torch.inference_mode()
def test_batch_size_changes_no_bit() -> None:
    model = make_model()
    to_int8(model)
    together = make_runner(model, make_cache(model)).forward(*mixed((0, 0, 9), (1, 0, 4)), torch.tensor([8, 12]))
    alone = [
        make_runner(model, make_cache(model)).forward(*prompt(s, 0, n), torch.tensor([n - 1]))
        for s, n in [(0, 9), (1, 4)]
    ]
    assert torch.equal(together, torch.cat(alone))


class _Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Wrapped(nn.Module):
    """Has `weight`, as LoRA's layers do, and computes something else."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight


def test_declines_what_it_does_not_know() -> None:
    def reason(model: OmniModel, cache: SlotCache | None = None) -> str:
        return why_not(model, cache or make_cache(model)) or ""

    model = make_model()
    assert reason(model) == ""
    to_int8(model)
    assert reason(model) == ""
    assert "int8" in reason(make_model(), make_cache(make_model(), torch.int8))
    assert "float16" in reason(make_model(torch.float16), make_cache(make_model()))

    model = make_model()
    block = model.thinker.layers[1]
    block.self_attn.q_proj = _Wrapped(cast("torch.nn.Linear", block.get_submodule("self_attn.q_proj")))
    assert "thinker.layers.1.self_attn.q_proj: " in reason(model) and "_Wrapped" in reason(model)

    model = make_model()
    model.thinker.layers[0].mlp.up_proj = _Scaled(80, 144, bias=False)
    assert "_Scaled" in reason(model)

    model = make_model()
    model.thinker.layers[0].mlp.up_proj = nn.Linear(80, 144)
    assert "mlp.up_proj: it has a bias" in reason(model)

    model = make_model()
    handle = model.thinker.layers[0].register_forward_hook(lambda *_: None)
    assert "hooks" in reason(model)
    handle.remove()
    assert reason(model) == ""

    torch.nn.utils.parametrizations.weight_norm(model.thinker.lm_head)
    assert "lm_head" in reason(model)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    model = make_model()
    found = make_native_runner(model, make_cache(model))
    assert isinstance(found, Unavailable) and "compiler" in found.reason


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_was_forked_after_a_chat_chats(nano_folder: Path) -> None:
    make_runner(make_model(), make_cache(make_model()))  # skips where there is no native decoder
    model = MuOmni.from_pretrained(nano_folder, device="cpu", runner="native")
    how: dict[str, Any] = {"temperature": 0, "max_new_tokens": 5, "ignore_eos": True}
    expected = model.chat("Hello there!", **how).tokens
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, repr(model.chat("Hello there!", **how).tokens).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == repr(expected)
    os.waitpid(child, 0)


@torch.inference_mode()
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_greedy_steps_mark_logits_that_are_not_finite(bad: float) -> None:
    model = make_model(tied=False)
    runner = make_runner(model, make_cache(model))
    slots, positions = torch.tensor([0, 1]), torch.tensor([0, 0])
    assert bool((runner.greedy(torch.tensor([1, 2]), slots, positions, 3) >= 0).all())
    head: Tensor = model.thinker.lm_head.weight
    head[100] = bad
    out = runner.greedy(torch.tensor([1, 2]), slots, positions, 3)
    assert out[:, 0].tolist() == [-1, -1] or bad == torch.inf
    assert out.max() < 211 and bool((out[:, 0] == -1).any())
