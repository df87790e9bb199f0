"""The native decoder against a readable one: float, bf16 and int8 weights, any batch, any chunking."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.ops.native import Decoder, DecoderWeights, LayerWeights, Library, Matrix, load
from muomni.ops.native.decoder import _MATRICES
from muomni.ops.norm import rms_norm
from muomni.ops.rope import apply_rope, rope_tables

EPS = 1e-6


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, odd ones among them."""

    hidden: int = 96
    intermediate: int = 200
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 131
    tied: bool = True
    slots: int = 3
    capacity: int = 40


shapes = st.builds(
    Shape,
    hidden=st.sampled_from([32, 64, 72, 130, 192]),
    intermediate=st.sampled_from([24, 64, 100, 256]),
    layers=st.integers(1, 2),
    heads=st.sampled_from([2, 4, 6]),
    kv_heads=st.sampled_from([1, 2]),
    head_dim=st.sampled_from([16, 18, 24, 64, 128]),
    vocab=st.sampled_from([7, 64, 131]),
    tied=st.booleans(),
)
kinds = st.sampled_from(["float32", "bfloat16", "int8"])
caches = st.sampled_from([torch.float32, torch.bfloat16])
few = settings(max_examples=25)


def quantise(weight: Tensor) -> Matrix:
    scale = weight.abs().amax(1) / 127
    return Matrix((weight / scale[:, None]).round().to(torch.int8), scale)


def matrix(shape: tuple[int, int], kind: str, generator: torch.Generator) -> Matrix:
    weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
    if kind == "int8":
        return quantise(weight)
    return Matrix(weight.to(getattr(torch, kind)))


def make_weights(shape: Shape, kind: str, seed: int = 0) -> DecoderWeights:
    generator = torch.Generator().manual_seed(seed)

    def norm(width: int) -> Tensor:
        return 1 + 0.3 * torch.randn(width, generator=generator)

    D, I = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = dict(q=(queries, D), k=(keys, D), v=(keys, D), o=(D, queries), gate=(I, D), up=(I, D), down=(D, I))
    layers = tuple(
        LayerWeights(
            input_norm=norm(D),
            post_norm=norm(D),
            q_norm=norm(shape.head_dim),
            k_norm=norm(shape.head_dim),
            **{name: matrix(size, kind, generator) for name, size in sizes.items()},
        )
        for _ in range(shape.layers)
    )
    embed = matrix((shape.vocab, D), kind, generator)
    head = embed if shape.tied else matrix((shape.vocab, D), kind, generator)
    return DecoderWeights(embed, head, norm(D), layers, shape.heads, shape.kv_heads, shape.head_dim, EPS)


def dequantised(matrix: Matrix) -> Tensor:
    weight = matrix.data.float()
    return weight if matrix.scale is None else weight * matrix.scale[:, None]


def round_activations(x: Tensor) -> Tensor:
    """What int8 activations in groups of 64 stand for."""
    width = x.shape[-1]
    groups = F.pad(x, (0, -width % 64)).unflatten(-1, (-1, 64))
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, 127 / largest, 0.0)
    return ((groups * inverse).round() * (largest / 127)).flatten(-2)[..., :width]


class Reference:
    """One slot at a time, one sequence at a time, over its whole past. Holds each slot's tokens' keys and values."""

    def __init__(self, weights: DecoderWeights, shape: Shape, cache: torch.dtype, int8_activations: bool) -> None:
        self.weights, self.shape, self.dtype, self.int8_activations = weights, shape, cache, int8_activations

    def product(self, x: Tensor, matrix: Matrix) -> Tensor:
        if matrix.scale is not None and self.int8_activations:
            x = round_activations(x)
        return x @ dequantised(matrix).T

    def logits(self, tokens: Tensor) -> Tensor:
        """(T,) -> (T, V)"""
        w, Dh = self.weights, self.shape.head_dim
        x = dequantised(w.embed)[tokens]
        T = len(tokens)
        rotation = rope_tables(torch.arange(T)[None], Dh, 10_000.0, torch.float32)
        for layer in w.layers:
            h = rms_norm(x, layer.input_norm, EPS)
            q, k, v = (self.product(h, m).view(1, T, -1, Dh) for m in (layer.q, layer.k, layer.v))
            q, k = rms_norm(q, layer.q_norm, EPS), rms_norm(k, layer.k_norm, EPS)
            q, k = apply_rope(q, *rotation), apply_rope(k, *rotation)
            k, v = k.to(self.dtype).float(), v.to(self.dtype).float()
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
            )
            x = x + self.product(out.transpose(1, 2).reshape(T, -1), layer.o)
            h = rms_norm(x, layer.post_norm, EPS)
            x = x + self.product(F.silu(self.product(h, layer.gate)) * self.product(h, layer.up), layer.down)
        return self.product(rms_norm(x, w.final_norm, EPS), w.head)


Make = Callable[..., Decoder]


@pytest.fixture(scope="module", params=[(), ("MUOMNI_PLAIN",)], ids=["native", "plain"])
def library(request: pytest.FixtureRequest) -> Library:
    found = load(request.param)
    if not isinstance(found, Library):
        pytest.skip(found.reason)
    return found


def make_decoder(
    library: Library, weights: DecoderWeights, shape: Shape, cache: torch.dtype = torch.float32, **options: object
) -> Decoder:
    size = (shape.layers, shape.slots, shape.kv_heads, shape.capacity, shape.head_dim)
    keys, values = (torch.full(size, float("nan"), dtype=cache) for _ in range(2))
    cos, sin = rope_tables(torch.arange(shape.capacity)[None], shape.head_dim, 10_000.0, torch.float32)
    tables = (x.reshape(shape.capacity, -1).contiguous() for x in (cos, sin))
    return Decoder(library, weights, keys, values, *tables, **{"threads": 2, **options})


def whole(decoder: Decoder, tokens: Tensor, slot: int = 0) -> Tensor:
    positions = torch.arange(len(tokens))
    return decoder.forward(tokens, torch.full_like(tokens, slot), positions, positions)


def draw_tokens(shape: Shape, count: int, seed: int) -> Tensor:
    return torch.randint(shape.vocab, (count,), generator=torch.Generator().manual_seed(seed))


@few
@given(shape=shapes, kind=kinds, cache=caches, count=st.integers(1, 24), seed=st.integers(0, 9), floats=st.booleans())
def test_matches_reference(
    library: Library, shape: Shape, kind: str, cache: torch.dtype, count: int, seed: int, floats: bool
) -> None:
    weights = make_weights(shape, kind, seed)
    decoder = make_decoder(library, weights, shape, cache, int8_activations=not floats)
    tokens = draw_tokens(shape, count, seed)
    expected = Reference(weights, shape, cache, not floats).logits(tokens)
    got = whole(decoder, tokens)
    # A value on the edge between two integers (or two bf16s) may fall to the other side.
    edges = (kind == "int8" and not floats) or cache == torch.bfloat16
    assert (got - expected).abs().max() <= (2e-2 if edges else 2e-4) * max(1.0, expected.abs().max())
