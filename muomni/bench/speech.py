"""How fast a model speaks: cases side by side, each in a process of its own, taking turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from muomni.accel.measurements.statistics import interval_of, margin_of, ratios_of
from muomni.accel.measurements.turns import take_turns
from muomni.accel.measurements.worker import Answer
from muomni.accel.technique import Technique, measured_by
from muomni.bench.decoding.case import BASELINE, case_name
from muomni.bench.decoding.compare import short
from muomni.bench.report.report import Equivalence, Memory, ReportRow, measured_row, not_measured
from muomni.bench.report.sections import Effort, Target
from muomni.bench.rounds import noisiest, open_cases, peak_mib
from muomni.config.base import Frozen
from muomni.errors import MuOmniError, UserError
from muomni.formats.pretrained import read_config

# The default texts: sentences of stories, of unequal length.
TEXTS = (
    "Once upon a time there was a little girl named Lily.",
    "She loved to play outside in the sun.",
    "One day, she found a big red ball under a tree.",
    'Her mom said, "Let us take it home and ask who lost it."',
    "Tom was sad because he could not find his toy.",
    "The dog ran to the park.",
    "They laughed and played together until it was time to go to bed.",
    "In the end, everyone was happy.",
)
# Short ones, for a quick look.
SHORT_TEXTS = (
    *("He ran home.", "She was very happy.", "It was a red ball.", "The cat sat down.", "Mom said no."),
    *("They had fun.", "The sun was hot.", "Tom liked his toy."),
)
Weights = Literal["float", "int8"]
Runner = Literal["eager", "native", "auto"]
Texts = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
# Share of the texts whose sound has as many samples; by how much int8 may change how long speech lasts.
_LEAST_SAME, _MOST_LONGER = 0.85, 0.1
_QUICK_ROUNDS = 4
TWIN = f"{BASELINE}, again"


class SpeechCase(Frozen):
    """One configuration to speak with.

    Attributes:
        name: shown in tables.
        model: the folder.
        texts: spoken in each turn.
        rows: texts that are spoken side by side.
        weights: `int8` quantises a float model as it is loaded.
        runner: what computes the Thinker's and the Talker's steps; see `MuOmni.runner`.
        voice: one of the model's; empty for its first.
        temperature: of the codes.
        firsts: texts whose first sound is timed in a turn, where there is one row.
        threads: of the computation.
    """

    name: str
    model: str
    texts: Texts
    rows: int = 1
    weights: Weights = "float"
    runner: Runner = "auto"
    voice: str = ""
    temperature: float = 0.7
    firsts: int = 4
    threads: int


class SpeechSubject:
    """A case for `accel.measurements.worker`.

    Attributes:
        first: `load_s` from a started process to a model in memory, `warm_s` of a first turn, and the `samples` of each
            text's sound.

    Raises:
        UserError: the model does not speak, or the runner cannot be had.
    """

    def __init__(self, case: SpeechCase) -> None:

        import torch

        from muomni.api.model import MuOmni
        from muomni.eval.model_speaker import ModelSpeaker

        torch.set_num_threads(case.threads)
        began = time.perf_counter()
        model = MuOmni.from_pretrained(case.model, device="cpu", runner=case.runner)
        if case.weights == "int8" and not model.is_quantized:
            model.quantize("int8")
        elif case.weights == "float" and model.is_quantized:
            raise UserError(f"{case.model} holds int8 weights: the case {case.name!r} needs float ones")
        self.model, self._case = model, case
        self._settings: dict[str, Any] = {"temperature": case.temperature, "seed": 1}
        self._voice = case.voice or None
        self._speaker = ModelSpeaker(model, **self._settings)
        loaded = time.perf_counter()
        self._samples: list[int] = []
        self.turn()
        warm_s = time.perf_counter() - loaded
        self.first: dict[str, Any] = {"load_s": loaded - began, "warm_s": warm_s, "samples": self._samples}

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Of the fields of a case, as JSON values."""
        return cls(SpeechCase.model_validate(fields))

    def turn(self) -> dict[str, Any]:
        """Says all texts: seconds of work, of sound, and until the first sound of some texts, one row alone."""
        from muomni.eval.speech_quality import say_timed
        from muomni.infer.speech import speech_of

        texts, rows = self._case.texts, self._case.rows
        began = time.perf_counter()
        replies = []
        for start in range(0, len(texts), rows):
            some = texts[start : start + rows]
            replies += self.model.say_batch(
                some, voice=self._voice, batch_size=rows, on_error="raise", **self._settings
            )
        work_s = time.perf_counter() - began
        sounds = [speech_of(reply) for reply in replies]
        self._samples = [len(samples) for samples, _ in sounds]
        audio_s = sum(len(samples) / rate for samples, rate in sounds)
        firsts = []
        if rows == 1:
            spoken = [say_timed(self._speaker, text, self._voice) for text in texts[: self._case.firsts]]
            firsts = [1000 * one.first for one in spoken if one.first is not None]
        return {"work_s": work_s, "audio_s": audio_s, "first_ms": statistics.median(firsts) if firsts else None}


@dataclass(frozen=True)
class Speaking:
    """The measurements of one case, each median over the rounds, with the extremes.

    Attributes:
        name: the case's.
        rows: texts side by side.
        real_time: seconds of work for a second of sound; `low` and `high` are its extremes.
        ratio: seconds of sound a second over the first case's, see `statistics.interval_of`; `ratio_low` and
            `ratio_high` are its interval.
        first_ms: from the first token of a text to its first sound, warm, text after text; None for several rows.
            `first_low` and `first_high` are its extremes over the rounds.
        load_s: from a started process to a model in memory.
        warm_s: the first turn, with what is compiled then.
        peak_mib: of the process while it speaks.
        audio_s: sound of a turn.
        speeds: seconds of sound a second, of each round.
        samples: of each text's sound.
    """

    name: str
    rows: int
    real_time: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    first_ms: float | None
    first_low: float | None
    first_high: float | None
    load_s: float
    warm_s: float
    peak_mib: float
    audio_s: float
    speeds: tuple[float, ...]
    samples: tuple[int, ...]


@dataclass(frozen=True)
class SpeakingComparison:
    """The measurements of some cases.

    Attributes:
        cases: in order; ratios are to the first.
        unmeasured: names of cases that could not be set up, with the reason.
        noise: why the measurements are to be read with care; empty on a quiet machine.
    """

    cases: tuple[Speaking, ...]
    unmeasured: dict[str, str] = field(default_factory=dict)
    noise: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return short(asdict(self))


def speech_cases(rows: Sequence[int], common: dict[str, Any]) -> list[SpeechCase]:
    """Float and int8 weights, torch's modules and the native decoder, for each number of rows.

    Args:
        rows: texts side by side.
        common: fields that all cases share.
    """
    cases = []
    for count in rows:
        for weights in ("float", "int8"):
            for runner, words in (("eager", "torch's modules"), ("native", "native")):
                name = f"{weights}, {words}, {count} {'row' if count == 1 else 'rows'}"
                fields = {**common, "name": name, "rows": count, "weights": weights, "runner": runner}
                cases.append(SpeechCase.model_validate(fields))
    return cases


def compare_speaking(
    cases: Sequence[SpeechCase], rounds: int, on_update: Callable[[str], None] = lambda _: None
) -> SpeakingComparison:
    """Measures cases in turns.

    Args:
        cases: all of them stay in memory at once.
        rounds: turns, at least 2; each gives one measurement per case.
        on_update: called with what is going on.

    Raises:
        MuOmniError: no case could be set up, or one of them failed to speak.
    """
    with ExitStack() as stack:
        processes, unmeasured = open_cases(stack, "speech:SpeechSubject.of", cases, on_update, cases[0].threads)
        if not processes:
            raise MuOmniError("; ".join(f"{name}: {reason}" for name, reason in unmeasured.items()))
        answers = take_turns(processes, rounds, on_update)
    speeds = {name: [turn["audio_s"] / turn["work_s"] for turn in turns] for name, turns in answers.items()}
    base = next(iter(speeds.values()))
    measured = tuple(
        _measured(case, processes[case.name].first, answers[case.name], speeds[case.name], base)
        for case in cases
        if case.name in processes
    )
    return SpeakingComparison(measured, unmeasured, "; ".join(noisiest(speeds)))


def _measured(
    case: SpeechCase, first: Answer, turns: Sequence[Answer], speeds: Sequence[float], base: Sequence[float]
) -> Speaking:
    factors = [1 / speed for speed in speeds]
    ratio = interval_of(ratios_of(speeds, base))
    firsts = [turn["first_ms"] for turn in turns if turn["first_ms"] is not None]
    return Speaking(
        name=case.name,
        rows=case.rows,
        real_time=statistics.median(factors),
        low=min(factors),
        high=max(factors),
        ratio=ratio.middle,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        first_ms=statistics.median(firsts) if firsts else None,
        first_low=min(firsts, default=None),
        first_high=max(firsts, default=None),
        load_s=first["load_s"],
        warm_s=first["warm_s"],
        peak_mib=peak_mib(turns),
        audio_s=statistics.median(turn["audio_s"] for turn in turns),
        speeds=tuple(speeds),
        samples=tuple(first["samples"]),
    )


def measure_speech(target: Target, effort: Effort, say: Callable[[str], None]) -> tuple[ReportRow, ...]:
    """The techniques of speaking as rows of a report. No codes are drawn, so what differs is the technique's.

    Args:
        target: the model; one without a talker gives a single row that says so.
        effort: quick says short sentences and takes fewer turns.
        say: called with what is going on.

    Raises:
        MuOmniError: not even the baseline can be measured, or a case failed to speak.
    """
    import torch

    reason = None
    if target.folder is None:
        reason = "a preset does not speak: name a run that was trained to"
    elif read_config(target.folder)[0].talker is None:
        reason = "this model does not speak"
    if reason is not None:
        return (not_measured(measured_by("speech")[0], reason),)
    full = effort.mode == "full"
    techniques = measured_by("speech", mode=effort.mode)
    common = {
        "model": str(target.folder),
        "texts": TEXTS if full else SHORT_TEXTS,
        "temperature": 0.0,
        "firsts": 0,
        "threads": torch.get_num_threads(),
    }
    settings = [{}, *(each for technique in techniques for each in (technique.off_settings, technique.on_settings))]
    named = {case_name(each): each for each in settings} | {TWIN: {}}
    cases = [SpeechCase.model_validate({**common, **each, "name": name}) for name, each in named.items()]
    comparison = compare_speaking(cases, effort.rounds if full else _QUICK_ROUNDS, say)
    by_name = {case.name: case for case in comparison.cases}
    if BASELINE not in by_name:
        raise MuOmniError(f"speech of {target.name} cannot be measured here: {comparison.unmeasured[BASELINE]}")
    margin = margin_of(ratios_of(by_name[TWIN].speeds, by_name[BASELINE].speeds) if TWIN in by_name else ())
    return tuple(_row(technique, by_name, comparison.unmeasured, margin) for technique in techniques)


def _row(technique: Technique, cases: dict[str, Speaking], unmeasured: dict[str, str], margin: float) -> ReportRow:
    names = case_name(technique.off_settings), case_name(technique.on_settings)
    for name in names:
        if name not in cases:
            return not_measured(technique, unmeasured[name])
    off, on = (cases[name] for name in names)
    memory = (Memory(off_mib=off.peak_mib, on_mib=on.peak_mib),)
    equivalence = _equivalence(technique, off, on)
    unit = "seconds of speech/s"
    return measured_row(technique, off.speeds, on.speeds, equivalence, memory, margin=margin, unit=unit)


def _equivalence(technique: Technique, off: Speaking, on: Speaking) -> Equivalence:
    if technique.equivalence == "approximate":
        value = abs(sum(on.samples) / sum(off.samples) - 1)
        measure, holds = "how much longer or shorter speech is, as a share", value <= _MOST_LONGER
    else:
        value = statistics.fmean(a == b for a, b in zip(on.samples, off.samples, strict=True))
        measure, holds = "share of the texts whose speech has as many samples", value >= _LEAST_SAME
    equal = on.samples == off.samples
    return Equivalence(claimed=technique.equivalence, measure=measure, value=value, equal=equal, holds=holds)
