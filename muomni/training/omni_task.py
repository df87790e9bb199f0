"""The training of an omni model: text, media, and pairs of text and speech."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from muomni.accel.compile import blocks as compilation
from muomni.accel.compile import trial as compile_trial
from muomni.accel.measurements import verdicts
from muomni.accel.memory.monitor import MemoryReport
from muomni.config.recipe import LossSpec
from muomni.data import Batch, PreparedRows, Tokenizer
from muomni.errors import DataError, TrainingError
from muomni.model import OmniModel
from muomni.training.checkpoint import Progress, save_checkpoint
from muomni.training.evaluate import Evaluation, evaluate
from muomni.training.forecast.memory import Setup, beside
from muomni.training.freezing import frozen_parts, parts_of
from muomni.training.objectives.module import num_targets
from muomni.training.oom_recovery import OomRecovery, RecoveringStep
from muomni.training.reporting.run_log import RunLog
from muomni.training.reporting.step_metrics import StepMetrics, checksum, losses_summary, read_results
from muomni.training.resolve import ModelRun
from muomni.training.step import StepResult, TrainStep
from muomni.training.task import Validation, Window

# The metrics name all media that could not be read; a line for a person names so many.
_NAMES_SHOWN = 3
# (model, step) -> texts; the caller brings it, since training knows nothing of inference.
Sampler = Callable[[OmniModel, int], Sequence[str]]


class OmniTask:
    """See `Task`.

    Args:
        resolved: what to do and how.
        model, tokenizer: the tokenizer is written into checkpoints.
        step: takes the optimizer steps, together with the processes of its group; its counters agree with
            `progress`.
        rows: to train and validate on; a row's number decides all of its content.
        run: the run folder.
        progress: zero, or as a checkpoint gave it.
        sampler: writes sample texts, when the recipe asks for some.
    """

    loss_unit = "nats per token"

    def __init__(
        self,
        resolved: ModelRun,
        model: OmniModel,
        tokenizer: Tokenizer,
        step: TrainStep,
        rows: PreparedRows,
        run: Path,
        progress: Progress,
        sampler: Sampler | None = None,
    ) -> None:
        self.resolved, self.plan = resolved, resolved.plan
        self.total_steps = resolved.optim.num_steps(rows.train.num_rows)
        self.model, self.tokenizer, self.main_step, self.rows = model, tokenizer, step, rows
        self.run, self.progress, self.sampler = run, progress, sampler
        self.group = step.group
        self._seq_len = resolved.data.seq_len if resolved.data.train else None
        self._step = RecoveringStep(
            resolved.step, self._seq_len, resolved.shrinks, model, step, rows.train, run, progress.micro_batch
        )
        self.monitor = self._step.monitor
        self._reads_text, self._speaks = bool(resolved.data.train), resolved.data.speech is not None
        self._byte_lengths = tokenizer.byte_lengths()
        # Of each step that is not read yet: checksum, result, numbers of targets, unreadable media and their documents.
        self._pending: list[tuple[int, StepResult, dict[str, int], tuple[str, ...], tuple[int, ...]]] = []
        self._reported_unreadable_validation = False

    def opening(self) -> list[str]:
        """See `Task`."""
        data, model, rows = self.resolved.data, self.model, self.rows.train
        per_step = self._step.rows_per_step
        sizes = {name: sum(p.numel() for m in part for p in m.parameters()) for name, part in parts_of(model).items()}
        parts = "" if len(sizes) == 1 else " (" + ", ".join(f"{n} {s / 1e6:.1f}" for n, s in sizes.items()) + ")"
        frozen = f", frozen: {', '.join(sorted(frozen_parts(model)))}" if frozen_parts(model) else ""
        what, each = "rows", f" × {data.seq_len} tokens"
        if not data.train:
            what, each = "pairs", ""
        elif data.speech is not None:
            each += f" with {data.speech.pairs_per_sequence} pairs of text and speech"
        epochs = self.total_steps * per_step / rows.num_rows
        resumed = f"; going on from step {self.progress.applied}" if self.progress.applied else ""
        lines = [
            (
                f"{model.num_parameters() / 1e6:.1f} M parameters{parts}{frozen} on {self.plan.device}; "
                f"{self.total_steps} steps of {per_step} {what}{each}, {epochs:.2f} epochs of {rows.num_rows} {what}"
                f"{resumed}"
            ),
            *self.plan.lines,
            *self.rows.notes,
        ]
        if self.progress.micro_batch is not None:
            lines.append(f"micro-batches of {self.progress.micro_batch} rows, because memory ran out with more")
        return lines

    def begin(self, log: RunLog) -> None:
        """Decides what the plan left to a measurement; a resumed run takes what it decided when it began."""
        self.main_step.model.train()
        progress, choice, device = self.progress, self.plan.compile, self.plan.device
        if choice.mode == "measure":
            if progress.compile is not None:
                choice = compile_trial.remembered(progress.compile, device)
                compilation.apply(self.model, choice)
            else:
                thinker, work = self.model.config.thinker, self._compiled_work()
                earlier = verdicts.load_trial(device, thinker, work)
                passes = (self.total_steps - progress.applied) * self._step.micro_batches
                choice = compile_trial.measure(self.model, self._try_micro_batch, passes, device, earlier)
                if earlier is None and "compiled_s" in choice.figures:
                    verdicts.save_trial(device, thinker, work, choice.figures)
            log.say(f"compile {choice.mode}: {choice.reason}")
            log.write("compile", progress.applied, mode=choice.mode, **choice.figures)
        assert choice.mode != "measure"
        progress.compile = choice.mode

    def _try_micro_batch(self, number: int) -> None:
        """Forward and backward pass of a micro-batch of this run, whatever comes next in it; leaves gradients."""
        size = self._step.micro_batch
        self.main_step.accumulate([self.rows.train.batch(number * size, size).to(self.plan.device)])

    def _compiled_work(self) -> str:
        """What the time of a pass depends on besides machine and Thinker."""
        resolved = self.resolved
        specs = {"data": resolved.data, "model": resolved.model.spec, "losses": resolved.losses}
        parts: dict[str, Any] = {name: spec.model_dump(mode="json") for name, spec in specs.items()}
        parts |= {"freeze": resolved.freeze, "batch_size": resolved.step.micro_batch}
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        plan = self.plan
        return (
            f"{digest}, {plan.precision.name}, attention {plan.attention.backend}, checkpointing {plan.checkpointing}"
        )

    def take_step(self, log: RunLog) -> None:
        """See `Task`."""
        progress, rows_per_step = self.progress, self._step.rows_per_step

        def on_recovery(recovery: OomRecovery) -> None:
            progress.micro_batch = recovery.after
            log.write("event", recovery.step, **recovery.as_dict())
            log.flush()
            log.say(str(recovery))

        batches, result = self._step(progress.attempts * rows_per_step, progress.applied + 1, on_recovery)
        # Pairs of speech alone are counted in frames, which are known once they are read.
        progress.tokens += self._tokens_per_step
        counts = [num_targets(batch) for batch in batches]
        targets = {name: sum(count[name] for count in counts) for name in ("text", *self.main_step.losses.weights)}
        bad = tuple(name for batch in batches for name in batch.bad)
        documents = tuple(number for batch in batches for number in batch.bad_documents)
        self._pending.append((self._checksum(batches), result, targets, bad, documents))

    @property
    def _tokens_per_step(self) -> int:
        return self._step.rows_per_step * (self._seq_len or 0)

    def _checksum(self, batches: Sequence[Batch]) -> int:
        places = range(self.group.rank, self._step.rows_per_step, self.group.size)
        return checksum(batches, places if self._reads_text else None)

    def read_steps(self) -> list[StepMetrics]:
        """See `Task`."""
        read = read_results([result for _, result, *_ in self._pending])
        mine = [
            (values, rows, targets, bad, documents)
            for values, (rows, _, targets, bad, documents) in zip(read, self._pending, strict=True)
        ]
        self._pending.clear()
        return [self._together(shares) for shares in zip(*self.group.gather(mine), strict=True)]

    def _together(
        self, shares: Sequence[tuple[dict[str, float], int, dict[str, int], tuple[str, ...], tuple[int, ...]]]
    ) -> StepMetrics:
        """One step from the shares of all processes. Norm and learning rate are the same for all."""
        first = shares[0][0]
        sums = {name: sum(values.get(name, 0.0) for values, *_ in shares) for name in first}
        impossible = sum(int(values.get("impossible", 0)) for values, *_ in shares)
        targets = {name: sum(share[2][name] for share in shares) for name in shares[0][2]}
        names = [name for name in self.main_step.losses.weights if name != "text" and targets[name]]
        counts: dict[str, int | str] = {"impossible_transcripts": impossible} if impossible else {}
        counts |= {"targets": targets["text"]} if self._reads_text else {}
        counts |= {"frames": targets.get("speech", 0)} if self._speaks else {}
        return StepMetrics(
            losses={name: sums[name] for name in [*(["loss"] if self.resolved.losses.text else []), *names]},
            grad_norm=first["grad_norm"],
            lr=first["lr_factor"] * self.resolved.optim.optimizer.lr,
            counts={**counts, "batch": f"{sum(share[1] for share in shares) % 2**32:08x}"},
            bad=tuple(name for share in shares for name in share[3]),
            bad_documents=tuple(number for share in shares for number in share[4]),
        )

    def summarize(self, steps: Sequence[StepMetrics], seconds: float, log: RunLog) -> Window:
        """See `Task`."""
        # A document comes again in each epoch, and many may share a file.
        left_out = {number for step in steps for number in step.bad_documents}
        self.progress.bad_documents = sorted(left_out.union(self.progress.bad_documents))
        self._report_unreadable([name for step in steps for name in step.bad], log)
        rates: dict[str, float] = {}
        words = [losses_summary(steps)]
        if self._reads_text:
            speed = len(steps) * self._tokens_per_step / seconds
            rates |= {"tokens_per_s": speed, "tokens": self.progress.tokens}
            words.append(f"{speed:,.0f} tok/s")
        if self._speaks:
            rates["frames_per_s"] = sum(int(step.counts["frames"]) for step in steps) / seconds
            words.append(f"{rates['frames_per_s']:,.0f} frames/s")
        return Window(steps, rates, "  ".join(words))

    def _report_unreadable(self, names: Sequence[str], log: RunLog) -> None:
        """Names media that could not be read, each once in a run."""
        known, step = set(self.progress.bad), self.progress.applied
        new = [name for name in dict.fromkeys(names) if name not in known]
        if not new:
            return
        self.progress.bad += new
        log.write("event", step, event="unreadable media", names=new, total=len(self.progress.bad))
        shown = "; ".join(new[:_NAMES_SHOWN]) + (f"; and {len(new) - _NAMES_SHOWN} more" if new[_NAMES_SHOWN:] else "")
        log.say(f"step {step}  left out, because their media cannot be read: {shown}")

    def check(self, log: RunLog) -> None:
        """Stops the run where too many documents turned out to be unreadable."""
        bad, documents, limit = (
            len(self.progress.bad_documents),
            self.rows.train.num_media_documents,
            self.resolved.data.max_unreadable_fraction,
        )
        if bad <= limit * documents:
            return
        raise DataError(
            f"step {self.progress.applied}: the media of {bad} of {documents} documents cannot be read, more than "
            f"data.max_unreadable_fraction ({limit:g}) allows; for example "
            f"{'; '.join(self.progress.bad[:_NAMES_SHOWN])}. {log.path} names them all, and so does "
            "`muomni data check`; mend or remove them, or raise data.max_unreadable_fraction"
        )

    def validate(self, log: RunLog) -> Validation:
        """See `Task`."""
        step = self.progress.applied
        with self._step.explained("validation", step):
            result = evaluate(
                self.main_step.losses,
                self.rows.val,
                self.resolved.eval.max_rows,
                self._step.micro_batch,
                self._byte_lengths,
                self.main_step.precision.autocast,
                self.group,
                text=self._reads_text,
            )
        if result.bad and not self._reported_unreadable_validation:
            self._reported_unreadable_validation = True
            log.write("event", step, event="unreadable media in validation", names=result.bad)
            log.say(f"validation leaves out {len(result.bad)} media that cannot be read: {result.bad[0]}")
        values: dict[str, Any] = {**result.others, **result.parts}
        summary = "".join(f"  {name} {loss:.4f}" for name, loss in values.items())
        if result.targets:
            summary = f" loss {result.loss:.4f}  {result.bits_per_byte:.4f} bits/byte{summary}"
        if self._reads_text:
            values = {"loss": result.loss, **values}
            values |= {"bits_per_byte": result.bits_per_byte, "targets": result.targets}
        return Validation(_score(self.resolved.losses, result), values, summary)

    def sample(self) -> Sequence[tuple[str, str]]:
        """See `Task`."""
        if self.sampler is None:
            raise TrainingError("eval.sample_every asks for samples, but this run was started without a sampler")
        model = self.group.whole_model(self.model)
        texts: Sequence[str] = ()
        if model is not None and self.group.is_main:
            texts = self.sampler(model.to(self.plan.device), self.progress.applied)
        self.group.wait()
        return list(zip(self.resolved.eval.prompts, texts, strict=False))

    def save(self, *, best: bool) -> None:
        """See `Task`."""
        self.progress.scaler = self.main_step.scaler.state_dict()
        save_checkpoint(
            self.run,
            self.model,
            self.tokenizer,
            self.main_step.optimizers,
            self.progress,
            best=best,
            keep=self.resolved.checkpoint.keep,
            group=self.group,
        )

    def memory_forecast(self, memory: MemoryReport) -> dict[str, Any]:
        """See `Task`."""
        resolved = self.resolved
        step = resolved.step.replace(compile=self.progress.compile or "off")
        setup = Setup(
            self.model.config,
            step,
            resolved.data.seq_len,
            resolved.optim.optimizer,
            resolved.freeze,
            resolved.losses.text > 0,
            self.plan.device.type,
        )
        return beside(setup, memory, self.group.size)


def _score(weights: LossSpec, result: Evaluation) -> float | None:
    """The best checkpoint has the lowest; None where validation holds nothing of what is learnt."""
    if weights.text:
        return result.loss
    # Where the text teaches nothing, what does is what gets better.
    learnt = {"ctc": weights.ctc, "contrastive": weights.contrastive, "speech": weights.speech}
    return sum(learnt[name] * loss for name, loss in result.others.items()) if result.others else None
