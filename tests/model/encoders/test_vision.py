"""The vision encoder: any number of pictures of any shape, each as if it were alone."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.config import PRESET_NAMES, VisionConfig, encoder_configs, preset
from muomni.errors import ConfigError
from muomni.model import OmniModel
from muomni.model.encoders.vision import VisionEncoder, lay_out
from muomni.model.inputs import ImageBatch, filled, row_length
from muomni.ops.attention import attention_reference
from muomni.ops.rope import apply_rope, rope_tables
from tests.model.media import make_images

CONFIG = encoder_configs("nano")[0]


def make_encoder(dtype: torch.dtype = torch.float64, **changes: object) -> VisionEncoder:
    encoder = VisionEncoder(CONFIG.replace(**changes)).to(dtype).eval()
    encoder.init_weights(torch.Generator().manual_seed(0))
    for parameter in encoder.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.linspace(-0.2, 0.3, len(parameter), dtype=dtype)
    return encoder


def split(images: ImageBatch) -> list[ImageBatch]:
    sizes = [rows * columns for rows, columns in images.grids]
    return [ImageBatch(x, (grid,)) for x, grid in zip(images.patches.split(sizes), images.grids, strict=True)]


@given(
    halves=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_pictures_together_are_what_they_are_alone(halves, seed):
    encoder = make_encoder()
    images = make_images(*((2 * rows, 2 * columns) for rows, columns in halves), seed=seed)
    together = encoder(images)
    alone = torch.cat([encoder(image) for image in split(images)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    assert together.shape == (sum(encoder.counts(images)), CONFIG.output_size)

    upstream = torch.randn(together.shape, generator=torch.Generator().manual_seed(1), dtype=together.dtype)
    weights = list(encoder.parameters())
    both = [torch.autograd.grad(out, weights, upstream) for out in (together, alone)]
    for found, wanted in zip(*both, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_the_encoder_written_out():
    """Patch by patch: embedding, positions of row and column, blocks that see all, m × m patches as one token."""
    encoder, grid = make_encoder(), (4, 6)
    images = make_images(grid)
    x = encoder.patch_embed(images.patches.double())[None]
    places = torch.tensor([[r, c] for r in range(grid[0]) for c in range(grid[1])])
    exponents = torch.arange(0, CONFIG.head_dim, 2, dtype=torch.float64) / CONFIG.head_dim
    angles = places.double()[:, [0, 1] * (CONFIG.head_dim // 4)] * CONFIG.rope_theta**-exponents
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    for block in encoder.layers:
        attn, y = block.self_attn, block.input_layernorm(x)
        q, k, v = (p(y).view(1, 24, CONFIG.num_attention_heads, -1) for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k = apply_rope(attn.q_norm(q), cos, sin), apply_rope(attn.k_norm(k), cos, sin)
        x = x + attn.o_proj(attention_reference(q, k, v, causal=False).flatten(2))
        x = x + block.mlp(block.post_attention_layernorm(x))
    x = encoder.norm(x[0]).view(2, 2, 3, 2, -1)
    tokens = [torch.cat([x[r, dr, c, dc] for dr in (0, 1) for dc in (0, 1)]) for r in range(2) for c in range(3)]
    torch.testing.assert_close(encoder(images), torch.stack(tokens), rtol=0, atol=1e-12)


def test_where_a_patch_is_changes_what_it_says():
    encoder = make_encoder()
    patches = make_images((1, 1)).patches.expand(16, -1)
    patches = torch.cat((patches, patches * 0.5))
    across, down = encoder(ImageBatch(patches, ((4, 8),))), encoder(ImageBatch(patches, ((8, 4),)))
    assert not torch.allclose(across, down)


def test_patches_by_token():
    row = lay_out([(2, 4), (4, 2)], 2)
    assert row.order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, *range(8, 16)]
    assert row.positions[:, :8].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3] * 2]
    assert row.segments.cu_seqlens[:5].tolist() == [0, 8, 16, 64, 64], "what fills the row is a document of its own"
    assert row.segments.max_seqlen >= 8


@pytest.mark.parametrize("pixel_shuffle_factor", [1, 2, 3])
def test_pixel_shuffle_factor_sets_how_many_patches_are_a_token(pixel_shuffle_factor):
    encoder = make_encoder(pixel_shuffle_factor=pixel_shuffle_factor)
    out = encoder(make_images((6, 12)))
    assert out.shape == (72 // pixel_shuffle_factor**2, 32 * pixel_shuffle_factor**2)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (ImageBatch(torch.zeros(15, 192), ((4, 4),)), "need"),
        (ImageBatch(torch.zeros(16, 191), ((4, 4),)), "need"),
        (ImageBatch(torch.zeros(0, 192), ()), "need"),
        (ImageBatch(torch.zeros(12, 192), ((4, 3),)), "multiples of 2"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        make_encoder(torch.float32)(images)


def test_autocast_keeps_the_residual_stream_in_full_precision():
    encoder = make_encoder(torch.float32)
    images = make_images((4, 6), (2, 2))
    seen: list[torch.dtype] = []
    for block in encoder.layers:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        low = encoder(images)
    assert set(seen) == {torch.float32}
    torch.testing.assert_close(low.float(), encoder(images), rtol=0.1, atol=0.1)


def test_two_axes_deal_the_frequencies_in_turn():
    positions = torch.tensor([[[3, 0]], [[0, 5]]])
    cos, sin = rope_tables(positions, 8, 100.0, torch.float64)
    rows, columns = (rope_tables(p, 8, 100.0, torch.float64) for p in positions)
    assert torch.equal(cos[..., 0::2], rows[0][..., 0::2]) and torch.equal(cos[..., 1::2], columns[0][..., 1::2])
    assert torch.equal(sin[..., 0::2], rows[1][..., 0::2]) and torch.equal(sin[..., 1::2], columns[1][..., 1::2])


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_every_preset_has_encoders(name):
    vision, audio = encoder_configs(name)
    config = preset(name).with_encoders(vision, audio, 5, 6)
    with torch.device("meta"):
        model = OmniModel(config)
    assert model.vision is not None and model.audio is not None
    sizes = [sum(p.numel() for p in encoder.parameters()) for encoder in (model.vision, model.audio)]
    if name == "tiny":
        assert all(2_500_000 <= size <= 4_000_000 for size in sizes), sizes
    assert sum(sizes) < sum(p.numel() for p in model.thinker.parameters()) * 1.2


def test_sizes_that_do_not_fit_are_refused():
    sizes: dict[str, Any] = {"intermediate_size": 8, "num_hidden_layers": 1}
    refused: list[dict[str, Any]] = [
        {"hidden_size": 10, "num_attention_heads": 3},
        {"hidden_size": 12, "num_attention_heads": 2},
        {"hidden_size": 8, "num_attention_heads": 2, "min_tokens": 65},
    ]
    for changes in refused:
        with pytest.raises(ValueError, match=r"must (be|make)"):
            VisionConfig(**sizes, **changes)
    with pytest.raises(ConfigError, match="no preset"):
        encoder_configs("huge")  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30))
def test_rows_have_few_lengths(sizes):
    bounds = [0, *itertools.accumulate(sizes)]
    ends = filled(bounds)
    assert ends[: len(bounds)] == bounds, "the documents stay"
    assert all(0 < after - before <= 64 for before, after in itertools.pairwise(ends[len(sizes) :]))
    assert ends[-1] == row_length(bounds[-1]) <= max(64, bounds[-1] * 9 / 8 + 64)


def test_lengths_are_eight_an_octave():
    assert len({row_length(used) for used in range(8193, 16385)}) == 8
    assert row_length(64) == 64 and row_length(65) == 128
