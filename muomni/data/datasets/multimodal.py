"""Rows of a fixed length out of whole documents with pictures and sounds.

Every row is a pure function of (index, seq_len, seed, augmentation, number), as in `packed`; but here documents
are not cut, since a picture has no half. Only plain text longer than a row is.

How it works. The documents are dealt into shards of some 65,000 once, in an order that depends on the seed, and
only the lengths of a shard's documents are held in memory. In a shard they are packed first-fit from the longest
down: that fills rows nearly to the end, and the number of rows depends on the lengths alone, not on the order. So
every epoch has as many rows, while documents of the same length trade places and rows come in another order. Where
sources have a broken weight, or sounds change their speed, epochs differ in length and take turns in a cycle of up
to 20; each has its own count of rows.

Pictures and sounds are read and decoded when their row is asked for. A document whose medium cannot be read stays
padding in its row, is not learnt, and its medium's name goes to `Batch.bad`.

T = tokens in a row.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muomni.config import OmniConfig
from muomni.config.recipe_data import AugmentSpec
from muomni.data.arrays import Ints
from muomni.data.datasets.batch import Batch, Row, collate
from muomni.data.datasets.dataset import Dataset
from muomni.data.datasets.media_loading import Loaded, load
from muomni.data.datasets.order import mixed, mixed_key, permuted, random_order
from muomni.data.index.token_index import AUDIO, IMAGE, TokenIndex
from muomni.data.media.augment import stretched
from muomni.data.media.processor import MediaProcessor
from muomni.errors import DataError, MediaError
from muomni.ops.audio_frames import num_tokens

_SHARD_DOCUMENTS = 1 << 16
# Weights are multiples of a twentieth.
_TWENTIETHS = 20
# Epochs with changes of speed of their own, after which those come again.
_STRETCHES = 8


class MultimodalDataset(Dataset[Batch]):
    """Random access to rows, counted on over the epochs. Any thread may ask for any row.

    Args:
        index: where the documents are.
        config: the model that the rows are for; its encoders must be those of the index.
        seq_len: T, at least 2.
        seed: of the order and the augmentation.
        shuffle: False gives every epoch the same rows in the same (mixed) order.
        weights: of each source, how many times an epoch reads it; empty: once.
        augment: random changes of the media; None for none.

    Raises:
        DataError: no document fits into a row.
    """

    def __init__(
        self,
        index: TokenIndex,
        config: OmniConfig,
        seq_len: int,
        seed: int = 0,
        shuffle: bool = True,
        *,
        weights: Sequence[float] = (),
        augment: AugmentSpec | None = None,
    ) -> None:
        if seq_len < 2:
            raise ValueError(f"seq_len ({seq_len}) must be at least 2, or nothing can be predicted")
        self.index = index
        self.processor = MediaProcessor(config.vision, config.audio)
        self.seq_len = seq_len
        self.seed = seed
        self.shuffle = shuffle
        self.augment = AugmentSpec() if augment is None else augment
        self._shares = np.array([round(weight * _TWENTIETHS) for weight in weights], np.int64)
        self._stretches = bool(self.augment.audio.speed or self.augment.audio.shift)
        phases = _TWENTIETHS // math.gcd(_TWENTIETHS, *self._shares.tolist())
        self._phases = math.lcm(phases, _STRETCHES) if self._stretches else phases
        self._counts: dict[int, Ints] = {}
        self._shards: dict[tuple[int, int], _Shard] = {}
        self._lock = threading.RLock()
        if self.left_out == index.num_documents or not self.num_rows:
            names = "; ".join(self.left_out_names(3))
            raise DataError(
                f"no document fits into a row of {seq_len} tokens; raise data.seq_len. For example: {names}"
            )

    @cached_property
    def left_out(self) -> int:
        """Documents with media that are longer than a row."""
        return int(self._too_long(self.index.documents).sum())

    def left_out_names(self, limit: int) -> list[str]:
        """The first of them, with their lengths."""
        documents = self.index.documents
        numbers = np.flatnonzero(self._too_long(documents))[:limit]
        return [
            f"{self.index.reference(int(documents[n]['medium'])).origin} ({documents[n]['length']} tokens)"
            for n in numbers
        ]

    @cached_property
    def num_rows(self) -> int:
        """Rows in an epoch; where epochs differ in length, their mean, rounded up."""
        return -(-int(self._phase_ends[-1]) // self._phases)

    @cached_property
    def _phase_ends(self) -> Ints:
        """(phases,) rows up to the end of each epoch of a cycle."""
        return np.cumsum([self._rows_of_shards(phase).sum() for phase in range(self._phases)])

    @property
    def num_media_documents(self) -> int:
        """All documents of the index."""
        return self.index.num_documents

    @cached_property
    def key(self) -> str:
        """Names the rows."""
        options = (self.seq_len, self.seed, self.shuffle, self._shares.tolist(), self.augment.model_dump_json())
        return f"{self.index.fingerprint} {options}"

    def row(self, number: int) -> Row:
        """The row of a number ≥ 0, counted over all epochs, with its media read and decoded."""
        if number < 0:
            raise IndexError(f"row {number} does not exist")
        cycle, in_cycle = divmod(number, int(self._phase_ends[-1]))
        phase = int(np.searchsorted(self._phase_ends, in_cycle, side="right"))
        in_epoch = in_cycle - int(self._phase_ends[phase - 1]) if phase else in_cycle
        epoch = cycle * self._phases + phase
        counts = self._rows_of_shards(phase)
        order = random_order(len(counts), mixed_key(self.seed, epoch if self.shuffle else 0, 0))
        ends = np.cumsum(counts[order])
        place = int(np.searchsorted(ends, in_epoch, side="right"))
        in_shard = in_epoch - int(ends[place - 1]) if place else in_epoch
        return self._filled(self._shard(epoch, int(order[place])), in_shard, epoch, number)

    def batch(self, first_index: int, count: int, stride: int = 1) -> Batch:
        """See `Dataset.batch`."""
        rows = [self.row(first_index + n * stride) for n in range(count)]
        return collate(rows, self.batch_id(first_index, count, stride))

    def _too_long(self, documents: NDArray[Any]) -> NDArray[np.bool_]:
        return (documents["media"] > 0) & (documents["length"] > self.seq_len)

    def _num_shards(self) -> int:
        return -(-self.index.num_documents // _SHARD_DOCUMENTS)

    def _rows_of_shards(self, phase: int) -> Ints:
        """(shards,) rows of each shard in epochs of this phase."""
        with self._lock:
            if phase not in self._counts:
                counts = [self._units(phase, shard).num_rows(self.seq_len) for shard in range(self._num_shards())]
                self._counts[phase] = np.array(counts, np.int64)
                self.index.release()
            return self._counts[phase]

    def _units(self, phase: int, shard: int) -> "_Units":
        """What is packed of a shard: documents as often as they are read, long texts in pieces."""
        total = self.index.num_documents
        numbers = np.arange(shard * _SHARD_DOCUMENTS, min((shard + 1) * _SHARD_DOCUMENTS, total))
        numbers = np.sort(permuted(numbers, total, mixed_key(self.seed, 1)))
        documents = self.index.documents[numbers]
        fits = ~self._too_long(documents)
        numbers, documents = numbers[fits], documents[fits]
        if len(self._shares):
            share = self._shares[documents["source"]]
            chance = (mixed(numbers.astype(np.uint64), mixed_key(self.seed, 2)) % _TWENTIETHS).astype(np.int64)
            times = ((phase + 1) * share + chance) // _TWENTIETHS - (phase * share + chance) // _TWENTIETHS
            numbers, documents = np.repeat(numbers, times), np.repeat(documents, times)
        lengths = self._stretched_lengths(documents, phase) if self._stretches else documents["length"]
        pieces = np.maximum(1, -(-lengths // self.seq_len))
        before = np.cumsum(pieces) - pieces
        offsets = (np.arange(pieces.sum()) - np.repeat(before, pieces)) * self.seq_len
        return _Units(
            np.repeat(numbers, pieces), offsets, np.minimum(self.seq_len, np.repeat(lengths, pieces) - offsets)
        )

    def _stretched_lengths(self, documents: NDArray[Any], phase: int) -> Ints:
        """Lengths of documents after their sounds' changes of speed; those that would not fit keep theirs."""
        count = documents["media"]
        owner = np.repeat(np.arange(len(documents)), count)
        medium = np.repeat(documents["medium"] - (np.cumsum(count) - count), count) + np.arange(count.sum())
        longer = self._frames(medium, phase)[1] - self.index.media["tokens"][medium]
        lengths = documents["length"] + np.bincount(owner, longer, len(documents)).astype(np.int64)
        return np.where(lengths > self.seq_len, documents["length"], lengths)

    def _frames(self, medium: Ints, phase: int) -> tuple[Ints, Ints, NDArray[np.float64]]:
        """Frames and tokens of media after their changes of speed, and the (n, 2) chances that decided these."""
        records = self.index.media[medium]
        drawn = [mixed(medium.astype(np.uint64), mixed_key(self.seed, 3, phase, n)) for n in range(2)]
        chance = np.stack([values / 2.0**64 for values in drawn], axis=1)
        sounds = records["kind"] == AUDIO
        frames = records["frames"].astype(np.int64)
        frames[sounds] = stretched(frames[sounds], self.augment.audio, chance[sounds])
        tokens = np.where(sounds, num_tokens(frames), records["tokens"])
        return frames, tokens, chance

    def _shard(self, epoch: int, shard: int) -> "_Shard":
        """A shard, packed; the last two stay, since threads read on both sides of a border."""
        key = (epoch if self.shuffle else epoch % self._phases, shard)
        with self._lock:
            if key not in self._shards:
                while len(self._shards) > 1:
                    del self._shards[next(iter(self._shards))]
                units = self._units(epoch % self._phases, shard)
                drawn = mixed_key(self.seed, epoch if self.shuffle else 0, 4 + shard)
                self._shards[key] = units.packed(self.seq_len, drawn)
                self.index.release()
            return self._shards[key]

    def _filled(self, shard: "_Shard", number: int, epoch: int, index: int) -> Row:
        """A row with the tokens of its documents and with their media."""
        from muomni.ops.cross_entropy import IGNORE

        T = self.seq_len
        tokens = np.full(T, self.index.pad_id, np.int64)
        labels = np.full(T, IGNORE, np.int64)
        positions = np.zeros((3, T), np.int64)
        starts = []
        media: list[Loaded] = []
        bad: list[str] = []
        bad_documents: list[int] = []
        done = 0
        for n, unit in enumerate(range(*shard.bounds(number))):
            length = int(shard.lengths[unit])
            here = slice(done, done + length)
            draw = mixed_key(self.seed, epoch, index, n)
            starts.append(done)
            ids, learnt, places = self._document(shard, unit, epoch, draw, media, bad)
            positions[:, here] = places
            if ids is not None:
                tokens[here] = ids
                labels[here] = np.where(learnt, ids, IGNORE)
            else:
                bad_documents.append(int(shard.documents[unit]))
            done += length
        if done < T:
            starts.append(done)
            positions[:, done:] = np.arange(T - done)
        labels[starts] = IGNORE
        return Row(tokens, labels, np.array(starts, np.int64), positions, media, bad, bad_documents)

    def _document(
        self, shard: "_Shard", unit: int, epoch: int, draw: int, media: list[Loaded], bad: list[str]
    ) -> tuple[Ints | None, NDArray[np.bool_], Ints]:
        """Ids, what is learnt and (3, n) positions of a unit; its media go to `media`. Ids are None if one is bad."""
        from muomni.model.mrope import mrope_positions

        index = self.index
        document = index.documents[shard.documents[unit]]
        length, offset = int(shard.lengths[unit]), int(shard.offsets[unit])
        plain = np.tile(np.arange(length), (3, 1))
        if not document["media"]:
            begin = int(document["start"]) + offset
            ids = index.tokens[begin : begin + length].astype(np.int64)
            return ids, index.learnt(begin, begin + length), plain
        begin, end = int(document["start"]), int(document["start"] + document["count"])
        medium = np.arange(int(document["medium"]), int(document["medium"] + document["media"]))
        records = index.media[medium]
        frames, counts, chance = records["frames"].astype(np.int64), records["tokens"].astype(np.int64), None
        if self._stretches:
            changed, more, drawn = self._frames(medium, epoch % self._phases)
            if int(document["length"]) + int((more - counts).sum()) <= self.seq_len:
                frames, counts, chance = changed, more, drawn
        loaded = []
        for n, number in enumerate(medium):
            draws = np.random.Generator(np.random.Philox(key=mixed_key(draw, n)))
            speed = None if chance is None or records[n]["kind"] != AUDIO else chance[n]
            try:
                loaded.append(
                    load(
                        index.reference(int(number)),
                        records[n],
                        int(frames[n]),
                        speed,
                        self.processor,
                        self.augment,
                        draws,
                    )
                )
            except MediaError as error:
                bad.append(str(error))
        if len(loaded) < len(medium):
            return None, np.zeros(length, bool), plain
        media += loaded
        ids = index.tokens[begin:end].astype(np.int64)
        repeats = np.ones(len(ids), np.int64)
        repeats[records["place"]] = counts
        first = np.cumsum(repeats) - repeats
        videos: list[list[tuple[int, int, int]]] = []  # a picture is a video of one frame
        for record in records[records["kind"] == IMAGE]:
            place = (int(first[record["place"]]), int(record["rows"]), int(record["columns"]))
            if record["frame"]:
                videos[-1].append(place)
            else:
                videos.append([place])
        return (
            np.repeat(ids, repeats),
            np.repeat(index.learnt(begin, end), repeats),
            mrope_positions(length, (), videos),
        )


@dataclass(frozen=True)
class _Units:
    """What is packed into rows: `offsets` is where in its document a unit begins, `lengths` its tokens."""

    documents: Ints
    offsets: Ints
    lengths: Ints

    def num_rows(self, T: int) -> int:
        """Rows that they fill."""
        sizes, counts = np.unique(self.lengths, return_counts=True)
        return sum(times for times, _ in first_fit(sizes.tolist(), counts.tolist(), T))

    def packed(self, T: int, key: int) -> "_Shard":
        """The units in rows, in an order drawn from `key`."""
        order = random_order(len(self.lengths), key)
        order = order[np.argsort(self.lengths[order], kind="stable")]
        sizes, counts = np.unique(self.lengths, return_counts=True)
        used = np.cumsum(counts) - counts
        chosen, widths = [], []
        for times, inside in first_fit(sizes.tolist(), counts.tolist(), T):
            parts = []
            for size, count in inside:
                begin = int(used[size])
                parts.append(order[begin : begin + times * count].reshape(times, count))
                used[size] += times * count
            rows = np.concatenate(parts, axis=1)
            chosen.append(rows.ravel())
            widths.append(np.full(times, rows.shape[1]))
        picked = np.concatenate(chosen)
        width = np.concatenate(widths)
        ends = np.cumsum(width)
        rows = random_order(len(width), key ^ 1)
        return _Shard(
            self.documents[picked], self.offsets[picked], self.lengths[picked], (ends - width)[rows], ends[rows]
        )


def first_fit(sizes: list[int], counts: list[int], T: int) -> list[tuple[int, list[tuple[int, int]]]]:
    """Packs items into bins of T, first-fit from the largest down.

    That fills one bin after the other with the largest that still fits, so equal bins are found at once:
    the work grows with the number of different sizes, not of items.

    Args:
        sizes: sorted, different, each from 1 to T.
        counts: items of each size.
        T: what a bin holds.

    Returns:
        (how many bins, [(number of a size, how many items of it)]).
    """
    from bisect import bisect_right

    left = [(size, number, count) for number, (size, count) in enumerate(zip(sizes, counts, strict=True)) if count]
    known = [size for size, _, _ in left]
    numbers = [number for _, number, _ in left]
    rest = [count for _, _, count in left]
    result = []
    while known:
        room = T
        inside = []
        place = len(known) - 1
        while place >= 0:
            take = min(rest[place], room // known[place])
            inside.append((place, take))
            room -= take * known[place]
            place = min(place, bisect_right(known, room)) - 1
        times = min(rest[place] // take for place, take in inside)
        result.append((times, [(numbers[place], take) for place, take in inside]))
        for place, take in inside:
            rest[place] -= times * take
        # The places go down, so that deleting one leaves the others where they are.
        for place, _ in inside:
            if not rest[place]:
                del known[place], numbers[place], rest[place]
    return result


@dataclass(frozen=True)
class _Shard:
    """Units in the order of the rows that they fill: row r holds those from begins[r] to ends[r]."""

    documents: Ints
    offsets: Ints
    lengths: Ints
    begins: Ints
    ends: Ints

    def bounds(self, row: int) -> tuple[int, int]:
        """First unit of a row, and one behind its last."""
        return int(self.begins[row]), int(self.ends[row])
