"""Ways to decode, side by side: each in its own process, taking turns; right tokens are shown beside speed."""

import os
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil

from muomni.bench.decoding.case import InferCase, Task, read_task
from muomni.bench.decoding.models import BYTES, streamed_weights
from muomni.bench.process import CaseProcess, RefusedError
from muomni.bench.training.compare import SpeedVerdict, verdict_of
from muomni.config import ThinkerConfig
from muomni.errors import MuOmniError

# Rounds of one case further apart than this share of their median make the machine noisy, and so does other work.
_NOISY_SPREAD = 0.10
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
    """What all cases are held to: the fp32 model, eager, one row at a time.

    Attributes:
        model: its folder.
        forced: file for its greedy tokens and their logits; written here.
        rows: of each case, that are judged.
    """

    model: str
    forced: str
    rows: int


@dataclass(frozen=True)
class Decoding:
    """Figures of one case.

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
        top1, kl, worst: of the logits on the reference's tokens, see `infer_judge.fidelity`; None without logits.
        ratio: decode speed over the baseline's, median of the rounds' own; `ratio_low`, `ratio_high` the extremes.
        call_ratio: speed of whole calls over the baseline's, median of the rounds' own.
        verdict: a difference is claimed only where all rounds agree on it.
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

    def as_dict(self) -> dict[str, Any]:
        return {
            key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Comparison:
    """What a group gave.

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
        own = {key: short(value) for key, value in asdict(self).items()}
        return {**own, "cases": [case.as_dict() for case in self.cases]}


def short(value: Any) -> Any:
    """A float with the digits that a measurement has."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def measure(
    group: Group,
    thinker: ThinkerConfig,
    reference: Reference,
    rounds: int,
    say: Callable[[str], None] = lambda _: None,
    enough: Callable[[int], bool] = lambda _: False,
) -> Comparison:
    """Measures a group in turns: A B C, B C A, ...

    Args:
        group: at least one case; all of them have the same task and threads.
        thinker: the shape.
        reference: what tokens are held to.
        rounds: turns; each gives one figure per case.
        say: told what is going on.
        enough: told after each turn how many there were; true ends the measurement before all rounds are taken.

    Raises:
        MuOmniError: no case could be measured.
    """
    threads = group.cases[0].threads
    task = read_task(max(group.cases, key=lambda case: case.batch))
    with ExitStack() as stack:
        opened, unmeasured = _set_up(group, task, reference, stack, say)
        if not opened:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in unmeasured.items())
            raise MuOmniError(f"{group.name}: nothing could be measured. {reasons}")
        memory = stack.enter_context(CaseProcess("bandwidth", "memory bandwidth", {"threads": threads}, threads))
        load = _Load([memory.pid, *(one.process.pid for one in opened)])
        speeds = []
        for turn in range(rounds):
            speeds.append(memory.ask({})["gb_per_s"])
            for place in range(len(opened)):
                one = opened[(turn + place) % len(opened)]
                one.turns.append(one.process.ask({}))
            say(f"round {turn + 1} of {rounds}")
            if enough(turn + 1):
                break
        foreign = load.foreign()
    bandwidth = statistics.median(speeds)
    figures = tuple(_figures(one, opened[0], task, thinker, bandwidth) for one in opened)
    noise = _noise(figures, speeds, foreign)
    return Comparison(group.name, figures, unmeasured, bandwidth, min(speeds), max(speeds), noise)


@dataclass
class _Open:
    """A case that was set up, what the reference says of its tokens, and its turns so far."""

    case: InferCase
    process: CaseProcess
    marks: dict[str, Any]
    turns: list[dict[str, Any]] = field(default_factory=list)

    def speeds(self, task: Task, seconds: str) -> list[float]:
        """Tokens/s of all rows in each round, over the seconds of that name."""
        new = task.new - 1 if seconds == "decode_s" else task.new
        return [self.case.batch * new / turn[seconds] for turn in self.turns]

    @property
    def call(self) -> str:
        """The name of the seconds of a whole call."""
        return "call_s" if self.turns[0]["public_s"] is None else "public_s"


def _set_up(
    group: Group, task: Task, reference: Reference, stack: ExitStack, say: Callable[[str], None]
) -> tuple[list[_Open], dict[str, str]]:
    """Opens the cases and has a first run of each judged; the reference's own process is gone afterwards."""
    opened: list[_Open] = []
    unmeasured = dict(group.unmeasured)
    threads = group.cases[0].threads
    say(f"{group.name}: the reference decodes")
    asked = {"model": reference.model, "prompt": task.ids[0], "new": task.new, "forced": reference.forced}
    with CaseProcess("judge", "the reference", asked, threads) as judge:
        for case in group.cases:
            say(f"setting up {case.name}")
            fields = {**case.model_dump(mode="json"), "forced": reference.forced}
            try:
                process = stack.enter_context(CaseProcess("infer", case.name, fields, threads))
            except RefusedError as error:
                unmeasured[case.name] = error.reason
                continue
            rows = min(case.batch, reference.rows)
            marks = judge.ask({"prompts": task.ids[:rows], "tokens": process.first["tokens"][:rows]})
            opened.append(_Open(case, process, marks))
    return opened, unmeasured


def _figures(own: _Open, base: _Open, task: Task, thinker: ThinkerConfig, bandwidth: float) -> Decoding:
    decode, calls = own.speeds(task, "decode_s"), own.speeds(task, own.call)
    ratios = [a / b for a, b in zip(decode, base.speeds(task, "decode_s"), strict=True)]
    call_ratios = [a / b for a, b in zip(calls, base.speeds(task, base.call), strict=True)]
    first, fidelity = own.process.first, own.process.first["fidelity"] or {}
    kind = "q8_0" if own.case.implementation == "llama.cpp" and own.case.weights == "int8" else own.case.weights
    steps_per_s = statistics.median(decode) / own.case.batch
    read = steps_per_s * streamed_weights(thinker) * BYTES[kind] / 1e9
    public = None
    if own.call == "public_s":
        public = statistics.median(turn["public_s"] / turn["call_s"] - 1 for turn in own.turns)
    return Decoding(
        name=own.case.name,
        decode_per_s=statistics.median(decode),
        low=min(decode),
        high=max(decode),
        call_per_s=statistics.median(calls),
        public_loss=public,
        first_token_ms=1000 * statistics.median(turn["prefill_s"] for turn in own.turns),
        load_s=first["load_s"],
        peak_mib=max(turn["peak_bytes"] for turn in own.turns) / 2**20,
        gb_per_s=read,
        bandwidth_share=read / bandwidth,
        agreement=own.marks["agreement"],
        worst_gap=own.marks["worst_gap"],
        top1=fidelity.get("top1"),
        kl=fidelity.get("kl"),
        worst=fidelity.get("worst"),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        call_ratio=statistics.median(call_ratios),
        verdict="no difference" if own is base else verdict_of(ratios),
        settings=first["settings"],
        speeds=tuple(decode),
    )


class _Load:
    """Watches who uses the processors."""

    def __init__(self, own: Sequence[int]) -> None:
        self._own = [psutil.Process(pid) for pid in (*own, os.getpid())]
        self._began = self._read()

    def foreign(self) -> float:
        """Share of all processors' time since the beginning that went to others than the cases."""
        busy, own, idle = (now - then for now, then in zip(self._read(), self._began, strict=True))
        return max(0.0, busy - own) / max(busy + idle, 1e-9)

    def _read(self) -> tuple[float, float, float]:
        """Seconds of all processors in work, what of it was the cases', and seconds without work."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Linux counts a guest's time as its host process's, too.
        busy = sum(times) - idle - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        own = sum(p.cpu_times().user + p.cpu_times().system for p in self._own)
        return busy, own, idle


def _noise(figures: Sequence[Decoding], speeds: Sequence[float], foreign: float) -> str:
    spreads = {one.name: (one.high - one.low) / one.decode_per_s for one in figures}
    spreads["memory bandwidth"] = (max(speeds) - min(speeds)) / statistics.median(speeds)
    name = max(spreads, key=spreads.__getitem__)
    said = []
    if spreads[name] > _NOISY_SPREAD:
        said.append(f"rounds of {name} are {spreads[name]:.0%} apart")
    if foreign > _NOISY_LOAD:
        said.append(f"others used {foreign:.0%} of the processors meanwhile")
    return "; ".join(said)
