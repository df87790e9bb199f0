"""What a bench found: `report.json`, one object whose fields are the attributes of `Report`.

Its format is stable: within one `format` number fields are added, never renamed or removed, and units do not
change. Sizes are in MiB (2²⁰ bytes), times in seconds, speeds in tokens a second, bandwidth in 10⁹ bytes a second;
a ratio is always on / off.
"""

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from muomni.accel.device import pick_device
from muomni.accel.measurements.hardware import cores, processor
from muomni.accel.measurements.statistics import VerdictName, decide, interval_of, ratios_of
from muomni.accel.technique import EquivalenceClass, Part, Technique
from muomni.config.base import Frozen, parse
from muomni.errors import UserError
from muomni.files import atomic_file

FORMAT = 1
JSON = "report.json"
_MAX_BYTES = 64 * 2**20

Figures = Annotated[tuple[float, ...], Field(strict=False)]


class Speed(Frozen):
    """Speed without and with a technique.

    Attributes:
        unit: of `off` and `on`.
        off, on: medians over rounds.
        ratio: median of the rounds' ratios on / off; `low` and `high` are its 99% interval.
        rounds: the rounds' ratios.
    """

    unit: str = "tokens/s"
    off: float
    on: float
    ratio: float
    low: float
    high: float
    rounds: Figures = ()


class Memory(Frozen):
    """Memory without and with a technique.

    Attributes:
        what: whose: `peak` of the process (on a GPU: of torch's allocator), or `weights` on disk.
        off_mib, on_mib: sizes.
    """

    what: Literal["peak", "weights"] = "peak"
    off_mib: float
    on_mib: float

    @property
    def ratio(self) -> float:
        """On / off."""
        return self.on_mib / self.off_mib


class Equivalence(Frozen):
    """How close the results with a technique are to those without.

    Attributes:
        claimed: `exact`, bit by bit; `rounding`, other orders of adding up; `approximate`, other numbers.
        measure: what was compared.
        value: the measured figure; 0 or, of tokens, 1 is equal.
        equal: bit by bit, or token by token.
        holds: `value` is within what the class allows.
    """

    claimed: EquivalenceClass
    measure: str
    value: float
    equal: bool
    holds: bool


class ReportRow(Frozen):
    """One technique.

    Attributes:
        key: names it in every report.
        part: of the bench.
        technique: its name in words.
        off, on: what they mean here, in words.
        claim: what is usually said of it.
        speed, memory, equivalence: figures; none where it was not measured.
        compile_s: seconds that it takes longer to get going, where it compiles something.
        verdict: on this machine; `reason` says why.
    """

    key: str
    part: Part
    technique: str
    off: str = ""
    on: str = ""
    claim: str = ""
    speed: Speed | None = None
    memory: tuple[Memory, ...] = Field(default=(), strict=False)
    equivalence: Equivalence | None = None
    compile_s: float | None = None
    verdict: VerdictName
    reason: str


def not_measured(technique: Technique, reason: str) -> ReportRow:
    """A technique's row without measurements, and why there are none."""
    return ReportRow(
        key=technique.key,
        part=technique.part,
        technique=technique.title,
        off=technique.off,
        on=technique.on,
        claim=technique.claim,
        verdict="not measured",
        reason=reason,
    )


def measured_row(
    technique: Technique,
    off: Sequence[float],
    on: Sequence[float],
    equivalence: Equivalence,
    memory: Sequence[Memory] = (),
    *,
    margin: float,
    unit: str = "tokens/s",
) -> ReportRow:
    """A technique's row; the verdict is on speed, or on peak memory where speed is the same.

    Args:
        technique: of the list.
        off: speeds of each round without it, in `unit`.
        on: the same with it.
        equivalence: of the results.
        memory: without and with it.
        margin: see `statistics.margin_of`.
        unit: of the speeds.
    """
    ratios = ratios_of(on, off)
    ratio = interval_of(ratios)
    peak = next((one.ratio for one in memory if one.what == "peak"), None)
    decision = decide(ratio, peak, equivalence.holds, margin)
    speed = Speed(
        unit=unit,
        off=statistics.median(off),
        on=statistics.median(on),
        ratio=ratio.middle,
        low=ratio.low,
        high=ratio.high,
        rounds=tuple(ratios),
    )
    return not_measured(technique, decision.reason).replace(
        verdict=decision.verdict, speed=speed, memory=tuple(memory), equivalence=equivalence
    )


class MemoryBar(Frozen):
    """What one case's peak consists of; activations are what is left of the peak when all else is taken off.

    Attributes:
        name: the case's.
        weights_mib, gradients_mib, optimizer_mib, activations_mib, cache_mib, other_mib: see `accel.memory.monitor`.
    """

    name: str
    weights_mib: float = 0.0
    gradients_mib: float = 0.0
    optimizer_mib: float = 0.0
    activations_mib: float = 0.0
    cache_mib: float = 0.0
    other_mib: float = 0.0


class DecodePoint(Frozen):
    """How fast a way to decode reads the weights.

    Attributes:
        name: the case's.
        batch: rows.
        tokens_per_s: of all rows.
        gb_per_s: bytes of weights read in a second, each step reading all of them once.
    """

    name: str
    batch: int
    tokens_per_s: float
    gb_per_s: float


class ScalePoint(Frozen):
    """Decode speed at one batch size or context.

    Attributes:
        at: rows, or tokens before the measured ones.
        tokens_per_s: of all rows, median over rounds; `low` and `high` are the extremes.
    """

    at: int
    tokens_per_s: float
    low: float
    high: float


class Scaling(Frozen):
    """Decode speed over batch size (at a short context) and over context (one row)."""

    batch: tuple[ScalePoint, ...] = Field(default=(), strict=False)
    context: tuple[ScalePoint, ...] = Field(default=(), strict=False)
    batch_context: int = 0


class Machine(Frozen):
    """Where it was measured.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        processor: of the device, in words.
        cores: of the CPU that this process may use; `threads` of torch.
        memory_mib: of the machine, or of the GPU.
        system: operating system.
    """

    device: str
    processor: str
    cores: int
    threads: int
    memory_mib: float
    system: str

    @property
    def words(self) -> str:
        """For a table: `AMD EPYC 9R14, 2 threads`."""
        return self.processor + (f", {self.threads} threads" if self.device == "cpu" else "")


class ModelInfo(Frozen):
    """What was measured: a preset or shape with random weights, or a run."""

    name: str
    parameters: int
    random_weights: bool


class Report(Frozen):
    """Everything one run of the bench found.

    Attributes:
        format: of this object.
        date: UTC, ISO 8601.
        command: that repeats it.
        mode: quick or full.
        seconds: it took.
        machine, model: where, and what.
        versions: of muomni, torch and Python.
        settings: sizes of the measured steps.
        rows: the techniques.
        noise: why figures are to be read with care; empty on a quiet machine.
        margin: a difference smaller than this share counts as none.
        bandwidth_gb_per_s: the measured memory bandwidth; None where decoding was not measured.
        decode, scaling, memory: figures of the plots.
        recipe: the keys of a recipe that the measurements speak for.
        advice: what the measurements suggest for commands that take no recipe.
    """

    format: Literal[1] = 1
    date: str
    command: str
    mode: Literal["quick", "full"]
    seconds: float
    machine: Machine
    model: ModelInfo
    versions: dict[str, str]
    settings: dict[str, Any] = Field(default_factory=dict)
    rows: tuple[ReportRow, ...] = Field(default=(), strict=False)
    noise: tuple[str, ...] = Field(default=(), strict=False)
    margin: float
    bandwidth_gb_per_s: float | None = None
    decode: tuple[DecodePoint, ...] = Field(default=(), strict=False)
    scaling: Scaling = Scaling()
    memory: tuple[MemoryBar, ...] = Field(default=(), strict=False)
    recipe: dict[str, str] = Field(default_factory=dict)
    advice: tuple[str, ...] = Field(default=(), strict=False)

    @property
    def verdicts(self) -> dict[str, VerdictName]:
        """By key of the technique."""
        return {row.key: row.verdict for row in self.rows}

    def row(self, key: str) -> ReportRow | None:
        """The technique of this key, measured or not; None where the report does not have it."""
        return next((row for row in self.rows if row.key == key), None)

    def save(self, path: Path) -> None:
        """Writes `report.json`, whole or not at all."""
        text = json.dumps(_rounded(self.model_dump(mode="json")), indent=1, ensure_ascii=False)
        with atomic_file(path) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


def load_report(path: Path) -> Report:
    """Reads a report, given as its file or the folder that holds it.

    Raises:
        UserError: there is none, or it is not one; says where and why.
    """
    if path.is_dir():
        path = path / JSON
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path}: larger than {_MAX_BYTES >> 20} MiB, not a report of muomni bench")
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a report of muomni bench: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f'{path}: not a report of muomni bench: "format" must be {FORMAT}')
    return parse(Report, values, str(path))


def _rounded(value: Any) -> Any:
    """Floats with the digits that a measurement has."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def this_machine() -> Machine:
    """The device that a run takes by itself, and what it is."""
    device = pick_device()
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        import psutil

        memory = psutil.virtual_memory().total
    return Machine(
        device=device.type,
        processor=processor(device),
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_mib=memory / 2**20,
        system=f"{platform.system()} {platform.machine()}",
    )
