"""What a report suggests: a recipe fragment, settings of a chat, and advice in words.

The fragment holds what was faster on this machine and changes neither the batch, nor the learning rate, nor the
class of the results. What made no difference is left out, so that a recipe's value stays. `auto` settings need no
fragment: they read the verdicts that are stored for this machine and model (`accel.measurements.verdicts`).
"""

from collections.abc import Sequence

from muomni.accel.device import pick_device
from muomni.accel.measurements import verdicts
from muomni.accel.measurements.verdicts import Verdict
from muomni.accel.technique import TECHNIQUES, Technique, measured_by
from muomni.bench.report.report import Report, ReportRow
from muomni.bench.report.sections import Target


def fragment(rows: Sequence[ReportRow], techniques: Sequence[Technique] = TECHNIQUES) -> dict[str, str]:
    """The recipe keys that the measurements speak for; of two techniques that won for one key, the faster one."""
    measured = {row.key: row for row in rows if row.speed is not None}
    chosen: dict[str, tuple[float, str]] = {}
    for technique in measured_by("training step", techniques):
        row, setting = measured.get(technique.key), technique.setting
        if row is None or row.speed is None or setting is None:
            continue
        won = None if setting.is_default else setting.value
        value = {"on": won, "off": setting.instead}.get(row.verdict)
        speed = row.speed.ratio if row.verdict == "on" else 0.0
        if value is not None and speed > chosen.get(setting.name, (-1.0, ""))[0]:
            chosen[setting.name] = (speed, value)
    return {name: value for name, (_, value) in chosen.items()}


def remember(report: Report, target: Target, techniques: Sequence[Technique] = TECHNIQUES) -> list[str]:
    """Stores the verdicts that `auto` settings read; returns the keys of the techniques that lost."""
    from muomni.formats.pretrained import read_quantization

    device = pick_device()
    int8 = target.folder is not None and read_quantization(target.folder) is not None
    declinable = {t.key for t in techniques if t.setting is not None and t.setting.instead is not None}
    by_weights: dict[str, dict[str, Verdict]] = {}
    for row in report.rows:
        if row.key in declinable and row.speed is not None:
            weights = "int8" if int8 and row.part != "train" else "float"
            verdict = Verdict(row.verdict, row.speed.off, row.speed.on, row.speed.unit, report.date)
            by_weights.setdefault(weights, {})[row.key] = verdict
    for weights, fresh in by_weights.items():
        verdicts.save_verdicts(device, target.thinker, fresh, weights)
    return [key for fresh in by_weights.values() for key, verdict in fresh.items() if verdict.lost]


def advice(rows: Sequence[ReportRow], run: str | None) -> tuple[str, ...]:
    """What to type for the techniques of inference that won and that no setting takes by itself.

    Args:
        rows: of a report.
        run: the run that was measured; None for a preset.
    """
    name = run or "RUN"
    words = {
        "int8": "int8 weights decode {gain} as fast: muomni chat {run} --int8, or muomni quantize {run}",
        "speculation": "drafts are {gain} as fast: muomni chat {run} --speculate --temperature 0",
        "batching": "{gain} the tokens/s with prompts side by side: muomni generate {run} --batch FILE",
    }
    return tuple(
        words[row.key].format(gain=f"{row.speed.ratio:.1f}×", run=name)
        for row in rows
        if row.key in words and row.verdict == "on" and row.speed is not None
    )
