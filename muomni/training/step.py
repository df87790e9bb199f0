"""One optimizer step: accumulate, scale, clip, step. The order is the file's subject.

The loss of every micro-batch is its sum over target tokens divided by the target tokens of the
*whole* step, so that gradients do not depend on how the step is cut into micro-batches. Each other loss has its
own divisor in the same way: CTC the bytes of all transcripts of the step, speech the frames of all pairs, the
contrastive loss all captions. That one still depends on the cut, since a caption is told from those of its micro-batch
only.

Of several processes each takes its share of the step's rows. Their gradients are averaged, so a divisor
is the mean number of targets of a process; norm, clipping and what is not finite are then the same for all.

Nothing here waits for the device. Whether a step's gradients are finite, the count of applied and
skipped steps and the learning rate are tensors; the loop reads them when it writes its log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from muomni.accel.distributed import Group, alone, whole
from muomni.accel.mixed_precision import Precision
from muomni.data import Batch
from muomni.training.objectives.module import LossModule, num_targets

if TYPE_CHECKING:
    from muomni.accel.memory.out_of_memory import Phase


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
        """Of a run that begins."""
        return cls(*(torch.zeros((), dtype=torch.int64, device=device) for _ in range(3)))


@dataclass(frozen=True)
class StepResult:
    """Scalars on the device.

    Attributes:
        loss: mean over the step's target tokens (with several processes this one's share of it: the mean is their
            sum).
        grad_norm: 2-norm of the gradients before clipping.
        lr_factor: the learning-rate factor used.
        others: the means of the other losses by name, likewise, without their weights.
        impossible: transcripts with more bytes than their clips have steps for, which taught nothing.
    """

    loss: Tensor
    grad_norm: Tensor
    lr_factor: Tensor
    others: Mapping[str, Tensor] = field(default_factory=dict)
    impossible: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """Sums over a step's micro-batches; as in `StepResult`."""

    text: Tensor
    others: Mapping[str, Tensor]
    impossible: Tensor | None


class TrainStep:
    """Takes optimizer steps.

    Args:
        model: a `LossModule`; with several processes as `accel.distributed` gave it.
        optimizers: their groups carry a tensor `lr` and a float `base_lr`; see `training.optim.build`.
        factors: (steps + 1,) the schedule's table, see `training.optim.lr_schedule`.
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

    @property
    def losses(self) -> LossModule:
        """The module inside what DDP put around it."""
        module = getattr(self.model, "module", self.model)
        assert isinstance(module, LossModule)
        return module

    def __call__(self, batches: Sequence[Batch]) -> StepResult:
        """One optimizer step over micro-batches, already on the model's device."""
        losses = self.accumulate(batches)
        grad_norm, factor = self.take()
        return StepResult(losses.text, grad_norm, factor, losses.others, losses.impossible)

    def take(self) -> tuple[Tensor, Tensor]:
        """Clips and applies the gradients that have added up; gives their norm and the learning-rate factor."""
        self.phase = "optimizer"
        grad_norm, not_finite = self._measure()
        factor = self._set_lr()
        self._step(grad_norm, not_finite)
        self._count(not_finite)
        return grad_norm, factor

    def accumulate(self, batches: Sequence[Batch]) -> Losses:
        """Forward and backward of all micro-batches; gradients add up on the parameters. Returns the mean losses."""
        denominators = self._denominators(batches)
        totals = {name: torch.zeros((), device=self.factors.device) for name in {"text": 1, **self.losses.weights}}
        impossible: Tensor | None = None
        for number, batch in enumerate(batches, 1):
            with self.group.micro_batch(self.model, last=number == len(batches)):
                self.phase = "forward"
                with self.precision.autocast():
                    output = self.model(batch, denominators)
                self.phase = "backward"
                self.scaler.scale(output.total).backward()
            for name, loss in output.losses.items():
                totals[name] += loss.detach()
            if "impossible" in output.details:
                count = output.details["impossible"]
                impossible = count if impossible is None else impossible + count
        means = {name: total / self.group.size for name, total in totals.items()}
        return Losses(means.pop("text"), means, impossible)

    def _denominators(self, batches: Sequence[Batch]) -> dict[str, int | Tensor]:
        """Targets of the whole step, of each loss, over the processes that share it."""
        # Known on the host: the loader counted its targets.
        counts = [num_targets(batch) for batch in batches]
        own = {name: sum(count[name] for count in counts) for name in self.losses.weights}
        if self.group.size == 1:
            return {name: max(1, count) for name, count in own.items()}
        everyones = torch.tensor(list(own.values()), dtype=torch.int64, device=self.factors.device)
        shared = self.group.add(everyones).clamp(min=1) / self.group.size
        return dict(zip(own, shared, strict=True))

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
