"""One optimizer step of a codec, and of the discriminator that learns beside it.

Losses are means over the clips of the whole step, so gradients do not depend on how it is cut into micro-batches.
Both learn from one pass of the codec: the discriminator first, from what was decoded without the codec's gradients,
then the codec through the discriminator as it was. Both optimizers step at the end.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from muomni.accel.mixed_precision import Precision
from muomni.config.codec import CodecLossSpec
from muomni.data.datasets.clips import ClipBatch, ClipDataset
from muomni.model.codec import SpeechCodec
from muomni.training.codec.discriminator import Discriminator, codec_losses, critic_loss
from muomni.training.codec.losses import spectral_losses
from muomni.training.step import Losses, StepResult, TrainStep


class CodecStep(TrainStep):
    """As `TrainStep`, over batches of clips.

    Args:
        codec: what learns.
        critic: takes the discriminator's steps, over the same `Precision`; None without one.
        spec: the weights.
        others: of `TrainStep`.

    Attributes:
        adversarial: whether the discriminator takes part by now; the loop sets it.
    """

    def __init__(self, codec: SpeechCodec, critic: TrainStep | None, spec: CodecLossSpec, **others: Any) -> None:
        super().__init__(codec, **others)
        self.codec = codec
        self.critic = critic
        self.spec = spec
        self.adversarial = False

    def __call__(self, batches: Sequence[Any]) -> StepResult:
        """One optimizer step over micro-batches, already on the codec's device."""
        result = super().__call__(batches)
        self.codec.quantizer.update()
        if self.critic is not None and self.adversarial:
            self.critic.take()
        return result

    def accumulate(self, batches: Sequence[Any]) -> Losses:
        """Forward and backward of all micro-batches; `text` of what returns is the weighted sum of all losses."""
        clips = sum(len(batch.samples) for batch in batches)
        totals: dict[str, Tensor] = {}
        for batch in batches:
            for name, value in self._learn(batch.samples, clips).items():
                totals[name] = totals[name] + value if name in totals else value
        return Losses(totals.pop("loss"), totals, None)

    def _learn(self, samples: Tensor, clips: int) -> dict[str, Tensor]:
        """Backward of one micro-batch; its share of the means of the step."""
        self.phase = "forward"
        with self.precision.autocast():
            out = self.codec(samples)
        decoded = out.samples
        recorded = samples[:, : decoded.shape[1]]
        found = spectral_losses(decoded, recorded, self.codec.sample_rate)
        losses = {name: value / clips for name, value in {**found, "commitment": out.commitment}.items()}
        if self.critic is not None and self.adversarial:
            losses |= self._judged(decoded, recorded, clips)
        weights = self.spec.model_dump()
        loss = torch.stack([weights[name] * value for name, value in losses.items() if name != "critic"]).sum()
        self.phase = "backward"
        torch.autograd.backward(self.scaler.scale(loss))
        return {name: value.detach() for name, value in {"loss": loss, **losses}.items()}

    def _judged(self, decoded: Tensor, recorded: Tensor, clips: int) -> dict[str, Tensor]:
        """The discriminator learns; returns its loss, `critic`, and what the codec learns from it."""
        assert self.critic is not None
        judge = self.critic.model
        with self.precision.autocast():
            real = judge(recorded)
            verdict = critic_loss(real, judge(decoded.detach())) / clips
        torch.autograd.backward(self.critic.scaler.scale(verdict))
        judge.requires_grad_(False)
        with self.precision.autocast():
            made = judge(decoded)
        judge.requires_grad_(True)
        lost = codec_losses([[x.detach() for x in layers] for layers in real], made)
        return {"critic": verdict, **{name: value / clips for name, value in lost.items()}}


@dataclass(frozen=True)
class CodecEvaluation:
    """What validation found.

    Attributes:
        loss: weighted sum of `others`.
        others: each loss of the spectra, a mean over clips.
        usage: share of the codes of each codebook that occurred.
    """

    loss: float
    others: Mapping[str, float]
    usage: tuple[float, ...]


@torch.no_grad()
def evaluate_codec(
    codec: SpeechCodec, rows: ClipDataset, max_rows: int, batch_size: int, precision: Precision, spec: CodecLossSpec
) -> CodecEvaluation:
    """Mean losses over the first rows of `rows`, the codec in eval mode and put back after."""
    was_training = codec.training
    codec.eval()
    count = min(max_rows, rows.num_rows)
    total: dict[str, float] = {}
    used = torch.zeros(codec.num_codebooks, codec.codebook_size, dtype=torch.bool)
    for first in range(0, count, batch_size):
        samples = rows.batch(first, min(batch_size, count - first)).to(codec.device).samples
        with precision.autocast():
            out = codec(samples)
        found = spectral_losses(out.samples, samples[:, : out.samples.shape[1]], codec.sample_rate)
        for name, value in found.items():
            total[name] = total.get(name, 0.0) + float(value)
        codes = out.codes.cpu()
        used[torch.arange(codec.num_codebooks)[:, None], codes.transpose(0, 1).flatten(1)] = True
    codec.train(was_training)
    others = {name: value / count for name, value in total.items()}
    weights = spec.model_dump()
    loss = sum(weights[name] * value for name, value in others.items())
    return CodecEvaluation(loss, others, tuple(used.double().mean(1).tolist()))


def make_critic(seed: int) -> Discriminator:
    """The discriminator with its initial weights."""
    return Discriminator(torch.Generator().manual_seed(seed + 1))


def micro_batches(rows: ClipDataset, first: int, batch_size: int, count: int) -> list[ClipBatch]:
    """The micro-batches of the step whose first row is `first`, on the host."""
    return [rows.batch(first + n * batch_size, batch_size) for n in range(count)]
