"""One optimizer step: accumulate, scale, clip, step. The order is the file's subject.

The loss of every micro-batch is its sum over target tokens divided by the target tokens of the
*whole* step, so that gradients do not depend on how the step is cut into micro-batches.

Of several processes each takes its share of the step's rows. Their gradients are averaged, so the divisor
is the mean number of targets of a process; norm, clipping and what is not finite are then the same for all.

Nothing here waits for the device. Whether a step's gradients are finite, the count of applied and
skipped steps and the learning rate are tensors; the loop reads them when it writes its log.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from muomni.accel.oom import Phase
from muomni.accel.parallel import Group, alone, whole
from muomni.accel.precision import Precision
from muomni.data import Batch
from muomni.ops.attention import Segments


@dataclass
class Counters:
    """Scalars on the device, int64.

    Attributes:
        applied: optimizer steps taken; the schedule's clock.
        skipped: steps left out because the gradient norm was not finite.
        streak: skipped steps in a row, up to now.
    """

    applied: Tensor
    skipped: Tensor
    streak: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> "Counters":
        return cls(*(torch.zeros((), dtype=torch.int64, device=device) for _ in range(3)))


@dataclass(frozen=True)
class StepResult:
    """Scalars on the device: mean loss over the step's target tokens (with several processes this one's share
    of it: the mean is their sum), 2-norm of the gradients before clipping, and the learning-rate factor used."""

    loss: Tensor
    grad_norm: Tensor
    lr_factor: Tensor


class TrainStep:
    """Takes optimizer steps.

    Args:
        model: called as `model(ids, labels=..., positions=..., segments=..., num_targets=...)`; with several
            processes as `accel.parallel` gave it.
        optimizers: their groups carry a tensor `lr` and a float `base_lr`; see `train.optimizer`.
        factors: (steps + 1,) the schedule's table, see `train.schedule`.
        max_grad_norm: 0 turns clipping off.
        precision: of the forward passes. fp16 scales the loss in the order scale, backward,
            unscale, clip, step, update.
        group: the processes that take the step together; None for this one alone.

    Attributes:
        phase: what it is doing, for the message when memory runs out.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        factors: Tensor,
        max_grad_norm: float,
        precision: Precision,
        group: Group | None = None,
    ) -> None:
        self.model = model
        self.group = alone() if group is None else group
        self.optimizers = list(optimizers)
        self.max_grad_norm = max_grad_norm
        self.precision = precision
        device = precision.device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.scales)
        self.factors = factors.to(device, torch.float32)
        self.counters = Counters.zeros(device)
        self.phase: Phase = "forward"
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """One optimizer step over micro-batches, already on the model's device."""
        loss = self.accumulate(batches)
        self.phase = "optimizer"
        grad_norm, not_finite = self._measure()
        factor = self._set_lr()
        self._step(grad_norm, not_finite)
        self._count(not_finite)
        return StepResult(loss, grad_norm, factor)

    def accumulate(self, batches: Sequence[Batch]) -> Tensor:
        """Forward and backward of all micro-batches; gradients add up on the parameters. Returns the mean loss."""
        num_targets = self._divisor(batches)
        total = torch.zeros((), dtype=torch.float32, device=self.factors.device)
        for number, batch in enumerate(batches, 1):
            with self.group.micro_batch(self.model, last=number == len(batches)):
                self.phase = "forward"
                with self.precision.autocast():
                    output = self.model(
                        batch.input_ids,
                        labels=batch.labels,
                        positions=batch.positions,
                        segments=Segments(batch.cu_seqlens, batch.max_seqlen).rounded(batch.input_ids.numel()),
                        num_targets=num_targets,
                    )
                self.phase = "backward"
                self.scaler.scale(output.loss).backward()
            total += output.loss.detach()
        return total / self.group.size

    def _divisor(self, batches: Sequence[Batch]) -> int | Tensor:
        """Target tokens of the whole step, over the processes that share it."""
        # Known on the host: the loader counted its targets.
        own = sum(batch.num_targets for batch in batches)
        if self.group.size == 1:
            return max(1, own)
        everyones = self.group.add(torch.full((), own, dtype=torch.int64, device=self.factors.device))
        return everyones.clamp(min=1) / self.group.size

    @torch.no_grad()
    def _measure(self) -> tuple[Tensor, Tensor]:
        """The gradients' 2-norm, and 1.0 where it is not finite."""
        if self.scaler.is_enabled():
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        grads = [p.grad for p in self._parameters if p.grad is not None]
        grad_norm = whole(torch.nn.utils.get_total_norm(grads))
        return grad_norm, (~torch.isfinite(grad_norm)).to(torch.float32)

    def _set_lr(self) -> Tensor:
        factor = self.factors[self.counters.applied.clamp(max=len(self.factors) - 1)]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                torch.mul(factor, group["base_lr"], out=group["lr"])
        return factor

    def _step(self, grad_norm: Tensor, not_finite: Tensor) -> None:
        # A fused optimizer divides by `grad_scale` as it reads the gradients and does nothing where
        # `found_inf` is 1: clipping and skipping cost no pass over the weights and no host sync.
        clip = (grad_norm / self.max_grad_norm).clamp(min=1.0) if self.max_grad_norm else None
        for optimizer in self.optimizers:
            optimizer.grad_scale = clip  # type: ignore[attr-defined]
            optimizer.found_inf = not_finite  # type: ignore[attr-defined]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.scaler.is_enabled():
            self.scaler.update()  # after a skipped step too: that is when the scale must come down

    @torch.no_grad()
    def _count(self, not_finite: Tensor) -> None:
        skipped = not_finite.to(torch.int64)
        self.counters.applied += 1 - skipped
        self.counters.skipped += skipped
        self.counters.streak += 1
        self.counters.streak *= skipped
