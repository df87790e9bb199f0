"""What machine this is, in the words of a report."""

import os
import platform
from pathlib import Path

import torch

from muomni.accel.device import pick_device
from muomni.bench.report import Machine


def this_machine() -> Machine:
    """The device that a run takes by itself, and what it is."""
    device = pick_device()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        processor, memory = properties.name, properties.total_memory
    else:
        import psutil

        processor, memory = _processor(), psutil.virtual_memory().total
    return Machine(
        device=device.type,
        processor=processor,
        cores=_cores(),
        threads=torch.get_num_threads(),
        memory_mib=memory / 2**20,
        system=f"{platform.system()} {platform.machine()}",
    )


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip() not in ("", "unknown"):
                return value.strip()
    return platform.processor() or platform.machine()
