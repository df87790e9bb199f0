"""A recipe: everything one training stage needs, in one frozen object."""

from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from muomni.config.base import Fraction, Frozen, PositiveInt, Probability, conflict
from muomni.config.codec import CodecSpec
from muomni.config.recipe_data import DataSpec, TokenizerSpec
from muomni.config.recipe_model import ModelSpec

NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Part = Literal["thinker", "vision", "vision_projector", "audio", "audio_projector", "talker"]


class LossSpec(Frozen):
    """Weights of the losses in their sum, each a mean; 0 turns a loss off."""

    text: NonNegative = 1.0
    """Cross-entropy of the Thinker's answers, per token. With 0 the Thinker is not computed and encoders train by their
    own losses at a fraction of the cost; everything else must then be frozen.
    """
    ctc: NonNegative = 0.0
    """CTC of the audio encoder alone: the transcript of each clip that has one (Graves et al., ICML 2006), per byte.
    Needs `model.audio.ctc`.
    """
    contrastive: NonNegative = 0.0
    """Sigmoid loss of the vision encoder alone: which caption of the micro-batch belongs to which picture (SigLIP,
    arXiv:2303.15343), per caption. Needs `model.vision.projection_dim`.
    """
    speech: NonNegative = 0.0
    """Cross-entropy of the Talker on the pairs of `data.speech`: codes of speech and moves of the text pointer, per
    frame. Needs `model.talker`.
    """


class OptimizerSpec(Frozen):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) or Muon. No decay on norms and embeddings."""

    name: Literal["adamw", "muon"] = "adamw"
    """`adamw`, or `muon`: Muon for the hidden matrices, AdamW for embeddings and norms. Muon learns more from each
    token and costs some extra matrix products.
    """
    lr: float = Field(default=1e-3, gt=0)
    """The peak learning rate, of both optimizers; `schedule` scales it."""
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.95), strict=False)
    """AdamW's decay of the running means of gradient and squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's, added to the root of the squared gradient."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Of Muon."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled weight decay, scaled by the learning rate."""


class ScheduleSpec(Frozen):
    """Learning rate over optimizer steps, as a factor of `optimizer.lr`."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """`cosine` falls over all steps after warm-up; `wsd` (warm-up, stable, decay) stays at 1 and falls linearly over
    the last `decay_fraction`; `constant` stays.
    """
    warmup_steps: NonNegativeInt = 50
    """Steps of linear warm-up from 0."""
    min_lr_ratio: Fraction = 0.1
    """Final learning rate, relative to the peak."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of all steps in which `wsd` decays."""


class EvalSpec(Frozen):
    """Validation and sample texts, counted in optimizer steps; 0 turns one off."""

    every: NonNegativeInt = 200
    """Steps between validation losses; the end of the run always has one."""
    max_rows: PositiveInt = 128
    """Rows of the validation set to read, the same ones each time."""
    sample_every: NonNegativeInt = 0
    """Steps between sample texts."""
    prompts: tuple[str, ...] = Field(default=("Once upon a time",), strict=False)
    """Prompts of the samples, continued as plain text."""
    sample_tokens: PositiveInt = 64
    """New tokens of a sample."""


class CheckpointSpec(Frozen):
    """Checkpoints, counted in optimizer steps."""

    every: PositiveInt = 200
    """Steps between checkpoints; the end of the run, Ctrl-C and a new best always write one."""
    keep: PositiveInt = 2
    """Number of newest checkpoints to keep; the best one is kept as well."""


class TuneSpec(Frozen):
    """The search for the fastest step configuration before a run, see `training.tune.search`."""

    minutes: float = Field(default=3.0, gt=0)
    """Time limit, after which no more candidates are measured."""


class ModelParts(NamedTuple):
    """What a model has besides the Thinker: encoders, the Talker, and the heads of the encoders' own losses."""

    vision: bool
    audio: bool
    talker: bool
    contrastive: bool
    ctc: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that `freeze` may name."""
        vision = ("vision", "vision_projector") if self.vision else ()
        audio = ("audio", "audio_projector") if self.audio else ()
        return ("thinker", *vision, *audio, *(("talker",) if self.talker else ()))

    @property
    def speech(self) -> bool:
        """Whether the Talker's loss can be computed."""
        return self.talker


# Key, value and what is allowed.
Problem = tuple[str, object, str]

# What the losses besides the text's need, and the part that each trains by itself.
_LOSS_NEEDS = {
    "contrastive": 'its head: "model": {"vision": {"projection_dim": 256}}',
    "ctc": 'its head: "model": {"audio": {"ctc": true}}',
    "speech": 'a Talker: "model": {"talker": {"codec": "runs/codec-tiny"}}',
}
_LOSS_TRAINS = {"contrastive": "vision", "ctc": "audio", "speech": "talker"}

# What a recipe with "codec" may not change.
_NOT_FOR_CODEC = (
    "model",
    "tokenizer",
    "freeze",
    "losses",
    "attention",
    "gradient_checkpointing",
    "compile",
    "on_oom",
    "parallel",
    "tune",
)
_NOT_FOR_CODEC_DATA = ("speech", "seq_len", "augment")


class Recipe(Frozen):
    """One training stage."""

    schema_: str | None = Field(
        default=None, alias="$schema", description="Where the JSON Schema is, for editors; not used otherwise."
    )
    name: str = Field(default="run", pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")
    """Names the run folder `runs/NAME` unless `--out` does."""
    model: ModelSpec = ModelSpec(preset="tiny")
    """Which model to train."""
    codec: CodecSpec | None = None
    """A speech codec to train instead of a model; keys that are only for models may not be given."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    """Trained on the training data, or taken from a folder."""
    data: DataSpec
    """Training and validation data."""
    freeze: tuple[Part, ...] = Field(default=(), strict=False)
    """Parts that are not trained: they stay in evaluation mode and need no gradients. `vision` and `audio` are the
    encoders with their heads. The codec of a `talker` is never trained.
    """
    losses: LossSpec = LossSpec()
    """Weights of the losses: the text's, those of the encoders alone, and the Talker's."""
    batch_size: PositiveInt = 8
    """Rows in one micro-batch; pairs, where `data` holds only pairs of speech."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches in one optimizer step; the effective batch is `batch_size` × this, for any number of processes."""
    max_steps: PositiveInt | None = None
    """Optimizer steps. Give exactly one of this and `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows. Give exactly one of this and `max_steps`."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """Optimizer and its settings."""
    schedule: ScheduleSpec = ScheduleSpec()
    """Learning rate over the run."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this 2-norm; 0 turns clipping off."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto` is bf16 where the hardware supports it, fp16 on older GPUs, else fp32. Weights and optimizer state stay in
    fp32.
    """
    attention: Literal["auto", "sdpa", "varlen", "flash_attn", "flex", "reference"] = "auto"
    """`auto` is torch's varlen flash kernel on a GPU where it works, else torch's SDPA. `flash_attn` is an installed
    flash-attn 2, 3 or 4, `flex` FlexAttention, `reference` the plain definition, slow and quadratic in memory.
    """
    gradient_checkpointing: Literal["off", "full", "selective"] = "off"
    """`full` keeps only each block's input and recomputes the block in the backward pass; `selective` also keeps the
    results of attention and matrix products.
    """
    compile: Literal["auto", "off", "blocks", "full"] = "auto"
    """`blocks` compiles the blocks with `torch.compile`, `full` the whole model; `auto` times both at the start
    and compiles blocks where that saves more time over the run than compiling takes. Short runs and runs of several
    processes are not timed: there `auto` is `blocks` on GPUs, `off` on CPUs.
    """
    allocator: Literal["auto", "arena", "retain", "system"] = "auto"
    """Memory on a CPU. `arena` puts large tensors into one region, which takes less memory than the C library's heap
    (Linux with a compiler); `retain` keeps freed memory in the process for the next step (glibc); `auto` picks the
    first of these that is available; `system` leaves it to the C library.
    """
    on_oom: Literal["stop", "shrink_micro_batch"] = "stop"
    """When memory runs out in a step, `stop` ends the run and names the settings that would help; `shrink_micro_batch`
    repeats the step and goes on with half as many rows in a micro-batch and twice as many micro-batches (one process
    only).
    """
    tune: bool | TuneSpec = False
    """Times candidate step configurations before a new run and keeps the fastest that fits: micro-batch size with the
    same effective batch, checkpointing, compiled blocks, attention, threads that read media. None changes what is
    learnt beyond rounding. `true` is `{"minutes": 3}`.
    """
    parallel: Literal["auto", "off", "ddp", "fsdp"] = "auto"
    """With several processes (`torchrun --nproc-per-node N -m muomni train RECIPE`) the rows of a step are divided
    among them, so what is learnt is the same for any N that divides `batch_size` × `gradient_accumulation_steps`;
    only dropout draws other numbers. A process takes micro-batches of at most `batch_size` rows. `ddp` keeps the
    whole model in each process; `fsdp` divides weights, gradients and optimizer state, for models that are too large
    for one GPU; `auto` is `ddp` under torchrun with several processes, else `off`.
    """
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of initial weights, shuffling and dropout."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto` picks the first available of cuda, mps, cpu."""
    eval: EvalSpec = EvalSpec()
    """Validation and samples."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """How often checkpoints are written, and how many are kept."""
    log_every: PositiveInt = 10
    """Optimizer steps between lines of `metrics.jsonl`."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.max_steps is None) == (self.epochs is None):
            raise conflict("max_steps", self.max_steps, 'give exactly one of "max_steps" and "epochs"')
        warmup = self.schedule.warmup_steps
        if self.max_steps is not None and warmup > self.max_steps:
            raise conflict("schedule.warmup_steps", warmup, f"must be at most max_steps ({self.max_steps})")
        if self.codec is not None:
            self._check_codec_only()
        elif self.model.preset is not None:
            context = self.model.build().thinker.max_position_embeddings
            if self.data.train and self.data.seq_len > context:
                allowed = f"must be at most the model's context, max_position_embeddings ({context})"
                raise conflict("data.seq_len", self.data.seq_len, allowed)
            vision, audio = self.model.vision, self.model.audio
            parts = ModelParts(
                vision=vision is not None,
                contrastive=vision is not None and vision.changes.get("projection_dim") is not None,
                audio=audio is not None,
                ctc=audio is not None and audio.changes.get("ctc") is True,
                talker=self.model.talker is not None,
            )
            for problem in self.conflicts_with(parts):
                raise conflict(*problem)
        return self

    @property
    def minutes_of_tuning(self) -> float:
        """How long the search before the run may take; 0 without one."""
        if isinstance(self.tune, TuneSpec):
            return self.tune.minutes
        return TuneSpec().minutes if self.tune else 0.0

    def _check_codec_only(self) -> None:
        """Refuses what means nothing to a codec: no option is silently ignored."""
        for section, names, prefix in ((self, _NOT_FOR_CODEC, ""), (self.data, _NOT_FOR_CODEC_DATA, "data.")):
            for name in names:
                value = getattr(section, name)
                if value != type(section).model_fields[name].default and value != "off":
                    raise conflict(prefix + name, value, 'remove it: it does not go with "codec"')
        if self.eval.sample_every:
            raise conflict("eval.sample_every", self.eval.sample_every, "must be 0: a codec writes no text")

    def conflicts_with(self, parts: ModelParts) -> Iterator[Problem]:
        """What in the recipe does not go with a model of these parts, the most basic first."""
        names = parts.names
        for name in self.freeze:
            if name not in names:
                yield "freeze", name, f"the model has no such part: it has {', '.join(names)}"
        for loss, needs in _LOSS_NEEDS.items():
            weight = getattr(self.losses, loss)
            if weight and not getattr(parts, loss):
                yield f"losses.{loss}", weight, f"needs {needs}"
        if set(self.freeze) == set(names):
            yield "freeze", ", ".join(self.freeze), "remove a part: at least one must be trainable"
        for loss, part in _LOSS_TRAINS.items():
            weight = getattr(self.losses, loss)
            if weight and part in self.freeze:
                yield f"losses.{loss}", weight, f'set it to 0: "{part}" is frozen, so this loss trains nothing'
        yield from self._losses_without_data()
        yield from self._parts_without_loss(names)

    def _losses_without_data(self) -> Iterator[Problem]:
        """Losses without data, and data without a loss."""
        losses, data = self.losses, self.data
        if losses.speech and data.speech is None:
            yield "losses.speech", losses.speech, "has no data: name pairs of text and speech in data.speech"
        if data.speech is not None and not losses.speech:
            yield "losses.speech", 0, "data.speech is unused: give this loss a weight, or remove data.speech"
        weights = {name: getattr(losses, name) for name in ("text", "ctc", "contrastive")}
        if not data.train:
            for name, weight in weights.items():
                if weight:
                    yield f"losses.{name}", weight, "set it to 0: data.train is empty, so this loss has no data"
            if self.model.init_from is None and self.tokenizer.path is None:
                yield "tokenizer.path", None, "name the tokenizer's folder: data.train is empty, so none can be trained"
        elif losses.speech and not any(weights.values()):
            unused = "unused without losses.text, ctc or contrastive: remove it"
            paths = [source.path for source in data.train]
            yield "data.train", paths, f"{unused} (pairs of text and speech go into data.speech.train)"

    def _parts_without_loss(self, names: tuple[str, ...]) -> Iterator[Problem]:
        """Trainable parts that no loss trains."""
        trainable = [name for name in names if name not in self.freeze]
        if "talker" in trainable and not self.losses.speech:
            yield "losses.speech", 0, "no loss trains talker: give this one a weight, or add talker to freeze"
        trained = {part for loss, part in _LOSS_TRAINS.items() if getattr(self.losses, loss)}
        idle = [name for name in trainable if name not in trained]
        if idle and not self.losses.text:
            yield "losses.text", 0, f"no loss trains {', '.join(idle)}: give this one a weight, or add them to freeze"
