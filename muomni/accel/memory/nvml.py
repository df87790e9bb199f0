"""What the NVIDIA driver says of a GPU's memory: the figures of `nvidia-smi`.

They hold what torch's allocator cannot see: the CUDA context (some hundred MiB), libraries, and other
processes on the same GPU. `nvidia-ml-py` reads them; it comes with the `gpu` extra.
"""

import os
from pathlib import Path
from typing import Any

import torch


class Nvml:
    """An open connection to the driver for one GPU; make it with `open_nvml`."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library = library
        self._handle = handle

    def device_bytes(self) -> int:
        """In use on the GPU, by all processes together."""
        return int(self._library.nvmlDeviceGetMemoryInfo(self._handle).used)

    def process_bytes(self) -> int | None:
        """In use by this process; None where the driver does not tell, as in a container with its own process ids."""
        for process in self._library.nvmlDeviceGetComputeRunningProcesses(self._handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
        return None


def open_nvml(device: torch.device) -> tuple[Nvml | None, str | None]:
    """The connection, or None and the reason in words; None twice where the device is no GPU.

    The GPU is found by its UUID, because `CUDA_VISIBLE_DEVICES` renumbers torch's devices but not NVML's.
    """
    if device.type != "cuda":
        return None, None
    try:
        import pynvml
    except ImportError:
        return None, 'nvidia-smi\'s figures are missing: nvidia-ml-py is not installed (pip install "muomni[gpu]")'
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        opened = Nvml(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"))
        of_process = opened.process_bytes()
        opened.device_bytes()
    except pynvml.NVMLError as error:
        return None, f"nvidia-smi's figures are missing: NVML says {error}"
    if of_process is None:
        return opened, "nvidia-smi's figure for this process is missing: the driver lists no process of this id"
    return opened, None


def driver_version() -> str:
    """Of NVIDIA's driver; `not known` where neither the system nor NVML tells."""
    file = Path("/proc/driver/nvidia/version")
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace").partition("\n")[0].strip()
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except (ImportError, OSError):
        return "not known"
    except pynvml.NVMLError as error:
        return f"not known: {error}"
