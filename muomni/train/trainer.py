"""The training loop: steps, validation, samples, checkpoints, and the log of them.

Several processes run it side by side. What they decide by is the same for all (step numbers, gathered figures,
the agreement to stop), so they always meet at the same points; process 0 alone writes.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from muomni.accel.memory.monitor import MemoryMonitor
from muomni.config.recipe import Recipe
from muomni.data import Batch, Dataset, MultimodalDataset, PrefetchLoader, Tokenizer, WithSpeech
from muomni.errors import DataError, TrainingError
from muomni.model import OmniModel
from muomni.progress import ProgressLine
from muomni.train.checkpoint import Progress, save_checkpoint
from muomni.train.evaluate import evaluate
from muomni.train.oom_recovery import OomRecovery, RescuedStep
from muomni.train.reporting.metrics_log import MetricsLog
from muomni.train.reporting.step_metrics import (
    Pending,
    StepMetrics,
    digest,
    losses_line,
    number,
    score,
    validation_line,
)
from muomni.train.signals import StopSignal
from muomni.train.step import TrainStep, num_targets

MAX_SKIPPED_IN_A_ROW = 20
# Names of media that could not be read are given in full in the metrics; a line for a person shows so many.
_NAMES_SHOWN = 3
# (model, step) -> texts; the caller brings it, since training knows nothing of inference.
Sampler = Callable[[OmniModel, int], Sequence[str]]


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
        train_rows: Dataset,
        val_rows: Dataset,
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
        self._stop = StopSignal()
        self.monitor = MemoryMonitor(model, step.optimizers, model.device)
        micro_batch = progress.micro_batch or recipe.batch_size
        self._rescued_step = RescuedStep(recipe, model, step, train_rows, self.monitor, run, micro_batch)
        self._reads_text, self._speaks = bool(recipe.data.train), recipe.data.speech is not None
        self._byte_lengths = tokenizer.byte_lengths()
        self._pending: list[Pending] = []
        self._since = time.perf_counter()
        self._window_tokens = 0
        self._validated_at = -1
        self._told_of_validation = False
        self._told_of_score = False
        self._saved_at = progress.applied if progress.applied else -1

    def train(self, log: MetricsLog, line: ProgressLine) -> None:
        """Runs to the end, or until Ctrl-C or SIGTERM, which saves and sets `stopped`.

        Raises:
            TrainingError: too many steps in a row had non-finite gradients.
            DataError: more media than `data.max_unreadable_fraction` allows could not be read.
            MemoryShortageError: memory ran out, see `train.oom_recovery`.
            CheckpointError: a checkpoint could not be written.
        """
        self.model.train()
        self._since = time.perf_counter()
        with self._stop.listen(line):
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
        def tell(rescue: OomRecovery) -> None:
            self.progress.micro_batch = rescue.after
            log.write("event", rescue.step, **rescue.as_dict())
            log.flush()
            line.say(str(rescue))

        first = self.progress.attempts * self._rescued_step.rows_per_step
        batches, result = self._rescued_step(first, self.progress.applied + 1, tell)
        # Pairs of speech alone are counted in frames, which are known once they are read.
        tokens = self._rescued_step.rows_per_step * self.recipe.data.seq_len if self._reads_text else 0
        self.progress.tokens += tokens
        self._window_tokens += tokens
        self.progress.attempts += 1
        # Right unless a step was skipped; `_flush` reads the true count from the device.
        self.progress.applied += 1
        counts = [num_targets(batch) for batch in batches]
        targets = {name: sum(count[name] for count in counts) for name in ("text", *self.step.weights)}
        bad = tuple(name for batch in batches for name in batch.bad)
        self._pending.append(Pending(self.progress.applied, self._digest(batches), result, targets, bad))
        line.update(self.progress.applied)

    def _digest(self, batches: Sequence[Batch]) -> int:
        places = range(self.group.rank, self._rescued_step.rows_per_step, self.group.size)
        return digest(batches, places if self._reads_text else None)

    def _agreed_to_stop(self) -> bool:
        self.stopped = self.group.any(self._stop.asked)
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
        figures = self._read_pending()
        counters = self.step.counters
        applied, skipped, streak = torch.stack([counters.applied, counters.skipped, counters.streak]).tolist()
        seconds = time.perf_counter() - self._since
        self.progress.seconds += seconds
        newly_skipped = skipped - self.progress.skipped
        self.progress.applied, self.progress.skipped, self.progress.streak = applied, skipped, streak
        step = applied - len(self._pending) + newly_skipped
        for found in figures:
            norm = found.grad_norm
            finite = norm == norm and abs(norm) != float("inf")
            step += finite
            values = {name: number(loss) for name, loss in found.others.items()}
            if self.recipe.losses.text:
                values = {"loss": number(found.loss), **values}
            if found.impossible:
                values["impossible_transcripts"] = found.impossible
            values |= {"grad_norm": number(norm), "lr": found.lr_factor * self.recipe.optimizer.lr}
            values |= {"targets": found.targets} if self._reads_text else {}
            values |= {"frames": found.frames} if self._speaks else {}
            rows = f"{found.digest % 2**32:08x}"
            log.write("train", step, **values, batch=rows, **({} if finite else {"skipped": True}))
        self._note_bad([name for found in figures for name in found.bad], applied, log, line)
        memory = self.monitor.read()
        used_by = self.monitor.categories(memory).as_dict()
        step_seconds = seconds / len(self._pending)
        rates, shown = self._rates(figures, seconds)
        log.write("speed", applied, **rates, step_s=step_seconds, **memory.as_dict(), **used_by)
        log.flush()
        losses = losses_line(figures, self.recipe.losses.text > 0)
        note = f"{losses}  {shown}  {step_seconds:.2f} s/step  {memory}"
        if skipped:
            note += f"  {skipped} skipped"
        if self.progress.bad:
            note += f"  {len(self.progress.bad)} media unreadable"
        warning = self.monitor.warning(memory)
        if warning is not None:
            note += f"  {warning}"
        line.update(applied, note, (self.total_steps - applied) * step_seconds)
        self._pending.clear()
        self._window_tokens = 0
        self._since = time.perf_counter()
        self._check_bad(applied, log)
        if streak >= MAX_SKIPPED_IN_A_ROW:
            raise TrainingError(
                f"{streak} steps in a row had non-finite gradients, at step {applied}; the run stops here and "
                f"{self.run / 'last'} keeps the last good checkpoint. Lower optimizer.lr, or look at the data of "
                f"these steps (their batch ids are in {log.path})."
            )

    def _rates(self, figures: Sequence[StepMetrics], seconds: float) -> tuple[dict[str, float], str]:
        """How much the steps since the last time read in a second, for the log and in words."""
        rates: dict[str, float] = {}
        words = []
        if self._reads_text:
            speed = self._window_tokens / seconds
            rates |= {"tokens_per_s": speed, "tokens": self.progress.tokens}
            words.append(f"{speed:,.0f} tok/s")
        if self._speaks:
            rates["frames_per_s"] = sum(found.frames for found in figures) / seconds
            words.append(f"{rates['frames_per_s']:,.0f} frames/s")
        return rates, "  ".join(words)

    def _read_pending(self) -> list[StepMetrics]:
        """What the steps since the last time came to, over all processes; waits for the device once."""
        names = [name for name in self.step.weights if name != "text"]
        zero = torch.zeros((), device=self.step.factors.device)
        rows = [
            [r.loss, r.grad_norm, r.lr_factor, zero if r.impossible is None else r.impossible]
            + [r.others[name] for name in names]
            for r in (pending.result for pending in self._pending)
        ]
        read = torch.stack([torch.stack([value.float() for value in row]) for row in rows]).tolist()
        mine = [(row, p.digest, p.targets, p.bad) for row, p in zip(read, self._pending, strict=True)]
        together = []
        for shares in zip(*self.group.gather(mine), strict=True):
            summed = [sum(values) for values in zip(*(row for row, *_ in shares), strict=True)]
            targets = {name: sum(share[2][name] for share in shares) for name in ("text", *names)}
            together.append(
                StepMetrics(
                    loss=summed[0],
                    # Norm and learning rate are the same for all.
                    grad_norm=shares[0][0][1],
                    lr_factor=shares[0][0][2],
                    digest=sum(share[1] for share in shares),
                    others={name: loss for name, loss in zip(names, summed[4:], strict=True) if targets[name]},
                    targets=targets["text"],
                    frames=targets.get("speech", 0),
                    impossible=int(summed[3]),
                    bad=tuple(name for share in shares for name in share[3]),
                )
            )
        return together

    def _note_bad(self, names: Sequence[str], step: int, log: MetricsLog, line: ProgressLine) -> None:
        """Names media that could not be read, each once in a run."""
        known = set(self.progress.bad)
        new = [name for name in dict.fromkeys(names) if name not in known]
        if not new:
            return
        self.progress.bad += new
        log.write("event", step, event="unreadable media", names=new, total=len(self.progress.bad))
        shown = "; ".join(new[:_NAMES_SHOWN]) + (f"; and {len(new) - _NAMES_SHOWN} more" if new[_NAMES_SHOWN:] else "")
        line.say(f"step {step}  left out, because their media cannot be read: {shown}")

    def _check_bad(self, step: int, log: MetricsLog) -> None:
        """Stops the run where too many documents turned out to be unreadable."""
        bad, documents = len(self.progress.bad), _documents(self.train_rows)
        if bad <= self.recipe.data.max_unreadable_fraction * documents:
            return
        names = "; ".join(self.progress.bad[:_NAMES_SHOWN])
        raise DataError(
            f"step {step}: the media of {bad} of {documents} documents cannot be read, more than "
            f"data.max_unreadable_fraction ({self.recipe.data.max_unreadable_fraction:g}) allows; for example {names}. "
            f"{log.path} names them all, and so does "
            "`muomni data check`; mend or remove them, or raise data.max_unreadable_fraction"
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
                self.step.weights,
                text=self._reads_text,
            )
        self._validated_at = done
        if found.bad and not self._told_of_validation:
            self._told_of_validation = True
            log.write("event", done, event="unreadable media in validation", names=found.bad)
            line.say(f"validation leaves out {len(found.bad)} media that cannot be read: {found.bad[0]}")
        text = {"loss": found.loss} if self._reads_text else {}
        more = {"bits_per_byte": found.bits_per_byte, "targets": found.targets} if self._reads_text else {}
        log.write("val", done, **text, **found.others, **found.parts, **more)
        log.flush()
        reached = score(self.recipe.losses, found)
        if reached is None and not self._told_of_score:
            self._told_of_score = True
            line.say(
                "validation holds no transcripts or captions, and nothing else is learnt: no checkpoint counts as best"
            )
        best = self.progress.best_loss
        is_best = reached is not None and math.isfinite(reached) and (best is None or reached < best)
        line.say(validation_line(done, found, is_best))
        if is_best:
            self.progress.best_loss, self.progress.best_step = reached, done
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


def _documents(rows: Dataset) -> int:
    """How many documents with media there are to read; text alone cannot turn out to be unreadable."""
    rows = rows.rows if isinstance(rows, WithSpeech) else rows
    inner = rows.rows if isinstance(rows, PrefetchLoader) else rows
    return inner.index.num_documents if isinstance(inner, MultimodalDataset) else 0
