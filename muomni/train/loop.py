"""The training loop: steps, validation, samples, checkpoints, and the log of them.

Several processes run it side by side. What they decide by is the same for all (step numbers, gathered figures,
the agreement to stop), so they always meet at the same points; process 0 alone writes.
"""

import signal
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from muomni.accel.memory import MemoryMonitor
from muomni.config.recipe import Recipe
from muomni.data import Batch, PackedRows, Tokenizer
from muomni.errors import TrainingError
from muomni.model import OmniModel
from muomni.train.checkpoint import Progress, save_checkpoint
from muomni.train.evaluate import Evaluation, evaluate
from muomni.train.metrics import MetricsLog
from muomni.train.progress import ProgressLine
from muomni.train.rescue import Rescue, RescuedStep
from muomni.train.step import StepResult, TrainStep

MAX_SKIPPED_IN_A_ROW = 20
# (model, step) -> texts; the caller brings it, since training knows nothing of inference.
Sampler = Callable[[OmniModel, int], Sequence[str]]


@dataclass(frozen=True)
class Pending:
    """A step whose figures are still on the device; `digest` is this process's share of the rows' digest."""

    step: int
    digest: int
    result: StepResult


class Trainer:
    """Runs optimizer steps from where `progress` stands to `total_steps`.

    Args:
        recipe, total_steps: what to do and how long.
        model, tokenizer: the tokenizer is written into checkpoints.
        step: takes the optimizer steps, together with the processes of its group; its counters agree with
            `progress`.
        train_rows, val_rows: packed rows; a row's number decides all of its content.
        run: the run folder, which exists.
        progress: zero, or as a checkpoint gave it.
        sampler: writes sample texts, when the recipe asks for some.
    """

    def __init__(
        self,
        recipe: Recipe,
        total_steps: int,
        model: OmniModel,
        tokenizer: Tokenizer,
        step: TrainStep,
        train_rows: PackedRows,
        val_rows: PackedRows,
        run: Path,
        progress: Progress,
        sampler: Sampler | None = None,
    ) -> None:
        self.recipe = recipe
        self.total_steps = total_steps
        self.model = model
        self.tokenizer = tokenizer
        self.step = step
        self.train_rows = train_rows
        self.val_rows = val_rows
        self.run = run
        self.progress = progress
        self.sampler = sampler
        self.group = step.group
        self.stopped = False
        self._asked_to_stop = False
        self.monitor = MemoryMonitor(model, step.optimizers, model.device)
        micro_batch = progress.micro_batch or recipe.batch_size
        self._rescued_step = RescuedStep(recipe, model, step, train_rows, self.monitor, run, micro_batch)
        self._byte_lengths = tokenizer.byte_lengths()
        self._pending: list[Pending] = []
        self._since = time.perf_counter()
        self._window_tokens = 0
        self._validated_at = -1
        self._saved_at = progress.applied if progress.applied else -1

    def train(self, log: MetricsLog, line: ProgressLine) -> None:
        """Runs to the end, or until Ctrl-C or SIGTERM, which saves and sets `stopped`.

        Raises:
            TrainingError: too many steps in a row had non-finite gradients.
            MemoryShortageError: memory ran out, see `train.rescue`.
            CheckpointError: a checkpoint could not be written.
        """
        self.model.train()
        self._since = time.perf_counter()
        with self._stop_on_signal(line):
            while not self._agreed_to_stop() and self.progress.applied < self.total_steps:
                self._one_step(log, line)
                self._after_step(log, line)
            self._flush(log, line)
            if self.stopped:
                self._save()
                return
            if self._validated_at != self.progress.applied:
                self._validate(log, line)
            self._save()

    @property
    def passes_left(self) -> int:
        """Micro-batches that are still to be taken."""
        return (self.total_steps - self.progress.applied) * self._rescued_step.micro_batches

    def try_micro_batch(self, number: int) -> None:
        """Forward and backward pass of a micro-batch of this run, whatever comes next in it; leaves gradients."""
        size = self._rescued_step.micro_batch
        self.step.accumulate([self.train_rows.batch(number * size, size).to(self.step.precision.device)])

    def _one_step(self, log: MetricsLog, line: ProgressLine) -> None:
        def tell(rescue: Rescue) -> None:
            self.progress.micro_batch = rescue.after
            log.write("event", rescue.step, **rescue.as_dict())
            log.flush()
            line.say(str(rescue))

        first = self.progress.attempts * self._rescued_step.rows_per_step
        batches, result = self._rescued_step(first, self.progress.applied + 1, tell)
        tokens = self._rescued_step.rows_per_step * self.recipe.data.seq_len
        self.progress.tokens += tokens
        self._window_tokens += tokens
        self.progress.attempts += 1
        # Right unless a step was skipped; `_flush` reads the true count from the device.
        self.progress.applied += 1
        self._pending.append(Pending(self.progress.applied, self._digest(batches), result))
        line.update(self.progress.applied)

    def _digest(self, batches: Sequence[Batch]) -> int:
        """Of the rows and their places in the step: a sum, so that it does not matter which process has which row."""
        rows = (row for batch in batches for row in batch.input_ids.numpy())
        places = range(self.group.rank, self._rescued_step.rows_per_step, self.group.size)
        return sum(zlib.crc32(row.tobytes(), place) for place, row in zip(places, rows, strict=True))

    def _agreed_to_stop(self) -> bool:
        self.stopped = self.group.any(self._asked_to_stop)
        return self.stopped

    def _after_step(self, log: MetricsLog, line: ProgressLine) -> None:
        recipe, done = self.recipe, self.progress.applied
        validate = recipe.eval.every and done % recipe.eval.every == 0
        sample = recipe.eval.sample_every and done % recipe.eval.sample_every == 0
        save = done % recipe.checkpoint.every == 0
        if not (validate or sample or save or done % recipe.log_every == 0 or done >= self.total_steps):
            return
        self._flush(log, line)
        if self.progress.applied != done:
            return  # a step was skipped: this point comes again
        if validate:
            self._validate(log, line)
        if sample:
            self._sample(log, line)
        if save:
            self._save()
        self._since = time.perf_counter()

    def _flush(self, log: MetricsLog, line: ProgressLine) -> None:
        """Reads the figures of the steps since the last time, once, and writes them."""
        if not self._pending:
            return
        figures = torch.stack(
            [torch.stack([p.result.loss, p.result.grad_norm, p.result.lr_factor]) for p in self._pending]
        ).tolist()
        shares = self.group.gather([(loss, p.digest) for (loss, *_), p in zip(figures, self._pending, strict=True)])
        losses = [sum(loss for loss, _ in of_step) for of_step in zip(*shares, strict=True)]
        digests = [sum(digest for _, digest in of_step) for of_step in zip(*shares, strict=True)]
        counters = self.step.counters
        applied, skipped, streak = torch.stack([counters.applied, counters.skipped, counters.streak]).tolist()
        seconds = time.perf_counter() - self._since
        self.progress.seconds += seconds
        newly_skipped = skipped - self.progress.skipped
        self.progress.applied, self.progress.skipped, self.progress.streak = applied, skipped, streak
        step = applied - len(self._pending) + newly_skipped
        for loss, digest, (_, norm, factor) in zip(losses, digests, figures, strict=True):
            finite = norm == norm and abs(norm) != float("inf")
            step += finite
            values = {"loss": _number(loss), "grad_norm": _number(norm), "lr": factor * self.recipe.optimizer.lr}
            rows = f"{digest % 2**32:08x}"
            log.write("train", step, **values, batch=rows, **({} if finite else {"skipped": True}))
        memory = self.monitor.read()
        used_by = self.monitor.categories(memory).as_dict()
        speed = self._window_tokens / seconds
        step_seconds = seconds / len(self._pending)
        rate = {"tokens_per_s": speed, "step_s": step_seconds, "tokens": self.progress.tokens}
        log.write("speed", applied, **rate, **memory.as_dict(), **used_by)
        log.flush()
        note = f"loss {sum(losses) / len(losses):.3f}  {speed:,.0f} tok/s  {step_seconds:.2f} s/step  {memory}"
        if skipped:
            note += f"  {skipped} skipped"
        warning = self.monitor.warning(memory)
        if warning is not None:
            note += f"  {warning}"
        line.update(applied, note, (self.total_steps - applied) * step_seconds)
        self._pending.clear()
        self._window_tokens = 0
        self._since = time.perf_counter()
        if streak >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{streak} steps in a row had non-finite gradients, at step {applied}; the run stops here and "
                f"{self.run / 'last'} keeps the last good checkpoint. Lower optimizer.lr, or look at the data of "
                f"these steps (their batch ids are in {log.path})."
            )

    def _validate(self, log: MetricsLog, line: ProgressLine) -> None:
        done = self.progress.applied
        with self._rescued_step.explained("validation", done):
            found = evaluate(
                self.model,
                self.val_rows,
                self.recipe.eval.max_rows,
                self._rescued_step.micro_batch,
                self._byte_lengths,
                self.step.precision.autocast,
                self.group,
            )
        self._validated_at = done
        log.write("val", done, loss=found.loss, bits_per_byte=found.bits_per_byte, targets=found.targets)
        log.flush()
        is_best = self.progress.best_loss is None or found.loss < self.progress.best_loss
        line.say(_validation_line(done, found, is_best))
        if is_best:
            self.progress.best_loss, self.progress.best_step = found.loss, done
            self._save(best=True)

    def _sample(self, log: MetricsLog, line: ProgressLine) -> None:
        if self.sampler is None:
            raise TrainingError("eval.sample_every asks for samples, but this run was started without a sampler")
        done = self.progress.applied
        model = self.group.whole_model(self.model)
        if model is not None and self.group.is_main:
            texts = self.sampler(model.to(self.step.precision.device), done)
            for prompt, text in zip(self.recipe.eval.prompts, texts, strict=True):
                log.write("sample", done, prompt=prompt, text=text)
                line.say(f"step {done}  sample: {prompt!r} → {text!r}")
            log.flush()
        self.group.wait()

    def _save(self, best: bool = False) -> None:
        done = self.progress.applied
        if done == self._saved_at and not best:
            return
        self.progress.scaler = self.step.scaler.state_dict()
        save_checkpoint(
            self.run,
            self.model,
            self.tokenizer,
            self.step.optimizers,
            self.progress,
            best=best,
            keep=self.recipe.checkpoint.keep,
            group=self.group,
        )
        self._saved_at = done

    @contextmanager
    def _stop_on_signal(self, line: ProgressLine) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM) ends the loop after the step in hand; a second one ends it at once."""

        def stop(number: int, _frame: Any) -> None:
            if self._asked_to_stop:
                raise KeyboardInterrupt
            self._asked_to_stop = True
            line.say("stopping after this step and saving; Ctrl-C again stops at once without saving")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _validation_line(step: int, found: Evaluation, is_best: bool) -> str:
    best = "  best so far" if is_best else ""
    return f"step {step}  validation loss {found.loss:.4f}  {found.bits_per_byte:.4f} bits/byte{best}"


def _number(value: float) -> float | None:
    """JSON has no NaN; `null` stands for one."""
    return value if value == value and abs(value) != float("inf") else None
