"""`"tune": true`: before a run, the way to take its steps that is fastest here is found by taking some.

Varied is only what changes nothing that is learnt beyond rounding: the micro-batch, with the number of micro-batches
that keeps the effective batch; gradient checkpointing; and where the recipe leaves them to `auto`, compiled blocks and
the attention kernel; and how many threads read pictures and sounds. Each way is tried in a process of its own
(`train.tune.worker`), on the run's own rows, and may take nine tenths of the memory that is free.

The search climbs: from the recipe's own way one setting after the other is changed while that is faster. At the end
the recipe's way and the fastest are tried once more. The fastest is taken where it was faster both times, beyond what
processes of one program differ by; else the recipe's own stays.
"""

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from muomni.accel.attention_backend import Backend
from muomni.accel.compile import blocks as compilation
from muomni.accel.device import free_memory, pick_device
from muomni.accel.measurements.hardware import cores
from muomni.child_process import ChildEndedError, ChildProcess
from muomni.config import Recipe, parse, read_json
from muomni.config.loader import merge
from muomni.data import Tokenizer
from muomni.errors import ConfigError, ForecastError, TrainingError, UserError
from muomni.files import write_atomic
from muomni.train.forecast.memory import Checkpointing, forecast, setup_of
from muomni.train.forecast.search import MODES, words
from muomni.train.setup import find_tokenizer

TUNED, TUNING = "tuned.json", "tuning.json"
# Of the memory that is free, what a way may take: other programs, longer documents and validation need some too.
HEADROOM = 0.9
# Processes of one program differ by some percent for as long as they live; see `bench.statistics`.
MARGIN = 1.05
# Compiling has to save this many times what it costs over the run; as `accel.compile.trial`.
_COMPILE_MARGIN = 1.5
_STEP_SECONDS = 4.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class StepConfig:
    """How a step is taken.

    Attributes:
        micro_batch, accumulation: rows of a micro-batch, and micro-batches of a step.
        checkpointing, compile, attention: as in a recipe.
        workers: threads that read the data.
    """

    micro_batch: int
    accumulation: int
    checkpointing: Checkpointing
    compile: str
    attention: str
    workers: int

    def changes(self, own: "StepConfig") -> dict[str, Any]:
        """What a recipe says to have it so, less what is as in its own way."""
        fragment: dict[str, Any] = {
            "batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_checkpointing": self.checkpointing,
            "compile": self.compile,
        }
        if self.attention != own.attention:
            fragment["attention"] = self.attention
        if self.workers != own.workers:
            fragment["data"] = {"num_workers": self.workers}
        return fragment

    def __str__(self) -> str:
        more = "" if self.attention == "auto" else f", attention {self.attention}"
        return (
            f"{self.accumulation} × {self.micro_batch} rows, checkpointing {self.checkpointing}, compile "
            f"{self.compile}{more}, {self.workers} workers"
        )


@dataclass(frozen=True)
class Trial:
    """What trying a way gave.

    Attributes:
        way: that was tried.
        step_s: seconds of each step; empty where it could not be taken.
        first_s: of the first step.
        peak: bytes of the process, or of the GPU.
        total_steps: of the run.
        reads_ahead: threads read the data.
        why_not: why it could not be taken.
        short: because of memory.
    """

    way: StepConfig
    step_s: tuple[float, ...] = ()
    first_s: float = 0.0
    peak: int = 0
    total_steps: int = 0
    reads_ahead: bool = False
    why_not: str | None = None
    short: bool = False

    @property
    def seconds(self) -> float:
        """Of a step, the median; infinite where none could be taken."""
        return statistics.median(self.step_s) if self.step_s else float("inf")

    @property
    def cost(self) -> float:
        """What begins with the first step: compiling, if anything is."""
        return max(0.0, self.first_s - self.seconds)

    def __str__(self) -> str:
        if self.why_not is not None:
            return f"{self.way}: {self.why_not}"
        return f"{self.way}: {self.seconds:.3g} s/step, {words(self.peak)}"


def tune(recipe: Recipe, run: Path, say: Say | None = None) -> tuple[Recipe, Tokenizer]:
    """Finds the fastest way to take the recipe's steps.

    Writes `tuned.json`, which `--set @FILE` takes too, and `tuning.json` with every trial, into the run folder.

    Args:
        recipe: with `tune`, of a model.
        run: the run folder, which exists.
        say: is told what is going on; None prints to standard error.

    Returns:
        The recipe with what was found, and its tokenizer.

    Raises:
        ConfigError: several processes share the run.
        UserError: not a single way can be taken here.
        TrainingError: a trial ended for no reason that is known, or the run folder cannot be written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("tune: with several processes nothing is tuned; tune with one, then name what it found")
    say = say or _print
    tokenizer = find_tokenizer(recipe)
    with tempfile.TemporaryDirectory(prefix="muomni-tune-") as folder:
        tokenizer.save(folder)
        trials = _Trials(recipe, Path(folder))
        search = Search(recipe, trials, trials.memory, say)
        say(f"tuning for at most {recipe.minutes_of_tuning:g} min; the effective batch stays {search.rows} rows")
        best = search.run()
    fragment = best.way.changes(search.own)
    if recipe.compile == "auto" and not any(trial.way.compile == "blocks" and trial.step_s for trial in search.trials):
        del fragment["compile"]  # there was no time to try it: the run does that itself
    all_of_them = [{**asdict(trial), "seconds": trial.seconds if trial.step_s else None} for trial in search.trials]
    try:
        write_atomic(run / TUNED, json.dumps(fragment, indent=2) + "\n")
        write_atomic(run / TUNING, json.dumps({"chosen": fragment, "trials": all_of_them}, indent=2) + "\n")
    except OSError as error:
        raise TrainingError(f"{run}: what tuning found cannot be written: {error.strerror}") from None
    return _with(recipe, fragment, "what tuning found"), tokenizer


def as_tuned(recipe: Recipe, run: Path) -> Recipe:
    """The recipe as it was tuned when the run began, for a run that goes on.

    Raises:
        UserError: the run was not tuned.
    """
    path = run / TUNED
    if not path.is_file():
        raise UserError(f'{run} was begun without "tune", and tuning comes before the first step: go on without it')
    return _with(recipe, read_json(path), str(path))


def _with(recipe: Recipe, fragment: dict[str, Any], whence: str) -> Recipe:
    return parse(Recipe, merge(recipe.model_dump(mode="json", by_alias=True, exclude_unset=True), fragment), whence)


def own_way(recipe: Recipe) -> StepConfig:
    """The recipe's; what is left to a measurement is not compiled."""
    compiles = recipe.compile if recipe.compile in ("blocks", "full") else "off"
    return StepConfig(
        recipe.batch_size,
        recipe.gradient_accumulation_steps,
        recipe.gradient_checkpointing,
        compiles,
        recipe.attention,
        recipe.data.num_workers,
    )


class _Trials:
    """Tries ways of a recipe, each in a child process.

    Args:
        recipe: whose steps are taken.
        tokenizer: its folder.
    """

    def __init__(self, recipe: Recipe, tokenizer: Path) -> None:
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.device = pick_device(recipe.device)
        self.memory = int(free_memory(self.device) * HEADROOM)
        self._prepared = False

    def __call__(self, way: StepConfig, own: StepConfig, deadline: float) -> Trial:
        """Tries one.

        Args:
            way: which.
            own: the recipe's.
            deadline: of `time.monotonic`, after which the child is ended. The first one has to prepare the data, which
                is not counted.

        Raises:
            TrainingError: the child ended for no reason that is known.
        """
        asked = _with(self.recipe, {**way.changes(own), "tune": False, "on_oom": "stop"}, "a trial")
        command = {
            "recipe": asked.model_dump(mode="json", by_alias=True, exclude_unset=True),
            "tokenizer": str(self.tokenizer),
            "seconds": _STEP_SECONDS,
            "memory": self.memory if self.device.type == "cpu" else None,
        }
        # The first one shows how far the data are, and preparing them is not counted.
        timeout = max(1.0, deadline - time.monotonic()) if self._prepared else None
        worker = [sys.executable, "-m", "muomni.train.tune.worker"]
        with ChildProcess(worker, stderr="kept" if self._prepared else "shown") as child:
            try:
                answer = child.ask(command, timeout)
            except ChildEndedError as error:
                if error.timed_out:
                    return Trial(way, why_not="not measured: the time for tuning is over")
                if error.code != -signal.SIGKILL:
                    raise TrainingError(f"tuning: {way} {error}") from None
                answer = {"short": "the system ended it: memory ran out"}
            finally:
                self._prepared = True
        if "short" in answer:
            return Trial(way, why_not=answer["short"], short=True)
        if "refused" in answer:
            return Trial(way, why_not=answer["refused"])
        found = Trial(way, **{**answer, "step_s": tuple(answer["step_s"])})
        if found.peak > self.memory:
            room = f"{words(found.peak)}, more than {HEADROOM:.0%} of what is free ({words(self.memory)})"
            return replace(found, step_s=(), why_not=room, short=True)
        return found


class Search:
    """The climb.

    Args:
        recipe: see `tune`.
        attempt: tries a way: called with it, the recipe's own and the deadline.
        memory: bytes that a way may take.
        say: is told what is going on.

    Attributes:
        own: the recipe's way.
        rows: of a step.
        trials: all, in order.
    """

    def __init__(
        self, recipe: Recipe, attempt: Callable[[StepConfig, StepConfig, float], Trial], memory: int, say: Say
    ) -> None:
        self.recipe = recipe
        self.own = own_way(recipe)
        self.rows = recipe.batch_size * recipe.gradient_accumulation_steps
        self.trials: list[Trial] = []
        self._attempt = attempt
        self._memory = memory
        self._say = say
        self._deadline = time.monotonic() + 60 * recipe.minutes_of_tuning
        self._slowest = 0.0
        self._anchor: tuple[int, int] | None = None  # peak and forecast of the first way that could be taken

    def run(self) -> Trial:
        """The fastest way.

        Raises:
            UserError: none can be taken.
        """
        first = best = self._take(self.own)
        # Reading and preparing the data is part of the run anyway.
        self._deadline = time.monotonic() + 60 * self.recipe.minutes_of_tuning
        if first.why_not is not None and not first.short:
            raise UserError(f"the recipe cannot be trained here: {first.why_not}")
        for stage in (self._sizes, self._modes, self._compiled, self._kernels, self._readers):
            for way in stage(best):
                if self._time_left < 2 * self._slowest:
                    self._say("tuning: the time is over")
                    return self._confirmed(first, best)
                found = self._take(way)
                if found.seconds < best.seconds and self._pays(found, best):
                    best = found
        return self._confirmed(first, best)

    @property
    def _time_left(self) -> float:
        # The two last trials confirm.
        return self._deadline - time.monotonic() - 2 * self._slowest

    def _take(self, way: StepConfig) -> Trial:
        began = time.monotonic()
        found = self._attempt(way, self.own, self._deadline)
        if self.trials:  # the first one prepares the data
            self._slowest = max(self._slowest, time.monotonic() - began)
        self.trials.append(found)
        self._say(f"tuning: {found}")
        if found.step_s and self._anchor is None:
            expected = self._forecast(way)
            self._anchor = None if expected is None else (found.peak, expected)
        return found

    def _forecast(self, way: StepConfig) -> int | None:
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
            changed = _with(self.recipe, {**way.changes(self.own), "tune": False}, "a forecast")
            return forecast(setup_of(changed)).peak
        except ForecastError:
            return None

    def _is_too_large(self, way: StepConfig) -> bool:
        """By the forecast, set against what the first way was measured to take; only tried where that leaves room."""
        if self._anchor is None:
            return False
        expected = self._forecast(way)
        return expected is not None and self._anchor[0] + expected - self._anchor[1] > self._memory

    def _sizes(self, best: Trial) -> Iterator[StepConfig]:
        """Larger micro-batches while they are faster, and else smaller ones."""
        if self.recipe.losses.contrastive:
            return  # captions are compared within a micro-batch: another size is another loss
        sizes = [size for size in range(1, self.rows + 1) if self.rows % size == 0]
        own = sizes.index(best.way.micro_batch)
        for step in (1, -1) if best.step_s else (-1,):
            fastest, place = best, own + step
            while 0 <= place < len(sizes):
                way = self._sized(best.way, sizes[place])
                if step > 0 and self._is_too_large(way):
                    break
                yield way
                found = self.trials[-1]
                if found.seconds > fastest.seconds and not (found.short and step < 0):
                    break
                fastest, place = (found if found.step_s else fastest), place + step
            if fastest is not best:
                return  # larger ones were faster: smaller ones are not tried

    def _sized(self, way: StepConfig, size: int) -> StepConfig:
        return replace(way, micro_batch=size, accumulation=self.rows // size)

    def _modes(self, best: Trial) -> Iterator[StepConfig]:
        """Less to compute again where it fits; more where larger micro-batches then do."""
        mode = MODES.index(best.way.checkpointing)
        for lighter in MODES[:mode]:
            way = replace(best.way, checkpointing=lighter)
            if not self._is_too_large(way):
                yield way
        larger = [size for size in range(best.way.micro_batch + 1, self.rows + 1) if self.rows % size == 0]
        refused = {trial.way.micro_batch for trial in self.trials if trial.short}
        for heavier in MODES[mode + 1 :]:
            for size in larger[:1]:
                way = replace(self._sized(best.way, size), checkpointing=heavier)
                short = size in refused or self._is_too_large(replace(way, checkpointing=best.way.checkpointing))
                if short and not self.recipe.losses.contrastive and not self._is_too_large(way):
                    yield way
        if not best.step_s:
            yield replace(best.way, checkpointing="full")
            yield replace(self._sized(best.way, 1), checkpointing="full")

    def _compiled(self, best: Trial) -> Iterator[StepConfig]:
        device = pick_device(self.recipe.device)
        if self.recipe.compile == "auto" and compilation.what_is_missing(device) is None:
            yield replace(best.way, compile="blocks")

    def _kernels(self, best: Trial) -> Iterator[StepConfig]:
        if self.recipe.attention != "auto" or pick_device(self.recipe.device).type != "cuda":
            return  # on a CPU `auto` has one
        for name in get_args(Backend):
            if name != "reference":
                yield replace(best.way, attention=name)

    def _readers(self, best: Trial) -> Iterator[StepConfig]:
        if not best.reads_ahead:
            return
        for count in (1, 2, 4, 8):
            if count != best.way.workers and count <= 2 * cores():
                yield replace(best.way, workers=count)

    def _pays(self, found: Trial, best: Trial) -> bool:
        """Compiling, which takes time itself, over the run."""
        if found.way.compile == best.way.compile:
            return True
        saved = (best.seconds - found.seconds) * found.total_steps
        cost = max(0.0, found.cost - best.cost)
        if saved > _COMPILE_MARGIN * cost:
            return True
        self._say(f"tuning: compiling costs {cost:.0f} s and would save {saved:.0f} s over the run: left off")
        return False

    def _confirmed(self, first: Trial, best: Trial) -> Trial:
        """The fastest way if it was faster twice, else the recipe's own."""
        if not best.step_s:
            raise UserError(
                f"no way to take the recipe's steps fits here: {self.trials[-1]}. A smaller model.preset, "
                "data.seq_len or tokenizer.vocab_size takes less memory"
            )
        if best is first:
            self._say(f"tuned: the recipe's own way stays, {best}")
            return first
        again = self._take(best.way)
        if not first.step_s and not again.step_s:
            raise UserError(f"no way to take the recipe's steps fits here for sure: {best}; then {again}")
        if not first.step_s:
            self._say(f"tuned: {again}; the recipe's own way does not fit")
            return again
        own_again = self._take(self.own)
        ratios = [own.seconds / new.seconds for own, new in ((first, best), (own_again, again)) if own.step_s]
        if again.step_s and min(ratios) > MARGIN:
            self._say(f"tuned: {again.way}: {min(ratios):.2f} to {max(ratios):.2f} times as fast as the recipe's own")
            return again
        shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        self._say(f"tuned: the recipe's own way stays: {best.way} was {shown} times as fast, within the noise")
        return first


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
