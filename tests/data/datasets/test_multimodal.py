"""Rows with pictures and sounds: whole documents, each once an epoch, the same whoever asks and whenever.

Long because one folder of pictures and sounds, indexed once, serves all of these tests.
"""

import io
import itertools
import json
import random
import tracemalloc
import wave
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from muomni.config import DataSpec, OmniConfig, SourceSpec, encoder_configs, preset
from muomni.config.recipe_data import AudioAugmentSpec, AugmentSpec, ImageAugmentSpec
from muomni.data import MultimodalDataset, PrefetchLoader, TokenIndex, Tokenizer, build_index, prepare_rows
from muomni.data.datasets import multimodal
from muomni.data.datasets.batch import Batch, Row
from muomni.data.datasets.multimodal import first_fit
from muomni.data.media.audio import load_audio
from muomni.data.media.image import load_image, to_patches, token_grid
from muomni.data.media.processor import MediaProcessor
from muomni.data.text.chat import encode_chat, expand
from muomni.errors import ConfigError, DataError
from muomni.model.mrope import mrope_positions
from muomni.ops.cross_entropy import IGNORE
from tests.data.helpers import STORIES, chat, write_jsonl

ALL = ("image", "audio")
T = 160


def png(width: int, height: int, value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (value % 256, 255 - value % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def wav(samples: int, seed: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        values = np.random.default_rng(seed).integers(-9000, 9000, samples)
        file.writeframes(values.astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> OmniConfig:
    vision, audio = encoder_configs("nano")
    base = preset("nano")
    base = base.replace(thinker=base.thinker.replace(vocab_size=512))
    return base.with_encoders(vision, audio, tokenizer.id_of("<|image|>"), tokenizer.id_of("<|audio|>"))


def write_data(folder: Path, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of a manifest with pictures in files and in a zip, sounds, several of each, videos and plain chats."""
    draw = random.Random(seed)
    rows = []
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        for n in range(count):
            parts: list[dict[str, Any]] = [{"type": "text", "text": f"number {n}: "}]
            kind = n % 6
            if kind in (0, 4):
                archive.writestr(f"{n}.png", png(draw.randint(5, 90), draw.randint(5, 90), n))
                parts.append({"type": "image", "image": f"{n}.png", "archive": "x.zip", "caption": f"thing {n % 12}"})
            if kind in (1, 4):
                (folder / f"{n}.wav").write_bytes(wav(draw.randint(10, 20_000), n))
                parts.append({"type": "audio", "audio": f"{n}.wav", "transcript": f"said {n}é"})
            if kind == 2:
                for frame in range(2):
                    (folder / f"{n}-{frame}.png").write_bytes(png(40, 30, n + frame))
                parts.append({"type": "video", "video": [f"{n}-{frame}.png" for frame in range(2)]})
            content: Any = parts if len(parts) > 1 else "word " * draw.randint(1, 30) + f"{n}"
            rows.append(
                {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": f"a {n}."}]}
            )
    write_jsonl(folder / "m.jsonl", rows)
    return rows


@pytest.fixture(scope="session")
def folder_of_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_data(folder, 60)
    return folder


@pytest.fixture(scope="session")
def index(folder_of_data: Path, tokenizer: Tokenizer, config: OmniConfig) -> TokenIndex:
    source = SourceSpec(path=str(folder_of_data / "m.jsonl"))
    return build_index([source], tokenizer, config, folder_of_data / "cache", progress=False)


def naive(row: dict[str, Any], folder: Path, tokenizer: Tokenizer, config: OmniConfig) -> dict[str, Any]:
    """A document as a row should hold it, built the simplest way."""
    assert config.vision is not None
    encoded = encode_chat(tokenizer, row["messages"], inputs=ALL)
    counts, grids, values = [], [], []
    for part in encoded.media:
        path = Path(part.source.path)
        if part.source.member is not None:
            content = zipfile.ZipFile(folder / path).read(part.source.member)
        else:
            content = (folder / path).read_bytes()
        if part.kind == "image":
            grid = token_grid(load_image(content).size, config.vision)
            counts.append(grid[0] * grid[1])
            values.append(to_patches(load_image(content), config.vision)[0])
        else:
            mel = MediaProcessor(None, config.audio).mel(load_audio(content)).values
            grid = (0, 0)
            counts.append(-(-len(mel) // 8))
            values.append(mel)
        grids.append(grid)
    wide = expand(encoded, counts)
    ids = np.array([*wide.ids, tokenizer.eos_id])
    labels = np.where([*wide.answer_mask, False], ids, IGNORE)
    videos: list[Any] = []
    for part, place, grid in zip(encoded.media, wide.places, grids, strict=True):
        if part.kind == "image":
            videos = [*videos[:-1], [*videos[-1], (place, *grid)]] if part.frame else [*videos, [(place, *grid)]]
    kinds = [part.kind for part in encoded.media]
    return {
        "ids": ids,
        "labels": labels,
        "positions": mrope_positions(len(ids), (), videos),
        "values": values,
        "kinds": kinds,
        "notes": [part.note for part in encoded.media],
    }


def segments(batch: Batch) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Ids, labels and (3, n) positions of each segment."""
    ids, labels = batch.input_ids.flatten().numpy(), batch.labels.flatten().numpy()
    positions = batch.positions.numpy()
    positions = positions.reshape(3, -1) if positions.ndim == 3 else np.stack([positions.ravel()] * 3)
    bounds = batch.cu_seqlens.tolist()
    return [(ids[a:b], labels[a:b], positions[:, a:b]) for a, b in itertools.pairwise(bounds)]


def same(a: Batch, b: Batch) -> bool:
    fields = ("input_ids", "labels", "positions", "cu_seqlens")
    if any(not torch.equal(getattr(a, name), getattr(b, name)) for name in fields) or a.bad != b.bad or a.id != b.id:
        return False
    if (a.media is None) != (b.media is None):
        return False
    if a.media is None or b.media is None:
        return True
    for name, values in (("images", "patches"), ("clips", "mel"), ("transcripts", "targets"), ("captions", "ids")):
        left, right = getattr(a.media, name), getattr(b.media, name)
        if (left is None) != (right is None):
            return False
        if left is not None and not torch.equal(getattr(left, values), getattr(right, values)):
            return False
    return True


@pytest.mark.parametrize("epoch", [0, 1])
def test_every_document_is_whole_and_once_in_an_epoch(
    index: TokenIndex, folder_of_data: Path, tokenizer: Tokenizer, config: OmniConfig, epoch: int
) -> None:
    rows = [json.loads(line) for line in (folder_of_data / "m.jsonl").read_text().splitlines()]
    documents = [naive(row, folder_of_data, tokenizer, config) for row in rows]
    waiting = {doc["ids"].tobytes(): doc for doc in documents}
    assert len(waiting) == 60
    source = MultimodalDataset(index, config, T, seed=3)
    for first in range(epoch * source.num_rows, (epoch + 1) * source.num_rows, 3):
        count = min(3, (epoch + 1) * source.num_rows - first)
        batch = source.batch(first, count)
        pictures: list[Any] = []
        sounds: list[Any] = []
        notes: list[Any] = []
        captions: list[Any] = []
        for ids, labels, positions in segments(batch):
            if (ids == tokenizer.pad_id).all():
                assert (labels == IGNORE).all()
                assert (positions == np.arange(len(ids))).all()
                continue
            doc = waiting.pop(ids.tobytes())
            expected = doc["labels"].copy()
            expected[0] = IGNORE
            np.testing.assert_array_equal(labels, expected)
            np.testing.assert_array_equal(positions, doc["positions"])
            for kind, values, note in zip(doc["kinds"], doc["values"], doc["notes"], strict=True):
                (pictures if kind == "image" else sounds).append(values)
                if note is not None:
                    (captions if kind == "image" else notes).append(note)
        assert batch.num_targets == int((batch.labels != IGNORE).sum())
        media = batch.media
        assert (media.images is not None if media else False) == bool(pictures)
        if media is not None and media.images is not None:
            np.testing.assert_array_equal(media.images.patches.numpy(), np.concatenate(pictures))
            assert sum(a * b for a, b in media.images.grids) == len(media.images.patches)
            assert batch.positions.ndim == 3
        if media is not None and media.clips is not None:
            np.testing.assert_array_equal(media.clips.mel.numpy(), np.concatenate(sounds))
            assert media.transcripts is not None
            spelt = bytes((media.transcripts.targets - 1).tolist()).decode()
            assert spelt == "".join(notes)
            assert len(media.transcripts.clips) == len(notes)
        if captions and media is not None and media.captions is not None:
            ids = media.captions.ids.split(list(media.captions.lengths))
            assert [tokenizer.decode(part.tolist()) for part in ids] == captions
            groups = media.captions.groups.tolist()
            assert [captions.index(c) == captions.index(d) for c in captions for d in captions] == [
                g == h for g in groups for h in groups
            ]
    assert not waiting


@given(first=st.integers(0, 40), count=st.integers(1, 3), stride=st.integers(1, 3))
@settings(max_examples=15, deadline=None)
def test_any_order_of_asking_gives_the_same(
    index: TokenIndex, config: OmniConfig, first: int, count: int, stride: int
) -> None:
    one, other = MultimodalDataset(index, config, T, seed=1), MultimodalDataset(index, config, T, seed=1)
    other.batch(first + 7, 1)
    assert same(one.batch(first, count, stride), other.batch(first, count, stride))


def test_two_processes_share_the_rows(index: TokenIndex, config: OmniConfig) -> None:
    rows = MultimodalDataset(index, config, T, seed=1)
    whole = rows.batch(4, 4)
    for rank in range(2):
        mine = rows.batch(4 + rank, 2, 2)
        assert torch.equal(mine.input_ids, whole.input_ids[rank::2])
        assert torch.equal(mine.labels, whole.labels[rank::2])


@pytest.mark.parametrize("workers", [1, 3])
def test_read_ahead_is_the_same(index: TokenIndex, config: OmniConfig, workers: int) -> None:
    rows = MultimodalDataset(index, config, T, seed=1)
    with PrefetchLoader(MultimodalDataset(index, config, T, seed=1), workers) as ahead:
        calls = [(0, 2, 1), (2, 2, 1), (4, 1, 1), (5, 2, 1), (30, 2, 1), (32, 3, 2), (38, 2, 2), (0, 1, 1)]
        for first, count, stride in calls:
            assert same(ahead.batch(first, count, stride), rows.batch(first, count, stride))
        assert len(ahead._coming) <= 2 * max(3, workers)


def test_epochs_and_seeds_have_their_own_order(index: TokenIndex, config: OmniConfig) -> None:
    rows = MultimodalDataset(index, config, T, seed=1)
    n = rows.num_rows
    first, second = rows.batch(0, n), rows.batch(n, n)
    documents = [Counter(ids.tobytes() for ids, _, _ in segments(batch)) for batch in (first, second)]
    assert documents[0] == documents[1]
    assert not torch.equal(first.input_ids, second.input_ids)
    assert not torch.equal(first.input_ids, MultimodalDataset(index, config, T, seed=2).batch(0, n).input_ids)
    still = MultimodalDataset(index, config, T, seed=1, shuffle=False)
    assert torch.equal(still.batch(0, n).input_ids, still.batch(n, n).input_ids)


@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=80))
def test_packing_is_first_fit_decreasing(lengths: list[int]) -> None:
    sizes, counts = np.unique(lengths, return_counts=True)
    packed = first_fit(sizes.tolist(), counts.tolist(), 30)
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        for n, used in enumerate(bins):
            if used + length <= 30:
                bins[n] += length
                break
        else:
            bins.append(length)
    found = [sum(int(sizes[size]) * count for size, count in inside) for times, inside in packed for _ in range(times)]
    assert found == bins
    placed = Counter[int]()
    for times, inside in packed:
        for size, count in inside:
            placed[int(sizes[size])] += times * count
    assert placed == Counter(lengths)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_shards_hold_every_document_once(index: TokenIndex, config: OmniConfig, data: st.DataObject) -> None:
    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(multimodal, "_SHARD_DOCUMENTS", data.draw(st.integers(1, 25)))
        rows = MultimodalDataset(index, config, data.draw(st.integers(100, 300)), seed=data.draw(st.integers(0, 99)))
        fits = [n for n, d in enumerate(index.documents) if not (d["media"] and d["length"] > rows.seq_len)]
        for epoch in (0, 1):
            seen: list[int] = []
            for number in range(len(rows._rows_of_shards(0))):
                shard = rows._shard(epoch, number)
                assert len(shard.begins) == rows._rows_of_shards(0)[number]
                for row in range(len(shard.begins)):
                    units = range(*shard.bounds(row))
                    assert shard.lengths[units.start : units.stop].sum() <= rows.seq_len
                    seen += shard.documents[units.start : units.stop][
                        shard.offsets[units.start : units.stop] == 0
                    ].tolist()
            assert sorted(seen) == fits


def test_weights_say_how_often_a_source_is_read(tmp_path: Path, tokenizer: Tokenizer, config: OmniConfig) -> None:
    for name, count in (("a", 40), ("b", 10)):
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [{"messages": chat(f"{name} {n}", f"{name} {n}.")} for n in range(count)],
        )
    specs = [SourceSpec(path=str(tmp_path / f"{name}.jsonl")) for name in "ab"]
    index = build_index(specs, tokenizer, config, tmp_path / "c", progress=False)
    rows = MultimodalDataset(index, config, 60, seed=1, weights=(0.25, 2.0))
    per_cycle = Counter[int]()
    starts = [0, *rows._phase_ends.tolist()]
    for phase in range(4):
        inside = Counter[int]()
        for row in range(starts[phase], starts[phase + 1]):
            batch = rows.batch(row, 1)
            for ids, _, _ in segments(batch):
                text = tokenizer.decode(ids.tolist())
                if text.strip():
                    inside[text] += 1
        of_b = Counter({text: count for text, count in inside.items() if "b " in text}).total()
        assert of_b == 20
        assert 2 <= inside.total() - of_b <= 18
        per_cycle.update(inside)
    assert sorted(Counter(per_cycle.values()).items()) == [(1, 40), (8, 10)]
    assert rows._phases == 4


def test_long_texts_are_cut_and_long_documents_with_media_left_out(
    tmp_path: Path, tokenizer: Tokenizer, config: OmniConfig
) -> None:
    (tmp_path / "t.txt").write_text("".join(STORIES) * 5)
    (tmp_path / "p.png").write_bytes(png(300, 300, 1))
    many = [{"type": "image", "image": "p.png"}] * 3
    rows = [
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]}
        for parts in (many, many[:1])
    ]
    write_jsonl(tmp_path / "m.jsonl", rows)
    specs = [SourceSpec(path=str(tmp_path / name)) for name in ("t.txt", "m.jsonl")]
    index = build_index(specs, tokenizer, config, tmp_path / "c", progress=False)
    source = MultimodalDataset(index, config, 128)
    assert source.left_out == 1
    assert "m.jsonl: line 1" in source.left_out_names(5)[0]
    batch = source.batch(0, source.num_rows)
    text = np.concatenate([index.tokens[: int(index.documents[0]["count"])].astype(np.int64)])
    pieces = sorted(text[n : n + 128].tobytes() for n in range(0, len(text), 128))
    found = sorted(
        ids.tobytes()
        for ids, _, _ in segments(batch)
        if (ids != tokenizer.pad_id).all() and ids[0] != tokenizer.im_start_id
    )
    assert found == pieces
    with pytest.raises(DataError, match="no document fits into a row of 16 tokens"):
        MultimodalDataset(build_index(specs[1:], tokenizer, config, tmp_path / "c", progress=False), config, 16)


def test_a_broken_file_becomes_padding_and_is_named(tmp_path: Path, tokenizer: Tokenizer, config: OmniConfig) -> None:
    whole = png(60, 60, 3)
    noisy = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (60, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(noisy, "PNG")
    (tmp_path / "good.png").write_bytes(whole)
    (tmp_path / "cut.png").write_bytes(noisy.getvalue()[:500])  # the header is there
    (tmp_path / "none.png").write_bytes(b"not a picture")
    parts = [[{"type": "image", "image": f"{name}.png"}] for name in ("good", "cut", "none", "missing")]
    rows = [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "yes"}]} for p in parts]
    write_jsonl(tmp_path / "m.jsonl", rows)
    index = build_index([SourceSpec(path=str(tmp_path / "m.jsonl"))], tokenizer, config, tmp_path / "c", progress=False)
    assert index.counts.bad == 2
    assert "none.png" in index.bad(5)[0] and "missing.png: no such file" in index.bad(5)[1]
    source = MultimodalDataset(index, config, 200)
    batch = source.batch(0, source.num_rows)
    assert len(batch.bad) == 1 and "cut.png" in batch.bad[0]
    assert batch.media is not None and batch.media.images is not None
    assert len(batch.media.images.grids) == 1
    docs = [ids for ids, _, _ in segments(batch) if (ids != tokenizer.pad_id).any()]
    assert len(docs) == 1
    assert batch.num_targets == int((batch.labels != IGNORE).sum()) > 0
    spec = DataSpec(
        train=(SourceSpec(path=str(tmp_path / "m.jsonl")),),
        val=(SourceSpec(path=str(tmp_path / "m.jsonl")),),
        cache_dir=str(tmp_path / "d"),
        seq_len=200,
    )
    with pytest.raises(
        DataError, match="2 of 4 documents have media that cannot be read, more than data.max_unreadable_fraction"
    ):
        prepare_rows(spec, tokenizer, config, 0, progress=False)
    allowed = prepare_rows(spec.replace(max_unreadable_fraction=0.5), tokenizer, config, 0, progress=False)
    assert any("2 of 4 documents are left out" in note for note in allowed.notes)


def test_parquet_with_bytes(tmp_path: Path, tokenizer: Tokenizer, config: OmniConfig) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pictures = [png(20 + n, 30, n) for n in range(6)]
    inside = [
        {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": {"bytes": data, "path": None}, "text": None},
                        {"type": "text", "image": None, "text": "what?"},
                    ],
                },
                {"role": "assistant", "content": [{"type": "text", "image": None, "text": f"{n}"}]},
            ]
        }
        for n, data in enumerate(pictures)
    ]
    beside = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": f"{n}"}]},
            ],
            "images": [{"bytes": data, "path": f"{n}.png"}],
        }
        for n, data in enumerate(pictures)
    ]
    grids = []
    for name, rows in (("inside", inside), ("beside", beside)):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet", row_group_size=2)
        index = build_index(
            [SourceSpec(path=str(tmp_path / f"{name}.parquet"))], tokenizer, config, tmp_path / "c", progress=False
        )
        source = MultimodalDataset(index, config, 100, shuffle=False)
        batch = source.batch(0, source.num_rows)
        assert batch.media is not None and batch.media.images is not None and not batch.bad
        values = {
            picture.numpy().tobytes()
            for picture in batch.media.images.patches.split([a * b for a, b in batch.media.images.grids])
        }
        assert config.vision is not None
        assert values == {to_patches(load_image(data), config.vision)[0].tobytes() for data in pictures}
        grids.append(sorted(batch.media.images.grids))
    assert grids[0] == grids[1]


def test_a_folder_that_moves_keeps_its_split_and_archives_are_watched(
    tmp_path: Path, tokenizer: Tokenizer, config: OmniConfig
) -> None:
    parts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_data(tmp_path / name, 30)
        spec = SourceSpec(path=str(tmp_path / name / "m.jsonl"))
        index = build_index([spec], tokenizer, config, tmp_path / "c", part="val", val_fraction=0.3, progress=False)
        parts.append(np.array(index.tokens))
        again = build_index([spec], tokenizer, config, tmp_path / "c", part="val", val_fraction=0.3, progress=False)
        assert again.folder == index.folder
    np.testing.assert_array_equal(parts[0], parts[1])
    built = (index.folder.parent / "meta.json").stat().st_mtime_ns
    with zipfile.ZipFile(tmp_path / "two" / "x.zip", "a") as archive:
        archive.writestr("new.txt", "more")
    build_index([spec], tokenizer, config, tmp_path / "c", part="val", val_fraction=0.3, progress=False)
    assert (index.folder.parent / "meta.json").stat().st_mtime_ns > built


def test_media_for_a_model_without_the_encoder(
    folder_of_data: Path, tmp_path: Path, tokenizer: Tokenizer, config: OmniConfig
) -> None:
    deaf = config.replace(audio=None, audio_token_id=None)
    spec = DataSpec(train=(SourceSpec(path=str(folder_of_data / "m.jsonl")),), cache_dir=str(tmp_path), seq_len=T)
    with pytest.raises(DataError, match="line 2: holds a sound, but the model has no input for it"):
        prepare_rows(spec, tokenizer, deaf, 0, progress=False)
    text_only = config.with_encoders()
    with pytest.raises(DataError, match="line 1: holds pictures or sounds, but the model has no input for them"):
        prepare_rows(spec, tokenizer, text_only, 0, progress=False)


def test_weights_of_plain_text_are_heeded(tmp_path: Path, tokenizer: Tokenizer, config: OmniConfig) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": story} for story in STORIES * 3])
    from muomni.data import prepare

    spec = DataSpec(
        train=(SourceSpec(path=str(tmp_path / "a.jsonl"), weight=3.0),),
        val=(SourceSpec(path=str(tmp_path / "a.jsonl")),),
        cache_dir=str(tmp_path),
        seq_len=64,
    )
    once = prepare_rows(
        spec.replace(train=({"path": str(tmp_path / "a.jsonl")},)), tokenizer, config.with_encoders(), 0, progress=False
    )
    thrice = prepare_rows(spec, tokenizer, config.with_encoders(), 0, progress=False)
    assert thrice.train.num_rows > 2.5 * once.train.num_rows
    with pytest.raises(ConfigError, match="weight"):
        prepare(spec, tokenizer, progress=False)


AUGMENT = AugmentSpec(
    image=ImageAugmentSpec(shift=0.1, scale=0.1, rotate=20, color_jitter=0.3, grayscale=0.3, blur=0.3),
    audio=AudioAugmentSpec(speed=0.2, shift=0.3, noise=0.5, time_masks=2, frequency_masks=2),
)


def test_changes_at_random_depend_on_the_row_alone(index: TokenIndex, config: OmniConfig) -> None:
    one = MultimodalDataset(index, config, T, seed=1, augment=AUGMENT)
    other = MultimodalDataset(index, config, T, seed=1, augment=AUGMENT)
    for first in (17, 0, 95):
        assert same(one.batch(first, 2), other.batch(first, 2))
    seen = Counter[str]()
    tokenizer_ids = set()
    ends = [0, *one._phase_ends.tolist()]
    for phase in range(2):
        batch = one.batch(ends[phase], ends[phase + 1] - ends[phase])
        assert not batch.bad and batch.media is not None and batch.media.clips is not None
        audio = int(torch.eq(batch.input_ids, config.audio_token_id or -1).sum())
        assert audio == sum(-(-frames // 8) for frames in batch.media.clips.frames)
        assert len(batch.media.clips.frames) == 20
        tokenizer_ids.add(audio)
        seen[batch.media.clips.mel.numpy().tobytes()] += 1
    assert len(seen) == 2 and len(tokenizer_ids) == 2


def test_no_change_when_all_is_off(index: TokenIndex, config: OmniConfig) -> None:
    assert same(
        MultimodalDataset(index, config, T, augment=AugmentSpec()).batch(0, 5),
        MultimodalDataset(index, config, T).batch(0, 5),
    )


def test_memory_does_not_grow_with_the_rows_read(index: TokenIndex, config: OmniConfig) -> None:
    rows = MultimodalDataset(index, config, T, seed=1)
    peaks, left = [], []
    tracemalloc.start()
    # Both parts are long: which rows are read at the same time is chance, and decides a short one's peak.
    for first, steps in ((0, 100), (200, 200)):
        tracemalloc.reset_peak()
        with PrefetchLoader(rows, 2) as ahead:
            for step in range(steps):
                ahead.batch(first + 2 * step, 2)
        now, peak = tracemalloc.get_traced_memory()
        peaks.append(peak)
        left.append(now)
    tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] + 200_000
    assert left[1] < left[0] + 200_000


def test_what_a_thread_finds_reaches_the_caller(index: TokenIndex, config: OmniConfig) -> None:
    class Failing(MultimodalDataset):
        def row(self, number: int) -> Row:
            if number == 3:
                raise RuntimeError("row 3")
            return super().row(number)

    with PrefetchLoader(Failing(index, config, T), 2) as ahead:
        ahead.batch(0, 2)
        with pytest.raises(RuntimeError, match="row 3"):
            ahead.batch(2, 2)
