"""The techniques of inference as rows of a report: ways to decode take turns with one baseline, which runs twice."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from muomni.bench.decoding.case import InferCase
from muomni.bench.decoding.compare import Comparison, Decoding, Group, measure
from muomni.bench.decoding.comparisons import CACHE_NEW, CACHE_PROMPT, Plan
from muomni.bench.decoding.comparisons import kv_cache as long_kv_cache
from muomni.bench.decoding.models import Weights
from muomni.bench.process import CaseProcess, RefusedError
from muomni.bench.report.report import (
    DecodePoint,
    Equivalence,
    Memory,
    MemoryBar,
    ReportRow,
    ScalePoint,
    Scaling,
    Speed,
)
from muomni.bench.report.sections import Effort, Found, Say, Target
from muomni.bench.statistics import Decision, decide, interval_of, margin_of, noise_of, ratios_of
from muomni.errors import UserError

BASELINE, TWIN = "as it is", "as it is, again"
EAGER, UNCACHED, INT8, BF16, BATCHED = "torch's modules", "no cache", "int8", "bf16", "16 rows"
BATCH = 16
_PROMPT, _NEW, _LEAST = 64, 100, 32
# Tokens that the reference takes too; of int8, mean divergence of what it expects next. A near tie may fall otherwise.
_LEAST_AGREEMENT, _MOST_KL = 0.98, 0.05
_SCALING_BATCHES, _SCALING_STEPS = (1, 2, 4, 8, 16), 32
_SCALING_CONTEXTS = (64, 256, 512, 960, 2048, 4096)
_ROWS: dict[str, tuple[str, str, str, str]] = {
    "kv-cache": ("KV cache", "the whole text each step", "keys and values kept", "10× at 100 tokens"),
    "decode-step": ("one call a step", "torch's modules", "native or compiled", "2–5× at batch 1"),
    "int8": ("int8 weights", "fp32", "int8", "4× smaller, faster where memory is the limit"),
    "bf16": ("bf16 weights", "fp32", "bf16", "half the size, up to 2× faster"),
    "batching": ("batching", "one row", f"{BATCH} rows together", "many times the tokens a second"),
    "speculation": ("speculative decoding", "a token a step", "guesses checked", "1.5–3× where text repeats"),
}


def lengths(context: int) -> tuple[int, int]:
    """Tokens of prompts and of replies that fit into a context.

    Raises:
        UserError: too short for any measurement.
    """
    if context < 2 * _LEAST:
        raise UserError(
            f"the model's context of {context} tokens is too short to measure decoding: {2 * _LEAST} at least"
        )
    new = min(_NEW, context // 2)
    return min(_PROMPT, context - new), new


def measure_infer(target: Target, plan: Plan, effort: Effort, say: Say) -> Found:
    """Measures the techniques of inference, or says why one cannot be measured here.

    Args:
        target: see there.
        plan: the model with its prompts; of a preset, random weights.
        effort: how much.
        say: told what is going on.

    Raises:
        UserError: not even the baseline can be measured.
    """
    weights: Weights = "int8" if plan.files.is_int8 else "fp32"
    enough = effort.enough(effort.infer_s)
    group = cases_of(plan, weights, effort.mode == "full")
    found = measure(group, plan.thinker, plan.reference(), effort.rounds, say, enough)
    by_name = {case.name: case for case in found.cases}
    if BASELINE not in by_name:
        raise UserError(f"decoding {target.name} cannot be measured here: {found.unmeasured[BASELINE]}")
    base = by_name[BASELINE]
    twins = ratios_of(by_name[TWIN].speeds, base.speeds) if TWIN in by_name else []
    judge = _Judge(by_name, found.unmeasured, margin_of(twins), plan)
    rows = [judge.kv_cache(), judge.decode_step(), judge.int8(weights)]
    if effort.mode == "full":
        long = long_kv_cache(plan, effort.rounds, asked=False)
        if long is not None:
            rows[0] = _long_cache(measure(long, plan.thinker, plan.reference(), effort.rounds, say), judge)
        rows.append(judge.bf16(weights))
    rows += [judge.batching(), speculation(plan, effort, judge.margin, target.folder is None, say)]
    noise = [found.noise] if found.noise else []
    # Everything about decoding, once: `found.noise` speaks of single rounds, and this of the baseline.
    noise += noise_of("the baseline of decoding", base.speeds, twins)
    return Found(
        rows=tuple(rows),
        noise=tuple(noise),
        margin=judge.margin,
        settings=(
            ("prompt", plan.prompt),
            ("new", plan.new),
            ("runner", base.settings),
            ("scaling_runner", scaling_runner(effort)),
        ),
        memory=tuple(_bars(by_name, plan, weights)),
        decode=tuple(
            DecodePoint(
                name=case.name, batch=_rows_of(case.name), tokens_per_s=case.decode_per_s, gb_per_s=case.gb_per_s
            )
            for case in found.cases
            if case.name not in (TWIN, UNCACHED)
        ),
        scaling=scaling(plan, weights, effort, say),
        bandwidth=found.bandwidth,
    )


def cases_of(plan: Plan, weights: Weights, full: bool) -> Group:
    """The baseline, what a user has without doing anything; the baseline again; and a case for each technique."""
    task = plan.task(BATCH)

    def own(name: str, kind: Weights = weights, **more: Any) -> InferCase:
        return plan.own(name, task, kind, calls=False, **more)

    cases = [own(BASELINE), own(UNCACHED, cache="off"), own(EAGER, runner="eager")]
    unmeasured = {}
    if weights == "int8":
        unmeasured[INT8] = unmeasured[BF16] = "the folder holds int8 weights: there is nothing to compare them with"
    else:
        cases.append(own(INT8, "int8"))
        if full:
            cases.append(own(BF16, "bf16"))
    return Group("ways to decode", (*cases, own(BATCHED, batch=BATCH), own(TWIN)), unmeasured)


def _rows_of(name: str) -> int:
    return BATCH if name == BATCHED else 1


@dataclass(frozen=True)
class _Judge:
    """Makes rows of cases that took turns."""

    cases: dict[str, Decoding]
    unmeasured: dict[str, str]
    margin: float
    plan: Plan

    def row(
        self, key: str, off: str, on: str, equivalence: Callable[[Decoding], Equivalence], memory: Sequence[Memory] = ()
    ) -> ReportRow:
        """One technique, `memory` beside the peaks; the verdict is on speed, or on memory where speed is the same."""
        for name in (off, on):
            if name not in self.cases:
                return not_measured(key, self.unmeasured[name])
        before, after = self.cases[off], self.cases[on]
        ratios = ratios_of(after.speeds, before.speeds)
        interval = interval_of(ratios)
        equal = equivalence(after)
        peaks = Memory(off_mib=before.peak_mib, on_mib=after.peak_mib)
        decision = decide(interval, peaks.ratio, equal.holds, self.margin)
        return measured_row(key, decision, (before.decode_per_s, after.decode_per_s), ratios).replace(
            memory=(*memory, peaks), equivalence=equal
        )

    def kv_cache(self) -> ReportRow:
        """Both with torch's modules, so that nothing but the cache differs."""
        return self.row("kv-cache", UNCACHED, EAGER, _tokens)

    def decode_step(self) -> ReportRow:
        """What a model takes by itself, beside torch's modules."""
        base = self.cases[BASELINE]
        if "EagerRunner" in base.settings:
            reason = base.settings.partition("EagerRunner")[2].strip()
            return not_measured("decode-step", reason or "torch's modules are what the model runs with here")
        row = self.row("decode-step", EAGER, BASELINE, _tokens)
        return (
            row if EAGER not in self.cases else row.replace(compile_s=max(0.0, base.load_s - self.cases[EAGER].load_s))
        )

    def int8(self, weights: Weights) -> ReportRow:
        """On disk and in speed."""
        sizes: tuple[Memory, ...] = ()
        if weights != "int8" and INT8 in self.cases:
            files = self.plan.files
            sizes = (Memory(what="weights", off_mib=size_mib(files.folder), on_mib=size_mib(files.form("int8"))),)
        return self.row("int8", BASELINE, INT8, _divergence, sizes)

    def bf16(self, weights: Weights) -> ReportRow:
        """In speed."""
        return self.row("bf16", BASELINE, BF16, _divergence)

    def batching(self) -> ReportRow:
        """Tokens of all rows together."""
        return self.row("batching", BASELINE, BATCHED, _tokens)


def measured_row(key: str, decision: Decision, speeds: tuple[float, float], ratios: Sequence[float]) -> ReportRow:
    """A row with its speeds; `speeds` off and on."""
    interval = interval_of(ratios)
    return not_measured(key, decision.reason).replace(
        verdict=decision.verdict,
        speed=Speed(
            off=speeds[0],
            on=speeds[1],
            ratio=interval.middle,
            low=interval.low,
            high=interval.high,
            rounds=tuple(ratios),
        ),
    )


def not_measured(key: str, reason: str) -> ReportRow:
    """A row that has no figures, and why."""
    technique, off, on, claim = _ROWS[key]
    return ReportRow(
        key=key,
        part="infer",
        technique=technique,
        off=off,
        on=on,
        claim=claim,
        verdict="not measured",
        reason=reason,
    )


def _long_cache(found: Comparison, judge: _Judge) -> ReportRow:
    """The cache at the prompt of the design's target."""
    cases = {{"no cache": UNCACHED, "cache, eager": EAGER}.get(case.name, case.name): case for case in found.cases}
    row = _Judge(cases, found.unmeasured, judge.margin, judge.plan).kv_cache()
    return row.replace(on=f"{row.on}; {CACHE_PROMPT} + {CACHE_NEW} tokens")


def _tokens(on: Decoding) -> Equivalence:
    return Equivalence(
        claimed="rounding",
        measure="share of tokens that torch's modules take too, one row at a time",
        value=on.agreement,
        equal=on.agreement == 1,
        holds=on.agreement >= _LEAST_AGREEMENT,
    )


def _divergence(on: Decoding) -> Equivalence:
    value = 0.0 if on.kl is None else max(0.0, on.kl)
    return Equivalence(
        claimed="approximate",
        measure="KL divergence from fp32, nats a token",
        value=value,
        equal=value == 0,
        holds=value <= _MOST_KL,
    )


def size_mib(folder: Path) -> float:
    """Of the weights in a model's folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**20


def _bars(cases: dict[str, Decoding], plan: Plan, weights: Weights) -> list[MemoryBar]:
    """Weights and cache are counted, the rest of the peak is not told apart."""
    thinker, bars = plan.thinker, []
    floats = 1 if weights == "int8" else 4
    one_row = 2 * thinker.num_hidden_layers * thinker.num_key_value_heads * thinker.head_dim * 4
    for name, size in ((BASELINE, floats), (INT8, 1), (BF16, 2), (BATCHED, floats)):
        if name not in cases:
            continue
        own = thinker.num_parameters() * size / 2**20
        cache = one_row * _rows_of(name) * (plan.prompt + plan.new) / 2**20 / (2 if name == BF16 else 1)
        rest = max(0.0, cases[name].peak_mib - own - cache)
        bars.append(MemoryBar(name=f"decoding, {name}", weights_mib=own, cache_mib=cache, other_mib=rest))
    return bars


def speculation(plan: Plan, effort: Effort, margin: float, random_weights: bool, say: Say) -> ReportRow:
    """Greedy replies guessed and not, in one process that takes turns with itself."""
    say("speculative decoding")
    room = plan.thinker.max_position_embeddings
    case = {"model": str(plan.files.folder), "new": min(_NEW, room // 4), "threads": plan.threads}
    try:
        with CaseProcess("speculation", "speculative decoding", case, plan.threads) as process:
            turns = [process.ask({"speculate_first": bool(turn % 2)}) for turn in range(effort.rounds)]
            equal = bool(process.first["equal"])
    except RefusedError as error:
        return not_measured("speculation", error.reason)
    ratios = ratios_of([turn["on"] for turn in turns], [turn["off"] for turn in turns])
    equivalence = Equivalence(
        claimed="exact", measure="the reply is the same tokens", value=float(equal), equal=equal, holds=equal
    )
    decision = decide(interval_of(ratios), None, equal, margin)
    if random_weights:
        decision = Decision(decision.verdict, f"{decision.reason}; random weights repeat no text: try a run")
    speeds = tuple(statistics.median(turn[side] for turn in turns) for side in ("off", "on"))
    return measured_row("speculation", decision, (speeds[0], speeds[1]), ratios).replace(equivalence=equivalence)


def scaling_runner(effort: Effort) -> Literal["auto", "eager"]:
    """Who decodes for `scaling`: on a GPU the runner that a model takes is compiled for every point, which is long."""
    import torch

    return "eager" if effort.mode == "quick" and torch.cuda.is_available() else "auto"


def scaling(plan: Plan, weights: Weights, effort: Effort, say: Say) -> Scaling:
    """Decode speed over batch sizes and contexts; nothing where it cannot be measured."""
    say("decode speed over batch size and context")
    room = plan.thinker.max_position_embeddings - _SCALING_STEPS
    contexts = [context for context in _SCALING_CONTEXTS if context <= room]
    if effort.mode == "quick":
        contexts = contexts[:4]
    short = min(contexts[0] if contexts else room, room)
    points = [*((rows, short) for rows in _SCALING_BATCHES), *((1, context) for context in contexts)]
    folder = plan.files.form("int8") if weights == "int8" else plan.files.folder
    case = {"model": str(folder), "weights": weights, "points": points, "runner": scaling_runner(effort)}
    with CaseProcess(
        "scaling", "scaling", {**case, "steps": _SCALING_STEPS, "threads": plan.threads}, plan.threads
    ) as it:
        turns = [it.ask({})["tokens_per_s"] for _ in range(effort.rounds)]
    found = [
        ScalePoint(at=0, tokens_per_s=statistics.median(speeds), low=min(speeds), high=max(speeds))
        for speeds in zip(*turns, strict=True)
    ]
    count = len(_SCALING_BATCHES)
    return Scaling(
        batch=tuple(point.replace(at=rows) for point, (rows, _) in zip(found, points[:count], strict=False)),
        context=tuple(point.replace(at=at) for point, (_, at) in zip(found[count:], points[count:], strict=True)),
        batch_context=short,
    )
