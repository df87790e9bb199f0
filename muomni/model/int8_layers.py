"""Layers with int8 weights, in the place and under the name of the float ones.

`weight` is int8 (N, K), row-major, and `scale` fp32 (N,): w ≈ weight · scale[:, None]. They are parameters without
gradients, so that what is shared stays shared wherever the model is moved: a tied head has those of the embedding.

The weights keep their types whatever the model is converted to: `.to(torch.bfloat16)` changes what the
layers compute and give, `dtype`, and neither `weight` nor `scale`.
"""

import math
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.errors import UserError
from muomni.model.codec.frozen import FrozenCodec
from muomni.model.module_modes import redirected, unusual_tensor
from muomni.ops.int8 import Kernel, dequantize, int8_linear, quantize_rows

# Rows of activations up to which each of a layer's kernels is used; the last serves all above.
ROWS = (4, 48)


class Int8Weight(nn.Module):
    """What the layers share: the two tensors, and that nothing casts them.

    Args:
        rows, columns: N and K.
        dtype: of what the layer gives.
    """

    weight: nn.Parameter
    scale: nn.Parameter

    def __init__(self, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.set_weights(torch.zeros(rows, columns, dtype=torch.int8), torch.ones(rows))

    def set_weights(self, weight: Tensor, scale: Tensor) -> None:
        """Takes (N, K) int8 weights and their (N,) fp32 scales."""
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, K) the weights in floating point, a new tensor."""
        return dequantize(self.weight, self.scale, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # torch has no public way to leave a tensor out of a cast; its own recurrent layers do this, too.
        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.weight.device)).dtype
        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in ("weight", "scale"):
            given, own = state_dict.get(prefix + name), getattr(self, name)
            if given is not None and given.dtype != own.dtype:
                raise UserError(
                    f"{prefix}{name} is {str(given.dtype)[6:]}, and this model's is {str(own.dtype)[6:]}: "
                    "these are weights of a model that is not quantised; load them into one, then call quantize"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


class Int8Linear(Int8Weight):
    """`nn.Linear` with int8 weights.

    Attributes:
        kernels: of `ops.int8`, for at most `ROWS[0]` rows of activations, at most `ROWS[1]`, and more;
            `accel.int8` sets them.
        bias: (N,) frozen, or None.
        float_copy: (N, K) the same weights in floating point, computed with instead, where no int8 kernel is as fast;
            not saved. None where the int8 weights are used.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(out_features, in_features, dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.kernels: tuple[Kernel, Kernel, Kernel] = ("cast", "cast", "cast")
        self.float_copy: Tensor | None = None
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype), requires_grad=False) if bias else None

    @classmethod
    def from_float(cls, linear: nn.Linear) -> "Int8Linear":
        """The layer of the nearest int8 weights, on the same device (`meta` too).

        Raises:
            ValueError: a weight is not finite.
        """
        with torch.device("meta"):
            out = cls(linear.in_features, linear.out_features, linear.bias is not None, linear.weight.dtype)
        out.set_weights(*quantize_rows(linear.weight))
        if linear.bias is not None:
            out.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
        return out.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N); refuses what wants gradients."""
        if x.requires_grad and torch.is_grad_enabled():
            raise UserError("int8 weights give no gradients: use torch.no_grad(), or train the float model")
        if self.float_copy is not None:
            return F.linear(x, self.float_copy, self.bias)
        rows = x.numel() // self.in_features
        kernel = self.kernels[0 if rows <= ROWS[0] else 1 if rows <= ROWS[1] else 2]
        return int8_linear(x, self.weight, self.scale, self.bias, kernel)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if self.float_copy is not None:
            self.float_copy = self.dequantized(self.dtype)
        return self

    def extra_repr(self) -> str:
        """As of the float layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class Int8Embedding(Int8Weight):
    """`nn.Embedding` with int8 rows."""

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype)
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim

    @classmethod
    def from_float(cls, embedding: nn.Embedding) -> "Int8Embedding":
        """The layer of the nearest int8 rows, on the same device (`meta` too).

        Raises:
            ValueError: a weight is not finite.
        """
        with torch.device("meta"):
            out = cls(embedding.num_embeddings, embedding.embedding_dim, embedding.weight.dtype)
        out.set_weights(*quantize_rows(embedding.weight))
        return out.train(embedding.training)

    def forward(self, ids: Tensor) -> Tensor:
        """Integers of any shape to their rows, in `dtype`."""
        return (self.weight[ids].float() * self.scale[ids][..., None]).to(self.dtype)

    def extra_repr(self) -> str:
        """As of the float layer."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


def to_int8(model: nn.Module, each: Callable[[str], None] | None = None) -> None:
    """Replaces every `nn.Linear` and `nn.Embedding` in `model` by its int8 layer and freezes the rest.

    A codec that speaks for the model stays float: it computes spectra, whose rounding one hears.

    One layer at a time, so that memory holds one matrix twice at most. A tied pair stays tied. On `meta`
    only the shapes change, which is what loading needs.

    Args:
        model: changed in place.
        each: called with the name of each layer before its turn.

    Raises:
        UserError: a layer belongs to somebody else, such as an adapter, or was changed by somebody, or a weight is not
            finite; names the layer, and nothing is changed.
    """
    # Of each float matrix, by identity, the first layer that was made from it: a tied one shares its tensors.
    # Nothing here may hold on to a float layer or its weight once it is replaced.
    made: dict[int, Int8Weight] = {}
    codecs = {id(part) for module in model.modules() if isinstance(module, FrozenCodec) for part in module.modules()}
    for path, module in model.named_modules():
        if module is not model and id(module) not in codecs and (reason := _why_float(module)) is not None:
            raise UserError(f"{path} cannot be quantised: {reason}")
    del module
    parents = [(path, m) for path, m in model.named_modules() if any(m.children()) and id(m) not in codecs]
    for path, parent in parents:
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear and type(child) is not nn.Embedding:
                continue
            full = f"{path}.{name}" if path else name
            if each is not None:
                each(full)
            kind = Int8Linear if type(child) is nn.Linear else Int8Embedding
            key = id(child.weight)
            if key in made:
                setattr(parent, name, _shared(kind, child, made[key]))
            else:
                made[key] = (
                    Int8Linear.from_float(child) if isinstance(child, nn.Linear) else Int8Embedding.from_float(child)
                )
                setattr(parent, name, made[key])
    model.requires_grad_(False)


def _why_float(module: nn.Module) -> str | None:
    """Why a module must keep its float weights; None where it has none, or they can be int8."""
    if not type(module).__module__.startswith(("torch.nn.modules.", "muomni.")):
        kind = f"{type(module).__module__}.{type(module).__name__}"
        return f"it is a {kind}: merge adapters first (PEFT: merge_and_unload()), or load the float model again"
    if type(module) is not nn.Linear and type(module) is not nn.Embedding:
        return None
    if (reason := redirected(module) or unusual_tensor(module)) is not None:
        return f"{reason}, which an int8 layer would not have"
    low, high = (0.0, 0.0) if module.weight.is_meta else torch.aminmax(module.weight.detach())
    return None if math.isfinite(low) and math.isfinite(high) else "a weight is infinite or not a number"


def _shared(kind: type[Int8Linear] | type[Int8Embedding], child: Any, first: Int8Weight) -> Int8Weight:
    rows, columns = first.weight.shape
    with torch.device("meta"):
        out = Int8Embedding(rows, columns, first.dtype) if kind is Int8Embedding else Int8Linear(columns, rows)
    out.dtype = first.dtype
    out.weight, out.scale = first.weight, first.scale
    if isinstance(out, Int8Linear) and child.bias is not None:
        out.bias = nn.Parameter(child.bias.detach(), requires_grad=False)
    return out.train(child.training)


def to_float(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Undoes `to_int8`: plain layers with the dequantised weights, four times as large; they can be trained.

    Args:
        model: changed in place.
        dtype: of the weights; None takes what the layers compute in.
    """
    made: dict[int, nn.Parameter] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if not isinstance(child, Int8Weight):
                continue
            key = child.weight.data_ptr()
            if key not in made:
                made[key] = nn.Parameter(child.dequantized(dtype or child.dtype))
            rows, columns = child.weight.shape
            with torch.device("meta"):
                plain: nn.Linear | nn.Embedding
                if isinstance(child, Int8Linear):
                    plain = nn.Linear(columns, rows, bias=child.bias is not None)
                    if child.bias is not None:
                        plain.bias = nn.Parameter(child.bias.detach().to(dtype or child.dtype))
                else:
                    plain = nn.Embedding(rows, columns)
            plain.weight = made[key]
            setattr(parent, name, plain.train(child.training))
    model.requires_grad_(True)


# What `weight_of` and the native decoder read: the float layers, and those that `to_int8` puts in their place.
WEIGHT_LAYERS = (nn.Embedding, nn.Linear, Int8Embedding, Int8Linear)


def is_quantized(model: nn.Module) -> bool:
    """Whether any layer has int8 weights."""
    return any(isinstance(module, Int8Weight) for module in model.modules())


def int8_layers(model: nn.Module) -> dict[str, Int8Weight]:
    """The layers with int8 weights by their names; those that share tensors are all there."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Weight)}


def num_scales(model: nn.Module) -> int:
    """Elements of the scales of int8 weights, shared ones once."""
    return sum({id(layer.scale): layer.scale.numel() for layer in int8_layers(model).values()}.values())


def weight_of(layer: nn.Module) -> Tensor:
    """The float weights of a layer: its own, detached, or int8 ones dequantised to fp32."""
    if isinstance(layer, Int8Weight):
        return layer.dequantized()
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def dtype_of(layer: nn.Module) -> torch.dtype:
    """What a layer gives for float inputs of its own type: its weights' type unless they are int8."""
    return layer.dtype if isinstance(layer, Int8Weight) else weight_of(layer).dtype


def tie(head: nn.Module, embedding: nn.Module) -> None:
    """Makes the weights of the head those of the embedding; nothing where just one of them is int8."""
    if isinstance(head, Int8Weight) and isinstance(embedding, Int8Weight):
        head.weight, head.scale = embedding.weight, embedding.scale
    elif isinstance(head, nn.Linear) and isinstance(embedding, nn.Embedding):
        head.weight = embedding.weight


def float_state(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's state with int8 weights dequantised to `dtype`, under the names of float layers."""
    state: dict[str, Tensor] = model.state_dict()
    for name, layer in int8_layers(model).items():
        if state.pop(f"{name}.scale", None) is not None:  # a tied head is not in the state
            state[f"{name}.weight"] = layer.dequantized(dtype)
    return state
