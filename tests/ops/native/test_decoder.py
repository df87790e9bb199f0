"""The native decoder against a readable one: float, bf16 and int8 weights, any batch, any chunking."""

import os
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.ops.native import Decoder, DecoderWeights, LayerWeights, Library, Matrix, load
from muomni.ops.rms_norm import rms_norm
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

    D, width = shape.hidden, shape.intermediate
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {"q": (queries, D), "k": (keys, D), "v": (keys, D), "o": (D, queries)}
    sizes |= {"gate": (width, D), "up": (width, D), "down": (D, width)}
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
    """The whole of a sequence at once, in plain torch."""

    def __init__(
        self, weights: DecoderWeights, shape: Shape, cache: torch.dtype, *, int8: bool = False, bf16: bool = False
    ) -> None:
        self.weights, self.shape, self.dtype = weights, shape, cache
        self.int8, self.bf16 = int8, bf16  # activations as these where weights are

    def product(self, x: Tensor, matrix: Matrix | None) -> Tensor:
        assert matrix is not None
        if matrix.scale is not None and self.int8:
            x = round_activations(x)
        if matrix.data.dtype == torch.bfloat16 and self.bf16:
            x = x.bfloat16().float()
        return x @ dequantised(matrix).T

    def logits(self, tokens: Tensor) -> Tensor:
        """(T,) -> (T, V)"""
        w, Dh = self.weights, self.shape.head_dim
        assert w.embed is not None
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


@pytest.fixture(
    scope="module", params=[(), ("MUOMNI_NO_AVX512",), ("MUOMNI_PLAIN",)], ids=["native", "narrow", "plain"]
)
def library(request: pytest.FixtureRequest) -> Library:
    found = load(request.param)
    if not isinstance(found, Library):
        pytest.skip(found.reason)
    return found


def quantised(layer: LayerWeights) -> LayerWeights:
    parts: dict[str, Any] = {n: quantise(w.data) if isinstance(w, Matrix) else w for n, w in vars(layer).items()}
    return LayerWeights(**parts)


def make_decoder(
    library: Library, weights: DecoderWeights, shape: Shape, cache: torch.dtype = torch.float32, **options: Any
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
    halves = "bf16" in library.instructions
    expected = Reference(weights, shape, cache, int8=not floats, bf16=halves).logits(tokens)
    got = whole(decoder, tokens)
    # A value on the edge between two integers (or two bf16s) may fall to the other side.
    edges = cache == torch.bfloat16 or (kind == "int8" and not floats) or (kind == "bfloat16" and halves)
    assert (got - expected).norm() <= (5e-2 if edges else 1e-5) * expected.norm()


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_rounding_of_activations_is_as_described(library: Library, kind: str) -> None:
    """Cases where no value fell to the other side of an edge, which are most, agree to fp32's rounding."""
    errors = []
    for seed in range(9):
        shape = Shape(hidden=(64, 72, 130)[seed % 3], intermediate=(100, 64, 130)[seed // 3], layers=1)
        weights = make_weights(shape, kind, seed)
        tokens = draw_tokens(shape, 2, seed)
        reference = Reference(weights, shape, torch.float32, int8=True, bf16="bf16" in library.instructions)
        expected = reference.logits(tokens)
        errors.append((whole(make_decoder(library, weights, shape), tokens) - expected).norm() / expected.norm())
    assert torch.stack(errors).median() < 2e-6


@few
@given(shape=shapes, kind=kinds, cache=caches, seed=st.integers(0, 2**20))
def test_company_changes_no_bit(library: Library, shape: Shape, kind: str, cache: torch.dtype, seed: int) -> None:
    """Prompts of three slots, cut into chunks that are mixed with others and with single tokens, in any order."""
    choose = random.Random(seed)
    weights = make_weights(shape, kind, seed)
    lengths = [choose.randint(1, 25) for _ in range(shape.slots)]
    texts = [draw_tokens(shape, length, seed + slot) for slot, length in enumerate(lengths)]
    alone = make_decoder(library, weights, shape, cache, threads=1)
    expected = [
        torch.cat([alone.forward(t[None], torch.tensor([slot]), torch.tensor([p]), ZERO) for p, t in enumerate(text)])
        for slot, text in enumerate(texts)
    ]
    mixed = make_decoder(library, weights, shape, cache, threads=3)
    done = [0] * shape.slots
    while done != lengths:
        batch = []
        for slot in choose.sample(range(shape.slots), choose.randint(1, shape.slots)):
            count = choose.choice([1, 2, 25])
            batch += [(slot, p) for p in range(done[slot], min(done[slot] + count, lengths[slot]))]
            done[slot] = min(done[slot] + count, lengths[slot])
        if batch:
            tokens = torch.stack([texts[slot][p] for slot, p in batch])
            slots, positions = torch.tensor(batch).unbind(1)
            got = mixed.forward(tokens, slots, positions, torch.arange(len(batch)))
            assert torch.equal(got, torch.stack([expected[slot][p] for slot, p in batch]))


ZERO = torch.zeros(1, dtype=torch.int64)


@few
@given(shape=shapes, kind=kinds, threads=st.integers(1, 3), rows=st.integers(1, 3), steps=st.integers(1, 8))
def test_greedy_is_step_by_step(library: Library, shape: Shape, kind: str, threads: int, rows: int, steps: int) -> None:
    weights = make_weights(shape, kind)
    decoder = make_decoder(library, weights, shape, threads=threads)
    slots = torch.arange(rows).flip(0)
    first = torch.zeros(rows, dtype=torch.int64)
    tokens = draw_tokens(shape, rows, 1)
    got = decoder.greedy(tokens, slots, first, steps)
    assert got.shape == (rows, steps)
    other = make_decoder(library, weights, shape, threads=threads)
    for step in range(steps):
        tokens = other.forward(tokens, slots, first + step, torch.arange(rows)).argmax(-1)
        assert torch.equal(got[:, step], tokens)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_call_of_several_steps_ends_early(library: Library, threads: int) -> None:
    shape = Shape()
    decoder = make_decoder(library, make_weights(shape, "float32"), shape, threads=threads)
    tokens, slots, first = draw_tokens(shape, 2, 1), torch.arange(2), torch.zeros(2, dtype=torch.int64)
    stop = np.zeros(1, np.int64)
    whole = decoder.greedy(tokens, slots, first, 9, stop)
    assert whole.shape == (2, 9)
    stop[0] = 1
    assert torch.equal(decoder.greedy(tokens, slots, first, 9, stop), whole[:, :1])


@pytest.mark.parametrize("threads", [1, 4])
def test_int8_stays_near_float(library: Library, threads: int) -> None:
    """Rounding weights and activations to int8 moves logits by a few percent of their spread."""
    shape = Shape(hidden=256, intermediate=512)
    exact = make_weights(shape, "float32")
    rounded = DecoderWeights(
        **{
            **vars(exact),
            "embed": quantise(exact.embed.data),
            "head": quantise(exact.head.data),
            "layers": tuple(quantised(layer) for layer in exact.layers),
        }
    )
    tokens = draw_tokens(shape, 30, 0)
    expected = whole(make_decoder(library, exact, shape), tokens)
    got = whole(make_decoder(library, rounded, shape, threads=threads), tokens)
    relative = (got - expected).norm() / expected.norm()
    assert 1e-4 < relative < 0.05  # measured: 0.035


def test_only_the_last_logits(library: Library) -> None:
    shape = Shape()
    weights = make_weights(shape, "int8")
    tokens, positions = draw_tokens(shape, 12, 3), torch.arange(12)
    every = whole(make_decoder(library, weights, shape), tokens)
    decoder = make_decoder(library, weights, shape)
    for wanted in ([], [11], [0, 5, 11], [7, 3]):
        got = decoder.forward(tokens, torch.zeros(12, dtype=torch.int64), positions, torch.tensor(wanted).long())
        assert got.shape == (len(wanted), shape.vocab) and torch.equal(got, every[wanted])
    nothing = torch.zeros(0, dtype=torch.int64)
    assert decoder.forward(nothing, nothing, nothing, nothing).shape == (0, shape.vocab)


def test_equal_logits_lowest_id(library: Library) -> None:
    """Also when the equals lie in different threads' shares of the head, and when the best is the last row."""
    shape = Shape(vocab=131, tied=False)
    weights = make_weights(shape, "float32")
    for equals in ([3, 60, 130], [64, 65], [130]):
        head = torch.zeros(shape.vocab, shape.hidden)
        decoder = make_decoder(library, weights, shape, threads=3)
        direction = weights.final_norm  # has a positive product with some state, a negative one with others
        head[equals] = direction
        weights_now = DecoderWeights(**{**vars(weights), "head": Matrix(head)})
        decoder = make_decoder(library, weights_now, shape, threads=3)
        for token in range(8):
            logits = decoder.forward(torch.tensor([token]), ZERO, ZERO, ZERO)[0]
            top = (logits == logits.max()).nonzero()[0, 0]
            assert decoder.greedy(torch.tensor([token]), ZERO, ZERO, 1).item() == top


def test_bad_batches(library: Library) -> None:
    shape = Shape()
    decoder = make_decoder(library, make_weights(shape, "int8"), shape)

    def forward(token: int = 0, slot: int = 0, position: int = 0, wanted: int = 0) -> None:
        decoder.forward(*(torch.tensor([x]) for x in (token, slot, position, wanted)))

    forward()
    for value, error in [({"token": 131}, "vocabulary"), ({"token": -1}, "vocabulary"), ({"slot": 3}, "slot")]:
        with pytest.raises(ValueError, match=error):
            forward(**value)
    for value, error in [({"position": 40}, "position"), ({"wanted": 1}, "wanted"), ({"wanted": -1}, "wanted")]:
        with pytest.raises(ValueError, match=error):
            forward(**value)
    two = torch.tensor([1, 1])
    with pytest.raises(ValueError, match="twice"):
        decoder.greedy(two, two, two, 2)
    with pytest.raises(ValueError, match="position"):
        decoder.greedy(ZERO, ZERO, ZERO, 41)
    assert decoder.greedy(ZERO, ZERO, ZERO, 40).shape == (1, 40)
    with pytest.raises(ValueError, match="int64"):
        decoder.forward(ZERO.int(), ZERO, ZERO, ZERO)
    forward()


def test_bad_weights(library: Library) -> None:
    shape = Shape()
    weights = make_weights(shape, "float32")
    scattered = weights.embed.data.T.contiguous().T
    for embed in (Matrix(scattered), Matrix(weights.embed.data.to(torch.int8)), Matrix(torch.zeros(2, 96))):
        with pytest.raises(ValueError, match="embed|head"):
            make_decoder(library, DecoderWeights(**{**vars(weights), "embed": embed}), shape)
    with pytest.raises(ValueError, match="float16"):
        make_decoder(library, weights, shape, torch.float16)
    with pytest.raises(ValueError, match="threads"):
        make_decoder(library, weights, shape, threads=0)


def test_changed_weights_are_seen(library: Library) -> None:
    shape = Shape()
    weights = make_weights(shape, "float32")
    decoder = make_decoder(library, weights, shape)
    tokens = draw_tokens(shape, 5, 0)
    before = whole(decoder, tokens)
    weights.layers[1].down.data.mul_(2)
    after = whole(decoder, tokens)
    assert not torch.equal(before, after)
    assert torch.equal(after, whole(make_decoder(library, weights, shape), tokens))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_is_told(library: Library) -> None:
    shape = Shape()
    decoder = make_decoder(library, make_weights(shape, "float32"), shape)
    child = os.fork()
    if child == 0:
        try:
            decoder.forward(ZERO, ZERO, ZERO, ZERO)
        except RuntimeError as error:
            os._exit(0 if "forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    decoder.forward(ZERO, ZERO, ZERO, ZERO)
