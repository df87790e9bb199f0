"""A recipe: everything one training stage needs, in one frozen object."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from muomni.config.base import Fraction, Frozen, PositiveInt, Probability, conflict
from muomni.config.codec import CodecSpec
from muomni.config.recipe_data import DataSpec, TokenizerSpec
from muomni.config.recipe_model import ModelSpec

NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0)]
Part = Literal["thinker", "vision", "vision_projector", "audio", "audio_projector", "talker"]


class LossSpec(Frozen):
    """The losses, each the weight of its mean in the sum; 0 leaves it out."""

    text: NonNegative = 1.0
    """Of the Thinker's answers; per token. With 0 the Thinker is not computed, and encoders learn by their own losses
    at a fraction of the cost; everything else is then to be frozen.
    """
    ctc: NonNegative = 0.0
    """Of the audio encoder alone, spelling the transcript of each clip that has one (Graves et al., ICML 2006); per
    byte. Needs `model.audio.ctc`.
    """
    contrastive: NonNegative = 0.0
    """Of the vision encoder alone, telling the caption of each picture from the others in the micro-batch (SigLIP,
    arXiv:2303.15343); per caption. Needs `model.vision.projection_dim`.
    """
    speech: NonNegative = 0.0
    """Of the Talker, speaking the text of each pair of `data.speech`: its codes and how its pointer moves through the
    text; per frame. Needs `model.talker`.
    """


class OptimizerSpec(Frozen):
    """AdamW (Loshchilov and Hutter, arXiv:1711.05101) or Muon. No decay on norms and embeddings."""

    name: Literal["adamw", "muon", "adamw8bit"] = "adamw"
    """`adamw`, or `muon`: Muon for the hidden matrices, AdamW for embeddings and norms. Muon learns more from each
    token and costs some products of the matrices with themselves. `adamw8bit` keeps AdamW's moments in 8 bits, a
    quarter of its memory; needs torchao.
    """
    lr: float = Field(default=1e-3, gt=0)
    """The peak learning rate, of both; `schedule` scales it."""
    betas: tuple[Probability, Probability] = Field(default=(0.9, 0.95), strict=False)
    """AdamW's decay of the running means of gradient and squared gradient."""
    eps: float = Field(default=1e-8, gt=0)
    """AdamW's, added to the root of the squared gradient."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Muon's."""
    weight_decay: float = Field(default=0.1, ge=0)
    """Decoupled, scaled by the learning rate."""


class ScheduleSpec(Frozen):
    """Learning rate over optimizer steps, as a factor of `optimizer.lr`."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """`cosine` falls over all steps after warm-up; `wsd` (warm-up, stable, decay) stays at 1 and falls linearly over
    the last `decay_fraction`; `constant` stays.
    """
    warmup_steps: NonNegativeInt = 50
    """Linear rise from 0."""
    min_lr_ratio: Fraction = 0.1
    """Where the fall ends."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """Of all steps, for `wsd`."""


class EvalSpec(Frozen):
    """Validation and samples, counted in optimizer steps; 0 turns one off."""

    every: NonNegativeInt = 200
    """Steps between validation losses; the end of the run always has one."""
    max_rows: PositiveInt = 128
    """Rows of the validation set that are read, the same ones each time."""
    sample_every: NonNegativeInt = 0
    """Steps between sample texts."""
    prompts: tuple[str, ...] = Field(default=("Once upon a time",), strict=False)
    """What the samples begin with; a prompt is continued as plain text."""
    sample_tokens: PositiveInt = 64
    """New tokens of a sample."""


class CheckpointSpec(Frozen):
    """Checkpoints, counted in optimizer steps."""

    every: PositiveInt = 200
    """Steps between checkpoints; the end of the run, Ctrl-C and a new best always write one."""
    keep: PositiveInt = 2
    """How many of the newest stay; the best one stays besides."""


class TuneSpec(Frozen):
    """The search before a run, see `train.tune.search`."""

    minutes: float = Field(default=3.0, gt=0)
    """After which no more ways are tried."""


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
    """A speech codec to train instead of a model; what is only for models is then left out."""
    tokenizer: TokenizerSpec = TokenizerSpec()
    """Trained on the training data, or taken from a folder."""
    data: DataSpec
    """What is learnt from."""
    freeze: tuple[Part, ...] = Field(default=(), strict=False)
    """Parts that do not learn: they stay as they are, in evaluation mode, and cost no gradient. `vision` and `audio`
    are the encoders with their heads. The codec of a `talker` never learns.
    """
    losses: LossSpec = LossSpec()
    """Weights of the losses: the text's, those of the encoders alone, and the Talker's."""
    batch_size: PositiveInt = 8
    """Rows in one micro-batch; where pairs of speech are all there is, pairs."""
    gradient_accumulation_steps: PositiveInt = 1
    """Micro-batches in one optimizer step; the effective batch is `batch_size` × this, however many processes share it.
    """
    max_steps: PositiveInt | None = None
    """Optimizer steps. Exactly one of this and `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training rows. Exactly one of this and `max_steps`."""
    optimizer: OptimizerSpec = OptimizerSpec()
    """How gradients become steps."""
    schedule: ScheduleSpec = ScheduleSpec()
    """The learning rate over the run."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this 2-norm; 0 turns clipping off."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """`auto` takes bf16 where the hardware multiplies in it, fp16 on older GPUs, else fp32. Weights and optimizer stay
    in fp32.
    """
    attention: Literal["auto", "sdpa", "varlen", "flash_attn", "flex", "reference"] = "auto"
    """`auto` takes torch's varlen flash kernel on a GPU where it works, else torch's SDPA. `flash_attn` is an installed
    flash-attn 2, 3 or 4, `flex` FlexAttention, `reference` the plain definition, slow and quadratic in memory.
    """
    gradient_checkpointing: Literal["off", "full", "selective"] = "off"
    """`full` keeps each block's input only and computes the block again in the backward pass; `selective` also keeps
    the results of attention and matrix products.
    """
    compile: Literal["auto", "off", "blocks", "full"] = "auto"
    """`blocks` compiles the blocks with `torch.compile`, `full` the whole model; `auto` tries both ways at the start
    and compiles blocks where that saves more time over the run than compiling takes. Short runs are not tried, nor
    are several processes: there `auto` is `blocks` on GPUs, `off` on CPUs.
    """
    allocator: Literal["auto", "arena", "retain", "system"] = "auto"
    """Where a CPU computes. `arena` has large tensors in a region of their own, which takes less memory than the C
    library's heap (Linux with a compiler); `retain` leaves what a step frees with the process for the next one
    (glibc); `auto` takes the first of these that works, and `system` lets the C library decide.
    """
    on_oom: Literal["stop", "shrink_micro_batch"] = "stop"
    """When memory runs out in a step, `stop` ends the run and says what would help; `rescue` takes the step again, and
    goes on, with micro-batches of half the rows and twice as many of them (with one process only).
    """
    tune: bool | TuneSpec = False
    """Before a new run, take some steps in different ways and go on with the fastest that fits: another micro-batch
    with the same effective batch, checkpointing, compiled blocks, attention, threads that read media. Nothing
    changes what is learnt beyond rounding. `true` is `{"minutes": 3}`.
    """
    parallel: Literal["auto", "off", "ddp", "fsdp"] = "auto"
    """With several processes (`torchrun --nproc-per-node N -m muomni train RECIPE`) the rows of a step are shared out
    between them, so what is learnt is the same for any N that divides `batch_size` × `gradient_accumulation_steps`;
    only dropout draws other numbers. A process takes micro-batches of at most `batch_size` rows. `ddp` keeps the
    whole model in each process; `fsdp` divides weights, gradients and optimizer state, for models that are too large
    for one GPU; `auto` is `ddp` under torchrun with several processes, else `off`.
    """
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of weights, shuffling and dropout."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """`auto` takes cuda, mps, cpu in that order."""
    eval: EvalSpec = EvalSpec()
    """Validation and samples."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """How often and how many."""
    log_every: PositiveInt = 10
    """Optimizer steps between lines of `metrics.jsonl`."""

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if (self.max_steps is None) == (self.epochs is None):
            raise conflict("max_steps", self.max_steps, 'give exactly one of "max_steps" and "epochs"')
        warmup = self.schedule.warmup_steps
        if self.max_steps is not None and warmup > self.max_steps:
            raise conflict("schedule.warmup_steps", warmup, f"must be at most max_steps ({self.max_steps})")
        if self.codec is not None:
            self._codec_alone()
        elif self.model.preset is not None:
            context = self.model.build().thinker.max_position_embeddings
            if self.data.train and self.data.seq_len > context:
                allowed = f"must be at most the model's context, max_position_embeddings ({context})"
                raise conflict("data.seq_len", self.data.seq_len, allowed)
            vision, audio = self.model.vision, self.model.audio
            found = self.misfit(
                vision is not None,
                vision is not None and vision.changes.get("projection_dim") is not None,
                audio is not None,
                audio is not None and audio.changes.get("ctc") is True,
                self.model.talker is not None,
            )
            if found is not None:
                raise conflict(*found)
        return self

    @property
    def rows_per_step(self) -> int:
        """The effective batch, over all processes."""
        return self.batch_size * self.gradient_accumulation_steps

    def num_steps(self, rows: int) -> int:
        """Optimizer steps of the run, with so many training rows."""
        if self.max_steps is not None:
            return self.max_steps
        assert self.epochs is not None  # one of the two is there, see `_consistent`
        return max(1, math.ceil(self.epochs * rows / self.rows_per_step))

    @property
    def minutes_of_tuning(self) -> float:
        """How long the search before the run may take; 0 without one."""
        if isinstance(self.tune, TuneSpec):
            return self.tune.minutes
        return TuneSpec().minutes if self.tune else 0.0

    def _codec_alone(self) -> None:
        """Refuses what means nothing to a codec: no option is silently ignored."""
        for whole, names, prefix in ((self, _NOT_FOR_CODEC, ""), (self.data, _NOT_FOR_CODEC_DATA, "data.")):
            for name in names:
                value = getattr(whole, name)
                if value != type(whole).model_fields[name].default and value != "off":
                    raise conflict(prefix + name, value, 'remove it: it does not go with "codec"')
        if self.eval.sample_every:
            raise conflict("eval.sample_every", self.eval.sample_every, "must be 0: a codec writes no text")

    def misfit(
        self, vision: bool, contrastive: bool, audio: bool, ctc: bool, talker: bool = False
    ) -> tuple[str, object, str] | None:
        """What in the recipe does not go with a model that has these parts: key, value and what is allowed.

        Args:
            vision, audio, talker: whether the model has the encoder, or the Talker.
            contrastive, ctc: whether it has the head.
        """
        has = {"vision": vision, "audio": audio}
        parts = ["thinker", *(part for encoder in has if has[encoder] for part in (encoder, f"{encoder}_projector"))]
        parts += ["talker"] if talker else []
        for part in self.freeze:
            if part not in parts:
                return "freeze", part, f"the model has no such part: it has {', '.join(parts)}"
        losses = self.losses
        heads = (
            (
                "contrastive",
                losses.contrastive,
                contrastive,
                "vision",
                'its head: "model": {"vision": {"projection_dim": 256}}',
            ),
            ("ctc", losses.ctc, ctc, "audio", 'its head: "model": {"audio": {"ctc": true}}'),
            ("speech", losses.speech, talker, "talker", 'a Talker: "model": {"talker": {"codec": "runs/codec-tiny"}}'),
        )
        for name, weight, there, _, need in heads:
            if weight and not there:
                return f"losses.{name}", weight, f"needs {need}"
        if set(self.freeze) == set(parts):
            return "freeze", ", ".join(self.freeze), "leave out a part: nothing would learn"
        for name, weight, _, teaches, _ in heads:
            if weight and teaches in self.freeze:
                return f"losses.{name}", weight, f'make it 0: "{teaches}" is frozen, so this loss teaches nothing'
        return self._unread() or self._idle(parts)

    def _unread(self) -> tuple[str, object, str] | None:
        """Losses without data, and data without a loss."""
        losses, data = self.losses, self.data
        if losses.speech and data.speech is None:
            return (
                "losses.speech",
                losses.speech,
                "has nothing to learn from: name pairs of text and speech in data.speech",
            )
        if data.speech is not None and not losses.speech:
            return (
                "losses.speech",
                0,
                "nothing is learnt from data.speech: give this loss a weight, or leave out data.speech",
            )
        rows = {name: getattr(losses, name) for name in ("text", "ctc", "contrastive")}
        if not data.train:
            for name, weight in rows.items():
                if weight:
                    return f"losses.{name}", weight, "make it 0: data.train is empty, so it has nothing to learn from"
            if self.model.init_from is None and self.tokenizer.path is None:
                return "tokenizer.path", None, "say where the tokenizer is: data.train is empty, so none can be trained"
        elif losses.speech and not any(rows.values()):
            return (
                "data.train",
                [source.path for source in data.train],
                "nothing is learnt from it without losses.text, ctc or contrastive: leave it out (pairs of text and "
                "speech are named in data.speech.train)",
            )
        return None

    def _idle(self, parts: list[str]) -> tuple[str, object, str] | None:
        """Parts that are to learn, but that no loss teaches."""
        losses = self.losses
        if "talker" in parts and "talker" not in self.freeze and not losses.speech:
            return "losses.speech", 0, "without it nothing teaches talker: name it in freeze"
        if losses.text:
            return None
        taught = {"vision": losses.contrastive, "audio": losses.ctc, "talker": losses.speech}
        idle = [part for part in parts if not taught.get(part) and part not in self.freeze]
        if idle:
            return "losses.text", 0, f"without it nothing teaches {', '.join(idle)}: name them in freeze"
        return None
