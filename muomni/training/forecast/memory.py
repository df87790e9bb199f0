"""Forecasts how much memory training will take, and for what, without allocating it.

Two micro-batches of the run are computed on fake tensors (`training.forecast.trace`): the real model, autograd,
checkpointing and optimizer, without numbers and without memory. The blocks they would allocate go through a simulation
of the arena for tensors on a CPU (`accel.cpu_allocator.arena_simulator`), which is exact. Where a run has no arena, the
C library's heap is not modelled: the forecast is then within ±25% only (`uncertainty`). On a GPU the forecast is what
torch's allocator hands out, without gaps.

`baseline`, the rest of the process, cannot be derived: the interpreter, torch, its kernels' code and their caches. It
is measured, see `training.process_overhead`.

Assumed where the data decides: every row is one document as long as the row, and every token is a target. Not modelled:
activations of images, audio and speech in the encoders and the Talker (their weights, gradients and optimizer state
are), and compiled code (blocks that `torch.compile` fuses are taken to keep what selective checkpointing keeps: 2 to
11% too little where it was measured). The compiler and the data reader are in the baseline.

Legend: B rows of a micro-batch, T tokens of a row.
"""

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from muomni.accel import activation_checkpointing
from muomni.accel.cpu_allocator import choice as allocator
from muomni.accel.cpu_allocator.arena_simulator import ArenaSimulator
from muomni.accel.device import pick_device
from muomni.accel.execution_plan import without_losers
from muomni.accel.measurements.verdicts import load_verdicts
from muomni.accel.memory.monitor import MIB, MemoryReport
from muomni.accel.mixed_precision import Precision, pick_precision
from muomni.accel.step_config import Checkpointing, StepConfig
from muomni.config import OmniConfig
from muomni.config.recipe import OptimizerSpec, Recipe
from muomni.data import Batch
from muomni.errors import ForecastError
from muomni.model import OmniModel
from muomni.ops.cross_entropy import CHUNK_ELEMENTS
from muomni.training.forecast.trace import Recorder, dry_run
from muomni.training.freezing import freeze
from muomni.training.objectives.module import LossModule
from muomni.training.optim.build import build_optimizers
from muomni.training.resolve_model import resolve_model
from muomni.training.step import TrainStep

# Blocks of the Thinker that are run instead of all.
_LAYERS = (4, 6)
# What a process on a CPU loads and keeps for its first step besides what is forecast, mostly kernels' code: measured
# at `nano` in fp32, with a vocabulary of 512 and of 8,192 (16.4 and 16.7 MiB). In bytes.
FIRST_STEP = 17 * MIB
# What the compiler of blocks leaves in a process: `process_baseline` with it less without, 121 MiB in bf16. In bytes.
COMPILER = 121 * MIB
CATEGORIES = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "weight_copies",
    "loss",
    "temporary",
    "kernels",
    "gaps",
)


@dataclass(frozen=True)
class Setup:
    """What memory depends on.

    Attributes:
        config: sizes of the model.
        step: how a step is computed; `precision` and `allocator` are what `auto` became.
        seq_len: tokens of a row.
        optimizer: as in a recipe.
        frozen: parts that are not trained.
        text: the loss on text is computed; without it only weights, gradients and optimizer state are forecast.
        device: of the run; a GPU need not be here.
    """

    config: OmniConfig
    step: StepConfig
    seq_len: int
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    frozen: tuple[str, ...] = ()
    text: bool = True
    device: str = "cpu"

    @property
    def checkpointing(self) -> Checkpointing:
        """The checkpointing whose memory is forecast: compiled blocks keep about what `selective` does."""
        step = self.step
        return "selective" if step.compile != "off" and step.checkpointing == "off" else step.checkpointing


def setup_of(recipe: Recipe, device: str | None = None) -> Setup:
    """What a recipe's memory depends on.

    Args:
        recipe: of a model, not of a codec.
        device: `cpu` or `cuda`; None takes the recipe's. A GPU need not be here: it is taken to be one with bf16.

    Raises:
        ConfigError: the recipe names a device or precision that does not work here.
        UserError: a folder that the recipe names holds no model.
    """
    kind = pick_device(recipe.device).type if device is None else device
    if kind not in ("cpu", "cuda"):
        raise ForecastError(f"memory on {kind} is not forecast; name cpu or cuda")
    config = resolve_model(recipe).config
    precision: Any = recipe.precision
    if kind == "cpu" or torch.cuda.is_available():
        there = torch.device(kind)
        recipe, _ = without_losers(recipe, there, load_verdicts(there, config.thinker))
        precision = pick_precision(recipe.precision, torch.device(kind)).name
    elif precision == "auto":
        precision = "bf16"
    mode = allocator.choose(recipe.allocator, torch.device(kind)).mode
    step = StepConfig.of(recipe).replace(precision=precision, allocator=mode)
    return Setup(
        config=config,
        step=step,
        seq_len=recipe.data.seq_len,
        optimizer=recipe.optimizer,
        frozen=recipe.freeze,
        text=recipe.losses.text > 0,
        device=kind,
    )


@dataclass(frozen=True)
class Forecast:
    """Bytes at the moment of the peak; `peak` is their sum.

    Attributes:
        weights, gradients, optimizer: as in `accel.memory.monitor`.
        activations: what the forward pass made: kept for the backward pass, or in use.
        weight_copies: weights in autocast's dtype.
        loss: blocks of logits, and the head's gradient while it is added up.
        temporary: what the backward pass or the optimizer's step has in use.
        kernels: what operations keep for the shapes they have met.
        gaps: between the arena's blocks, too small for what is allocated; 0 on a GPU.
        baseline: of the process before there is a model; 0 on a GPU, whose context torch's allocator does not count.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    weight_copies: int
    loss: int
    temporary: int
    kernels: int
    gaps: int
    baseline: int = 0

    @property
    def peak(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())

    def with_baseline(self, size: int) -> "Forecast":
        """The same in a process that held so much before."""
        return replace(self, baseline=size)

    def as_dict(self) -> dict[str, float]:
        """In MiB."""
        sizes = {"peak": self.peak, **vars(self)}
        return {f"{name}_mib": round(size / MIB, 1) for name, size in sizes.items()}


def forecast(setup: Setup) -> Forecast:
    """The peak of a run, without its process (`baseline` is 0).

    Raises:
        ForecastError: the run cannot be taken without its data.
        ConfigError: the optimizer needs a library that is not installed.
    """
    layers = setup.config.thinker.num_hidden_layers
    if layers <= _LAYERS[1]:
        return _forecast(setup)
    # Blocks are alike, so of a deep model a few are run and the others cost what one more of them does.
    few, more = (_forecast(replace(setup, config=_with_layers(setup.config, number))) for number in _LAYERS)
    each = {name: (size - getattr(few, name)) / (_LAYERS[1] - _LAYERS[0]) for name, size in vars(more).items()}
    further = layers - _LAYERS[1]
    return Forecast(**{name: max(0, round(size + each[name] * further)) for name, size in vars(more).items()})


def uncertainty(setup: Setup) -> str | None:
    """Why a forecast is rough; None where nothing is known to make it so."""
    if setup.device == "cpu" and setup.step.allocator != "arena":
        return "±25%: without the arena the C library places tensors, and its heap is not modelled"
    return None


def _with_layers(config: OmniConfig, number: int) -> OmniConfig:
    return config.replace(thinker=config.thinker.model_dump() | {"num_hidden_layers": number})


def _forecast(setup: Setup) -> Forecast:
    with dry_run(setup.seq_len) as recorder:
        kinds = _record(setup, recorder)
    return _at_the_peak(setup, recorder, kinds)


class _Losses(LossModule):
    """The same module, whose passes are none of the run's: what has replaced or counts those does not see these."""

    forward = LossModule.forward


def _record(setup: Setup, recorder: Recorder) -> dict[int, str]:
    """Builds the model and takes two micro-batches; says what the storages are that outlive one."""
    # The same products whatever the device; see the module for what differs.
    name: Any = setup.step.precision
    precision = Precision(name, torch.device("cpu"), "forecast")
    model = OmniModel(setup.config)
    freeze(model, setup.frozen)
    if setup.checkpointing != "off":
        activation_checkpointing.enable(model, setup.checkpointing)
    optimizers = build_optimizers(model, setup.optimizer, precision)
    model.train()
    parameters, buffers = list(model.parameters()), list(model.buffers())
    # Text alone is computed, and encoders would ask the data where their media are.
    model.vision = model.vision_projector = model.audio = model.audio_projector = None
    if "thinker" in setup.frozen:
        # What stands for media teaches through it.
        model.thinker.embed_tokens.register_forward_hook(lambda _module, _inputs, out: out.detach().requires_grad_())
    step = TrainStep(_Losses(model), optimizers, torch.ones(2), 1.0, precision)
    recorder.phase_of = lambda: step.phase
    kinds: dict[int, str] = {}

    def look() -> None:
        for parameter in parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        _name(kinds, recorder, "gradients", [p.grad for p in parameters if p.grad is not None])

    _name(kinds, recorder, "weights", [*parameters, *buffers])
    batches = [_batch(setup.step.micro_batch, setup.seq_len) for _ in range(min(setup.step.accumulation, 2))]
    # A second pass finds the arena as the first one left it. Only AdamW has its state before the first step.
    for _ in range(1 if len(batches) == 2 and setup.optimizer.name == "adamw" else 2):
        if setup.text:
            step.accumulate(batches)
        look()
        step.take()
    states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
    _name(kinds, recorder, "optimizer", [value for value in states if isinstance(value, torch.Tensor)])
    return kinds


def _name(kinds: dict[int, str], recorder: Recorder, kind: str, tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        number = recorder.number(tensor)
        if number is not None:
            kinds.setdefault(number, kind)


def _batch(rows: int, tokens: int) -> Batch:
    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    bounds = torch.zeros(rows + 1, dtype=torch.int32)
    return Batch(ids, torch.zeros_like(ids), torch.zeros_like(ids), bounds, tokens, rows * (tokens - 1), "forecast")


def _at_the_peak(setup: Setup, recorder: Recorder, kinds: dict[int, str]) -> Forecast:
    vocabulary = setup.config.thinker.vocab_size

    def kind(number: int) -> str:
        if number in kinds:
            return kinds[number]
        if number in recorder.kernels:
            return "kernels"
        original = recorder.copied.get(number)
        if original is not None and kinds.get(original) == "weights":
            return "weight_copies"
        if vocabulary in recorder.shapes[number]:
            return "loss"
        return "activations" if recorder.phases[number] == "forward" else "temporary"

    arena = ArenaSimulator()
    outside = recorder.kernels | recorder.objects
    live: Counter[str] = Counter()
    sizes: dict[int, int] = {}
    peak, split = 0, {}
    on_gpu = setup.device == "cuda"
    for number, size in recorder.events:
        if on_gpu and number in outside:  # these are on the host
            continue
        if size:
            arena.allocate(number, size, number not in outside)
            sizes[number] = size
            live[kind(number)] += size
        else:
            arena.free(number)
            live[kind(number)] -= sizes.pop(number)
        reached = arena.live if on_gpu else arena.peak
        if reached > peak:
            peak, split = reached, dict(live)
    if not on_gpu:
        peak = arena.now  # with what lies outside the arena
    split["gaps"] = peak - sum(split.values())
    if on_gpu and split.get("loss"):
        # Where a CPU's softmax takes the logits' place, a GPU's has a block of its own.
        tokens = min(setup.step.micro_batch * setup.seq_len, max(64, CHUNK_ELEMENTS // vocabulary))
        split["loss"] += tokens * vocabulary * (4 if setup.step.precision == "fp32" else 2)
    return Forecast(**{name: split.get(name, 0) for name in CATEGORIES})


def beside(setup: Setup, memory: MemoryReport, processes: int = 1) -> dict[str, Any]:
    """The forecast of a run that has ended, and by how much it was wrong; for `memory.json`.

    Args:
        setup: of the run, as everything was decided.
        memory: what was measured. What the process held before its first step is the forecast's baseline.
        processes: that shared the run.
    """
    device = setup.device
    try:
        if processes > 1 or device not in ("cpu", "cuda"):
            raise ForecastError("only one process on a CPU or a GPU is forecast")
        found = forecast(setup)
    except ForecastError as reason:
        return {"not_forecast": str(reason)}
    on_top = 0 if device == "cuda" else FIRST_STEP + (COMPILER if setup.step.compile != "off" else 0)
    found = found.with_baseline(memory.categories.other + on_top)
    measured = None if memory.categories.activations is None else memory.reading.peak
    error = None if measured is None else round(found.peak / measured - 1, 4)
    return {**found.as_dict(), "error": error, "uncertainty": uncertainty(setup)}


def inference_memory(config: OmniConfig) -> dict[str, float]:
    """MiB of weights and of keys and values, exact; activations and buffers of the engine are not among them.

    A row's keys and values are for the model's whole context. In int8 every matrix has a scale in fp32 for each of
    its rows, and every position of a head one for its keys and one for its values.
    """
    with dry_run(1):
        model = OmniModel(config)
        shapes = [tuple(p.shape) for p in model.parameters()]
    numbers = [(math.prod(shape), shape[0] if len(shape) == 2 else 0) for shape in shapes]
    plain = sum(count for count, _ in numbers)
    int8 = sum(count + 4 * rows if rows else 4 * count for count, rows in numbers)
    thinker = config.thinker
    heads = 2 * thinker.num_hidden_layers * thinker.num_key_value_heads * thinker.max_position_embeddings
    sizes = {
        "weights_fp32": 4 * plain,
        "weights_bf16": 2 * plain,
        "weights_int8": int8,
        "cache_of_a_row_fp32": 4 * heads * thinker.head_dim,
        "cache_of_a_row_bf16": 2 * heads * thinker.head_dim,
        "cache_of_a_row_int8": heads * (thinker.head_dim + 4),
    }
    return {f"{name}_mib": round(size / MIB, 2) for name, size in sizes.items()}
