"""What this machine is: what figures that were measured on it hold for."""

import os
import platform
from pathlib import Path

import torch

from muomni.accel.memory.nvml import driver_version


def processor(device: torch.device) -> str:
    """The name of the GPU or CPU that a device computes on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:  # many cores make it long, and the first says it
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip() not in ("", "unknown"):
                    return value.strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def signature(device: torch.device) -> str:
    """What a timing holds for, shapes and dtypes apart.

    Another torch, processor, driver or number of threads has another signature.
    """
    if device.type == "cuda":
        parts = [processor(device), f"CUDA {torch.version.cuda}", f"driver {driver_version()}"]
    elif device.type == "cpu":
        parts = [processor(device), f"{torch.get_num_threads()} threads"]
    else:
        parts = [device.type, platform.mac_ver()[0] or platform.release()]
    return " | ".join((f"torch {torch.__version__}", *parts))
