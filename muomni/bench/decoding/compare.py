"""Decoding compared side by side: each case in its own process, taking turns; right tokens are shown beside speed."""

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from muomni.accel.measurements.statistics import interval_of, ratios_of
from muomni.accel.measurements.turns import take_turns
from muomni.bench.decoding.case import InferCase, Task, read_task
from muomni.bench.decoding.models import BYTES, streamed_weights
from muomni.bench.process import CaseProcess
from muomni.bench.rounds import SpeedVerdict, noisiest, open_cases, peak_mib, speed_verdict
from muomni.config import ThinkerConfig
from muomni.errors import MuOmniError

_BANDWIDTH = "memory bandwidth"
# The share of the processors that others may use on a quiet machine.
_NOISY_LOAD = 0.05


@dataclass(frozen=True)
class Group:
    """Cases that are compared.

    Attributes:
        name: of the comparison.
        cases: all of them stay in memory at once; the first that can be measured is the baseline.
        unmeasured: names of cases that were left out, with the reason.
    """

    name: str
    cases: tuple[InferCase, ...]
    unmeasured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """What all cases are compared with: the fp32 model, eager, one row at a time.

    Attributes:
        model: its folder.
        forced: file for its greedy tokens and their logits; written here.
        rows: of each case that are judged.
    """

    model: str
    forced: str
    rows: int


@dataclass(frozen=True)
class Decoding:
    """The measurements of one case.

    Attributes:
        name: the case's.
        decode_per_s: tokens/s of all rows behind the first tokens, median over rounds; `low` and `high` are the
            extremes.
        call_per_s: tokens/s of a whole call: of the public one where there is one, else of prefill and steps.
        public_loss: share of time that the public call takes beyond prefill and steps; None without one.
        first_token_ms: from the start to the first tokens of all rows.
        load_s: from an empty process with its libraries to a model in memory.
        peak_mib: peak memory of the process while decoding.
        gb_per_s: bytes of weights read in a second of decoding, each step reading all of them once, in 10⁹ bytes.
        bandwidth_share: `gb_per_s` over the measured memory bandwidth; above 1 where weights stay in the caches.
        agreement: share of tokens that the reference (fp32, eager, one row) takes itself after the tokens before.
        worst_gap: how far below the reference's best logit a token lay at most.
        top1, kl, worst: of the logits on the reference's tokens, see `fidelity.fidelity`; None without logits.
        ratio: decode speed over the baseline's, see `statistics.interval_of`; `ratio_low`, `ratio_high` its interval.
        call_ratio: speed of whole calls over the baseline's, median of the rounds' own.
        verdict: on the decode speed; see `statistics.decide`.
        settings: versions and choices of the library.
        speeds: `decode_per_s` of each round.
    """

    name: str
    decode_per_s: float
    low: float
    high: float
    call_per_s: float
    public_loss: float | None
    first_token_ms: float
    load_s: float
    peak_mib: float
    gb_per_s: float
    bandwidth_share: float
    agreement: float
    worst_gap: float
    top1: float | None
    kl: float | None
    worst: float | None
    ratio: float
    ratio_low: float
    ratio_high: float
    call_ratio: float
    verdict: SpeedVerdict
    settings: str
    speeds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """The measurements of a group.

    Attributes:
        name: the group's.
        cases: the baseline first.
        unmeasured: names of cases that could not be measured, with the reason.
        bandwidth: median of the measured memory bandwidth, 10⁹ bytes/s; its extremes follow.
        noise: why the figures are to be read with care; empty on a quiet machine.
    """

    name: str
    cases: tuple[Decoding, ...]
    unmeasured: dict[str, str]
    bandwidth: float
    bandwidth_low: float
    bandwidth_high: float
    noise: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return short(asdict(self))


def short(values: dict[str, Any]) -> dict[str, Any]:
    """For JSON: floats with the digits that a measurement has, also those of the cases within."""

    def cut(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.4g}")
        if isinstance(value, dict):
            return short(value)
        return [cut(item) for item in value] if isinstance(value, list | tuple) else value

    return {key: cut(value) for key, value in values.items()}


def compare_decoding(
    group: Group,
    thinker: ThinkerConfig,
    reference: Reference,
    rounds: int,
    on_update: Callable[[str], None] = lambda _: None,
    enough: Callable[[int], bool] = lambda _: False,
) -> Comparison:
    """Measures the cases of a group in turns.

    Args:
        group: at least one case; all of them have the same task and threads.
        thinker: the shape.
        reference: what tokens are compared with.
        rounds: turns, at least 2; each gives one measurement per case.
        on_update: called with what is going on.
        enough: called after each turn with their number; true ends the measurement before all rounds are taken.

    Raises:
        MuOmniError: no case could be measured.
    """
    threads = group.cases[0].threads
    task = read_task(max(group.cases, key=lambda case: case.batch))
    with ExitStack() as stack:
        processes, unmeasured, marks = _set_up(group, task, reference, stack, on_update)
        unmeasured |= group.unmeasured
        if not processes:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in unmeasured.items())
            raise MuOmniError(f"{group.name}: nothing could be measured. {reasons}")
        memory = stack.enter_context(
            CaseProcess("decoding.bandwidth:Bandwidth", _BANDWIDTH, {"threads": threads}, threads)
        )
        load = _Load([memory.pid, *(process.pid for process in processes.values())])
        turns = take_turns({_BANDWIDTH: memory, **processes}, rounds, on_update, enough)
        foreign = load.foreign()
    speeds = [turn["gb_per_s"] for turn in turns.pop(_BANDWIDTH)]
    bandwidth = statistics.median(speeds)
    measured = [
        _Measured(case, processes[case.name].first, marks[case.name], turns[case.name], task.new)
        for case in group.cases
        if case.name in processes
    ]
    cases = tuple(one.relative_to(measured[0], thinker, bandwidth) for one in measured)
    noise = _noise({_BANDWIDTH: speeds} | {case.name: case.speeds for case in cases}, foreign)
    return Comparison(group.name, cases, unmeasured, bandwidth, min(speeds), max(speeds), noise)


def _set_up(
    group: Group, task: Task, reference: Reference, stack: ExitStack, on_update: Callable[[str], None]
) -> tuple[dict[str, CaseProcess], dict[str, str], dict[str, dict[str, Any]]]:
    """Opens the cases and has a first run of each judged; the reference's own process is gone afterwards."""
    on_update(f"{group.name}: the reference decodes")
    fields = {"model": reference.model, "prompt": task.ids[0], "new": task.new, "forced": reference.forced}
    with CaseProcess("decoding.fidelity:Judge", "the reference", fields, group.cases[0].threads) as judge:
        cases = {case.name: case.replace(forced=reference.forced) for case in group.cases}
        threads = group.cases[0].threads
        processes, unmeasured = open_cases(
            stack, "decoding.subject:InferSubject.of", list(cases.values()), on_update, threads
        )
        marks = {}
        for name, process in processes.items():
            rows = min(cases[name].batch, reference.rows)
            marks[name] = judge.ask({"prompts": task.ids[:rows], "tokens": process.first["tokens"][:rows]})
    return processes, unmeasured, marks


@dataclass(frozen=True)
class _Measured:
    """A case with its set-up, the reference's marks of its tokens, and its turns of `new` tokens a row."""

    case: InferCase
    first: dict[str, Any]
    marks: dict[str, Any]
    turns: list[dict[str, Any]]
    new: int

    @property
    def decode(self) -> list[float]:
        """Tokens/s of all rows behind the first tokens, of each round."""
        return [self.case.batch * (self.new - 1) / turn["decode_s"] for turn in self.turns]

    @property
    def calls(self) -> list[float]:
        """Tokens/s of whole calls, of each round; the public call's where there is one."""
        return [self.case.batch * self.new / (turn["public_s"] or turn["call_s"]) for turn in self.turns]

    def relative_to(self, base: "_Measured", thinker: ThinkerConfig, bandwidth: float) -> Decoding:
        """The case's measurements beside those of the baseline, which may be itself."""
        case, decode = self.case, self.decode
        ratio = interval_of(ratios_of(decode, base.decode))
        kind = "q8_0" if case.implementation == "llama.cpp" and case.weights == "int8" else case.weights
        read = statistics.median(decode) / case.batch * streamed_weights(thinker) * BYTES[kind] / 1e9
        losses = [turn["public_s"] / turn["call_s"] - 1 for turn in self.turns if turn["public_s"] is not None]
        fidelity = self.first["fidelity"] or {}
        return Decoding(
            name=case.name,
            decode_per_s=statistics.median(decode),
            low=min(decode),
            high=max(decode),
            call_per_s=statistics.median(self.calls),
            public_loss=statistics.median(losses) if losses else None,
            first_token_ms=1000 * statistics.median(turn["prefill_s"] for turn in self.turns),
            load_s=self.first["load_s"],
            peak_mib=peak_mib(self.turns),
            gb_per_s=read,
            bandwidth_share=read / bandwidth,
            agreement=self.marks["agreement"],
            worst_gap=self.marks["worst_gap"],
            top1=fidelity.get("top1"),
            kl=fidelity.get("kl"),
            worst=fidelity.get("worst"),
            ratio=ratio.middle,
            ratio_low=ratio.low,
            ratio_high=ratio.high,
            call_ratio=statistics.median(ratios_of(self.calls, base.calls)),
            verdict=speed_verdict(ratio),
            settings=self.first["settings"],
            speeds=tuple(decode),
        )


class _Load:
    """Watches who uses the processors."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._processes = [psutil.Process(pid) for pid in (*pids, os.getpid())]
        self._began = self._read()

    def foreign(self) -> float:
        """Share of all processors' time since the beginning used by other programs."""
        busy, own, idle = (now - then for now, then in zip(self._read(), self._began, strict=True))
        return max(0.0, busy - own) / max(busy + idle, 1e-9)

    def _read(self) -> tuple[float, float, float]:
        """Busy seconds of all processors, those of the cases among them, and idle seconds."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts a guest's time as its host process's, too.
        busy = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own = sum(p.cpu_times().user + p.cpu_times().system for p in self._processes)
        return busy, own, idle


def _noise(speeds: Mapping[str, Sequence[float]], foreign: float) -> str:
    reasons = noisiest(speeds)
    if foreign > _NOISY_LOAD:
        reasons.append(f"others used {foreign:.0%} of the processors meanwhile")
    return "; ".join(reasons)
