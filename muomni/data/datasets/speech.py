"""Pairs of text and speech as batches: rows that teach the Talker.

Which pairs a row holds is a pure function of (pairs, seed, number), so resuming a run needs nothing but the number.

Legend: P pairs, F frames of codes of all pairs, K codebooks, B rows, L tokens of the longest, U units of the longest.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from muomni.config.talker import TalkerConfig
from muomni.data.arrays import Ints
from muomni.data.datasets.batch import Batch, Row, collate
from muomni.data.datasets.dataset import Dataset
from muomni.data.datasets.order import mixed_key, random_order
from muomni.data.speech.paired_data import SpeechPairs
from muomni.data.speech.spoken_text import said_words, tokens_of, units_of
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import DataError

if TYPE_CHECKING:
    from muomni.model.talker.batch import SpeechBatch


class SpeechDataset(Dataset[Batch]):
    """Random access to rows of one pair each, counted on over the epochs: row i is in epoch i // num_rows.

    Args:
        pairs: at least one.
        tokenizer: the Thinker's.
        config: of the Talker that the rows are for.
        seed: of the order.
        shuffle: False keeps the order of the pairs, the same in every epoch.

    Raises:
        DataError: there are no pairs, or they do not fit the Talker: codes, a voice, or how far the pointer moves.
    """

    def __init__(
        self, pairs: SpeechPairs, tokenizer: Tokenizer, config: TalkerConfig, seed: int = 0, shuffle: bool = True
    ) -> None:
        _check(pairs, config)
        self.pairs = pairs
        self.tokenizer = tokenizer
        self.config = config
        self.seed = seed
        self.shuffle = shuffle
        self._voices = np.array([config.voices.index(name) for name in pairs.speakers], np.int64)[pairs.voices]
        self._order = lru_cache(2)(self._ordered)
        self._key = f"{pairs.key} {tokenizer.fingerprint} {config.max_advance} {config.voices} {seed} {shuffle}"

    @property
    def num_rows(self) -> int:
        """P, rows in an epoch."""
        return len(self.pairs)

    @property
    def key(self) -> str:
        """Names the rows."""
        return self._key

    def place(self, number: int) -> int:
        """Which pair a row holds."""
        if number < 0:
            raise IndexError(f"row {number} does not exist")
        epoch, place = divmod(number, self.num_rows)
        return int(self._order(epoch)[place]) if self.shuffle else place

    def speech(self, numbers: Sequence[int]) -> "SpeechBatch":
        """The pairs of these rows, at least one."""
        import torch

        from muomni.model.talker.batch import PAD, SpeechBatch

        pairs = self.pairs
        places = [self.place(number) for number in numbers]
        words = [said_words(pairs.texts[place]) for place in places]
        tokens = [tokens_of(sentence, self.tokenizer) for sentence in words]
        read = [units_of(sentence) for sentence in words]
        width = max(len(units) for units, _ in read)
        units = np.full((len(places), width), PAD, np.int64)
        of_words = np.zeros((len(places), width), np.int64)
        before = 0
        for n, ((ids, ends), (of_pair, numbered)) in enumerate(zip(tokens, read, strict=True)):
            units[n, : len(of_pair)] = of_pair
            of_words[n, : len(of_pair)] = before + np.array(ends)[numbered]
            before += len(ids)
        taken = [slice(int(pairs.starts[p]), int(pairs.starts[p] + pairs.frames[p])) for p in places]
        pointers = [pairs.pointers[part].astype(np.int64) for part in taken]
        moves = [np.append(np.diff(pointer), self.config.stop) for pointer in pointers]
        return SpeechBatch(
            ids=torch.tensor([token for ids, _ in tokens for token in ids]),
            id_lengths=tuple(len(ids) for ids, _ in tokens),
            units=torch.from_numpy(units),
            unit_lengths=tuple(len(of_pair) for of_pair, _ in read),
            words=torch.from_numpy(of_words),
            codes=torch.from_numpy(np.concatenate([pairs.codes[part] for part in taken]).astype(np.int64)),
            pointers=torch.from_numpy(np.concatenate(pointers)),
            moves=torch.from_numpy(np.concatenate(moves)),
            frames=tuple(len(pointer) for pointer in pointers),
            voices=torch.from_numpy(self._voices[places]),
        )

    def batch(self, first_index: int, count: int, stride: int = 1) -> Batch:
        """See `Dataset.batch`: each pair's tokens, padded on the right; nothing of the text is learnt."""
        import torch

        from muomni.ops.cross_entropy import IGNORE

        speech = self.speech([first_index + n * stride for n in range(count)])
        longest = max(speech.id_lengths)
        rows = []
        for ids in torch.split(speech.ids, list(speech.id_lengths)):
            tokens = np.full(longest, self.tokenizer.pad_id)
            tokens[: len(ids)] = ids.numpy()
            # What follows a pair's tokens is a segment of its own.
            starts = np.array([0, len(ids)] if len(ids) < longest else [0])
            rows.append(Row(tokens, np.full(longest, IGNORE), starts))
        return replace(collate(rows, self.batch_id(first_index, count, stride)), speech=speech)

    def _ordered(self, epoch: int) -> Ints:
        return random_order(self.num_rows, mixed_key(self.seed, epoch))


class WithSpeech(Dataset[Batch]):
    """Rows of text (and media), with some pairs of text and speech for each.

    Args:
        rows: what decides the length of an epoch.
        speech: the pairs; row i has those numbered from i · pairs_per_sequence on.
        pairs_per_sequence: at least 1.
    """

    def __init__(self, rows: Dataset[Batch], speech: SpeechDataset, pairs_per_sequence: int) -> None:
        if pairs_per_sequence < 1:
            raise ValueError(f"pairs_per_sequence ({pairs_per_sequence}) must be at least 1")
        self.rows = rows
        self.speech = speech
        self.pairs_per_sequence = pairs_per_sequence

    @property
    def num_rows(self) -> int:
        """Rows in an epoch."""
        return self.rows.num_rows

    @property
    def key(self) -> str:
        """Names the rows."""
        return f"{self.rows.key} {self.speech.key} {self.pairs_per_sequence}"

    @property
    def num_media_documents(self) -> int:
        """Of the rows."""
        return self.rows.num_media_documents

    @property
    def num_workers(self) -> int:
        """Threads that read ahead."""
        return self.rows.num_workers

    def batch(self, first_index: int, count: int, stride: int = 1) -> Batch:
        """See `Dataset.batch`."""
        each = self.pairs_per_sequence
        indices = [first_index + n * stride for n in range(count)]
        speech = self.speech.speech([index * each + n for index in indices for n in range(each)])
        batch = self.rows.batch(first_index, count, stride)
        return replace(batch, speech=speech, id=self.batch_id(first_index, count, stride))

    def close(self) -> None:
        """Ends threads that read ahead."""
        self.rows.close()


def _check(pairs: SpeechPairs, config: TalkerConfig) -> None:
    if not len(pairs):
        raise DataError("there are no pairs of text and speech")
    if pairs.codes.shape[1] != config.num_codebooks or int(pairs.codes.max()) >= config.codebook_size:
        raise DataError(
            f"the pairs have {pairs.codes.shape[1]} codes a frame up to {int(pairs.codes.max())}, and the Talker "
            f"{config.num_codebooks} below {config.codebook_size}: they were made with another codec"
        )
    unknown = [name for name in pairs.speakers if name not in config.voices]
    if unknown:
        raise DataError(
            f"the pairs have speakers that the Talker has no voice for: {', '.join(unknown[:5])}; "
            f"its voices: {', '.join(config.voices[:5])}"
        )
    for name, language in zip(pairs.speakers, pairs.languages, strict=True):
        known = config.language(config.voices.index(name))
        if language != known:
            raise DataError(f'the pairs of {name} are in "{language}", and the Talker speaks as {name} in "{known}"')
    # From one pair to the next it falls.
    largest = int(np.diff(pairs.pointers.astype(np.int64)).max(initial=0))
    if largest > config.max_advance:
        raise DataError(
            f"the pairs were aligned with moves of up to {largest} units, and the Talker moves {config.max_advance} at "
            "most: prepare them with its max_advance"
        )
