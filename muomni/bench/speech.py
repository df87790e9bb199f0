"""How fast a model speaks: ways to compute it side by side, each in a process of its own, taking turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from muomni.bench.decoding.compare import short
from muomni.bench.process import CaseProcess, RefusedError
from muomni.bench.report.report import Equivalence, Memory, ReportRow, Speed
from muomni.bench.report.sections import Effort, Target
from muomni.bench.statistics import decide, interval_of, margin_of, ratios_of, spread_of
from muomni.config.base import Frozen
from muomni.errors import MuOmniError, UserError

# What is said where nothing else is given: sentences of stories, of unequal length.
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
# Rounds further apart than this share of their median are noise to be told of.
_NOISY = 0.15


class SpeechCase(Frozen):
    """One way to speak.

    Attributes:
        name: shown in tables.
        model: the folder.
        texts: all of them are said in each turn.
        rows: texts that are spoken side by side.
        weights: `int8` quantises a float model as it is loaded.
        runner: what computes the Thinker's and the Talker's steps; see `MUOMNI_RUNNER`.
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
    """A case for `muomni.bench.worker`.

    Attributes:
        first: `load_s` from a started process to a model in memory, `warm_s` of a first turn, and the `samples` of each
            text's sound.

    Raises:
        UserError: the model does not speak, or the runner cannot be had.
    """

    def __init__(self, case: SpeechCase) -> None:
        import os

        # The process is the case's alone, and both runners read this when they are made.
        os.environ["MUOMNI_RUNNER"] = case.runner
        import torch

        from muomni.api.model import MuOmni
        from muomni.eval.model_speaker import ModelSpeaker

        torch.set_num_threads(case.threads)
        began = time.perf_counter()
        model = MuOmni.from_pretrained(case.model, device="cpu")
        if case.weights == "int8" and not model.is_quantized:
            model.quantize("int8")
        elif case.weights == "float" and model.is_quantized:
            raise UserError(f"{case.model} holds int8 weights: the case {case.name!r} wants float ones")
        self._model, self._case = model, case
        self._settings: dict[str, Any] = {"temperature": case.temperature, "seed": 1}
        self._voice = case.voice or None
        self._speaker = ModelSpeaker(model, **self._settings)
        loaded = time.perf_counter()
        self._samples: list[int] = []
        self.turn()
        warm_s = time.perf_counter() - loaded
        self.first: dict[str, Any] = {"load_s": loaded - began, "warm_s": warm_s, "samples": self._samples}

    def turn(self) -> dict[str, Any]:
        """Says all texts: seconds of work, of sound, and until the first sound of some texts, one row alone."""
        from muomni.eval.model_speaker import speech_of
        from muomni.eval.speech_quality import say_timed

        texts, rows = self._case.texts, self._case.rows
        began = time.perf_counter()
        replies = []
        for start in range(0, len(texts), rows):
            some = texts[start : start + rows]
            replies += self._model.say_batch(
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
    """Figures of one case, each median over the rounds, with the extremes.

    Attributes:
        name: the case's.
        rows: texts side by side.
        real_time: seconds of work for a second of sound; `low` and `high` are its extremes.
        ratio: how many times as much sound as the first case makes in the same time, by the rounds' own ratios;
            `ratio_low` and `ratio_high` their extremes.
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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {key: short(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class SpeakingFound:
    """Attributes:
    cases: in the order asked; ratios are to the first.
    unmeasured: names of cases that could not be set up, with the reason.
    noise: why the figures are to be read with care; empty on a quiet machine.
    """

    cases: tuple[Speaking, ...]
    unmeasured: dict[str, str] = field(default_factory=dict)
    noise: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        cases = [case.as_dict() for case in self.cases]
        return {"cases": cases, "unmeasured": self.unmeasured, "noise": self.noise}


def speech_cases(rows: Sequence[int], common: dict[str, Any]) -> list[SpeechCase]:
    """All ways for each number of rows: float and int8 weights, torch's modules and the native decoder.

    Args:
        rows: texts side by side.
        common: fields that all cases share.
    """
    cases = []
    for count in rows:
        for weights in ("float", "int8"):
            for runner in ("eager", "native"):
                way = "torch's modules" if runner == "eager" else "native"
                name = f"{weights}, {way}, {count} {'row' if count == 1 else 'rows'}"
                fields = {**common, "name": name, "rows": count, "weights": weights, "runner": runner}
                cases.append(SpeechCase.model_validate(fields))
    return cases


def measure_speaking(
    cases: Sequence[SpeechCase], rounds: int, say: Callable[[str], None] = lambda _: None
) -> SpeakingFound:
    """Measures cases in turns: A B C, A B C, ...

    Args:
        cases: all of them stay in memory at once.
        rounds: turns; each gives one figure per case.
        say: told what is going on.

    Raises:
        MuOmniError: no case could be set up, or one of them failed to speak.
    """
    unmeasured: dict[str, str] = {}
    opened: list[tuple[SpeechCase, CaseProcess, list[dict[str, Any]]]] = []
    with ExitStack() as stack:
        for case in cases:
            say(f"setting up {case.name}")
            try:
                process = CaseProcess("speech", case.name, case.model_dump(mode="json"), case.threads)
            except RefusedError as error:
                unmeasured[case.name] = error.reason
                continue
            opened.append((case, stack.enter_context(process), []))
        if not opened:
            raise MuOmniError("; ".join(f"{name}: {reason}" for name, reason in unmeasured.items()))
        for turn in range(rounds):
            for _, process, turns in opened:
                turns.append(process.ask({}))
            say(f"round {turn + 1} of {rounds}")
    base = _speeds(opened[0][2])
    found = tuple(_figures(case, process.first, turns, base) for case, process, turns in opened)
    spreads = {case.name: spread_of(_speeds(turns)) for case, _, turns in opened}
    worst = max(spreads, key=spreads.__getitem__)
    noise = f"rounds of {worst} are {spreads[worst]:.0%} apart" if spreads[worst] > _NOISY else ""
    return SpeakingFound(found, unmeasured, noise)


def _speeds(turns: Sequence[dict[str, Any]]) -> list[float]:
    """Seconds of sound a second, of each round."""
    return [turn["audio_s"] / turn["work_s"] for turn in turns]


def _figures(
    case: SpeechCase, first: dict[str, Any], turns: Sequence[dict[str, Any]], base: Sequence[float]
) -> Speaking:
    speeds = _speeds(turns)
    factors = [1 / speed for speed in speeds]
    ratios = [speed / other for speed, other in zip(speeds, base, strict=True)]
    firsts = [turn["first_ms"] for turn in turns if turn["first_ms"] is not None]
    return Speaking(
        case.name,
        case.rows,
        statistics.median(factors),
        min(factors),
        max(factors),
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        statistics.median(firsts) if firsts else None,
        min(firsts, default=None),
        max(firsts, default=None),
        first["load_s"],
        first["warm_s"],
        max(turn["peak_bytes"] for turn in turns) / 2**20,
        statistics.median(turn["audio_s"] for turn in turns),
        tuple(speeds),
        tuple(first["samples"]),
    )


_ROWS: dict[str, tuple[str, str, str, str]] = {
    "talker-batching": ("talker batching", "one sentence", "8 sentences together", "many times the speech a second"),
    "talker-native": ("one call a frame of the talker", "torch's modules", "native", "2–5× at batch 1"),
    "talker-int8": ("int8 talker", "float", "int8", "4× smaller, faster where memory is the limit"),
}
_BASE, _TWIN, _EAGER, _INT8, _BATCHED = "as it is", "as it is, again", "torch's modules", "int8", "8 rows"
_TOGETHER = 8
# Share of the texts whose sound has as many samples; by how much int8 may change how long speech lasts.
_LEAST_SAME, _MOST_LONGER = 0.85, 0.1
_QUICK_ROUNDS = 4


def measure_speech(target: Target, effort: Effort, say: Callable[[str], None]) -> tuple[ReportRow, ...]:
    """The techniques of speaking as rows of a report. No codes are drawn, so what differs is the technique's.

    Args:
        target: a model with a talker; it has a folder.
        effort: quick says short sentences and takes fewer turns.
        say: told what is going on.

    Raises:
        MuOmniError: not even the baseline can be measured, or a case failed to speak.
    """
    import torch

    full = effort.mode == "full"
    texts = TEXTS if full else SHORT_TEXTS
    common = {"model": str(target.folder), "texts": texts, "temperature": 0.0, "firsts": 0}
    ways: dict[str, dict[str, Any]] = {
        _BASE: {},
        _EAGER: {"runner": "eager"},
        _INT8: {"weights": "int8"},
        _BATCHED: {"rows": _TOGETHER},
        _TWIN: {},
    }
    cases = [
        SpeechCase.model_validate({**common, "name": name, "threads": torch.get_num_threads(), **way})
        for name, way in ways.items()
    ]
    found = measure_speaking(cases, effort.rounds if full else _QUICK_ROUNDS, say)
    by_name = {case.name: case for case in found.cases}
    if _BASE not in by_name:
        raise MuOmniError(f"speech of {target.name} cannot be measured here: {found.unmeasured[_BASE]}")
    margin = margin_of(ratios_of(by_name[_TWIN].speeds, by_name[_BASE].speeds)) if _TWIN in by_name else margin_of(())
    pairs = {"talker-batching": (_BASE, _BATCHED), "talker-native": (_EAGER, _BASE), "talker-int8": (_BASE, _INT8)}
    rows = []
    for key, names in pairs.items():
        missing = [found.unmeasured[name] for name in names if name not in by_name]
        off, on = (by_name.get(name) for name in names)
        rows.append(_not_measured(key, missing[0]) if off is None or on is None else _row(key, off, on, margin))
    return tuple(rows)


def _row(key: str, off: Speaking, on: Speaking, margin: float) -> ReportRow:
    ratios = ratios_of(on.speeds, off.speeds)
    interval = interval_of(ratios)
    memory = Memory(off_mib=off.peak_mib, on_mib=on.peak_mib)
    equivalence = _equivalence(off, on, approximate=key == "talker-int8")
    decision = decide(interval, memory.ratio, equivalence.holds, margin)
    speed = Speed(
        unit="seconds of speech/s",
        off=statistics.median(off.speeds),
        on=statistics.median(on.speeds),
        ratio=interval.middle,
        low=interval.low,
        high=interval.high,
        rounds=tuple(ratios),
    )
    return _not_measured(key, decision.reason).replace(
        verdict=decision.verdict, speed=speed, memory=(memory,), equivalence=equivalence
    )


def _equivalence(off: Speaking, on: Speaking, *, approximate: bool) -> Equivalence:
    equal = on.samples == off.samples
    if approximate:
        value = abs(sum(on.samples) / sum(off.samples) - 1)
        measure, holds = "how much longer or shorter speech is, as a share", value <= _MOST_LONGER
        return Equivalence(claimed="approximate", measure=measure, value=value, equal=equal, holds=holds)
    value = statistics.fmean(a == b for a, b in zip(on.samples, off.samples, strict=True))
    measure, holds = "share of the texts whose speech has as many samples", value >= _LEAST_SAME
    return Equivalence(claimed="rounding", measure=measure, value=value, equal=equal, holds=holds)


def _not_measured(key: str, reason: str) -> ReportRow:
    technique, off, on, claim = _ROWS[key]
    return ReportRow(
        key=key,
        part="speech",
        technique=technique,
        off=off,
        on=on,
        claim=claim,
        verdict="not measured",
        reason=reason,
    )
