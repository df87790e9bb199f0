"""The count of operations is torch's own count of what the model computes, in both directions."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from muomni.accel import attention_backend
from muomni.config import SiglipConfig, WhisperConfig
from muomni.model import OmniModel
from muomni.model.flops import Flops, audio_flops, contrastive_flops, ctc_flops, model_flops, thinker_flops
from muomni.model.inputs import Captions, MediaBatch, Transcripts
from muomni.ops.attention import Segments
from tests.model.media import make_clips, make_config, make_images, make_model
from tests.training.objectives.batches import losses_of, make_batch

NAMES = ("thinker", "vision", "vision_projector", "audio", "audio_projector")


def attend(q: Tensor, k: Tensor, v: Tensor, segments: Segments | None = None, /, *, causal: bool = True) -> Tensor:
    """Attention that computes the scores that are needed and no others, in products that torch's counter knows."""
    B, T, H, D = q.shape
    q, k, v = (x.repeat_interleave(H // x.shape[2], 2).transpose(1, 2).flatten(0, 1) for x in (q, k, v))
    lengths = [T] if segments is None else [n for n in segments.lengths if n]
    rows, done = [], 0
    for length in lengths:
        for here in range(done, done + length) if causal else [slice(done, done + length)]:
            seen = slice(done, here + 1) if causal else here
            query = q[:, here : here + 1] if causal else q[:, here]
            rows.append(torch.bmm(torch.bmm(query, k[:, seen].mT).softmax(-1), v[:, seen]))
        done += length
    return torch.cat(rows, 1).view(B, H, T, D).transpose(1, 2)


def counted(model: OmniModel, lengths: list[int], media: MediaBatch | None, losses: tuple[str, ...]) -> tuple[int, int]:
    """Torch's count of the loss and of its backward pass, of one row of documents."""
    attention_backend.apply(model, attention_backend.AttentionChoice("reference", "", attend))
    model.to(torch.float32).train()
    counts = [0, 0]
    for n, (encoder, inputs) in enumerate(((model.vision, "images"), (model.audio, "clips"))):
        if media is not None and getattr(media, inputs) is not None:
            counts[n] = sum(encoder.counts(getattr(media, inputs)))
    ids = torch.full((1, sum(lengths)), 9)
    ids[0, : sum(counts)] = torch.tensor([3] * counts[0] + [4] * counts[1])
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    # The loss takes its gradients in the forward pass, and in bf16 by products that torch's counter knows.
    with torch.autocast("cpu", torch.bfloat16):
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(ids, positions=positions, segments=Segments(bounds, max(lengths)), media=media)
        with FlopCounterMode(display=False) as training:
            batch = make_batch(ids, None, positions, Segments(bounds, max(lengths)), media)
            losses_of(model, batch, dict.fromkeys(losses, 1.0)).total.backward()
    return forward.get_total_flops(), training.get_total_flops()


def total(parts: dict[str, Flops]) -> Flops:
    return sum(parts.values(), Flops())


lengths_of = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@settings(max_examples=5, deadline=None)
@given(lengths_of)
def test_text(lengths):
    model = make_model(make_config(vision=False, audio=False))
    found = model_flops(model.config, lengths)
    assert list(found) == ["thinker"]
    assert (found["thinker"].forward, found["thinker"].training) == counted(model, lengths, None, ())


@settings(max_examples=5, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3),
    st.lists(st.integers(1, 70), min_size=1, max_size=3),
)
def test_pictures_and_clips(grids, frames):
    config = make_config(audio_={"chunk_tokens": 4})
    model = make_model(config)
    media = MediaBatch(make_images(*((2 * r, 2 * c) for r, c in grids)), make_clips(*frames))
    lengths = [sum(r * c for r, c in grids), sum(-(-n // 8) for n in frames), 5]
    found = model_flops(config, lengths, media)
    assert tuple(found) == NAMES
    assert (total(found).forward, total(found).training) == counted(model, lengths, media, ())


def test_heads():
    config = make_config(vision_={"projection_dim": 6}, audio_={"ctc": True})
    model = make_model(config)
    captions = Captions(torch.tensor([9, 8, 7]), (1, 2), (0, 2), torch.arange(2))
    transcripts = Transcripts.of([(1, b"ab"), (0, b"c")])
    media = MediaBatch(make_images((2, 2), (4, 2), (2, 4)), make_clips(30, 90, 200), transcripts, captions)
    lengths = [5, 41, 6]
    losses = ("ctc", "contrastive")
    with_heads, without = total(model_flops(config, lengths, media, losses)), total(model_flops(config, lengths, media))
    _, training = counted(model, lengths, media, losses)
    _, plain = counted(model, lengths, media, ())
    assert with_heads.training == training and without.training == plain
    assert with_heads.forward - without.forward == (
        ctc_flops(32, [12, 4]).forward + contrastive_flops(128, 64, 6, 3, 2).forward
    )


def test_published_encoders():
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = make_config().with_encoders(
        SiglipConfig(kind="siglip", patch_size=8, grid=4, **sizes), WhisperConfig(kind="whisper", **sizes), 3, 4
    )
    model = make_model(config)
    media = MediaBatch(make_images((4, 4), (2, 6)), make_clips(20, 3100))
    lengths = [7 + 3 + 388, 2]
    found = total(model_flops(config, lengths, media))
    assert (found.forward, found.training) == counted(model, lengths, media, ())
    # Windows of 30 s are whole, whatever is in them.
    assert config.audio is not None
    assert audio_flops(config.audio, (1,)) == audio_flops(config.audio, (3000,))


def test_parts_that_are_missing():
    blind = make_config(vision=False)
    with pytest.raises(ValueError, match="no vision encoder"):
        model_flops(blind, [4], MediaBatch(make_images((2, 2))))
    with pytest.raises(ValueError, match="no audio encoder"):
        model_flops(make_config(audio=False), [1], MediaBatch(clips=make_clips(8)))
    transcripts = Transcripts.of([(0, b"a")])
    with pytest.raises(ValueError, match="no head"):
        model_flops(blind, [1], MediaBatch(clips=make_clips(8), transcripts=transcripts), ("ctc",))


def test_a_long_document_costs_more_than_two_short_ones():
    config = make_config().thinker
    long, short = thinker_flops(config, [64]), thinker_flops(config, [32, 32])
    assert long.weights == short.weights and 1.9 < long.attention / short.attention < 2
