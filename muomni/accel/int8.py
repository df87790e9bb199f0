"""INT8: a model with int8 weights, and for each shape of its layers the kernel that is fastest here.

Weights take a quarter of fp32's memory; decoding, which is bound by reading them, gets faster by up to as much.
What it costs: the weights are rounded to 1/254 of each row's range. `ops.int8` says what the kernels do.

No kernel is the fastest on every shape and machine, so each is timed on the model's own weights with one row of
activations (decoding), 16 (a batch) and 128 (a prompt), against the float product. The result is kept in the
user's cache, by torch version, processor, driver or threads, and shape, so that this happens once.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.accel.measurements.hardware import signature
from muomni.accel.measurements.json_store import JsonStore
from muomni.errors import ConfigError, UserError
from muomni.model.int8_layers import Int8Linear, is_quantized, to_float, to_int8
from muomni.ops.int8 import KERNELS, Kernel, dequantize, int8_linear, why_not

ModuleT = TypeVar("ModuleT", bound=nn.Module)
METHODS = ("int8",)
TIMINGS = JsonStore("int8.json", "the int8 kernels")
KeepFloat = Literal["auto", "never"]
# Rows of activations that stand for decoding, a batch and a prompt; see `model.int8_layers.ROWS`.
_ROWS = (1, 16, 128)
# `fused` is for compiled steps, see `copy_for_compiling`.
_CANDIDATES: tuple[Kernel, ...] = tuple(kernel for kernel in KERNELS if kernel not in ("reference", "fused"))
_FLOAT = "float"
# Elements of weights that a timing goes round, so that they come from memory as in a model: of int8 ones, which
# are there anyway, and of float ones, which are made for it. And its seconds.
_ELEMENTS, _FLOAT_ELEMENTS = 1 << 25, 1 << 23
_SECONDS = 0.01
# Int8 loses where its best kernel takes this much longer than float: less may be noise.
_LOSES = 1.1


@dataclass(frozen=True)
class KernelChoice:
    """What was chosen for layers of one shape.

    Attributes:
        out_features, in_features: the shape.
        layers: how many there are.
        kernels: for 1, 16 and 128 rows.
        seconds: of one product with each of them.
        float_seconds: of the float product.
        float_bytes: of float copies of the weights that these layers compute with, since int8 is slower both for one
            row and for a prompt; 0 where they compute with the int8 weights.
    """

    out_features: int
    in_features: int
    layers: int
    kernels: tuple[Kernel, Kernel, Kernel]
    seconds: tuple[float, float, float]
    float_seconds: tuple[float, float, float]
    float_bytes: int = 0

    @property
    def loses(self) -> bool:
        """Whether float is faster beyond noise for decoding and for prompts."""
        return all(self.seconds[of] > _LOSES * self.float_seconds[of] for of in (0, 2))

    def __str__(self) -> str:
        parts = [
            f"{rows} rows {kernel} {old / new:.1f}×{' (slower than float)' if new > old else ''}"
            for rows, kernel, new, old in zip(_ROWS, self.kernels, self.seconds, self.float_seconds, strict=True)
        ]
        kept = f"; computes in float, copies of {self.float_bytes:,} bytes in memory" if self.float_bytes else ""
        return f"{self.out_features} × {self.in_features} ({self.layers} layers): {', '.join(parts)}{kept}"


@dataclass(frozen=True)
class QuantizationReport:
    """What quantising did.

    Attributes:
        method: `"int8"`.
        bytes_before, bytes_after: of parameters and buffers, tied ones once.
        choices: of the kernels, one for each shape.
    """

    method: str
    bytes_before: int
    bytes_after: int
    choices: tuple[KernelChoice, ...]

    @property
    def lines(self) -> list[str]:
        """In words, for the log."""
        ratio = self.bytes_after / max(1, self.bytes_before)
        size = f"{self.method}: {self.bytes_before:,} bytes became {self.bytes_after:,} ({ratio:.3f}×)"
        return [size, *(str(choice) for choice in self.choices)]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def quantize(
    model: nn.Module,
    method: str = "int8",
    each: Callable[[str], None] | None = None,
    *,
    keep_float: KeepFloat = "never",
) -> QuantizationReport:
    """Gives a model int8 weights, in place: every `nn.Linear`, the embedding and the head; norms stay as they are.

    Args:
        model: float weights, on any device; left in evaluation mode.
        method: `"int8"`.
        each: called with the name of each layer before its turn.
        keep_float: see `tune`.

    Raises:
        ConfigError: no such method, or `keep_float` is neither.
        UserError: the model is quantised already, or cannot be, see `to_int8`; then nothing is changed.
    """
    if method not in METHODS:
        raise ConfigError(f"quantize({method!r}): there is {', '.join(map(repr, METHODS))}")
    _check_keep_float(keep_float)
    if is_quantized(model):
        raise UserError("the model is quantised already")
    before = weight_bytes(model)
    to_int8(model, each)
    model.eval()
    return QuantizationReport(method, before, weight_bytes(model), tune(model, keep_float))


def use_kernel(model: nn.Module, kernel: Kernel) -> None:
    """Sets one kernel on every int8 layer for any number of rows, instead of the fastest of each.

    `cast` rounds no activations, and a compiled step fuses it with what is around it.

    Raises:
        ConfigError: no such kernel, or it cannot serve a layer's shape here; then nothing is changed.
    """
    if kernel not in KERNELS:
        raise ConfigError(f"int8 kernel {kernel!r}: there are {', '.join(KERNELS)}")
    layers = [module for module in model.modules() if isinstance(module, Int8Linear)]
    for layer in layers:
        reason = why_not(kernel, layer.weight.device, layer.out_features, layer.in_features)
        if reason is not None:
            raise ConfigError(f"int8 kernel {kernel!r}, {layer.out_features} × {layer.in_features}: {reason}")
    for layer in layers:
        layer.kernels = (kernel, kernel, kernel)


def copy_for_compiling(model: ModuleT) -> ModuleT:
    """A copy over the same tensors, whose int8 layers have the kernels that are best inside a compiled step.

    `fused` for few rows. For more a layer's own, but not `packed`: Inductor cannot lower it behind another operation
    (it fails on inputs that it has not put into memory).
    """
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    tensors += [m.float_copy for m in model.modules() if isinstance(m, Int8Linear) and m.float_copy is not None]
    copied = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for layer in copied.modules():
        if isinstance(layer, Int8Linear):
            shape = layer.out_features, layer.in_features
            other: Kernel = "cast" if why_not("dynamic", layer.weight.device, *shape) else "dynamic"
            batch, prompt = (other if kernel == "packed" else kernel for kernel in layer.kernels[1:])
            layer.kernels = "fused", batch, prompt
    return copied


def dequantize_model(model: nn.Module) -> None:
    """Undoes `quantize`, in place: float weights of the same values, which can be trained.

    Raises:
        UserError: the model is not quantised.
    """
    if not is_quantized(model):
        raise UserError("the model is not quantised")
    to_float(model)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, shared ones once."""
    tensors = {id(tensor): tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


@torch.no_grad()
def tune(model: nn.Module, keep_float: KeepFloat = "never") -> tuple[KernelChoice, ...]:
    """Sets the fastest kernel on every int8 layer, timing those that the cache does not know.

    Args:
        model: its int8 layers are set.
        keep_float: `auto` lets layers whose shape is faster in float, both for one row and for a prompt, compute with
            float copies of their weights. They are not saved, and cost four more bytes a weight in fp32. The native
            runner has kernels of its own and does not read them.

    Returns:
        One choice for each shape; none for a model on `meta`.

    Raises:
        ConfigError: `keep_float` is neither.
    """
    _check_keep_float(keep_float)
    groups: dict[tuple[int, int, torch.device, torch.dtype], list[Int8Linear]] = {}
    for module in model.modules():
        if isinstance(module, Int8Linear) and not module.weight.is_meta:
            shape = (module.out_features, module.in_features, module.weight.device, module.dtype)
            groups.setdefault(shape, []).append(module)
    known = TIMINGS.read() if groups else {}
    machines = {device: signature(device) for _, _, device, _ in groups}
    fresh: dict[str, Any] = {}
    choices = []
    for (N, K, device, dtype), layers in groups.items():
        key = f"{machines[device]} | {str(dtype)[6:]} {N} × {K}"
        times = known.get(key)
        if not _is_complete(times):
            times = fresh[key] = _measure([layer.weight for layer in layers], layers[0].scale, dtype)
        choice = _choose(N, K, len(layers), times)
        if keep_float == "auto" and choice.loses:
            choice = replace(choice, float_bytes=len(layers) * N * K * dtype.itemsize)
        for layer in layers:
            layer.kernels = choice.kernels
            layer.float_copy = layer.dequantized(layer.dtype) if choice.float_bytes else None
        choices.append(choice)
    if fresh:
        TIMINGS.add(fresh)
    return tuple(choices)


def _check_keep_float(value: str) -> None:
    if value not in get_args(KeepFloat):
        raise ConfigError(f"keep_float = {value!r}: there are {', '.join(get_args(KeepFloat))}")


def _choose(N: int, K: int, layers: int, times: Any) -> KernelChoice:
    kernels, seconds = [], []
    for rows in _ROWS:
        found: dict[Kernel, float] = {
            kernel: times[str(rows)][kernel] for kernel in _CANDIDATES if kernel in times[str(rows)]
        }
        best = min(found, key=lambda kernel: found[kernel])
        kernels.append(best)
        seconds.append(found[best])
    floats = [times[str(rows)][_FLOAT] for rows in _ROWS]
    return KernelChoice(N, K, layers, tuple(kernels), tuple(seconds), tuple(floats))  # type: ignore[arg-type]


def _measure(weights: list[Tensor], scale: Tensor, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Seconds of one product by rows and kernel, over weights of one shape that take turns."""
    N, K = weights[0].shape
    # The head of a large vocabulary is timed on its first rows; the times are those of all rows.
    cut = min(N, max(8, _FLOAT_ELEMENTS // K // 8 * 8))
    weights = [weight[:cut] for weight in weights[: max(1, _ELEMENTS // (cut * K))]]
    scale = scale[:cut]
    floats = [dequantize(weight, scale, dtype) for weight in weights[: max(1, _FLOAT_ELEMENTS // (cut * K))]]
    draw = torch.Generator().manual_seed(0)
    times: dict[str, dict[str, float]] = {}
    for rows in _ROWS:
        x = torch.randn(rows, K, generator=draw).to(scale.device, dtype)
        # More rows compute more for each weight that is read: fewer weights then do.
        few = weights[: max(1, len(weights) * 4 // (rows + 3))]
        steps: dict[str, list[Callable[[], Tensor]]] = {
            _FLOAT: [partial(F.linear, x, weight) for weight in floats[: len(few)]]
        }
        for kernel in _CANDIDATES:
            if why_not(kernel, scale.device, N, K) is None:
                steps[kernel] = [partial(int8_linear, x, weight, scale, kernel=kernel) for weight in few]
        times[str(rows)] = {name: _seconds(calls, scale.device) * N / cut for name, calls in steps.items()}
    return times


def _seconds(calls: list[Callable[[], Tensor]], device: torch.device) -> float:
    """The quickest of some rounds over `calls`, divided by their number; the quickest is the least disturbed."""
    calls[0]()
    best, start = float("inf"), time.perf_counter()
    rounds = 0
    while rounds < 2 or (rounds < 20 and time.perf_counter() - start < _SECONDS):
        _wait(device)
        began = time.perf_counter()
        for call in calls:
            call()
        _wait(device)
        best = min(best, (time.perf_counter() - began) / len(calls))
        rounds += 1
    return best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _is_complete(times: Any) -> bool:
    """Whether a cache entry has a time of float and of some kernel for all rows."""
    if not isinstance(times, dict) or set(times) != {str(rows) for rows in _ROWS}:
        return False
    return all(
        isinstance(of, dict) and _FLOAT in of and "cast" in of and all(isinstance(s, float) for s in of.values())
        for of in times.values()
    )
