"""Which device a run uses."""

import torch

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
