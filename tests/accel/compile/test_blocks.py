"""Compilation: chosen or refused in words, same results, and no compiling anew once it is warm."""

import shutil

import pytest
import torch

from muomni.accel import activation_checkpointing
from muomni.accel.compile import blocks as compilation
from muomni.errors import ConfigError
from muomni.ops.attention import Segments
from muomni.training.objectives.module import LossModule
from tests.accel.test_activation_checkpointing import CONFIG, make_model
from tests.training.objectives.batches import make_batch

CPU = torch.device("cpu")


def test_without_a_compiler_auto_is_eager_and_a_named_mode_is_an_error(monkeypatch):
    monkeypatch.setattr(
        compilation, "what_is_missing", lambda _device: "no C++ compiler (g++ or clang++) is on the path"
    )
    chosen = compilation.choose("auto", torch.device("cuda"))
    assert chosen.mode == "off" and "no C++ compiler" in chosen.reason
    with pytest.raises(ConfigError, match='compile = "blocks": no C\\+\\+ compiler'):
        compilation.choose("blocks", CPU)
    assert compilation.choose("off", CPU).mode == "off"


def test_an_empty_path_has_no_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert "no C++ compiler" in str(compilation.what_is_missing(CPU))


def random_rows(seed: int) -> tuple[torch.Tensor, Segments]:
    """Two rows of 24 tokens cut into documents at random places."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(64, (2, 24), generator=draw)
    inner = torch.randperm(47, generator=draw)[: 1 + seed % 5] + 1
    bounds = torch.cat([torch.tensor([0, 24, 48]), inner]).unique().to(torch.int32)
    return ids, Segments(bounds, int(bounds.diff().max()))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", [None, "full", "selective"])
def test_compiled_blocks_give_the_same_gradients_and_settle(checkpointing):
    from torch._dynamo.utils import counters

    still = CONFIG.replace(thinker=CONFIG.thinker.replace(dropout=0.0, num_hidden_layers=2))
    torch._dynamo.reset()
    eager, compiled = make_model(still), make_model(still)
    if checkpointing:
        activation_checkpointing.enable(compiled, checkpointing)
    compilation.apply(compiled, compilation.choose("blocks", CPU))
    for seed in range(8):
        if seed == 4:
            counters.clear()
        ids, segments = random_rows(seed)
        results = []
        for model in (eager, compiled):
            model.zero_grad()
            loss = model(ids, labels=ids, segments=segments).loss
            loss.backward()
            results.append([loss.detach(), *(p.grad for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 0, "documents of other lengths compiled again"
    assert not counters["graph_break"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_whole_model_compiled_gives_the_same_gradients_and_settles():
    from torch._dynamo.utils import counters

    still = CONFIG.replace(thinker=CONFIG.thinker.replace(dropout=0.0, num_hidden_layers=1))
    torch._dynamo.reset()
    eager, compiled = (LossModule(make_model(still).double()) for _ in range(2))
    compilation.apply(compiled, compilation.choose("full", CPU))
    for seed in range(6):
        if seed == 3:
            assert counters["stats"]["unique_graphs"] > 0
            counters.clear()
        ids, segments = random_rows(seed)
        results = []
        for model in (eager, compiled):
            model.zero_grad()
            loss = model(make_batch(ids, segments=segments), {"text": ids.numel()}).total
            loss.backward()
            results.append([loss.detach(), *(p.grad for p in model.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert counters["stats"]["unique_graphs"] == 0, "documents of other lengths compiled again"


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("checkpointing", [None, "full", "selective"])
def test_compiled_dropout_is_the_same_in_the_backward_pass(checkpointing):
    """The gradient is the slope of the loss: a block computed again with other random numbers would give another."""
    shallow = CONFIG.replace(thinker=CONFIG.thinker.replace(dropout=0.3, num_hidden_layers=1))
    torch._dynamo.reset()
    model = make_model(shallow).double().train()
    if checkpointing:
        activation_checkpointing.enable(model, checkpointing)
    compilation.apply(model, compilation.choose("blocks", CPU))
    ids, segments = random_rows(0)

    def loss() -> torch.Tensor:
        torch.manual_seed(7)
        return model(ids, labels=ids, segments=segments).loss

    parameters: list[torch.Tensor] = list(model.parameters())
    slopes = torch.autograd.grad(loss(), parameters)
    draw = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in parameters]
    expected = sum((slope * way).sum() for slope, way in zip(slopes, direction, strict=True))
    # Gradients stay on: without them a block is compiled anew, and may draw its numbers in another order.
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=sign * 1e-6)
        ends.append(loss().detach())
        with torch.no_grad():
            torch._foreach_add_(parameters, direction, alpha=-sign * 1e-6)
    torch.testing.assert_close((ends[0] - ends[1]) / 2e-6, expected, rtol=1e-5, atol=1e-7)
