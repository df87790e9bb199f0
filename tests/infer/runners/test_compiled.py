"""The compiled runner against the eager one: buckets, padding and switching without a compiler, then with Inductor."""

import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.config import OmniConfig, ThinkerConfig
from muomni.errors import ConfigError
from muomni.infer import EagerRunner, Engine, Request, Runners, SamplingParams
from muomni.infer import make_runner as choose
from muomni.infer.runners.compiled import CompiledRunner, StepFunction
from muomni.model import OmniModel, SlotCache
from muomni.model.int8_layers import to_int8

SLOTS, CAPACITY = 5, 96


def make_model(seed: int = 0, **changes: Any) -> OmniModel:
    sizes: dict[str, Any] = {
        "vocab_size": 53,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CAPACITY,
        "initializer_range": 0.3,
    }
    thinker = ThinkerConfig(**(sizes | changes))
    model = OmniModel(OmniConfig(thinker=thinker), torch.Generator().manual_seed(seed))
    return model.eval().requires_grad_(False)


def make_cache(model: OmniModel, dtype: torch.dtype = torch.float32) -> SlotCache:
    cache = SlotCache(model.config.thinker, SLOTS, CAPACITY, dtype, model.device)
    if dtype != torch.int8:  # what nobody has written may be anything
        cache.keys.fill_(torch.nan)
        cache.values.fill_(torch.nan)
    return cache


def compiled(model: OmniModel, cache: SlotCache, **options: Any) -> CompiledRunner:
    return CompiledRunner(model, cache, EagerRunner(model, cache), **options)


def as_it_is(step: StepFunction, inputs: tuple[Tensor, ...]) -> StepFunction:
    """A compiler that does nothing, so that its steps are the same operations on the same static shapes."""
    return step


@st.composite
def models(draw: st.DrawFn) -> OmniModel:
    keys = draw(st.sampled_from([1, 2]))
    return make_model(
        draw(st.integers(0, 999)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=keys * draw(st.sampled_from([1, 3])),
        num_key_value_heads=keys,
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(max_examples=25)
@given(model=models(), data=st.data())
def test_any_batch_comes_out_as_with_the_modules(model: OmniModel, data: st.DataObject) -> None:
    """Chunks and single tokens of any slots, wanted anywhere, behind whatever those slots hold."""
    runner = compiled(model, make_cache(model), background=False, compiler=as_it_is)
    reference = EagerRunner(model, make_cache(model))
    held = [0] * SLOTS
    for _ in range(data.draw(st.integers(1, 5))):
        parts = data.draw(st.permutations(range(SLOTS)))[: data.draw(st.integers(1, SLOTS))]
        counts = [data.draw(st.sampled_from([1, 1, 2, 7, 16, 17])) for _ in parts]
        slots = torch.cat([torch.full((n,), slot) for slot, n in zip(parts, counts, strict=True)])
        positions = torch.cat([torch.arange(held[s], held[s] + n) for s, n in zip(parts, counts, strict=True)])
        if int(positions.max()) >= CAPACITY:
            break
        tokens = torch.randint(53, (len(slots),), generator=torch.Generator().manual_seed(int(positions.sum())))
        ends = torch.tensor(counts).cumsum(0) - 1
        wanted = data.draw(st.sampled_from([ends, torch.arange(len(slots)), ends[-1:]]))
        with torch.inference_mode():
            got = runner.forward(tokens, slots, positions, wanted)
            expected = reference.forward(tokens, slots, positions, wanted)
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)
        for slot, n in zip(parts, counts, strict=True):
            held[slot] += n
    rows = torch.tensor([slot for slot in range(SLOTS) if 0 < held[slot] < CAPACITY - 12])
    if len(rows):
        at = torch.tensor(held)[rows]
        with torch.inference_mode():
            found = runner.greedy(rows + 3, rows, at, 12)
            assert torch.equal(found, reference.greedy(rows + 3, rows, at, 12))
    assert runner.compiled_steps > 0 or runner.eager_steps > 0
    assert not runner.faults and set(runner.compiles.values()) <= {1}


def test_buckets_are_few_and_each_is_compiled_once() -> None:
    model = make_model()
    runner = compiled(model, make_cache(model), background=False, compiler=as_it_is)
    with torch.inference_mode():
        for count in (9, 12, 16, 17):
            positions = torch.arange(count)
            runner.forward(positions, positions * 0, positions, positions[-1:])
        for count in (1, 2, 3, 4, 5, 4, 3):
            rows = torch.arange(count)
            runner.greedy(rows, rows, rows + 20, 3)
    assert {(bucket.kind, bucket.rows) for bucket in runner.compiles} == {
        ("prefill", 16), ("prefill", 32), ("decode", 1), ("decode", 2), ("decode", 4), ("decode", 5)
    }  # fmt: skip
    assert set(runner.compiles.values()) == {1} and runner.eager_steps == 0


def test_the_modules_serve_until_a_step_is_there_and_the_switch_changes_no_token() -> None:
    model = make_model(3)
    gate = threading.Event()

    def slow(step: StepFunction, inputs: tuple[Tensor, ...]) -> StepFunction:
        assert gate.wait(20)
        return step

    cache = make_cache(model)
    runner = compiled(model, cache, compiler=slow)
    engine = Engine(model, cache, Runners(runner))
    reference = Engine(model, reference_cache := make_cache(model), Runners(EagerRunner(model, reference_cache)))
    asked = [([1 + i, 2, 3, 5 + i], SamplingParams(temperature=i % 2, seed=i, max_new_tokens=30)) for i in range(3)]

    def submit(to: Engine) -> list[Request]:
        return [to.submit(Request(prompt=ids, params=params, limit=30)) for ids, params in asked]

    requests = submit(engine)
    for _ in range(6):
        engine.step()
    assert runner.compiled_steps == 0 and runner.eager_steps > 0
    assert "steps by CompiledRunner (0 steps compiled, 2 to come)" in engine.note
    gate.set()
    runner.wait()
    assert "decode of 4 rows over 96 positions" in engine.note and "0 to come" in engine.note
    tokens = [engine.finish(one).tokens for one in requests]
    assert runner.compiled_steps > 0
    assert tokens == [reference.finish(one).tokens for one in submit(reference)]
    assert all(count == 1 for count in runner.compiles.values())


def test_what_cannot_be_compiled_is_told_once_and_computed_by_the_modules() -> None:
    def broken(step: StepFunction, inputs: tuple[Tensor, ...]) -> StepFunction:
        raise RuntimeError("no such instruction\nmore")

    model = make_model()
    runner = compiled(model, make_cache(model), background=False, compiler=broken)
    reference = EagerRunner(model, make_cache(model))
    one, zero = torch.tensor([7]), torch.tensor([0])
    with torch.inference_mode(), pytest.warns(UserWarning, match="decode of 1 rows .*no such instruction"):
        assert torch.equal(runner.greedy(one, zero, zero, 5), reference.greedy(one, zero, zero, 5))
    with torch.inference_mode():
        runner.greedy(one, zero, zero, 5)
    assert runner.compiles == Counter(dict.fromkeys(runner.compiles, 1)) and "no such instruction" in runner.note


def test_the_model_may_learn_meanwhile_and_its_layers_keep_their_kernels() -> None:
    model = make_model(dropout=0.5)
    to_int8(model)
    runner = compiled(model, make_cache(model), background=False, compiler=as_it_is)
    expected = EagerRunner(model, make_cache(model))
    ids = torch.arange(9)
    with torch.inference_mode():
        right = expected.forward(ids, ids * 0, ids, ids)
        model.train()
        found = runner.forward(ids, ids * 0, ids, ids)
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
    assert "fused" not in model.thinker.layers[0].self_attn.q_proj.kernels  # type: ignore[union-attr, operator]
    assert runner._thinker.lm_head.weight is model.thinker.lm_head.weight


def test_an_int8_cache_is_filled_alike() -> None:
    model = make_model()
    caches = make_cache(model, torch.int8), make_cache(model, torch.int8)
    runner = compiled(model, caches[0], background=False, compiler=as_it_is)
    ids, slot = torch.arange(40, 50), torch.full((10,), 2)
    with torch.inference_mode():
        found = runner.forward(ids, slot, torch.arange(10), torch.arange(10))
        right = EagerRunner(model, caches[1]).forward(ids, slot, torch.arange(10), torch.arange(10))
    torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
    for mine, theirs in zip(caches[0]._tensors(), caches[1]._tensors(), strict=True):
        torch.testing.assert_close(mine[:, 2, :, :10].float(), theirs[:, 2, :, :10].float(), rtol=1e-4, atol=1)


def test_without_a_compiler_the_modules_serve_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("muomni.accel.compile.blocks.what_is_missing", lambda device: "no C++ compiler is on the path")
    model = make_model()
    with pytest.raises(ConfigError, match="the compiled runner cannot be had: no C\\+\\+ compiler"):
        choose(model, make_cache(model), "compiled")


_DECODE = """
import torch
from torch._dynamo.utils import counters
from tests.infer.runners.test_compiled import make_cache, make_model, to_int8, compiled
from muomni.infer import EagerRunner


model = make_model(num_hidden_layers=1, hidden_size=32)
for quantised in (False, True):
    if quantised:
        to_int8(model)
    runner = compiled(model, make_cache(model), background=False)
    reference = EagerRunner(model, make_cache(model))
    rows = torch.arange(2)
    with torch.inference_mode():
        assert torch.equal(runner.greedy(rows, rows, rows * 0, 40), reference.greedy(rows, rows, rows * 0, 40))
    assert runner.eager_steps == 0 and not runner.faults, runner.note
print("hits", counters["inductor"]["fxgraph_cache_hit"], "misses", counters["inductor"]["fxgraph_cache_miss"])
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_inductors_steps_give_the_same_tokens_and_another_process_finds_them(tmp_path: Path) -> None:
    """Float weights, then int8 ones; one bucket of each."""
    found = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _DECODE],
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found.append(done.stdout.splitlines()[-1])
    assert found == ["hits 0 misses 2", "hits 2 misses 0"]


@pytest.mark.gpu
@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize("kept", [torch.float32, torch.int8])
def test_graphs_on_a_gpu_give_the_tokens_of_the_modules(weights: str, kept: torch.dtype) -> None:
    model = make_model(num_hidden_layers=3).cuda()
    if weights == "int8":
        to_int8(model)
    cache = make_cache(model, kept)
    runner = choose(model, cache, "auto").now
    assert isinstance(runner, CompiledRunner)
    reference = EagerRunner(model, make_cache(model, kept))
    runner = compiled(model, cache, background=False)
    ids = torch.arange(20)
    with torch.inference_mode():
        for slot in range(3):  # the second is captured, the third replayed
            chunk = ids + slot, torch.full((20,), slot), ids, ids[-1:]
            torch.testing.assert_close(runner.forward(*chunk), reference.forward(*chunk), rtol=1e-2, atol=1e-2)
        rows = torch.arange(3)
        found = [runner.greedy(rows, rows, torch.full((3,), at), 15) for at in (20, 35)]
        right = [reference.greedy(rows, rows, torch.full((3,), at), 15) for at in (20, 35)]
    if kept == torch.float32:
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, right, strict=True))
    assert any(step.graph is not None for step in runner._steps.values())
    assert runner.eager_steps == 0 and set(runner.compiles.values()) == {1}


@pytest.mark.gpu
def test_a_step_of_a_captured_graph_waits_for_nothing() -> None:
    model = make_model().cuda()
    runner = compiled(model, make_cache(model), background=False)
    rows = torch.arange(4)
    with torch.inference_mode():
        runner.greedy(rows, rows, rows * 0, 4)
        step = next(iter(runner._steps.values()))
        assert step.graph is not None
        positions = step.positions.clone()
        before = torch.cuda.get_sync_debug_mode()
        # Clock cycles: the device is busy for some half a second.
        torch.cuda._sleep(1_000_000_000)  # type: ignore[no-untyped-call]
        torch.cuda.set_sync_debug_mode("error")
        try:
            step.run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()
        assert not done.query()  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        assert torch.equal(step.positions, positions + 1)
