"""Which device a run uses."""

import torch
from torch import Tensor

from muomni.errors import ConfigError


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes cuda, mps, cpu in that order; a named device that is missing is an error.

    Raises:
        ConfigError: the named device is not there.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in present.items() if there)
    kind = name.split(":")[0]
    if not present.get(kind, False):
        known = ", ".join(k for k, there in present.items() if there)
        raise ConfigError(f"device = {name!r}: not on this machine; here: {known}")
    return torch.device(name)


def free_memory(device: torch.device) -> int:
    """Bytes that are free: of the GPU, or of the machine where the device shares its memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Of every generator that training on a device draws from; they live on the host: nothing waits for the device."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random(states: dict[str, Tensor], device: torch.device) -> None:
    """Puts back what `random_states` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
