"""Optimizers and their parameter groups."""

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from muomni.config.recipe import OptimizerSpec


def decay_groups(model: nn.Module) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """The trainable parameters with weight decay (matrices) and without (norms, biases, embeddings)."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decays = [(name, p) for name, p in named if p.ndim >= 2 and id(p) not in embeddings]
    rest = [(name, p) for name, p in named if p.ndim < 2 or id(p) in embeddings]
    return decays, rest


def build_optimizers(model: nn.Module, spec: OptimizerSpec, device: torch.device) -> list[Optimizer]:
    """The optimizers of a run.

    The learning rate of every group is a tensor on `device` that `train.step` fills in place, and
    `base_lr` in the group is what the schedule's factor multiplies.
    """
    decays, rest = decay_groups(model)
    groups = [
        {"params": decays, "weight_decay": spec.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["lr"] = torch.tensor(spec.lr, dtype=torch.float32, device=device)
        group["base_lr"] = spec.lr
    return [AdamW(groups, betas=spec.betas, eps=spec.eps, fused=True)]
