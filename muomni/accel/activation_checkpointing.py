"""Gradient checkpointing: keep a block's input, compute the block again in the backward pass.

The backward pass needs what the forward pass computed. Instead of keeping all of it, a block keeps its
input and runs again when its gradient is due (Chen et al., arXiv:1604.06174). The same random numbers are
drawn again, so dropout is the same and the gradients are bit-equal.

* `full` keeps the input of each block only: least memory, one more forward pass, about a third more time.
* `selective` also keeps what is expensive to compute: the results of attention and of matrix products.
  Norms, rotary embedding and SwiGLU's product are computed again. Less memory for little time.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from muomni.errors import ConfigError
from muomni.model.encoders.layers import BLOCKS

Mode = Literal["full", "selective"]

_SELF = "forward"


def enable(model: nn.Module, mode: Mode = "full") -> None:
    """Turns checkpointing on for every block of `model`, encoders' too; without gradients nothing changes.

    Raises:
        ConfigError: no such mode.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"gradient checkpointing mode {mode!r}: there are {', '.join(get_args(Mode))}")
    disable(model)
    for block in _blocks(model):
        # An attribute of the instance stands before the method of the class; names of weights stay as they are.
        block.__dict__[_SELF] = _Recomputed(block, mode)


def disable(model: nn.Module) -> None:
    """Turns checkpointing off."""
    for block in _blocks(model):
        block.__dict__.pop(_SELF, None)


def is_enabled(model: nn.Module) -> bool:
    """Whether checkpointing is on."""
    return any(_SELF in block.__dict__ for block in _blocks(model))


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, BLOCKS)]


class _Recomputed:
    """The forward of one block, run under `torch.utils.checkpoint` while gradients are wanted."""

    def __init__(self, block: nn.Module, mode: Mode) -> None:
        self.block = block
        self.mode = mode

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        forward = type(self.block).forward
        if not (torch.is_grad_enabled() and self.block.training):
            out: Tensor = forward(self.block, *args, **kwargs)
            return out
        if kwargs.get("cache") is not None or (len(args) > 3 and args[3] is not None):
            raise ValueError(
                "gradient checkpointing computes a block twice and would append to the KV cache twice: "
                "generate under torch.no_grad(), or call gradient_checkpointing_disable()"
            )
        more: dict[str, Any] = {"context_fn": _selective_contexts} if self.mode == "selective" else {}
        out = checkpoint(forward, self.block, *args, use_reentrant=False, preserve_rng_state=True, **more, **kwargs)
        return out


def _selective_contexts() -> Any:
    return create_selective_checkpoint_contexts(_policy)  # type: ignore[no-untyped-call]


def _policy(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    saved = operation.name() in _EXPENSIVE
    return CheckpointPolicy.MUST_SAVE if saved else CheckpointPolicy.PREFER_RECOMPUTE


_EXPENSIVE = frozenset(
    {
        "aten::mm",
        "aten::bmm",
        "aten::addmm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "muomni::varlen_cpu",
        "muomni::bidirectional_cpu",
        "torch_attn::_varlen_attn",
        "flash_attn::_flash_attn_varlen_forward",
    }
)
