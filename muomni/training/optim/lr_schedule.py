"""Learning-rate schedules as tables, so that a step counter on the device can look them up."""

import math

import torch
from torch import Tensor

from muomni.config.recipe import ScheduleSpec


def lr_factors(spec: ScheduleSpec, total_steps: int) -> Tensor:
    """The factor of the base learning rate for each optimizer step.

    Args:
        spec: cosine (Loshchilov and Hutter, arXiv:1608.03983), wsd (Hu et al., arXiv:2404.06395) or constant.
        total_steps: optimizer steps of the whole run.

    Returns:
        (total_steps + 1,) fp64; the last entry repeats the one before it.
    """
    steps = torch.arange(total_steps + 1, dtype=torch.float64).clamp(max=total_steps - 1)
    warm = ((steps + 1) / max(1, spec.warmup_steps)).clamp(max=1.0)
    floor = spec.min_lr_ratio
    if spec.kind == "cosine":
        done = ((steps - spec.warmup_steps) / max(1, total_steps - 1 - spec.warmup_steps)).clamp(0.0, 1.0)
        after = floor + (1 - floor) * 0.5 * (1 + torch.cos(math.pi * done))
    elif spec.kind == "wsd":
        falling = max(1.0, spec.decay_fraction * total_steps)
        after = 1 - (1 - floor) * (1 - (total_steps - 1 - steps) / falling).clamp(0.0, 1.0)
    else:
        after = torch.ones_like(steps)
    return torch.minimum(warm, after)
