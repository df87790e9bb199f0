"""Mixed precision: fp32 master weights, products in bf16 or fp16.

bf16 has fp32's range, so it needs nothing else. fp16 does not: gradients below 6e-8 vanish, so the
loss is scaled up before the backward pass and the gradients down after it (Micikevicius et al.,
arXiv:1710.03740). Weights, optimizer moments, norms, softmax and loss stay in fp32.

Costs: one cast of the weights per forward pass. Gains about 2× in speed where the hardware multiplies
in that dtype, and half of the activations.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from muomni.errors import ConfigError

PrecisionName = Literal["auto", "bf16", "fp16", "fp32"]


@dataclass(frozen=True)
class Precision:
    """How a run computes.

    Attributes:
        name: bf16, fp16 or fp32.
        device: where.
        reason: why it was taken, for the log.
    """

    name: Literal["bf16", "fp16", "fp32"]
    device: torch.device
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """Of the products."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[self.name]

    @property
    def scales(self) -> bool:
        """Whether the loss has to be scaled."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.name != "fp32")


def pick_precision(name: PrecisionName, device: torch.device) -> Precision:
    """`auto` takes bf16 where the hardware multiplies in it, fp16 on older GPUs, else fp32.

    Raises:
        ConfigError: the named precision does not work, or only by slow emulation, on this device.
    """
    if name == "fp32":
        return Precision("fp32", device, "as asked")
    fast_bf16, why = _bf16(device)
    if name == "bf16":
        if not fast_bf16:
            raise ConfigError(
                f'precision = "bf16": {why}; use "fp32"' + (' or "fp16"' if device.type == "cuda" else "")
            )
        return Precision("bf16", device, "as asked")
    if name == "fp16":
        if device.type == "cpu":
            raise ConfigError('precision = "fp16": a CPU has no fast fp16 products; use "bf16" or "fp32"')
        return Precision("fp16", device, "as asked")
    if fast_bf16:
        return Precision("bf16", device, why)
    if device.type == "cuda":
        return Precision("fp16", device, why)
    return Precision("fp32", device, why)


def _bf16(device: torch.device) -> tuple[bool, str]:
    """Whether bf16 products are fast on the device, and how that is known."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return major >= 8, f"the GPU is SM{major}{minor}, and bf16 needs SM80"
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        have = [name for name in ("avx512_bf16", "amx_bf16") if features.get(name)]
        return bool(have), f"the CPU has {have[0]}" if have else "the CPU has neither avx512_bf16 nor amx_bf16"
    return False, f"bf16 is not known to be fast on {device.type}"
