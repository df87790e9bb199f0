"""Rows with pictures and sounds, drawn on the spot: what a training step with media is measured on.

A row holds documents of a place for a medium and of text behind it. Every kind of row has the same documents with the
same targets, so that the Thinker's work is the same whatever stands in the places, and what a step takes longer is the
encoders'. No two steps are of one layout, as in training, where kernels meet ever new shapes.

Legend: B rows, T tokens of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from muomni.config import AudioConfig, VisionConfig
from muomni.data import Batch
from muomni.errors import ConfigError
from muomni.model.inputs import AudioBatch, Captions, ImageBatch, MediaBatch, Transcripts
from muomni.model.mrope import mrope_positions
from muomni.ops.cross_entropy import IGNORE

Kind = Literal["text", "pictures", "clips", "mixed"]
# What stands in the places of media; other tokens are drawn from those behind.
IMAGE, AUDIO, _FIRST = 0, 1, 2
# Tokens of text behind a medium, a question and an answer.
_FEWEST, _MOST = 16, 48
# Bytes of speech in a token of 80 ms, and tokens of a caption.
_BYTES, _CAPTION = 1, 3


@dataclass(frozen=True)
class Document:
    """A medium's place and text.

    Attributes:
        rows, columns: of the grid of tokens; a sound has as many tokens.
        text: tokens behind it.
    """

    rows: int
    columns: int
    text: int

    @property
    def medium(self) -> int:
        """Tokens of the place."""
        return self.rows * self.columns

    @property
    def length(self) -> int:
        """Tokens."""
        return self.medium + self.text


def check_length(seq_len: int, vision: VisionConfig) -> None:
    """Finds out whether rows have room for a medium.

    Raises:
        ConfigError: they have not.
    """
    needed = vision.min_tokens + _FEWEST
    if seq_len < needed:
        raise ConfigError(f"rows of {seq_len} tokens hold no picture and its text: that takes {needed}")


def draw_rows(
    kind: Kind, B: int, T: int, vocab_size: int, vision: VisionConfig, audio: AudioConfig, number: int
) -> Batch:
    """Rows of one step.

    Args:
        kind: what stands in the places: text, a picture, a clip, or a picture and a clip in turn.
        B: rows.
        T: tokens of each.
        vocab_size: text is drawn from it.
        vision: says how large a picture is; with its head, pictures have captions.
        audio: says how long a clip is; with its head, clips have transcripts.
        number: of the step. The same number gives the same documents for every kind.
    """
    draw = np.random.default_rng([number, B, T])
    ids = draw.integers(_FIRST, vocab_size, (B, T))
    labels = ids.copy()
    positions = np.zeros((3, B, T), np.int64)
    bounds, pictures, clips, counted = [0], [], [], 0
    for row in range(B):
        begin = 0
        for document in _documents(T, vision, draw):
            seen = kind == "pictures" or (kind == "mixed" and counted % 2 == 0)
            heard = kind == "clips" or (kind == "mixed" and not seen)
            counted += 1
            here = slice(begin, begin + document.length)
            place = slice(begin, begin + document.medium)
            # What a medium's place or a first token is, nothing says.
            labels[row, begin : begin + max(1, document.medium)] = IGNORE
            grid = [(0, document.rows, document.columns)] if seen else []
            positions[:, row, here] = mrope_positions(document.length, grid)
            if seen:
                ids[row, place] = IMAGE
                pictures.append(document)
            if heard:
                ids[row, place] = AUDIO
                clips.append(document)
            begin += document.length
            bounds.append(row * T + begin)
        if begin < T:
            labels[row, begin:] = IGNORE
            positions[:, row, begin:] = np.arange(T - begin)
            bounds.append((row + 1) * T)
    media = None
    if pictures or clips:
        images, captions = _pictures(pictures, vocab_size, vision, draw) if pictures else (None, None)
        sounds, transcripts = _clips(clips, audio, draw) if clips else (None, None)
        media = MediaBatch(images, sounds, transcripts, captions)
    return Batch(
        input_ids=torch.from_numpy(ids),
        labels=torch.from_numpy(labels),
        positions=torch.from_numpy(positions if pictures else positions[0]),
        cu_seqlens=torch.tensor(bounds, dtype=torch.int32),
        max_seqlen=int(np.diff(bounds).max()),
        num_targets=int((labels != IGNORE).sum()),
        id=f"bench {number}",
        media=media,
    )


def _documents(T: int, vision: VisionConfig, draw: np.random.Generator) -> list[Document]:
    """Documents that fill a row until the next would not fit."""
    found: list[Document] = []
    side = vision.max_tokens
    while True:
        left = T - sum(document.length for document in found)
        grids = _grids(vision.min_tokens, min(side, left - _FEWEST))
        if not grids:
            return found
        rows, columns = grids[draw.integers(len(grids))]
        text = int(draw.integers(_FEWEST, _MOST + 1))
        found.append(Document(rows, columns, min(text, left - rows * columns)))


def _grids(fewest: int, most: int) -> list[tuple[int, int]]:
    """Grids of so many tokens, none more than twice as long as wide."""
    sides = range(1, most + 1)
    return [
        (rows, columns)
        for rows in sides
        for columns in range(-(-rows // 2), min(2 * rows, most // rows) + 1)
        if fewest <= rows * columns
    ]


def _pictures(
    documents: Sequence[Document], vocab_size: int, vision: VisionConfig, draw: np.random.Generator
) -> tuple[ImageBatch, Captions | None]:
    m = vision.pixel_shuffle_factor
    grids = tuple((m * document.rows, m * document.columns) for document in documents)
    count = sum(rows * columns for rows, columns in grids)
    patches = draw.random((count, 3 * vision.patch_size**2), np.float32) * 2 - 1
    captions = None
    if vision.projection_dim is not None:
        ids = torch.from_numpy(draw.integers(_FIRST, vocab_size, len(grids) * _CAPTION))
        numbers = tuple(range(len(grids)))
        captions = Captions(ids, (_CAPTION,) * len(grids), numbers, torch.arange(len(grids)))
    return ImageBatch(torch.from_numpy(patches), grids), captions


def _clips(
    documents: Sequence[Document], audio: AudioConfig, draw: np.random.Generator
) -> tuple[AudioBatch, Transcripts | None]:
    frames = tuple(int(8 * document.medium - draw.integers(8)) for document in documents)
    mel = draw.standard_normal((sum(frames), audio.num_mel_bins), np.float32)
    transcripts = None
    if audio.ctc:
        transcripts = Transcripts.of((n, draw.bytes(_BYTES * each.medium)) for n, each in enumerate(documents))
    return AudioBatch(torch.from_numpy(mel), frames), transcripts
