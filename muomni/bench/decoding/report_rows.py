"""The techniques of inference as rows of a report: cases take turns with one baseline, which runs twice."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from muomni.accel.measurements.statistics import margin_of, noise_of, ratios_of
from muomni.accel.technique import TECHNIQUES, Technique, measured_by
from muomni.bench.decoding.case import BASELINE, InferCase, case_name
from muomni.bench.decoding.compare import Comparison, Decoding, Group, compare_decoding
from muomni.bench.decoding.comparisons import CACHE_NEW, CACHE_PROMPT, Plan, kv_cache
from muomni.bench.decoding.models import BYTES
from muomni.bench.process import CaseProcess, RefusedError
from muomni.bench.report.report import (
    DecodePoint,
    Equivalence,
    Memory,
    MemoryBar,
    ReportRow,
    ScalePoint,
    Scaling,
    measured_row,
    not_measured,
)
from muomni.bench.report.sections import Effort, Found, Say, Target
from muomni.errors import UserError

TWIN = f"{BASELINE}, again"
_PROMPT, _NEW, _LEAST = 64, 100, 32
# Tokens that the reference takes too; of int8, mean divergence of what it expects next. A near tie may fall otherwise.
_LEAST_AGREEMENT, _MOST_KL = 0.98, 0.05
_SCALING_BATCHES, _SCALING_STEPS = (1, 2, 4, 8, 16), 32
_SCALING_CONTEXTS = (64, 256, 512, 960, 2048, 4096)


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


def measure_infer(
    target: Target, plan: Plan, effort: Effort, say: Say, listed: Sequence[Technique] = TECHNIQUES
) -> Found:
    """Measures the techniques of inference, or says why one cannot be measured here.

    Args:
        target: see there.
        plan: the model with its prompts; of a preset, random weights.
        effort: how much.
        say: called with what is going on.
        listed: the list of techniques.

    Raises:
        UserError: not even the baseline can be measured.
    """
    techniques = measured_by("decode", listed, mode=effort.mode)
    cases = cases_of(plan, techniques)
    comparison = compare_decoding(
        cases, plan.thinker, plan.reference(), effort.rounds, say, effort.enough(effort.infer_s)
    )
    by_name = {case.name: case for case in comparison.cases}
    if BASELINE not in by_name:
        raise UserError(f"decoding {target.name} cannot be measured here: {comparison.unmeasured[BASELINE]}")
    base = by_name[BASELINE]
    twins = ratios_of(by_name[TWIN].speeds, base.speeds) if TWIN in by_name else []
    margin = margin_of(twins)
    rows = {technique.key: _row(technique, comparison, margin, plan) for technique in techniques}
    long = kv_cache(plan, effort.rounds, required=False) if effort.mode == "full" else None
    if long is not None:
        technique = next(technique for technique in techniques if technique.key == "kv-cache")
        row = _row(technique, compare_decoding(long, plan.thinker, plan.reference(), effort.rounds, say), margin, plan)
        rows[technique.key] = row.replace(on=f"{row.on}; {CACHE_PROMPT} + {CACHE_NEW} tokens")
    noise = [comparison.noise] if comparison.noise else []
    # `comparison.noise` is about the rounds of all cases, this about the baseline and its twin.
    noise += noise_of("the baseline of decoding", base.speeds, twins)
    shown = [case for case in cases.cases if case.name in by_name and case.name != TWIN and case.cache == "on"]
    return Found(
        rows=(*rows.values(), speculation(plan, effort, margin, target.folder is None, say)),
        noise=tuple(noise),
        margin=margin,
        settings=(
            ("prompt", plan.prompt),
            ("new", plan.new),
            ("runner", base.settings),
            ("scaling_runner", scaling_runner(effort)),
        ),
        memory=tuple(_bar(case, by_name[case.name], plan) for case in shown if case.runner == "auto"),
        decode=tuple(
            DecodePoint(
                name=case.name,
                batch=case.batch,
                tokens_per_s=by_name[case.name].decode_per_s,
                gb_per_s=by_name[case.name].gb_per_s,
            )
            for case in shown
        ),
        scaling=scaling(plan, effort, say),
        bandwidth=comparison.bandwidth,
    )


def cases_of(plan: Plan, techniques: Sequence[Technique]) -> Group:
    """The baseline, which is what a user has without doing anything; what the techniques need; the baseline again."""
    settings = [{}, *(each for technique in techniques for each in (technique.off_settings, technique.on_settings))]
    task = plan.task(max(each.get("batch", 1) for each in settings))
    cases: dict[str, InferCase] = {}
    unmeasured = {}
    for each in settings:
        name = case_name(each)
        if "weights" in each and plan.weights == "int8":
            unmeasured[name] = "the folder holds int8 weights: there is nothing to compare them with"
        elif name not in cases:
            cases[name] = plan.case(name, task, **{"weights": plan.weights, "calls": False, **each})
    return Group("decoding", (*cases.values(), cases[BASELINE].replace(name=TWIN)), unmeasured)


def _row(technique: Technique, comparison: Comparison, margin: float, plan: Plan) -> ReportRow:
    """A technique's row, from the cases that differ by its settings."""
    cases = {case.name: case for case in comparison.cases}
    names = case_name(technique.off_settings), case_name(technique.on_settings)
    for name in names:
        if name not in cases:
            return not_measured(technique, comparison.unmeasured[name])
    off, on = (cases[name] for name in names)
    memory = [Memory(off_mib=off.peak_mib, on_mib=on.peak_mib)]
    compile_s = None
    if technique.key == "decode-step":
        if "EagerRunner" in on.settings:
            reason = on.settings.partition("EagerRunner")[2].strip()
            return not_measured(technique, reason or "torch's modules are what the model runs with here")
        compile_s = max(0.0, on.load_s - off.load_s)
    elif technique.key == "int8":
        sizes = (size_mib(folder) for folder in (plan.files.folder, plan.files.form("int8")))
        memory.insert(0, Memory(what="weights", off_mib=next(sizes), on_mib=next(sizes)))
    equivalence = _divergence(on) if technique.equivalence == "approximate" else _tokens(on)
    return measured_row(technique, off.speeds, on.speeds, equivalence, memory, margin=margin).replace(
        compile_s=compile_s
    )


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


def _bar(case: InferCase, measured: Decoding, plan: Plan) -> MemoryBar:
    """Weights and cache are counted; the rest of the peak is not told apart."""
    thinker = plan.thinker
    weights = thinker.num_parameters() * BYTES[case.weights] / 2**20
    a_token = 2 * thinker.num_hidden_layers * thinker.num_key_value_heads * thinker.head_dim
    cache = a_token * (2 if case.weights == "bf16" else 4) * case.batch * (plan.prompt + plan.new) / 2**20
    rest = max(0.0, measured.peak_mib - weights - cache)
    return MemoryBar(name=f"decoding, {case.name}", weights_mib=weights, cache_mib=cache, other_mib=rest)


def speculation(plan: Plan, effort: Effort, margin: float, random_weights: bool, say: Say) -> ReportRow:
    """Greedy replies with drafts and without, in one process that takes turns with itself."""
    say("speculative decoding")
    technique = measured_by("speculation")[0]
    new = min(_NEW, plan.thinker.max_position_embeddings // 4)
    case = {"model": str(plan.files.folder), "new": new, "threads": plan.threads}
    try:
        with CaseProcess("decoding.speculation:SpeculationSubject", technique.title, case, plan.threads) as process:
            turns = [process.ask({"speculate_first": bool(turn % 2)}) for turn in range(effort.rounds)]
            equal = bool(process.first["equal"])
    except RefusedError as error:
        return not_measured(technique, error.reason)
    equivalence = Equivalence(
        claimed=technique.equivalence,
        measure="the reply is the same tokens",
        value=float(equal),
        equal=equal,
        holds=equal,
    )
    off, on = ([turn[side] for turn in turns] for side in ("off", "on"))
    row = measured_row(technique, off, on, equivalence, margin=margin)
    note = "; random weights repeat no text: try a run" if random_weights else ""
    return row.replace(reason=row.reason + note)


def scaling_runner(effort: Effort) -> Literal["auto", "eager"]:
    """Who decodes for `scaling`: on a GPU the runner that a model takes is compiled for every point, which is long."""
    import torch

    return "eager" if effort.mode == "quick" and torch.cuda.is_available() else "auto"


def scaling(plan: Plan, effort: Effort, say: Say) -> Scaling:
    """Decode speed over batch sizes and contexts; nothing where it cannot be measured."""
    say("decode speed over batch size and context")
    room = plan.thinker.max_position_embeddings - _SCALING_STEPS
    contexts = [context for context in _SCALING_CONTEXTS if context <= room]
    if effort.mode == "quick":
        contexts = contexts[:4]
    short = min(contexts[0] if contexts else room, room)
    points = [*((rows, short) for rows in _SCALING_BATCHES), *((1, context) for context in contexts)]
    case = {
        "model": str(plan.files.folder),
        "weights": plan.weights,
        "points": points,
        "runner": scaling_runner(effort),
        "steps": _SCALING_STEPS,
        "threads": plan.threads,
    }
    with CaseProcess("decoding.scaling:ScalingSubject", "scaling", case, plan.threads) as process:
        turns = [process.ask({})["tokens_per_s"] for _ in range(effort.rounds)]
    measured = [
        ScalePoint(at=at, tokens_per_s=statistics.median(speeds), low=min(speeds), high=max(speeds))
        for at, speeds in zip((*_SCALING_BATCHES, *contexts), zip(*turns, strict=True), strict=True)
    ]
    count = len(_SCALING_BATCHES)
    return Scaling(batch=tuple(measured[:count]), context=tuple(measured[count:]), batch_context=short)
