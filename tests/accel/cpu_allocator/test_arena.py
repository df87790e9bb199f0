"""The arena for tensors on a CPU: where its blocks lie, what torch does with it, and where there is none."""

import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muomni.accel.cpu_allocator import arena
from muomni.accel.cpu_allocator import choice as allocator
from muomni.accel.cpu_allocator.arena_simulator import LEAST_GAP, SMALL, UNIT, ArenaSimulator
from muomni.errors import ConfigError

CPU = torch.device("cpu")
here = pytest.mark.skipif(isinstance(arena.load(), str), reason="needs Linux and a C++ compiler")
SIZES = st.one_of(st.integers(1, 4 * SMALL), st.sampled_from([SMALL - 1, SMALL, SMALL + 1, 2**20, 2**20 + UNIT]))
# What is freed is said by its place among the blocks there are.
STEPS = st.lists(st.tuples(st.booleans(), SIZES, st.integers(0, 1000)), max_size=60)


def run(code: str) -> str:
    """In a process of its own: the arena is installed for good."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@given(STEPS)
def test_blocks_never_overlap_and_gaps_are_joined(steps: list[tuple[bool, int, int]]) -> None:
    model = ArenaSimulator()
    blocks: dict[int, tuple[int, int]] = {}
    for number, (frees, size, which) in enumerate(steps):
        if frees and blocks:
            gone = list(blocks)[which % len(blocks)]
            del blocks[gone]
            model.free(gone)
        else:
            blocks[number] = model.allocate(number, size), size
        large = sorted((start, size) for start, size in blocks.values() if start >= 0)
        assert all(size < SMALL for start, size in blocks.values() if start < 0)
        ends = [start + size for start, size in large]
        assert all(end <= start for end, (start, _) in zip(ends, large[1:], strict=False))
        assert model.live == sum(size for _, size in blocks.values())
        assert model.end >= max(ends, default=0) and model.now >= model.end
        gaps = sorted((start, start + size) for size, start in model.free_list.ranges)
        assert all(end < start for (_, end), (start, _) in pairwise(gaps))
    for number in list(blocks):
        model.free(number)
    assert model.end == 0 and not model.free_list.ranges and model.live == 0


@here
def test_the_simulator_does_what_the_arena_does() -> None:
    """Random blocks of torch, each of whose addresses is the simulator's; see it fail by another LEAST_GAP in one."""
    run(f"""
        import random, torch
        from muomni.accel.cpu_allocator import arena
        from muomni.accel.cpu_allocator.arena_simulator import ArenaSimulator
        found = arena.load()
        assert found.install() and found.install()
        draw, model, blocks = random.Random(0), ArenaSimulator(), {{}}
        base = None
        for number in range(20_000):
            if blocks and draw.random() < 0.49:
                gone = draw.choice(list(blocks))
                del blocks[gone]
                model.free(gone)
            else:
                size = draw.choice((100, {SMALL}, 2**20, 2**20 + {UNIT} * 3, draw.randrange(1, 2**21)))
                blocks[number] = torch.empty(size, dtype=torch.uint8)
                start = model.allocate(number, size)
                if start >= 0:
                    at = blocks[number].data_ptr()
                    base = at if base is None else base
                    assert at - base == start, (number, at - base, start)
                    assert at % 64 == 0
            live, end, peak = found.usage()
            assert end == model.end and peak == model.peak, number
        """)


@here
def test_large_tensors_use_the_memory_of_those_that_were_freed() -> None:
    pages = run("""
        import resource, torch
        from muomni.accel.cpu_allocator import choice as allocator
        allocator.apply(allocator.choose("arena", torch.device("cpu")))
        torch.zeros(24, 2**20)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        small = []
        for _ in range(20):
            x = torch.zeros(16, 2**20)
            small.append(torch.zeros(300))
            del x
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        """)
    assert int(pages) < 100


@here
def test_tensors_of_before_and_after_live_and_grow() -> None:
    run("""
        import numpy as np, torch
        from muomni.accel.cpu_allocator import arena
        before = torch.arange(100_000.0)
        assert arena.load().install()
        after = torch.arange(100_000.0)
        assert torch.equal(before, after) and torch.equal(before.clone(), after)
        after.untyped_storage().resize_(2_000_000)
        after.set_(after.untyped_storage(), 0, (500_000,))
        assert torch.equal(after[:100_000], before)
        assert np.shares_memory(after.numpy(), after.numpy())
        tensors = [torch.full((n,), float(n)) for n in range(1, 60_000, 997)]
        del before
        assert all(bool((t == t.numel()).all()) for t in tensors)
        with torch.profiler.profile(profile_memory=True) as seen:
            torch.zeros(2**20)
        assert max(e.cpu_memory_usage for e in seen.key_averages()) >= 2**22
        from concurrent.futures import ThreadPoolExecutor
        def work(seed):
            draw = torch.Generator().manual_seed(seed)
            for _ in range(200):
                n = int(torch.randint(1, 300_000, (1,), generator=draw))
                assert bool((torch.full((n,), float(seed)) == seed).all())
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(work, range(8)))
        """)


@here
def test_memory_that_is_not_there_is_told_in_torchs_words() -> None:
    said = run("""
        import resource, torch
        from muomni.accel.cpu_allocator import arena
        from muomni.accel.memory.out_of_memory import find_shortage
        assert arena.load().install()
        resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
        try:
            torch.empty(2**32, dtype=torch.uint8)
        except RuntimeError as error:
            print(find_shortage(error, "forward"))
        torch.zeros(2**20)
        """)
    assert said.startswith("out of memory in the forward pass")


@here
@pytest.mark.parametrize(("more", "said"), [(3 << 30, "arena"), (1 << 28, "ulimit -v")])
def test_few_addresses_are_used_and_too_few_are_an_error(more: int, said: str) -> None:
    found = run(f"""
        import psutil, resource, torch
        from muomni.accel.cpu_allocator import choice as allocator
        from muomni.errors import ConfigError
        choice = allocator.choose("arena", torch.device("cpu"))
        size = psutil.Process().memory_info().vms + {more}
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        try:
            allocator.apply(choice)
            print(choice.mode, float(torch.ones(2**20).sum()))
        except ConfigError as error:
            print(error)
        """)
    assert said in found


def test_without_a_compiler_memory_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    if not allocator.is_glibc():
        pytest.skip("the C library is not glibc")
    choice = allocator.choose("auto", CPU)
    assert choice.mode == "retain" and "no arena" in choice.reason
    with pytest.raises(ConfigError, match='allocator = "arena"'):
        allocator.choose("arena", CPU)


def test_a_gap_that_is_hardly_larger_is_taken_whole() -> None:
    model = ArenaSimulator()
    for number, size in enumerate((2**20, 100_000, 2**20)):
        model.allocate(number, size)
    model.free(0)
    taken = -(-(2**20) // UNIT) * UNIT + UNIT
    assert model.allocate(3, taken - UNIT - LEAST_GAP + UNIT) == 0 and not model.free_list.ranges
