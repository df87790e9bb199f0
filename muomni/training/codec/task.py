"""The training of a speech codec on recordings: two optimizers step against each other where it is adversarial."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muomni.accel.distributed import alone
from muomni.accel.memory.monitor import MemoryMonitor, MemoryReport
from muomni.accel.memory.out_of_memory import find_shortage
from muomni.config.codec import CodecSpec
from muomni.data.datasets.clips import ClipDataset
from muomni.data.speech.recording_cache import prepare_sounds
from muomni.errors import CheckpointError, MemoryShortageError
from muomni.files import user_path
from muomni.formats.codec import load_codec, save_codec
from muomni.model.codec import SpeechCodec
from muomni.training.checkpoint import (
    Progress,
    checkpoint_folder,
    read_checkpoint,
    restore_training,
    training_tensors,
    write_checkpoint,
)
from muomni.training.codec.step import CodecStep, evaluate_codec, make_critic, micro_batches
from muomni.training.optim.build import build_optimizers
from muomni.training.optim.lr_schedule import lr_factors
from muomni.training.reporting.run_log import RunLog
from muomni.training.reporting.step_metrics import StepMetrics, losses_summary, read_results
from muomni.training.resolve import CodecRun
from muomni.training.step import StepResult, TrainStep
from muomni.training.task import Validation, Window, restore_step

_CRITIC = "critic/"


class CodecTask:
    """See `Task`.

    Args:
        resolved: what to do and how.
        run: the run folder.
        start: the checkpoint to go on from, of the same recipe.

    Raises:
        CheckpointError: `start` does not load.
    """

    loss_unit = "spectral distance"

    def __init__(self, resolved: CodecRun, run: Path, start: Path | None) -> None:
        self.resolved, self.spec, self.run, self.precision = resolved, resolved.codec, run, resolved.precision
        self.group = alone()
        seed, data, device = resolved.seed, resolved.data, resolved.precision.device
        torch.manual_seed(seed)
        self.codec = _initial(self.spec, seed).to(device).train()
        train, val = prepare_sounds(data)
        self.sounds = train
        size = self.codec.config.frame_samples
        length = int(self.spec.clip_seconds * self.codec.sample_rate) // size * size
        weights = [source.weight for source in data.train]
        self.rows = ClipDataset(train, length, seed, gain_db=self.spec.gain_db, weights=weights)
        self.val_rows = ClipDataset(val, length, seed, shuffle=False)
        self.total_steps = resolved.optim.num_steps(self.rows.num_rows)
        self.main_step = self._make_step()
        self.progress = Progress() if start is None else self._restore(start)
        self.monitor = MemoryMonitor(self.codec, self._optimizers, device)
        # The checksum of each step's clips, with its result.
        self._pending: list[tuple[int, StepResult]] = []

    def opening(self) -> list[str]:
        """See `Task`."""
        config, sounds, per_step = self.codec.config, self.sounds, self.resolved.step.rows
        epochs = self.total_steps * per_step / self.rows.num_rows
        lines = [
            (
                f"codec of {self.codec.num_parameters() / 1e6:.1f} M parameters on {self.precision.device}: "
                f"{config.frame_rate:g} frames a second of {config.num_codebooks} codes out of {config.codebook_size}, "
                f"{config.bits_per_second / 1000:.2f} kbit/s"
            ),
            (
                f"{sounds.clips} recordings, {sounds.seconds / 60:.1f} min; {self.total_steps} steps of {per_step} "
                f"clips of {self.rows.samples / config.sample_rate:g} s, {epochs:.2f} epochs"
            ),
            f"precision {self.precision.name}: {self.precision.reason}",
        ]
        if sounds.bad:
            lines.append(f"{len(sounds.bad)} recordings cannot be read and are left out: {'; '.join(sounds.bad[:3])}")
        return lines

    def begin(self, log: RunLog) -> None:
        """Nothing is left to a measurement."""

    def take_step(self, log: RunLog) -> None:  # noqa: ARG002 - as in `Task`
        """See `Task`."""
        rows, config, step = self.rows, self.resolved.step, self.main_step
        first = self.progress.attempts * config.rows
        # Skipped steps count as attempts only, so this begins where it would without them.
        begun = self.progress.applied >= self.spec.losses.discriminator_start_step
        step.adversarial = step.critic is not None and begun
        batches = micro_batches(rows, first, config.micro_batch, config.accumulation)
        try:
            result = step([batch.to(self.precision.device) for batch in batches])
        except (RuntimeError, MemoryError) as error:
            shortage = find_shortage(error, step.phase)
            if shortage is None:
                raise
            raise MemoryShortageError(
                f"step {self.progress.applied + 1}: {shortage}, with micro-batches of {config.micro_batch} clips of "
                f"{self.spec.clip_seconds:g} s. A smaller batch_size with more gradient_accumulation_steps takes less"
            ) from error
        self._pending.append((zlib.crc32("".join(batch.id for batch in batches).encode()), result))
        self.progress.tokens += config.rows * rows.samples // self.codec.config.frame_samples

    def read_steps(self) -> list[StepMetrics]:
        """See `Task`."""
        read = read_results([result for _, result in self._pending])
        steps = []
        for values, (clips, _) in zip(read, self._pending, strict=True):
            grad_norm, lr = values.pop("grad_norm"), values.pop("lr_factor") * self.resolved.optim.optimizer.lr
            steps.append(StepMetrics(values, grad_norm, lr, {"batch": f"{clips:08x}"}))
        self._pending.clear()
        return steps

    def summarize(self, steps: Sequence[StepMetrics], seconds: float, log: RunLog) -> Window:  # noqa: ARG002 - as in `Task`
        """See `Task`."""
        rate = len(steps) * self.resolved.step.rows * self.rows.samples / self.codec.sample_rate / seconds
        return Window(steps, {"sound_s_per_s": rate}, f"{losses_summary(steps)}  {rate:.1f} s of sound/s")

    def check(self, log: RunLog) -> None:
        """Recordings were all read before the run."""

    def validate(self, log: RunLog) -> Validation:  # noqa: ARG002 - as in `Task`
        """See `Task`."""
        result = evaluate_codec(
            self.codec,
            self.val_rows,
            self.resolved.eval.max_rows,
            self.resolved.step.micro_batch,
            self.precision,
            self.spec.losses,
        )
        others = "  ".join(f"{name} {value:.4f}" for name, value in result.others.items())
        values = {"loss": result.loss, **result.others, "usage": list(result.usage)}
        summary = f" {others}  codes used {min(result.usage):.0%} to {max(result.usage):.0%}"
        return Validation(result.loss, values, summary)

    def sample(self) -> Sequence[tuple[str, str]]:
        """None: a recipe of a codec asks for no texts."""
        return ()

    def memory_forecast(self, memory: MemoryReport) -> None:
        """Nothing is forecast for a codec."""

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        critic = self.main_step.critic
        return [*self.main_step.optimizers, *(critic.optimizers if critic is not None else [])]

    @property
    def trained(self) -> nn.ModuleDict:
        """All that has parameters to learn, by name."""
        critic = self.main_step.critic
        return nn.ModuleDict({"codec": self.codec, **({"critic": critic.model} if critic is not None else {})})

    def _make_step(self) -> CodecStep:
        optim, precision = self.resolved.optim, self.precision
        factors = lr_factors(optim.schedule, self.total_steps)
        common: dict[str, Any] = {"max_grad_norm": optim.max_grad_norm, "precision": precision}
        critic = None
        if self.spec.losses.adversarial:
            judge = make_critic(self.resolved.seed).to(precision.device)
            critic = TrainStep(judge, build_optimizers(judge, optim.optimizer, precision), factors, **common)
        optimizers = build_optimizers(self.codec, optim.optimizer, precision)
        return CodecStep(self.codec, critic, self.spec.losses, optimizers=optimizers, factors=factors, **common)

    def save(self, *, best: bool) -> None:
        """See `Task`."""
        tensors = training_tensors(self.trained, self._optimizers, self.group)
        critic = self.main_step.critic
        self.progress.scaler = {"codec": self.main_step.scaler.state_dict()}
        if critic is not None:
            self.progress.scaler["critic"] = critic.scaler.state_dict()
            counters = torch.stack([critic.counters.applied, critic.counters.skipped, critic.counters.streak])
            tensors |= {_CRITIC + name: tensor for name, tensor in critic.model.state_dict().items()}
            tensors[_CRITIC + "counters"] = counters
        folder, keep = checkpoint_folder(self.run, self.progress.applied), self.resolved.checkpoint.keep
        write_checkpoint(folder, lambda f: save_codec(self.codec, f), tensors, self.progress, best=best, keep=keep)

    def _restore(self, start: Path) -> Progress:
        progress, tensors, weights = read_checkpoint(start)
        names = [name for name in tensors if name.startswith(_CRITIC)]
        of_critic = {name.removeprefix(_CRITIC): tensors.pop(name) for name in names}
        critic, scaler = self.main_step.critic, progress.scaler
        try:
            self.codec.load_state_dict(weights)
            if critic is not None:
                restore_step(critic, of_critic.pop("counters").tolist(), scaler["critic"])
                critic.model.load_state_dict(of_critic)
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"checkpoint {start} is of another codec: {error}") from None
        restore_step(self.main_step, progress.counts, scaler["codec"])
        restore_training(dict(self.trained.named_parameters()), self._optimizers, tensors, progress)
        return progress


def _initial(spec: CodecSpec, seed: int) -> SpeechCodec:
    """The codec a run begins with."""
    if spec.init_from is not None:
        return load_codec(user_path(spec.init_from))
    return SpeechCodec(spec.build(), torch.Generator().manual_seed(seed))
