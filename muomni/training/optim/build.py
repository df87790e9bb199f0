"""Optimizers and their parameter groups."""

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from muomni.accel.mixed_precision import Precision
from muomni.config.recipe import OptimizerSpec
from muomni.training.optim.muon import Muon


def decay_groups(model: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """The trainable parameters with weight decay (matrices) and without (norms, biases, embeddings)."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = [(name, p) for name, p in named if p.ndim >= 2 and id(p) not in embeddings]
    rest = [(name, p) for name, p in named if p.ndim < 2 or id(p) in embeddings]
    return decays, rest


def build_optimizers(model: nn.Module, spec: OptimizerSpec, precision: Precision) -> list[Optimizer]:
    """The optimizers of a run: AdamW for all, or Muon for the hidden matrices and AdamW for the rest.

    Muon is for matrices: kernels of convolutions go to AdamW.

    The learning rate of every group is a tensor on the device that `training.step` fills in place, and
    `base_lr` in the group is what the schedule's factor multiplies.
    """
    matrices, rest = decay_groups(model)

    def group(parameters: list[tuple[str, nn.Parameter]], weight_decay: float) -> dict[str, Any]:
        lr = torch.tensor(spec.lr, dtype=torch.float32, device=precision.device)
        return {"params": [p for _, p in parameters], "weight_decay": weight_decay, "lr": lr, "base_lr": spec.lr}

    optimizers: list[Optimizer] = []
    for_muon = [item for item in matrices if spec.name == "muon" and item[1].ndim == 2]
    others = [item for item in matrices if spec.name != "muon" or item[1].ndim != 2]
    muon = [group(for_muon, spec.weight_decay)] if for_muon else []
    adam = [g for g in (group(others, spec.weight_decay), group(rest, 0.0)) if g["params"]]
    if muon:
        # fp16's range is too small for the iterations, so only bf16 replaces fp32.
        dtype = torch.bfloat16 if precision.name == "bf16" else torch.float32
        optimizers.append(Muon(muon, momentum=spec.momentum, dtype=dtype))
    if adam:
        optimizers.append(AdamW(adam, betas=spec.betas, eps=spec.eps, fused=True))
        _begin(optimizers[-1])
    return optimizers


def _begin(adam: Optimizer) -> None:
    """Allocates AdamW's moments, as its first step would.

    Before the first step rather than at its end they lie beside the weights and not in the gaps that
    activations left, which later activations then have to avoid; and a run that has no room for them ends
    at once.
    """
    for group in adam.param_groups:
        for parameter in group["params"]:
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            adam.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
