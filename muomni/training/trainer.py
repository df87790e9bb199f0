"""The training loop of every task: steps, metrics, validation, samples, checkpoints.

Several processes run it side by side. What they decide by is the same for all (step numbers, gathered metrics,
the agreement to stop), so they always meet at the same points; process 0 alone writes.
"""

import math
import time

import torch

from muomni.config.recipe import CheckpointSpec, EvalSpec
from muomni.errors import TrainingError
from muomni.training.checkpoint import last_checkpoint
from muomni.training.reporting.run_log import RunLog
from muomni.training.reporting.step_metrics import json_number
from muomni.training.signals import StopSignal
from muomni.training.task import Task

MAX_SKIPPED_IN_A_ROW = 20


class Trainer:
    """Runs optimizer steps from where `task.progress` stands to `task.total_steps`.

    Attributes:
        stopped: a signal ended the run before its last step.

    Args:
        task: what is trained.
        evaluation, checkpoint, log_every: how often the run validates, samples, saves and writes its metrics.
        log: where it reports.
    """

    def __init__(
        self, task: Task, evaluation: EvalSpec, checkpoint: CheckpointSpec, log_every: int, log: RunLog
    ) -> None:
        self.task = task
        self.progress = task.progress
        self.stopped = False
        self._evaluation, self._checkpoint, self._log_every = evaluation, checkpoint, log_every
        self._log = log
        self._stop = StopSignal()
        self._pending = 0
        self._since = time.perf_counter()
        self._validated_at = -1
        self._saved_at = self.progress.applied or -1
        self._warned_no_score = False

    def train(self) -> None:
        """Runs to the end, or until Ctrl-C, SIGTERM or SIGHUP, which saves and sets `stopped`.

        Raises:
            TrainingError: too many steps in a row had non-finite gradients.
            DataError: more media than `data.max_unreadable_fraction` allows could not be read.
            MemoryShortageError: memory ran out, see `training.oom_recovery`.
            CheckpointError: a checkpoint could not be written.
        """
        progress, total_steps = self.progress, self.task.total_steps
        self._since = time.perf_counter()
        with self._stop.listen(self._log.say):
            while progress.applied < total_steps and not self._agreed_to_stop():
                self.task.take_step(self._log)
                progress.attempts += 1
                # Right unless a step was skipped; `_flush` reads the true count from the device.
                progress.applied += 1
                self._pending += 1
                self._log.advance(progress.applied)
                self._after_step()
            self._flush()
            if not self.stopped and self._validated_at != progress.applied:
                self._validate()
            self._save()

    def _agreed_to_stop(self) -> bool:
        self.stopped = self.task.group.any(self._stop.wanted(self._log.say))
        return self.stopped

    def _after_step(self) -> None:
        done, evaluation = self.progress.applied, self._evaluation
        validate = evaluation.every and done % evaluation.every == 0
        sample = evaluation.sample_every and done % evaluation.sample_every == 0
        save = done % self._checkpoint.every == 0
        if not (validate or sample or save or done % self._log_every == 0 or done >= self.task.total_steps):
            return
        self._flush()
        if self.progress.applied != done:
            return  # a step was skipped: this point comes again
        if validate:
            self._validate()
        if save:
            self._save()
        if sample:
            self._sample()
        self._since = time.perf_counter()

    def _flush(self) -> None:
        """Writes the metrics of the steps since the last time."""
        if not self._pending:
            return
        task, progress, log = self.task, self.progress, self._log
        steps = task.read_steps()
        counters = task.main_step.counters
        applied, skipped, streak = torch.stack([counters.applied, counters.skipped, counters.streak]).tolist()
        seconds = time.perf_counter() - self._since
        number = applied - len(steps) + skipped - progress.skipped
        progress.seconds += seconds
        progress.applied, progress.skipped, progress.streak = applied, skipped, streak
        for step in steps:
            finite = math.isfinite(step.grad_norm)
            number += finite
            losses = {name: json_number(loss) for name, loss in step.losses.items()}
            more = {} if finite else {"skipped": True}
            log.write(
                "train", number, **losses, grad_norm=json_number(step.grad_norm), lr=step.lr, **step.counts, **more
            )
        window = task.summarize(steps, seconds, log)
        memory = task.monitor.read()
        used_by = task.monitor.categories(memory).as_dict()
        step_seconds = seconds / len(steps)
        log.write("speed", applied, **window.rates, step_s=step_seconds, **memory.as_dict(), **used_by)
        log.flush()
        parts = [window.summary, f"{step_seconds:.2f} s/step", str(memory)]
        parts += [f"{skipped} skipped"] if skipped else []
        parts += [f"{len(progress.bad)} media unreadable"] if progress.bad else []
        warning = task.monitor.warning(memory)
        parts += [warning] if warning is not None else []
        log.report(applied, "  ".join(parts), step_seconds)
        self._pending = 0
        self._since = time.perf_counter()
        task.check(log)
        if streak >= MAX_SKIPPED_IN_A_ROW:
            last = last_checkpoint(log.path.parent)
            raise TrainingError(
                f"{streak} steps in a row had non-finite gradients, at step {applied}, and the run stops. "
                + ("There is no checkpoint. " if last is None else f"The last checkpoint, before them, is {last}. ")
                + ("" if last is None else "Go on with a lower rate (--resume --set optimizer.lr=...), or ")
                + f"look at the data of these steps (their batch ids are in {log.path})"
            )

    def _validate(self) -> None:
        progress, log = self.progress, self._log
        done = self._validated_at = progress.applied
        result = self.task.validate(log)
        log.write("val", done, **result.values)
        log.flush()
        if result.score is None and not self._warned_no_score:
            self._warned_no_score = True
            log.say(
                "validation holds no transcripts or captions, and nothing else is learnt: no checkpoint counts as best"
            )
        best = progress.best_loss
        is_best = result.score is not None and math.isfinite(result.score) and (best is None or result.score < best)
        log.say(f"step {done}  validation{result.summary}{'  best so far' if is_best else ''}")
        if is_best:
            progress.best_loss, progress.best_step = result.score, done
            self._save(best=True)

    def _sample(self) -> None:
        done = self.progress.applied
        for prompt, text in self.task.sample():
            self._log.write("sample", done, prompt=prompt, text=text)
            self._log.say(f"step {done}  sample: {prompt!r} → {text!r}")
        self._log.flush()

    def _save(self, *, best: bool = False) -> None:
        if self.progress.applied != self._saved_at or best:
            self.task.save(best=best)
            self._saved_at = self.progress.applied
