"""The stage that trains a speech codec: recordings, codec, optimizers, then the loop.

Beside `train.trainer` because nothing of text is here (no tokenizer, no targets, no documents) and because two
optimizers step against each other. Schedule, clipping, skipped steps, metrics and checkpoints are the same code.
"""

import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from muomni.accel.cpu_allocator import choice as allocator
from muomni.accel.device import pick_device
from muomni.accel.distributed import alone, choose
from muomni.accel.memory.monitor import MemoryMonitor, MemoryReport
from muomni.accel.mixed_precision import Precision, pick_precision
from muomni.config import Recipe
from muomni.config.codec import CodecSpec
from muomni.data.datasets.clips import ClipDataset
from muomni.data.speech.recording_cache import prepare_sounds
from muomni.errors import CheckpointError, ConfigError, TrainingError, UserError
from muomni.files import write_atomic
from muomni.formats.codec import load_codec, save_codec
from muomni.model.codec import SpeechCodec
from muomni.progress import ProgressLine
from muomni.train.checkpoint import (
    Progress,
    checkpoint_folder,
    read_checkpoint,
    restore_training,
    training_tensors,
    write_checkpoint,
)
from muomni.train.codec.step import CodecStep, evaluate_codec, make_critic, micro_batches
from muomni.train.optim.build import build_optimizers
from muomni.train.optim.lr_schedule import lr_factors
from muomni.train.reporting.metrics_log import MetricsLog, tensorboard_installed
from muomni.train.signals import StopSignal
from muomni.train.step import StepResult, TrainStep

MAX_SKIPPED_IN_A_ROW = 20
_CRITIC = "critic/"


class CodecTrainer:
    """Runs optimizer steps from where `progress` stands to the last.

    Args:
        recipe: with `codec`.
        run: the run folder, which exists.
        rows, val_rows: clips.
        start: the checkpoint to go on from, of the same recipe.

    Raises:
        UserError: the run is complete.
        CheckpointError: `start` does not load.
    """

    def __init__(self, recipe: Recipe, run: Path, precision: Precision, start: Path | None) -> None:
        assert recipe.codec is not None
        self.recipe, self.spec, self.run, self.precision = recipe, recipe.codec, run, precision
        torch.manual_seed(recipe.seed)
        self.codec = _initial(self.spec, recipe.seed).to(precision.device).train()
        train, val = prepare_sounds(recipe.data)
        self.sounds = train
        size = self.codec.config.frame_samples
        length = int(self.spec.clip_seconds * self.codec.sample_rate) // size * size
        weights = [source.weight for source in recipe.data.train]
        self.rows = ClipDataset(train, length, recipe.seed, gain_db=self.spec.gain_db, weights=weights)
        self.val_rows = ClipDataset(val, length, recipe.seed, shuffle=False)
        self.per_step = recipe.batch_size * recipe.gradient_accumulation_steps
        epochs = recipe.epochs or 0.0
        self.total_steps = recipe.max_steps or max(1, math.ceil(epochs * self.rows.num_rows / self.per_step))
        self.step = self._make_step()
        self.progress = Progress()
        if start is not None:
            self._restore(start)
        self.monitor = MemoryMonitor(self.codec, self._optimizers, precision.device)
        self.stopped = False
        self._stop = StopSignal()
        self._pending: list[StepResult] = []
        self._since = time.perf_counter()
        self._saved_at = self._validated_at = self.progress.applied if start is not None else -1

    @property
    def opening(self) -> list[str]:
        """Sentences for the user at the beginning."""
        config, sounds = self.codec.config, self.sounds
        epochs = self.total_steps * self.per_step / self.rows.num_rows
        lines = [
            f"codec of {self.codec.num_parameters() / 1e6:.1f} M parameters on {self.precision.device}: "
            f"{config.frame_rate:g} frames a second of {config.num_codebooks} codes out of {config.codebook_size}, "
            f"{config.bits_per_second / 1000:.2f} kbit/s",
            f"{sounds.clips} recordings, {sounds.seconds / 60:.1f} min; {self.total_steps} steps of {self.per_step} "
            f"clips of {self.rows.samples / config.sample_rate:g} s, {epochs:.2f} epochs",
            f"precision {self.precision.name}: {self.precision.reason}",
        ]
        if sounds.bad:
            lines.append(f"{len(sounds.bad)} recordings cannot be read and are left out: {'; '.join(sounds.bad[:3])}")
        return lines

    def train(self, log: MetricsLog, line: ProgressLine) -> None:
        """Runs to the end, or until Ctrl-C or SIGTERM, which saves and sets `stopped`.

        Raises:
            TrainingError: too many steps in a row had non-finite gradients.
            CheckpointError: a checkpoint could not be written.
        """
        recipe, progress = self.recipe, self.progress
        self._since = time.perf_counter()
        with self._stop.listen(line):
            while not self._stop.asked and progress.applied < self.total_steps:
                self._one_step()
                line.update(progress.applied)
                done = progress.applied
                validate = recipe.eval.every and done % recipe.eval.every == 0
                save = done % recipe.checkpoint.every == 0
                if not (validate or save or done % recipe.log_every == 0 or done >= self.total_steps):
                    continue
                self._flush(log, line)
                if progress.applied == done and validate:
                    self._validate(log, line)
                if progress.applied == done and save:
                    self._save()
                self._since = time.perf_counter()
            self._flush(log, line)
            self.stopped = self._stop.asked and progress.applied < self.total_steps
            if not self.stopped and self._validated_at != progress.applied:
                self._validate(log, line)
            self._save()

    def _one_step(self) -> None:
        first = self.progress.attempts * self.per_step
        # Skipped steps count as attempts only, so this begins where it would without them.
        begun = self.progress.applied >= self.spec.losses.discriminator_start_step
        self.step.adversarial = self.step.critic is not None and begun
        rows, recipe = self.rows, self.recipe
        batches = micro_batches(rows, first, recipe.batch_size, recipe.gradient_accumulation_steps)
        self._pending.append(self.step([batch.to(self.precision.device) for batch in batches]))
        self.progress.attempts += 1
        self.progress.tokens += self.per_step * rows.samples // self.codec.config.frame_samples
        self.progress.applied += 1

    def _flush(self, log: MetricsLog, line: ProgressLine) -> None:
        """Reads the figures of the steps since the last time, once, and writes them."""
        if not self._pending:
            return
        names = [list(result.others) for result in self._pending]
        read = torch.cat(
            [torch.stack([r.loss, r.grad_norm, r.lr_factor, *r.others.values()]).float() for r in self._pending]
        ).tolist()
        counters = self.step.counters
        applied, skipped, streak = torch.stack([counters.applied, counters.skipped, counters.streak]).tolist()
        seconds = time.perf_counter() - self._since
        progress, count = self.progress, len(self._pending)
        step = applied - count + skipped - progress.skipped
        progress.seconds += seconds
        progress.applied, progress.skipped, progress.streak = applied, skipped, streak
        sums: dict[str, float] = {}
        for others in names:
            values, read = read[: 3 + len(others)], read[3 + len(others) :]
            finite = math.isfinite(values[1])
            step += finite
            found = dict(zip(("loss", *others), [values[0], *values[3:]], strict=True))
            lr = values[2] * self.recipe.optimizer.lr
            shown = {name: value if math.isfinite(value) else None for name, value in found.items()}
            norm = values[1] if finite else None
            log.write("train", step, **shown, grad_norm=norm, lr=lr, **({} if finite else {"skipped": True}))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value / count
        memory = self.monitor.read()
        rate = count * self.per_step * self.rows.samples / self.codec.sample_rate / seconds
        log.write("speed", applied, sound_s_per_s=rate, step_s=seconds / count, **memory.as_dict())
        log.flush()
        losses = "  ".join(f"{name} {value:.3f}" for name, value in sums.items())
        note = f"{losses}  {rate:.1f} s of sound/s  {seconds / count:.2f} s/step  {memory}"
        note += f"  {skipped} skipped" if skipped else ""
        line.update(applied, note, (self.total_steps - applied) * seconds / count)
        self._pending.clear()
        if streak >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{streak} steps in a row had non-finite gradients, at step {applied}; the run stops here and "
                f"{self.run / 'last'} keeps the last good checkpoint. Lower optimizer.lr"
            )

    def _validate(self, log: MetricsLog, line: ProgressLine) -> None:
        done, recipe = self.progress.applied, self.recipe
        found = evaluate_codec(
            self.codec, self.val_rows, recipe.eval.max_rows, recipe.batch_size, self.precision, self.spec.losses
        )
        self._validated_at = done
        log.write("val", done, loss=found.loss, **found.others, usage=list(found.usage))
        log.flush()
        is_best = self.progress.best_loss is None or found.loss < self.progress.best_loss
        others = "  ".join(f"{name} {value:.4f}" for name, value in found.others.items())
        usage = f"codes used {min(found.usage):.0%} to {max(found.usage):.0%}"
        line.say(f"step {done}  validation {others}  {usage}{'  best so far' if is_best else ''}")
        if is_best:
            self.progress.best_loss, self.progress.best_step = found.loss, done
            self._save(best=True)

    @property
    def _optimizers(self) -> list[torch.optim.Optimizer]:
        critic = self.step.critic
        return [*self.step.optimizers, *(critic.optimizers if critic is not None else [])]

    @property
    def _learning(self) -> nn.ModuleDict:
        """All that has parameters to learn, by name."""
        critic = self.step.critic
        return nn.ModuleDict({"codec": self.codec, **({"critic": critic.model} if critic is not None else {})})

    def _make_step(self) -> CodecStep:
        recipe, precision = self.recipe, self.precision
        factors = lr_factors(recipe.schedule, self.total_steps)
        common: dict[str, Any] = {"max_grad_norm": recipe.max_grad_norm, "precision": precision}
        critic = None
        if self.spec.losses.adversarial:
            judge = make_critic(recipe.seed).to(precision.device)
            critic = TrainStep(judge, build_optimizers(judge, recipe.optimizer, precision), factors, **common)
        optimizers = build_optimizers(self.codec, recipe.optimizer, precision)
        return CodecStep(self.codec, critic, self.spec.losses, optimizers=optimizers, factors=factors, **common)

    def _save(self, best: bool = False) -> None:
        done = self.progress.applied
        if done == self._saved_at and not best:
            return
        tensors = training_tensors(self._learning, self._optimizers, alone())
        critic = self.step.critic
        self.progress.scaler = {"codec": self.step.scaler.state_dict()}
        if critic is not None:
            self.progress.scaler["critic"] = critic.scaler.state_dict()
            counters = torch.stack([critic.counters.applied, critic.counters.skipped, critic.counters.streak])
            tensors |= {_CRITIC + name: tensor for name, tensor in critic.model.state_dict().items()}
            tensors[_CRITIC + "counters"] = counters
        folder = checkpoint_folder(self.run, done)
        keep = self.recipe.checkpoint.keep
        write_checkpoint(folder, lambda f: save_codec(self.codec, f), tensors, self.progress, best=best, keep=keep)
        self._saved_at = done

    def _restore(self, start: Path) -> None:
        progress, tensors, weights = read_checkpoint(start)
        if progress.applied >= self.total_steps:
            raise UserError(f"{self.run} is complete: it has taken all of its {self.total_steps} steps")
        of_critic = {
            name.removeprefix(_CRITIC): tensors.pop(name) for name in list(tensors) if name.startswith(_CRITIC)
        }
        critic = self.step.critic
        try:
            self.codec.load_state_dict(weights)
            if critic is not None:
                applied, skipped, streak = of_critic.pop("counters").tolist()
                critic.counters.applied.fill_(applied)
                critic.counters.skipped.fill_(skipped)
                critic.counters.streak.fill_(streak)
                critic.model.load_state_dict(of_critic)
                critic.scaler.load_state_dict(progress.scaler["critic"])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(f"checkpoint {start} is of another codec: {error}") from None
        self.step.scaler.load_state_dict(progress.scaler["codec"])
        self.step.counters.applied.fill_(progress.applied)
        self.step.counters.skipped.fill_(progress.skipped)
        self.step.counters.streak.fill_(progress.streak)
        restore_training(dict(self._learning.named_parameters()), self._optimizers, tensors, progress)
        self.progress = progress


def train_codec(recipe: Recipe, run: Path, start: Path | None, recipe_file: str) -> tuple[CodecTrainer, MemoryReport]:
    """Trains a codec, or goes on training.

    Args:
        recipe: with `codec`.
        run: the run folder; made here.
        start: the checkpoint to go on from.
        recipe_file: the name that the recipe gets in `run`.

    Raises:
        UserError: recipe, data or folders cannot be used.
        CheckpointError: a checkpoint does not load or could not be written.
        TrainingError: the loss stays non-finite.
    """
    device = pick_device(recipe.device)
    if choose(recipe, device).size > 1:
        raise ConfigError("codec: one process trains a codec; start it without torchrun")
    allocator.apply(allocator.choose(recipe.allocator, device))
    trainer = CodecTrainer(recipe, run, pick_precision(recipe.precision, device), start)
    run.mkdir(parents=True, exist_ok=True)
    stored = recipe.model_dump(mode="json", exclude_none=True, by_alias=True)
    write_atomic(run / recipe_file, json.dumps(stored, indent=2) + "\n")
    progress = trainer.progress
    with (
        MetricsLog(run, progress.applied, tensorboard_installed()) as log,
        ProgressLine(trainer.total_steps, progress.applied) as line,
    ):
        for text in trainer.opening:
            line.say(text)
        trainer.train(log, line)
    return trainer, trainer.monitor.report()


def _initial(spec: CodecSpec, seed: int) -> SpeechCodec:
    """The codec a run begins with."""
    if spec.init_from is not None:
        return load_codec(Path(spec.init_from).expanduser())
    return SpeechCodec(spec.build(), torch.Generator().manual_seed(seed))
