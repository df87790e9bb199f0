"""What is measured: a training step of one shape, done one way."""

import hashlib
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from muomni.accel import activation_checkpointing, attention_backend
from muomni.accel.compile import blocks as compilation
from muomni.accel.cpu_allocator import choice as allocator
from muomni.accel.device import pick_device
from muomni.accel.measurements.worker import Answer, StepTimer
from muomni.accel.memory.monitor import storage_bytes
from muomni.accel.mixed_precision import Precision, pick_precision
from muomni.accel.step_config import StepConfig
from muomni.bench.training import synthetic_batches
from muomni.config import AudioConfig, OmniConfig, ThinkerConfig, VisionConfig
from muomni.config.recipe import OptimizerSpec
from muomni.data import Batch
from muomni.errors import ConfigError
from muomni.formats.qwen3 import to_qwen3_config
from muomni.model import OmniModel
from muomni.model.flops import model_flops
from muomni.ops.attention import Segments
from muomni.ops.attention.interface import as_autocast_would
from muomni.ops.cross_entropy import IGNORE, shift_labels
from muomni.training.objectives.module import BatchLosses, LossModule
from muomni.training.optim.build import build_optimizers
from muomni.training.step import TrainStep
from muomni.training.synthetic_rows import full_rows

SKETCH_SIZE = 256
# Weights of the encoders' own losses, those of the recipes.
_LOSSES = {"contrastive": 0.2, "ctc": 0.3}
_PART = 2**18
_WARM_UP_STEPS = 2


class TrainCase(StepConfig):
    """A step configuration with what it computes: the model, the rows, the losses and the optimizer.

    Attributes:
        name: shown in tables.
        implementation: `muomni`, or `transformers`' Qwen3 with the plain loop of its users, which
            takes `precision` and `compile` only.
        thinker: the shape.
        seq_len: tokens of a row; random ones, one document a row.
        documents: rows are packed from documents of this many tokens; 0 for one a row.
        media: `off`, or what stands in the places of the documents of `bench.training.synthetic_batches`, drawn anew
            for every step: `text`, `pictures`, `clips` or `mixed`. The model has the encoders that it needs.
        vision, audio: the encoders, for `media`; with their heads, those learn too.
        loss: `chunked`; `logits` for cross-entropy over the logits of all tokens at once; `torch` for
            `F.linear_cross_entropy` as it is, and `torch chunked` for the same with its default options.
        optimizer: `adamw` or `muon`.
        adamw: `fused` in one kernel, which also clips; `foreach` in a few, `for-loop` one parameter after the
            other, both after a pass for clipping.
        updates: also compare what three steps did to the weights.
        device: where.
    """

    name: str
    implementation: Literal["muomni", "transformers"] = "muomni"
    thinker: ThinkerConfig
    seq_len: int
    documents: int = 0
    media: Literal["off"] | synthetic_batches.Kind = "off"
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "fp32"
    loss: Literal["chunked", "logits", "torch", "torch chunked"] = "chunked"
    optimizer: Literal["adamw", "muon"] = "adamw"
    adamw: Literal["fused", "foreach", "for-loop"] = "fused"
    updates: bool = False
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _divide(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Takes `batch_size`, rows of a step, and divides it into at most `accumulation` equal micro-batches."""
        if "batch_size" not in values:
            return values
        rows = values["batch_size"]
        parts = next(n for n in range(values.get("accumulation", 1), 0, -1) if rows % n == 0)
        kept = {key: value for key, value in values.items() if key != "batch_size"}
        return kept | {"micro_batch": rows // parts, "accumulation": parts}

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.rows * self.seq_len

    @property
    def model(self) -> OmniConfig:
        """The model with the encoders that its rows need."""
        seeing = self.vision if self.media in ("pictures", "mixed") else None
        hearing = self.audio if self.media in ("clips", "mixed") else None
        return OmniConfig(thinker=self.thinker).with_encoders(
            seeing, hearing, synthetic_batches.IMAGE, synthetic_batches.AUDIO
        )

    @property
    def losses(self) -> dict[str, float]:
        """Weights of the encoders' own losses, where they have heads."""
        config = self.model
        heads = {
            "contrastive": config.vision is not None and config.vision.projection_dim is not None,
            "ctc": config.audio is not None and config.audio.ctc,
        }
        return {name: weight for name, weight in _LOSSES.items() if heads[name]}


@dataclass(frozen=True)
class Built:
    """A case, ready to run.

    Attributes:
        model: the module, to read its gradients.
        backward: a forward and a backward pass of the step's rows; gradients stay on the parameters.
        step: one optimizer step; returns the loss, on the device.
        renew: draws the rows of the next step, where each step has its own.
        flops: floating-point operations of a step on the rows of now; see `model.flops`.
        optimizers: whose state is counted as memory.
    """

    model: nn.Module
    backward: Callable[[], None]
    step: Callable[[], Tensor]
    renew: Callable[[], None]
    flops: Callable[[], int]
    optimizers: Sequence[Optimizer]


def check(case: TrainCase) -> None:
    """Finds out whether a case works here, before anything is allocated.

    Raises:
        ConfigError: it does not; says what is missing.
    """
    device = pick_device(case.device)
    precision = pick_precision(case.precision, device)
    compilation.choose(case.compile, device)
    allocator.choose(case.allocator, device)
    attention_backend.pick_attention(case.attention, device, precision.dtype, case.thinker.head_dim)
    if case.media != "off":
        _check_media(case)
    if case.loss.startswith("torch") and not hasattr(F, "linear_cross_entropy"):
        raise ConfigError(f"torch {torch.__version__} has no F.linear_cross_entropy; 2.13 has")


def why_not(case: TrainCase) -> str | None:
    """Why a case does not work here; None where it does."""
    try:
        check(case)
    except ConfigError as error:
        return str(error)
    return None


def _check_media(case: TrainCase) -> None:
    if case.vision is None or case.audio is None:
        raise ConfigError("rows with media need both encoders: they say how large media are")
    for name in ("implementation", "documents", "accumulation", "loss"):
        if getattr(case, name) != TrainCase.model_fields[name].default:
            raise ConfigError(f"rows with media and {name} = {getattr(case, name)!r} do not go together")
    synthetic_batches.check_length(case.seq_len, case.vision)


def build(case: TrainCase) -> Built:
    """Weights and rows are the same for every case of a shape and implementation.

    Raises:
        ConfigError: the case does not work on this machine, or a peer is not installed.
    """
    check(case)
    torch.manual_seed(0)
    device = pick_device(case.device)
    allocator.apply(allocator.choose(case.allocator, device))
    precision = pick_precision(case.precision, device)
    ids = torch.randint(case.thinker.vocab_size, (case.rows, case.seq_len), device=device)
    if case.implementation == "transformers":
        return _transformers(case, ids, precision)
    config = case.model
    model = OmniModel(config).to(device)
    optimizers = build_optimizers(model, OptimizerSpec(name=case.optimizer), precision)
    if case.adamw != "fused":
        optimizers = [UnfusedAdamW(optimizer.param_groups, case.adamw == "foreach") for optimizer in optimizers]
    chosen = attention_backend.pick_attention(case.attention, device, precision.dtype, case.thinker.head_dim)
    attention_backend.apply(model, chosen)
    if case.checkpointing != "off":
        activation_checkpointing.enable(model, case.checkpointing)
    compilation.apply(model, compilation.choose(case.compile, device))
    losses = LossModule(model, case.losses) if case.loss == "chunked" else _OtherLoss(model, case.loss)
    step = TrainStep(losses, optimizers, torch.ones(2), 1.0, precision)
    batches = [full_rows(part, case.documents) for part in ids.chunk(case.accumulation)]
    numbers = itertools.count()

    def renew() -> None:
        if case.media != "off":
            batches[:] = [_media_batch(case, next(numbers)).to(device)]

    def backward() -> None:
        step.accumulate(batches)

    def flops() -> int:
        return sum(_flops(config, batch, list(case.losses)) for batch in batches)

    renew()
    return Built(model, backward, lambda: step(batches).loss, renew, flops, optimizers)


def _media_batch(case: TrainCase, number: int) -> Batch:
    assert case.media != "off" and case.vision is not None and case.audio is not None
    sizes = (case.rows, case.seq_len, case.thinker.vocab_size)
    return synthetic_batches.draw_rows(case.media, *sizes, case.vision, case.audio, number)


def _flops(config: OmniConfig, batch: Batch, losses: Sequence[str]) -> int:
    parts = model_flops(config, batch.cu_seqlens.diff().tolist(), batch.media, losses)
    return sum(part.training for part in parts.values())


class _OtherLoss(LossModule):
    """The loss as most write it, logits of all tokens in fp32 and then cross-entropy; or as torch has it."""

    def __init__(self, model: OmniModel, how: Literal["logits", "torch", "torch chunked"]) -> None:
        super().__init__(model)
        self.how = how

    def forward(
        self, batch: Batch, denominators: Mapping[str, int | Tensor], names: Collection[str] | None = None
    ) -> BatchLosses:
        del names
        targets = shift_labels(batch.labels).flatten()
        segments = Segments(batch.cu_seqlens, batch.max_seqlen).rounded(batch.input_ids.numel())
        inputs: dict[str, Any] = {"positions": batch.positions, "segments": segments}
        if self.how == "logits":
            logits = self.model(batch.input_ids, **inputs).logits
            total = F.cross_entropy(logits.flatten(0, 1).float(), targets, ignore_index=IGNORE, reduction="sum")
        else:
            thinker = self.model.thinker
            flat, weight = as_autocast_would(thinker(batch.input_ids, **inputs).flatten(0, 1), thinker.lm_head.weight)
            options = nn.LinearCrossEntropyOptions() if self.how == "torch chunked" else None
            total = F.linear_cross_entropy(
                flat, weight, targets, ignore_index=IGNORE, reduction="sum", options=options
            ).float()  # fmt: skip
        loss = total / denominators["text"]
        return BatchLosses(loss, {"text": loss}, {})


class UnfusedAdamW(AdamW):
    """AdamW in several passes behind `TrainStep`, to compare with: clips first, and asks the host whether to step."""

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], foreach: bool) -> None:
        own = [{key: g[key] for key in ("params", "lr", "base_lr", "weight_decay", "betas", "eps")} for g in groups]
        super().__init__(own, foreach=foreach, fused=False)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step at each group's `base_lr`."""
        scale, bad = self.grad_scale, self.found_inf
        self.grad_scale = self.found_inf = None  # torch's own step refuses them where it is not fused
        if bad is not None and bool(bad):
            return
        if scale is not None:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_div_(grads, scale)
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["base_lr"]
        super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


def _transformers(case: TrainCase, ids: Tensor, precision: Precision) -> Built:
    """The loop a transformers user writes: its own Qwen3, its own loss, fused AdamW, clipping."""
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError:
        raise ConfigError("the peer `transformers` is not installed: pip install 'muomni[bench]'") from None
    model = Qwen3ForCausalLM(Qwen3Config(**to_qwen3_config(OmniConfig(thinker=case.thinker)))).to(ids.device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(model) if case.compile != "off" else model

    def forward_backward() -> Tensor:
        with precision.autocast():
            loss: Tensor = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def step() -> Tensor:
        loss = forward_backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def backward() -> None:
        forward_backward()

    def flops() -> int:
        return _flops(OmniConfig(thinker=case.thinker), full_rows(ids), ())

    return Built(model, backward, step, lambda: None, flops, [optimizer])


def fingerprint_gradients(built: Built) -> dict[str, Any]:
    """One backward pass, as a digest and a sketch that two processes can compare, and `bytes`; leaves no gradients."""
    built.backward()
    gradients = [parameter.grad for parameter in built.model.parameters()]
    found = fingerprint(gradients) | {"bytes": storage_bytes(grad for grad in gradients if grad is not None)}
    del gradients
    built.model.zero_grad(set_to_none=True)
    return found


def fingerprint(tensors: Iterable[Tensor | None]) -> dict[str, Any]:
    """Tensors as a digest and a sketch.

    Returns:
        `sha256` of the tensors' bytes in fp32, and `sketch`: a count sketch of 256 numbers (Charikar et al., 2002),
        which is linear in the tensors and whose distances estimate theirs.
    """
    digest = hashlib.sha256()
    sketch = torch.zeros(SKETCH_SIZE, dtype=torch.float64)
    signs = torch.Generator().manual_seed(0)
    for tensor in tensors:
        if tensor is None:
            continue
        # In parts: blocks as large as the weights would count as the case's memory ever after.
        for part in torch.split(tensor.detach().flatten(), _PART):
            values = part.float().cpu()
            digest.update(values.numpy().tobytes())
            # Every element is added to one of the sketch's entries, with a random sign.
            places = torch.randint(SKETCH_SIZE, values.shape, generator=signs)
            sign = torch.randint(2, values.shape, generator=signs, dtype=torch.int8) * 2 - 1
            sketch.index_add_(0, places, values.double() * sign)
    return {"sha256": digest.hexdigest(), "sketch": sketch.tolist()}


def memory_in_use() -> int:
    """Bytes now: allocated by torch on a GPU, resident in the process on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    import psutil

    return int(psutil.Process().memory_info().rss)


class TrainSubject(StepTimer):
    """A case for `accel.measurements.worker`.

    Attributes:
        first: `first_step_s`, of building, compiling and the first step; the `gradients` of the first weights; with
            `updates` what three steps changed in the weights, else None; `memory`, bytes of `weights`, `gradients`
            and `optimizer`, and `other`, what the process held before the model was built.
    """

    def __init__(self, case: TrainCase) -> None:
        other = memory_in_use()
        began = time.perf_counter()
        built = build(case)
        self._built = built
        before = fingerprint(built.model.parameters()) if case.updates else None
        gradients = fingerprint_gradients(built)
        float(built.step())
        self.first: dict[str, Any] = {"first_step_s": time.perf_counter() - began, "gradients": gradients}
        for _ in range(_WARM_UP_STEPS):
            built.renew()
            float(built.step())
        states = [state for optimizer in built.optimizers for state in optimizer.state.values()]
        self.first["memory"] = {
            "weights": storage_bytes([*built.model.parameters(), *built.model.buffers()]),
            "gradients": gradients.pop("bytes"),
            "optimizer": storage_bytes(v for state in states for v in state.values() if isinstance(v, Tensor)),
            "other": other,
        }
        if before is not None:
            after = fingerprint(built.model.parameters())
            after["sketch"] = [b - a for a, b in zip(before["sketch"], after["sketch"], strict=True)]
            self.first["updates"] = after

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Of the fields of a case, as JSON values."""
        return cls(TrainCase.model_validate(fields))

    def take(self) -> Answer:
        """Takes a step: its seconds, its floating-point operations and its loss."""
        self._built.renew()
        flops = self._built.flops()
        began = time.perf_counter()
        loss = float(self._built.step())  # waits for the device
        return {"step_s": time.perf_counter() - began, "flops": flops, "loss": loss}
