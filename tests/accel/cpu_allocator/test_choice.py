"""Freed memory stays with the process."""

import subprocess
import sys

import pytest
import torch

from muomni.accel.cpu_allocator import choice as allocator
from muomni.errors import ConfigError

CPU = torch.device("cpu")
# Page faults of 64 MiB where 96 MiB were allocated and freed before. (Room of just the size is not enough: aligned
# blocks are looked for with room to spare.)
ROUNDS = """
import resource, sys, torch
from muomni.accel.cpu_allocator import choice as allocator
allocator.apply(allocator.choose(sys.argv[1], torch.device("cpu")))
def faults(rows):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(rows, 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(24)
print(faults(16))
"""


def faults(name: str) -> int:
    return int(subprocess.run([sys.executable, "-c", ROUNDS, name], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not allocator.is_glibc(), reason="glibc's settings")
def test_memory_that_was_freed_is_used_again_without_asking_the_system() -> None:
    pages = 64 * 2**20 // 4096
    assert faults("auto") < pages // 100
    assert faults("retain") < pages // 100
    assert faults("system") > pages // 100


def test_only_where_a_cpu_computes() -> None:
    assert allocator.choose("auto", torch.device("cuda")).mode == "system"
    assert allocator.choose("system", CPU).mode == "system"


def test_keeping_by_name_needs_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "is_glibc", lambda: False)
    assert allocator.choose("auto", CPU).mode == "system"
    with pytest.raises(ConfigError, match="only glibc"):
        allocator.choose("retain", CPU)
