"""How much memory a run uses, and for what.

On a GPU the figures are those of torch's allocator, beside what the driver says (see `nvml`). On a CPU
they are those of the process and of the machine.

Weights, gradients and optimizer are measured: the sizes of their tensors' storages, a shared one counted
once. Two figures are derived. `other` is what was in use before the first step besides these: the
interpreter and libraries on a CPU. `activations` is what is left of the peak when all else is taken off;
temporary blocks of operations count there too.

Nothing here waits for the device: all figures are counters on the host. They are read when the loop
writes its log, but gradients live only inside a step, so a hook before the optimizer's step looks at
their sizes, once after each reading.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from muomni.accel.distributed import local
from muomni.accel.memory.nvml import open_nvml
from muomni.files import text_lines

MIB = 1024 * 1024


@dataclass(frozen=True)
class Reading:
    """Bytes at one moment; what a device does not have is None.

    Attributes:
        kind: `gpu`, torch's allocator; `rss`, the process's resident memory.
        now, peak: in use. On a GPU, allocated to tensors, and the peak since the monitor began.
        available: left on the GPU, or on the machine.
        reserved, reserved_peak: what the allocator holds of the GPU, for tensors or for later ones.
        retries: how often the allocator found no room, gave back what it held in reserve and tried again:
            the warning before memory runs out.
        ooms: how often it then still found no room.
        nvml_process, nvml_device: what `nvidia-smi` shows for this process and for the whole GPU.
    """

    kind: Literal["gpu", "rss"]
    now: int
    peak: int
    available: int
    reserved: int | None = None
    reserved_peak: int | None = None
    retries: int | None = None
    ooms: int | None = None
    nvml_process: int | None = None
    nvml_device: int | None = None

    def as_dict(self) -> dict[str, float | int]:
        """In MiB, but for the two counts; without what the device does not have."""
        sizes = {
            self.kind: self.now,
            f"{self.kind}_peak": self.peak,
            "available": self.available,
            f"{self.kind}_reserved": self.reserved,
            f"{self.kind}_reserved_peak": self.reserved_peak,
            "nvml_process": self.nvml_process,
            "nvml_device": self.nvml_device,
        }
        counts = {"alloc_retries": self.retries, "ooms": self.ooms}
        return {f"{name}_mib": _mib(size) for name, size in sizes.items() if size is not None} | {
            name: count for name, count in counts.items() if count is not None
        }

    def __str__(self) -> str:
        reserved = f", reserved {self.reserved / MIB:,.0f}" if self.reserved is not None else ""
        return f"{self.kind} {self.now / MIB:,.0f} MiB (peak {self.peak / MIB:,.0f}{reserved})"


@dataclass(frozen=True)
class Categories:
    """What memory is used for, in bytes.

    Attributes:
        weights: parameters, frozen ones too, and buffers.
        gradients: as they stood before an optimizer step.
        optimizer: its state.
        activations: derived; None where the peak came before training, so that nothing is known.
        cache: KV caches; training keeps none.
        other: derived, in use before training.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int | None
    cache: int
    other: int

    def as_dict(self) -> dict[str, float | None]:
        """In MiB."""
        return {f"{name}_mib": None if size is None else _mib(size) for name, size in vars(self).items()}

    def __str__(self) -> str:
        parts = [f"{name} {size / MIB:,.1f}" for name, size in vars(self).items() if size is not None]
        return ", ".join(parts) + " MiB"


@dataclass(frozen=True)
class MemoryReport:
    """A run's memory at its end. `notes` says what could not be read and why."""

    device: str
    reading: Reading
    categories: Categories
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `memory.json`."""
        return {
            "device": self.device,
            "reading": self.reading.as_dict(),
            "categories": self.categories.as_dict(),
            "derived": ["activations_mib", "other_mib"],
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """A table for the terminal."""
        derived = {"activations": "the peak minus the rest", "other": "in use before training"}
        table = [f"memory on {self.device}, MiB"]
        for name, size in vars(self.categories).items():
            figure = " not known, the peak came before training" if size is None else f"{_mib(size):>10,.1f}"
            table.append(f"  {name:<20}{figure}" + (f"  derived: {derived[name]}" if name in derived else ""))
        for name, value in self.reading.as_dict().items():
            figure = f"{value:>10,.1f}" if name.endswith("_mib") else f"{value:>10}"
            table.append(f"  {_words(name):<20}{figure}")
        return table + [f"  {note}" for note in self.notes]


class MemoryMonitor:
    """Reads memory for a run.

    Args:
        model: whose weights and gradients.
        optimizers: whose state. The first one gets the hook that looks at gradients.
        device: where the model is. On a GPU the peak is counted from here on.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], device: torch.device) -> None:
        self.device = device
        self.nvml, self.nvml_note = open_nvml(device)
        self._optimizers = list(optimizers)
        self._parameters = list(model.parameters())
        self._weights = storage_bytes([*self._parameters, *model.buffers()])
        self._gradients = 0
        self._look = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = self.read()
        self._peak_before = start.peak
        self._retries_before = start.retries or 0
        self._other = max(0, start.now - self._weights - self._optimizer_bytes())
        if self._optimizers:
            self._optimizers[0].register_step_pre_hook(self._before_step)

    def read(self) -> Reading:
        """The figures now."""
        self._look = True
        if self.device.type != "cuda":
            return _read_process()
        stats = torch.cuda.memory_stats(self.device)
        return Reading(
            "gpu",
            now=stats.get("allocated_bytes.all.current", 0),
            peak=stats.get("allocated_bytes.all.peak", 0),
            available=torch.cuda.mem_get_info(self.device)[0],
            reserved=stats.get("reserved_bytes.all.current", 0),
            reserved_peak=stats.get("reserved_bytes.all.peak", 0),
            retries=stats.get("num_alloc_retries", 0),
            ooms=stats.get("num_ooms", 0),
            nvml_process=self.nvml.process_bytes() if self.nvml is not None else None,
            nvml_device=self.nvml.device_bytes() if self.nvml is not None else None,
        )

    def categories(self, reading: Reading, cache: Iterable[Tensor] = ()) -> Categories:
        """What the peak of `reading` consisted of.

        Args:
            reading: of this monitor.
            cache: keys and values of KV caches, where there are any.
        """
        peak = reading.peak if reading.peak > self._peak_before else None
        return self._split(peak, self._gradients, storage_bytes(cache))

    def categories_now(self, reading: Reading) -> Categories:
        """What `reading` consists of, inside a step: with the gradients there are at this moment."""
        return self._split(reading.now, self._live_gradients(), 0)

    def warning(self, reading: Reading) -> str | None:
        """Words for the progress line once the allocator has begun to retry; None before."""
        retries = (reading.retries or 0) - self._retries_before
        return f"memory nearly full: {retries} allocator retries" if retries > 0 else None

    def report(self) -> MemoryReport:
        """For the end of a run."""
        reading = self.read()
        notes = () if self.nvml_note is None else (self.nvml_note,)
        return MemoryReport(str(self.device), reading, self.categories(reading), notes)

    def _split(self, used: int | None, gradients: int, cache: int) -> Categories:
        optimizer = self._optimizer_bytes()
        rest = self._weights + gradients + optimizer + cache + self._other
        activations = None if used is None else max(0, used - rest)
        return Categories(self._weights, gradients, optimizer, activations, cache, self._other)

    def _before_step(self, *_: Any) -> None:
        if self._look:
            self._gradients = self._live_gradients()
            self._look = False

    def _live_gradients(self) -> int:
        return storage_bytes(p.grad for p in self._parameters if p.grad is not None)

    def _optimizer_bytes(self) -> int:
        states = [state for optimizer in self._optimizers for state in optimizer.state.values()]
        return storage_bytes(value for state in states for value in state.values() if isinstance(value, Tensor))


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, of divided ones this process's part: a storage counts once."""
    sizes: dict[tuple[torch.device, int], int] = {}
    for tensor in map(local, tensors):
        storage = tensor.untyped_storage()
        sizes[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _read_process() -> Reading:
    import psutil

    rss = psutil.Process().memory_info().rss
    return Reading("rss", now=rss, peak=max(rss, _peak_rss()), available=psutil.virtual_memory().available)


def _peak_rss() -> int:
    # `getrusage` would be simpler, but on Linux a process inherits that figure from the one that started it.
    if sys.platform == "linux":
        for line in text_lines(Path("/proc/self/status").read_text(encoding="ascii", errors="replace")):
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _mib(size: int) -> float:
    return round(size / MIB, 1)


def _words(name: str) -> str:
    """`gpu_reserved_peak_mib` as a person would write it."""
    return name.removesuffix("_mib").replace("_", " ")
