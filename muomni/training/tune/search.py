"""`"tune": true`: before a run, times candidate step configurations and keeps the fastest.

Only what changes nothing that is learnt beyond rounding is varied: the micro-batch, with the number of micro-batches
that keeps the effective batch; gradient checkpointing; where the recipe leaves them to `auto`, compiled blocks and the
attention kernel; and the number of threads that read images and audio. Each candidate is tried in a process of its own
(`training.tune.trials`) on the run's own rows, and may take nine tenths of the free memory.

The search climbs: from the recipe's own configuration one setting after the other is changed while that is faster. At
the end the recipe's own and the fastest are tried once more. The fastest is taken where it was faster both times by
more than processes of one program differ; else the recipe's own stays.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

from muomni.accel.attention_backend import Backend
from muomni.accel.compile import blocks as compilation
from muomni.accel.compile.trial import pays
from muomni.accel.device import pick_device
from muomni.accel.measurements.hardware import cores
from muomni.accel.measurements.statistics import MARGIN
from muomni.accel.step_config import MODES, StepConfig
from muomni.config import Recipe, read_json
from muomni.data import Tokenizer
from muomni.errors import ConfigError, ForecastError, TrainingError, UserError
from muomni.files import write_atomic
from muomni.formats.tensors import resolve_folder
from muomni.training.forecast.memory import forecast, setup_of
from muomni.training.setup import find_tokenizer
from muomni.training.tune.trials import Say, Trial, Trials, with_keys

TUNED, TUNING = "tuned.json", "tuning.json"


def tune(recipe: Recipe, run: Path, say: Say | None = None) -> tuple[Recipe, Tokenizer]:
    """Finds the fastest step configuration for a recipe.

    Writes `tuned.json`, which `--set @FILE` takes too, and `tuning.json` with every trial, into the run folder.

    Args:
        recipe: with `tune`, of a model.
        run: the run folder, which exists.
        say: is told what is going on; None prints to standard error.

    Returns:
        The tuned recipe, and its tokenizer.

    Raises:
        ConfigError: several processes share the run.
        UserError: no step configuration works here.
        TrainingError: a trial ended for no reason that is known, or the run folder cannot be written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("tune: with several processes nothing is tuned; tune with one, then name its result")
    say = say or _print
    init_from = recipe.model.init_from
    start = None if init_from is None else resolve_folder(Path(init_from))
    tokenizer = find_tokenizer(recipe.tokenizer, recipe.data, start)
    with tempfile.TemporaryDirectory(prefix="muomni-tune-") as folder:
        tokenizer.save(folder)
        trials = Trials(recipe, Path(folder))
        search = Search(recipe, trials, trials.memory, say)
        say(f"tuning for at most {recipe.minutes_of_tuning:g} min; the effective batch stays {search.rows} rows")
        best = search.run()
    fragment = best.step.fragment(search.base)
    if recipe.compile == "auto" and not any(trial.step.compile == "blocks" and trial.step_s for trial in search.trials):
        del fragment["compile"]  # there was no time to try it: the run does that itself
    trials_of_search = [
        vars(t) | {"step": t.step.model_dump(), "seconds": t.seconds if t.step_s else None} for t in search.trials
    ]
    try:
        write_atomic(run / TUNED, json.dumps(fragment, indent=2) + "\n")
        write_atomic(run / TUNING, json.dumps({"chosen": fragment, "trials": trials_of_search}, indent=2) + "\n")
    except OSError as error:
        raise TrainingError(f"{run}: the result of tuning cannot be written: {error.strerror}") from None
    return with_keys(recipe, fragment, "the result of tuning"), tokenizer


def as_tuned(recipe: Recipe, run: Path) -> Recipe:
    """The recipe as it was tuned when the run began, for a run that goes on.

    Raises:
        UserError: the run was not tuned.
    """
    path = run / TUNED
    if not path.is_file():
        raise UserError(f'{run} was begun without "tune", and tuning comes before the first step: resume without it')
    return with_keys(recipe, read_json(path), str(path))


class Search:
    """The climb.

    Args:
        recipe: see `tune`.
        attempt: tries a step configuration: called with it and the deadline.
        memory: bytes that a trial may take.
        say: is told what is going on.

    Attributes:
        base: the recipe's own step configuration.
        rows: of a step.
        trials: all, in order.
    """

    def __init__(self, recipe: Recipe, attempt: Callable[[StepConfig, float], Trial], memory: int, say: Say) -> None:
        self.recipe = recipe
        self.base = StepConfig.of(recipe)
        self.rows = self.base.rows
        self.trials: list[Trial] = []
        self._attempt = attempt
        self._memory = memory
        self._say = say
        self._deadline = time.monotonic() + 60 * recipe.minutes_of_tuning
        self._slowest = 0.0
        self._anchor: tuple[int, int] | None = None  # peak and forecast of the first trial that worked

    def run(self) -> Trial:
        """The trial of the fastest.

        Raises:
            UserError: none works here.
        """
        first = best = self._take(self.base)
        # Reading and preparing the data is part of the run anyway.
        self._deadline = time.monotonic() + 60 * self.recipe.minutes_of_tuning
        if first.why_not is not None and not first.short:
            raise UserError(f"the recipe cannot be trained here: {first.why_not}")
        for stage in (self._sizes, self._modes, self._compiled, self._kernels, self._readers):
            for step in stage(best):
                if self._time_left < 2 * self._slowest:
                    self._say("tuning: the time is over")
                    return self._confirmed(first, best)
                trial = self._take(step)
                if trial.seconds < best.seconds and self._pays(trial, best):
                    best = trial
        return self._confirmed(first, best)

    @property
    def _time_left(self) -> float:
        # The two last trials confirm.
        return self._deadline - time.monotonic() - 2 * self._slowest

    def _take(self, step: StepConfig) -> Trial:
        began = time.monotonic()
        trial = self._attempt(step, self._deadline)
        if self.trials:  # the first one prepares the data
            self._slowest = max(self._slowest, time.monotonic() - began)
        self.trials.append(trial)
        self._say(f"tuning: {trial}")
        if trial.step_s and self._anchor is None:
            expected = self._forecast(step)
            self._anchor = None if expected is None else (trial.peak, expected)
        return trial

    def _forecast(self, step: StepConfig) -> int | None:
        """Bytes, without the process; None where nothing is forecast."""
        model = self.recipe.model
        if (
            model.vision is not None
            or model.audio is not None
            or model.talker is not None
            or not self.recipe.data.train
        ):
            return None
        try:
            changed = with_keys(self.recipe, {**step.fragment(self.base), "tune": False}, "a forecast")
            return forecast(setup_of(changed)).peak
        except ForecastError:
            return None

    def _is_too_large(self, step: StepConfig) -> bool:
        """By the forecast, set against what the first step was measured to take; only tried where that leaves room."""
        if self._anchor is None:
            return False
        expected = self._forecast(step)
        return expected is not None and self._anchor[0] + expected - self._anchor[1] > self._memory

    def _sizes(self, best: Trial) -> Iterator[StepConfig]:
        """Larger micro-batches while they are faster, and else smaller ones."""
        if self.recipe.losses.contrastive:
            return  # captions are compared within a micro-batch: another size is another loss
        sizes = [size for size in range(1, self.rows + 1) if self.rows % size == 0]
        start = sizes.index(best.step.micro_batch)
        for direction in (1, -1) if best.step_s else (-1,):
            fastest, place = best, start + direction
            while 0 <= place < len(sizes):
                step = best.step.with_micro_batch(sizes[place])
                if direction > 0 and self._is_too_large(step):
                    break
                yield step
                trial = self.trials[-1]
                if trial.seconds > fastest.seconds and not (trial.short and direction < 0):
                    break
                fastest, place = (trial if trial.step_s else fastest), place + direction
            if fastest is not best:
                return  # larger ones were faster: smaller ones are not tried

    def _modes(self, best: Trial) -> Iterator[StepConfig]:
        """Less recomputation where it fits; more where larger micro-batches then do."""
        mode = MODES.index(best.step.checkpointing)
        for lighter in MODES[:mode]:
            step = best.step.replace(checkpointing=lighter)
            if not self._is_too_large(step):
                yield step
        larger = [size for size in range(best.step.micro_batch + 1, self.rows + 1) if self.rows % size == 0]
        refused = {trial.step.micro_batch for trial in self.trials if trial.short}
        for heavier in MODES[mode + 1 :]:
            for size in larger[:1]:
                step = best.step.with_micro_batch(size).replace(checkpointing=heavier)
                short = size in refused or self._is_too_large(step.replace(checkpointing=best.step.checkpointing))
                if short and not self.recipe.losses.contrastive and not self._is_too_large(step):
                    yield step
        if not best.step_s:
            yield best.step.replace(checkpointing="full")
            yield best.step.with_micro_batch(1).replace(checkpointing="full")

    def _compiled(self, best: Trial) -> Iterator[StepConfig]:
        device = pick_device(self.recipe.device)
        if self.recipe.compile == "auto" and compilation.what_is_missing(device) is None:
            yield best.step.replace(compile="blocks")

    def _kernels(self, best: Trial) -> Iterator[StepConfig]:
        if self.recipe.attention != "auto" or pick_device(self.recipe.device).type != "cuda":
            return  # on a CPU `auto` has one
        for name in get_args(Backend):
            if name != "reference":
                yield best.step.replace(attention=name)

    def _readers(self, best: Trial) -> Iterator[StepConfig]:
        if not best.reads_ahead:
            return
        for count in (1, 2, 4, 8):
            if count != best.step.num_workers and count <= 2 * cores():
                yield best.step.replace(num_workers=count)

    def _pays(self, trial: Trial, best: Trial) -> bool:
        """Compiling, which takes time itself, over the run."""
        if trial.step.compile == best.step.compile:
            return True
        saved = (best.seconds - trial.seconds) * trial.total_steps
        cost = max(0.0, trial.cost - best.cost)
        if pays(saved, cost):
            return True
        self._say(f"tuning: compiling costs {cost:.0f} s and would save {saved:.0f} s over the run: left off")
        return False

    def _confirmed(self, first: Trial, best: Trial) -> Trial:
        """The fastest if it was faster twice, else the recipe's own."""
        if not best.step_s:
            raise UserError(
                f"no step configuration of this recipe fits here: {self.trials[-1]}. A smaller model.preset, "
                "data.seq_len or tokenizer.vocab_size takes less memory"
            )
        if best is first:
            self._say(f"tuned: the recipe's own configuration stays, {best}")
            return first
        again = self._take(best.step)
        if not first.step_s and not again.step_s:
            raise UserError(f"no step configuration of this recipe fits here for sure: {best}; then {again}")
        if not first.step_s:
            self._say(f"tuned: {again}; the recipe's own configuration does not fit")
            return again
        base_again = self._take(self.base)
        ratios = [base.seconds / new.seconds for base, new in ((first, best), (base_again, again)) if base.step_s]
        if again.step_s and min(ratios) > 1 + MARGIN:
            self._say(f"tuned: {again.step}: {min(ratios):.2f} to {max(ratios):.2f} times as fast as the recipe's own")
            return again
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        self._say(
            f"tuned: the recipe's own configuration stays: {best.step} was {shown} times as fast, within the noise"
        )
        return first


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
