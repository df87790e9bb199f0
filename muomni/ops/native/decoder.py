"""The native decoder as Python sees it: tensors in, tensors out.

Legend: N tokens of a flattened batch, M of them wanted, V vocabulary, D hidden_size, F intermediate_size,
L layers, H query heads, K key/value heads, Dh head_dim, S cache capacity.
"""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.ops.native.build import Library

_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_MEANING = {
    1: (ValueError, "a token id lies outside the vocabulary of {vocab}"),
    2: (ValueError, "a slot lies outside the cache's {slots}, or is given twice"),
    3: (ValueError, "a position lies outside the cache's {capacity}"),
    4: (ValueError, "a wanted index lies outside the batch"),
    5: (MemoryError, "no memory for the batch"),
    6: (RuntimeError, "the native decoder was made before this process was forked: make another one"),
}


class Matrix(NamedTuple):
    """(out, in) float32, bfloat16 or int8; int8 with a float32 (out,) scale: weight ≈ data · scale[:, None]."""

    data: Tensor
    scale: Tensor | None = None


@dataclass(frozen=True)
class LayerWeights:
    """One block. Norms are float32: (D,), (D,), (Dh,), (Dh,)."""

    input_norm: Tensor
    post_norm: Tensor
    q_norm: Tensor
    k_norm: Tensor
    q: Matrix
    k: Matrix
    v: Matrix
    o: Matrix
    gate: Matrix
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class DecoderWeights:
    """A whole Qwen3-style decoder; `head` may be `embed`, both (V, D), or both None: then only `hidden` computes."""

    embed: Matrix | None
    head: Matrix | None
    final_norm: Tensor
    layers: tuple[LayerWeights, ...]
    heads: int
    kv_heads: int
    head_dim: int
    eps: float


class _Weight(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("scale", ctypes.c_void_p), ("kind", ctypes.c_int64))


_NORMS = ("input_norm", "post_norm", "q_norm", "k_norm")
_MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class _Layer(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_void_p) for name in _NORMS), *((name, _Weight) for name in _MATRICES))


_SIZES = ("hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim", "vocab", "slots", "capacity")


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("cache_kind", ctypes.c_int64),
        ("int8_acts", ctypes.c_int64),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("final_norm", "cos", "sin")),
        ("embed", _Weight),
        ("head", _Weight),
        ("layer", ctypes.POINTER(_Layer)),
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
    )


class Decoder:
    """A decoder step in one native call. Reads weights and reads and writes the cache in place.

    Results for a token do not depend on which other tokens are in the batch, bit by bit. Calls from
    several threads wait for each other.

    Args:
        library: from `build.load`.
        weights: on the CPU, contiguous; changes of their values in place are seen.
        keys, values: (L, slots, K, S, Dh) float32 or bfloat16.
        cos, sin: (S, Dh / 2) float32, the rotation of each position.
        threads: that work on a call, the caller among them.
        int8_activations: int8 weights meet activations rounded to int8 in groups of 64 inputs; False
            computes with float activations, slower.

    Raises:
        ValueError: a tensor is not what is said above.
    """

    def __init__(
        self,
        library: Library,
        weights: DecoderWeights,
        keys: Tensor,
        values: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        threads: int,
        int8_activations: bool = True,
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads = {threads}: at least one is needed")
        self._functions = library.functions
        self._declare()
        self._alive: list[Tensor] = []  # the native side holds bare pointers
        self._vocab = 0 if weights.embed is None else len(weights.embed.data)
        self._hidden = hidden = len(weights.final_norm)
        self._slots, self._capacity = keys.shape[1], keys.shape[3]
        shape = (len(weights.layers), self._slots, weights.kv_heads, self._capacity, weights.head_dim)
        if keys.dtype not in (torch.float32, torch.bfloat16) or values.dtype != keys.dtype:
            raise ValueError(f"a cache of {keys.dtype} and {values.dtype}: it must be float32 or bfloat16")
        intermediate = weights.layers[0].gate.data.shape[0]
        layers = (_Layer * len(weights.layers))(*(self._layer(layer, weights) for layer in weights.layers))
        angles = (self._capacity, weights.head_dim // 2)
        model = _Model(
            hidden=hidden,
            intermediate=intermediate,
            layers=len(weights.layers),
            heads=weights.heads,
            kv_heads=weights.kv_heads,
            head_dim=weights.head_dim,
            vocab=self._vocab,
            slots=self._slots,
            capacity=self._capacity,
            cache_kind=_KINDS[keys.dtype],
            int8_acts=int8_activations,
            eps=weights.eps,
            final_norm=self._pointer("final_norm", weights.final_norm, (hidden,)),
            cos=self._pointer("cos", cos, angles),
            sin=self._pointer("sin", sin, angles),
            embed=self._table("embed", weights.embed),
            head=self._table("head", weights.head),
            layer=layers,
            keys=self._pointer("keys", keys, shape, keys.dtype),
            values=self._pointer("values", values, shape, keys.dtype),
        )
        # Asks the system (Linux) to move the weights onto huge pages, which read faster.
        for data in {id(m.data): m.data for m in _matrices(weights)}.values():
            self._functions.muomni_huge_pages(data.data_ptr(), data.nbytes)
        self._handle = self._functions.muomni_create(ctypes.byref(model), threads)
        if not self._handle:
            raise MemoryError(f"no memory, or no {threads} threads, for the native decoder")

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """Stores the keys and values of N tokens and computes the logits of M of them.

        Args:
            tokens: (N,) int64.
            slots: (N,) int64, where each token belongs.
            positions: (N,) int64. A token attends to positions 0 up to its own in its slot.
            wanted: (M,) int64 indices into the batch.

        Returns:
            (M, V) float32.

        Raises:
            ValueError: an id, slot, position or index is out of range.
        """
        tokens, slots, positions = self._batch(tokens, slots, positions)
        wanted = wanted.contiguous()
        logits = torch.empty(len(wanted), self._vocab)
        status = self._functions.muomni_forward(
            self._handle,
            len(tokens),
            tokens.data_ptr(),
            slots.data_ptr(),
            positions.data_ptr(),
            len(wanted),
            wanted.data_ptr(),
            logits.data_ptr(),
        )
        self._check(status)
        return logits

    def greedy(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int, stop: NDArray[np.int64] | None = None
    ) -> Tensor:
        """Decodes `steps` tokens for each of N rows, each in a slot of its own, with the most likely token.

        Args:
            tokens: (N,) int64, the last known token of each row.
            slots: (N,) int64, where it belongs.
            positions: (N,) int64.
            steps: tokens of each row.
            stop: (1,) which other threads may change: the call ends after the step in which it is not 0.

        Returns:
            (N, steps) int64, fewer after `stop`, at least one. Of equal logits the lowest id wins; -1 where one is NaN
            or the largest infinite.

        Raises:
            ValueError: an id, slot or position is out of range, also of the positions to come.
        """
        tokens, slots, positions = self._batch(tokens, slots, positions)
        out, done = torch.empty(len(tokens), steps, dtype=torch.int64), ctypes.c_int64(0)
        status = self._functions.muomni_greedy(
            self._handle,
            len(tokens),
            tokens.data_ptr(),
            slots.data_ptr(),
            positions.data_ptr(),
            steps,
            None if stop is None else stop.ctypes.data,
            out.data_ptr(),
            ctypes.byref(done),
        )
        self._check(status)
        return out[:, : done.value]

    def hidden(self, inputs: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """Stores the keys and values of N inputs in the place of token embeddings.

        Args:
            inputs: (N, D) float32.
            slots: (N,) int64.
            positions: (N,) int64. An input attends to positions 0 up to its own in its slot.

        Returns:
            (N, D) float32 hidden states after the final norm.

        Raises:
            ValueError: a slot or position is out of range, or `inputs` has another shape or dtype.
        """
        _, slots, positions = self._batch(slots, slots, positions)
        if inputs.shape != (len(slots), self._hidden) or inputs.dtype != torch.float32:
            raise ValueError(
                f"inputs are ({len(slots)}, {self._hidden}) float32, not {tuple(inputs.shape)} {inputs.dtype}"
            )
        inputs, out = inputs.contiguous(), torch.empty(len(slots), self._hidden)
        status = self._functions.muomni_hidden(
            self._handle,
            len(slots),
            inputs.data_ptr(),
            slots.data_ptr(),
            positions.data_ptr(),
            out.data_ptr(),
        )
        self._check(status)
        return out

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._functions.muomni_destroy(self._handle)
            self._handle = None

    def _batch(self, tokens: Tensor, slots: Tensor, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        given = (tokens, slots, positions)
        if any(x.dtype != torch.int64 or x.ndim != 1 or len(x) != len(tokens) for x in given):
            raise ValueError(f"a batch is (N,) int64 thrice, not {[(x.dtype, tuple(x.shape)) for x in given]}")
        return tokens.contiguous(), slots.contiguous(), positions.contiguous()

    def _check(self, status: int) -> None:
        if status:
            kind, text = _MEANING[status]
            raise kind(text.format(vocab=self._vocab, slots=self._slots, capacity=self._capacity))

    def _layer(self, layer: LayerWeights, weights: DecoderWeights) -> _Layer:
        hidden, intermediate = self._hidden, weights.layers[0].gate.data.shape[0]
        queries, keys = weights.heads * weights.head_dim, weights.kv_heads * weights.head_dim
        shapes = {
            "q": (queries, hidden),
            "k": (keys, hidden),
            "v": (keys, hidden),
            "o": (hidden, queries),
            "gate": (intermediate, hidden),
            "up": (intermediate, hidden),
            "down": (hidden, intermediate),
        }
        widths = {"input_norm": hidden, "post_norm": hidden, "q_norm": weights.head_dim, "k_norm": weights.head_dim}
        norms = {name: self._pointer(name, getattr(layer, name), (width,)) for name, width in widths.items()}
        return _Layer(**norms, **{name: self._matrix(name, getattr(layer, name), s) for name, s in shapes.items()})

    def _table(self, name: str, matrix: Matrix | None) -> _Weight:
        """The embedding or the head, where there is one."""
        return _Weight() if matrix is None else self._matrix(name, matrix, (self._vocab, self._hidden))

    def _matrix(self, name: str, matrix: Matrix, shape: tuple[int, ...]) -> _Weight:
        data, scale = matrix
        if data.dtype not in _KINDS or (data.dtype == torch.int8) != (scale is not None):
            raise ValueError(f"{name}: {data.dtype} weights {'without' if scale is None else 'with'} a scale")
        pointer = None if scale is None else self._pointer(f"{name}.scale", scale, shape[:1])
        return _Weight(self._pointer(name, data, shape, data.dtype), pointer, _KINDS[data.dtype])

    def _pointer(self, name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> int:
        if tuple(x.shape) != shape or x.dtype != dtype or x.device.type != "cpu" or not x.is_contiguous():
            raise ValueError(
                f"{name} is {tuple(x.shape)} {x.dtype} on {x.device}{'' if x.is_contiguous() else ', not contiguous'}; "
                f"{shape} {dtype} on the CPU is needed"
            )
        self._alive.append(x.detach())
        return x.data_ptr()

    def _declare(self) -> None:
        pointer, number, functions = ctypes.c_void_p, ctypes.c_int64, self._functions
        functions.muomni_huge_pages.argtypes = [pointer, number]
        functions.muomni_huge_pages.restype = None
        functions.muomni_create.argtypes = [ctypes.POINTER(_Model), number]
        functions.muomni_create.restype = pointer
        functions.muomni_destroy.argtypes = [pointer]
        functions.muomni_destroy.restype = None
        functions.muomni_forward.argtypes = [pointer, number, pointer, pointer, pointer, number, pointer, pointer]
        functions.muomni_forward.restype = number
        functions.muomni_greedy.argtypes = [
            pointer,
            number,
            pointer,
            pointer,
            pointer,
            number,
            pointer,
            pointer,
            pointer,
        ]
        functions.muomni_greedy.restype = number
        functions.muomni_hidden.argtypes = [pointer, number, pointer, pointer, pointer, pointer]
        functions.muomni_hidden.restype = number


def _matrices(weights: DecoderWeights) -> Iterator[Matrix]:
    yield from (table for table in (weights.embed, weights.head) if table is not None)
    for layer in weights.layers:
        yield from (getattr(layer, name) for name in _MATRICES)
