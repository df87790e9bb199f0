"""The whole model with pictures and sounds: what it computes, what learns, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.errors import CheckpointError, UserError
from muomni.formats.pretrained import load_model, save_model
from muomni.model import Features, KVCache, OmniModel
from muomni.model.inputs import AudioBatch, ImageBatch, MediaBatch
from muomni.model.mrope import mrope_positions
from muomni.ops.attention import Segments
from muomni.ops.rope import rope_tables
from tests.model.media import AUDIO, IMAGE, make_clips, make_config, make_images, make_model

# Ten tokens, a picture of 2 × 3 tokens, a clip of 2 tokens, three tokens.
IDS = torch.tensor([[5, 6, *[IMAGE] * 6, 7, *[AUDIO] * 2, 8, 9, 10]])
GRID, FRAMES = (4, 6), (13,)
POSITIONS = torch.from_numpy(mrope_positions(14, [(2, 2, 3)]))[:, None]


def make_media(seed: int = 0) -> MediaBatch:
    return MediaBatch(make_images(GRID, seed=seed), make_clips(*FRAMES, seed=seed))


def embed_images(model: OmniModel, images: ImageBatch | None) -> torch.Tensor:
    found = model.encode_media(MediaBatch(images)).image
    assert found is not None
    return found


def embed_clips(model: OmniModel, clips: AudioBatch | None) -> torch.Tensor:
    found = model.encode_media(MediaBatch(clips=clips)).audio
    assert found is not None
    return found


def text(model: OmniModel, ids: torch.Tensor, **more: object) -> torch.Tensor:
    return model(ids, **more).logits


def test_positions_of_text_pictures_and_video():
    plain = mrope_positions(5, [])
    assert plain.tolist() == [[0, 1, 2, 3, 4]] * 3
    picture = mrope_positions(8, [(1, 2, 3)])
    assert picture.tolist() == [[0, 1, 1, 1, 1, 1, 1, 7], [0, 1, 1, 1, 2, 2, 2, 7], [0, 1, 2, 3, 1, 2, 3, 7]]
    video = mrope_positions(7, [], [[(1, 1, 2), (4, 1, 2)]])
    assert video.tolist() == [[0, 1, 1, 3, 2, 2, 6], [0, 1, 1, 3, 1, 1, 6], [0, 1, 2, 3, 1, 2, 6]]
    for place in ((3, 2, 2), (-1, 1, 1), (0, 0, 2)):
        with pytest.raises(ValueError, match="does not fit"):
            mrope_positions(6, [place])


@given(st.integers(1, 40), st.sampled_from([2, 8, 16, 64]), st.sampled_from([torch.float32, torch.float64]))
def test_equal_axes_are_bit_equal_to_one(length, size, dtype):
    positions = torch.arange(length)[None]
    three = rope_tables(positions.expand(3, 1, -1), size, 10_000.0, dtype)
    assert all(torch.equal(a, b) for a, b in zip(three, rope_tables(positions, size, 10_000.0, dtype), strict=True))


def test_the_axes_take_the_frequencies_in_turn():
    positions = torch.tensor([[[3]], [[5]], [[11]]])
    cos, _ = rope_tables(positions, 16, 10_000.0, torch.float64)
    each = [rope_tables(p, 16, 10_000.0, torch.float64)[0].flatten() for p in positions]
    assert cos.flatten().tolist() == [each[i % 3][i].item() for i in range(8)]


def test_text_is_bit_equal_with_and_without_encoders():
    plain, omni = (make_model(make_config(*both), dtype=torch.float32) for both in ((False, False), (True, True)))
    for (name, a), (other, b) in zip(plain.thinker.named_parameters(), omni.thinker.named_parameters(), strict=True):
        a.data.copy_(b.data)
        assert name == other
    ids = IDS.clone().clamp(min=5)
    wanted = text(plain, ids)
    assert torch.equal(text(omni, ids), wanted)
    assert torch.equal(text(omni, ids, positions=torch.arange(14).expand(3, 1, -1)), wanted)
    assert torch.equal(omni(ids, labels=ids).loss, plain(ids, labels=ids).loss)
    # The first weights do not depend on the encoders either.
    drawn = [OmniModel(make_config(both, both), torch.Generator().manual_seed(3)).thinker for both in (True, False)]
    assert torch.equal(*(thinker.get_parameter("layers.1.mlp.up_proj.weight") for thinker in drawn))


def test_a_picture_and_a_clip_change_what_comes_behind_them_and_nothing_before():
    model = make_model()
    before = text(model, IDS, positions=POSITIONS, media=make_media())
    other = MediaBatch(make_images(GRID, seed=5), make_media().clips)
    seen = text(model, IDS, positions=POSITIONS, media=other)
    assert torch.equal(seen[:, :2], before[:, :2]) and not (seen == before)[:, 2:].any()
    heard = text(model, IDS, positions=POSITIONS, media=MediaBatch(make_media().images, make_clips(*FRAMES, seed=5)))
    assert torch.equal(heard[:, :9], before[:, :9]) and not (heard == before)[:, 9:].any()


def test_the_model_written_out():
    """Embeddings, features in the place of placeholders, then the Thinker."""
    model: Any = make_model()
    media = make_media()
    x = model.thinker.embed_tokens(IDS).clone()
    x[0, 2:8] = model.vision_projector(model.vision(media.images))
    x[0, 9:11] = model.audio_projector(model.audio(media.clips))
    hidden = model.thinker(None, POSITIONS, inputs_embeds=x)
    found = model(IDS, positions=POSITIONS, media=media)
    torch.testing.assert_close(found.hidden, hidden, rtol=0, atol=0)
    features = Features(embed_images(model, media.images), embed_clips(model, media.clips))
    assert torch.equal(model(IDS, positions=POSITIONS, media=features).logits, found.logits)


@given(st.lists(st.sampled_from(["text", "image", "audio", "both"]), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_packed_documents_with_media_are_what_they_are_alone(kinds, seed):
    model = make_model()
    draw = torch.Generator().manual_seed(seed)
    ids, positions, grids, frames, alone = [], [], [], [], []
    for kind in kinds:
        rows, columns, length = (int(torch.randint(1, 4, (), generator=draw)) for _ in range(3))
        image = rows * columns if kind in ("image", "both") else 0
        audio = length if kind in ("audio", "both") else 0
        ids.append(torch.tensor([5, *[IMAGE] * image, 6, *[AUDIO] * audio, 7]))
        places = mrope_positions(len(ids[-1]), [(1, rows, columns)] if image else [])
        positions.append(torch.from_numpy(places))
        grids += [(2 * rows, 2 * columns)] if image else []
        frames += [8 * length - 3] if audio else []
    media = MediaBatch(
        make_images(*grids, seed=seed) if grids else None, make_clips(*frames, seed=seed) if frames else None
    )
    patch = frame = 0
    grid_of, frames_of = iter(grids), iter(frames)
    for kind, own, own_positions in zip(kinds, ids, positions, strict=True):
        picture: ImageBatch | None = None
        clip: AudioBatch | None = None
        if kind in ("image", "both"):
            grid = next(grid_of)
            assert media.images is not None
            picture = ImageBatch(media.images.patches[patch : patch + grid[0] * grid[1]], (grid,))
            patch += grid[0] * grid[1]
        if kind in ("audio", "both"):
            count = next(frames_of)
            assert media.clips is not None
            clip = AudioBatch(media.clips.mel[frame : frame + count], (count,))
            frame += count
        alone.append(model(own[None], positions=own_positions[:, None], media=MediaBatch(picture, clip)).logits)
    bounds = torch.tensor([0, *(len(own) for own in ids)]).cumsum(0).int()
    packed = model(
        torch.cat(ids)[None],
        positions=torch.cat(positions, 1)[:, None],
        segments=Segments(bounds, int(bounds.diff().max())),
        media=media,
    )
    torch.testing.assert_close(packed.logits, torch.cat(alone, 1), rtol=0, atol=1e-9)


def test_a_cache_holds_media_like_text():
    model, media = make_model(), make_media()
    wanted = text(model, IDS, positions=POSITIONS, media=media)
    features = Features(embed_images(model, media.images), embed_clips(model, media.clips))
    cache = KVCache(model.config.thinker, 1, 14, torch.float64)
    parts = []
    for begin, end in ((0, 4), (4, 12), (12, 14)):
        ids = IDS[:, begin:end]
        own = Features(
            features.image[:2] if begin == 0 else features.image[2:] if begin == 4 else None,
            features.audio if begin == 4 else None,
        )
        # Behind the pictures positions count on as in text.
        places = POSITIONS[..., begin:end] if begin < 12 else None
        parts.append(text(model, ids, positions=places, media=own, cache=cache))
    torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=0, atol=1e-10)


HEADS: dict[str, Any] = {"vision_": {"projection_dim": 8}, "audio_": {"ctc": True}}


@pytest.mark.parametrize("positions", [torch.arange(14)[None], None])
def test_pictures_need_positions_on_three_axes(positions):
    with pytest.raises(ValueError, match="three axes"):
        make_model()(IDS, labels=IDS, media=make_media(), positions=positions)


def test_placeholders_and_features_that_do_not_fit_are_an_error():
    model = make_model()
    for media in (MediaBatch(make_images((4, 4)), make_clips(13)), MediaBatch(make_images(GRID), make_clips(33))):
        with pytest.raises(ValueError, match="places"):
            model(IDS, positions=POSITIONS, media=media)
    lacking: list[MediaBatch | None] = [None, MediaBatch(make_images(GRID)), MediaBatch(clips=make_clips(13))]
    for some in lacking:
        with pytest.raises(ValueError, match="places"):
            model(IDS, positions=POSITIONS, media=some)
    deaf = make_model(make_config(audio=False))
    with pytest.raises(UserError, match="does not hear"):
        deaf(IDS, positions=POSITIONS, media=make_media())
    with pytest.raises(UserError, match="does not hear"):
        embed_clips(deaf, make_clips(13))
    with pytest.raises(UserError, match="no placeholder for audio"):
        deaf(IDS, positions=POSITIONS, media=Features(audio=torch.zeros(2, 64)))
    with pytest.raises(UserError, match="does not see"):
        embed_images(make_model(make_config(vision=False)), make_images(GRID))


def test_text_alone_on_a_model_that_sees_and_hears():
    model = make_model().train()
    ids = torch.tensor([[5, 6, 7, 8]])
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is None for p in model.vision.parameters())
    assert all(p.grad is not None for p in model.thinker.parameters())


@pytest.mark.parametrize("both", [(True, True), (True, False), (False, True)])
def test_a_folder_keeps_the_encoders(both, tmp_path: Path):
    model = make_model(make_config(*both, **HEADS), dtype=torch.float32)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    half = load_model(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    if both[0]:
        images = make_images(GRID)
        assert torch.equal(embed_images(loaded, images), embed_images(model, images))
        assert embed_images(half, images).dtype == torch.bfloat16
    if both[1]:
        clips = make_clips(13)
        assert torch.equal(embed_clips(loaded, clips), embed_clips(model, clips))
        assert embed_clips(half, clips).dtype == torch.bfloat16


def test_an_exported_qwen3_folder_is_the_thinker(tmp_path: Path):
    model = make_model(make_config(**HEADS), dtype=torch.float32)
    save_model(model, tmp_path, qwen3=True)
    loaded = load_model(tmp_path)
    assert loaded.vision is None and loaded.audio is None
    assert loaded.num_parameters() == model.num_parameters(model.thinker) < model.num_parameters()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(text(loaded, ids), text(model, ids))


def test_a_folder_without_the_encoders_it_names_is_refused(tmp_path: Path):
    save_model(make_model(make_config(audio=False), dtype=torch.float32), tmp_path)
    whole = (tmp_path / "config.json").read_text()
    save_model(make_model(make_config(False, False), dtype=torch.float32), tmp_path)
    (tmp_path / "config.json").write_text(whole)
    with pytest.raises(CheckpointError, match=r"vision\..* is missing"):
        load_model(tmp_path)
