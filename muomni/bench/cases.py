"""What is measured: a training step of one shape, done one way."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from muomni.accel.device import pick_device
from muomni.accel.precision import Precision, pick_precision
from muomni.config import OmniConfig, ThinkerConfig
from muomni.config.base import Frozen
from muomni.config.recipe import OptimizerSpec
from muomni.data import Batch
from muomni.errors import ConfigError
from muomni.model import OmniModel
from muomni.model.qwen3 import to_qwen3_config
from muomni.train.optimizer import build_optimizers
from muomni.train.step import TrainStep

# Model shapes that are measured: the presets' names, and those of the reference tables.
SHAPES: dict[str, ThinkerConfig] = {
    "12m": ThinkerConfig(
        vocab_size=32000,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
    ),
    "100m": ThinkerConfig(
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
    ),
}


class TrainCase(Frozen):
    """One way to take a training step.

    Attributes:
        name: shown in tables.
        implementation: `muomni`, or `transformers`' Qwen3 with the plain loop of its users.
        thinker: the shape.
        batch_size, seq_len: rows and tokens of a step; random tokens, one document a row.
        precision: fp32, bf16 or fp16.
        compile: `torch.compile` of the whole model.
        device: where.
    """

    name: str
    implementation: Literal["muomni", "transformers"] = "muomni"
    thinker: ThinkerConfig
    batch_size: int
    seq_len: int
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch_size * self.seq_len


def build_train_step(case: TrainCase) -> Callable[[], Tensor]:
    """A function that takes one optimizer step on the same random rows and returns the loss on the device."""
    torch.manual_seed(0)
    device = pick_device(case.device)
    precision = pick_precision(case.precision, device)
    ids = torch.randint(case.thinker.vocab_size, (case.batch_size, case.seq_len), device=device)
    if case.implementation == "transformers":
        return _transformers_step(case, ids, precision)
    model = OmniModel(OmniConfig(thinker=case.thinker)).to(device)
    optimizers = build_optimizers(model, OptimizerSpec(), device)
    forward: nn.Module = torch.compile(model) if case.compile else model  # type: ignore[assignment]
    step = TrainStep(forward, optimizers, torch.ones(2), 1.0, precision)
    batch = _rows(ids)
    return lambda: step([batch]).loss


def _rows(ids: Tensor) -> Batch:
    B, T = ids.shape
    labels = ids.clone()
    labels[:, 0] = -100
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.arange(T, device=ids.device).expand(B, T),
        cu_seqlens=torch.arange(B + 1, dtype=torch.int32, device=ids.device) * T,
        max_seqlen=T,
        num_targets=B * (T - 1),
        id="bench",
    )


def _transformers_step(case: TrainCase, ids: Tensor, precision: Precision) -> Callable[[], Tensor]:
    """The loop a transformers user writes: its own Qwen3, its own loss, fused AdamW, clipping."""
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError:
        raise ConfigError("the peer `transformers` is not installed: pip install 'muomni[bench]'") from None
    config = Qwen3Config(**to_qwen3_config(OmniConfig(thinker=case.thinker)))
    model = Qwen3ForCausalLM(config).to(ids.device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    forward = torch.compile(model) if case.compile else model

    def step() -> Tensor:
        with precision.autocast():
            loss: Tensor = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step
