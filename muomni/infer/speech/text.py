"""Sentences as the Talker reads them, also while their words still come.

What is known of a unit does not change when more words follow: each word has tokens of its own, the Thinker looks
back only, and the Talker's convolutions see `lookahead` units ahead. So a unit may be spoken as soon as that many
units behind it are known, and the speech is the same as if the whole text had been there.

Legend: S sentences, N tokens, U units of a sentence, D the Talker's hidden_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from muomni.data.speech.spoken_text import Word, tokens_of, units_of
from muomni.model import OmniModel
from muomni.model.talker.batch import PAD

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

# Tokens of sentences that the Thinker reads at one time.
_TOGETHER = 4096


@dataclass(eq=False)
class SentenceText:
    """The text of one sentence.

    Attributes:
        words: so far.
        encoded: (U, D) of `known` units, as the Talker reads them; None before `encode_sentences`.
        known: units; behind them more may come unless the sentence is `complete`.
        complete: whether `encoded` goes up to END.
    """

    words: list[Word] = field(default_factory=list)
    encoded: Tensor | None = None
    known: int = 0
    complete: bool = False
    _read: int = 0

    @property
    def whole(self) -> bool:
        """Whether the last word is known."""
        return bool(self.words) and self.words[-1].last

    @property
    def waits(self) -> bool:
        """Whether there are words that have not been encoded."""
        return self._read < len(self.words)

    @property
    def end(self) -> int:
        """The place of END; beyond any other place where it is not known."""
        return self.known - 1 if self.complete else 1 << 40

    @property
    def coming(self) -> int:
        """Units that `encoded` would have now."""
        return 1 + sum(len(word.spoken.encode()) for word in self.words) + len(self.words) - 1 + self.whole

    def take(self, encoded: Tensor, words: int) -> None:
        """Takes what was encoded of the first so many words."""
        self._read = words
        self.encoded, self.known = encoded, len(encoded)
        self.complete = self.words[words - 1].last


def encode_sentences(model: OmniModel, tokenizer: "Tokenizer", sentences: Sequence[SentenceText]) -> None:
    """Brings `encoded` of sentences, each with at least one word, up to their last word; all are read together."""
    group: list[SentenceText] = []
    tokens = 0
    for sentence in sentences:
        # A word has at most as many tokens as bytes.
        size = sum(len(word.spoken) + 1 for word in sentence.words)
        if group and tokens + size > _TOGETHER:
            _encode(model, tokenizer, group)
            group, tokens = [], 0
        group.append(sentence)
        tokens += size
    if group:
        _encode(model, tokenizer, group)


def _encode(model: OmniModel, tokenizer: "Tokenizer", sentences: Sequence[SentenceText]) -> None:
    talker, device = model.talker, model.device
    assert talker is not None
    ids: list[int] = []
    lengths, units, places = [], [], []
    for sentence in sentences:
        own, last = tokens_of(sentence.words, tokenizer)
        said, numbers = units_of(sentence.words)
        if not sentence.whole:  # END is not known
            said, numbers = said[:-1], numbers[:-1]
        units.append(torch.tensor(said))
        places.append(torch.tensor([len(ids) + last[number] for number in numbers]))
        ids += own
        lengths.append(len(own))
    states = model.talker_states(torch.tensor(ids, device=device), lengths)
    rows = pad_sequence(units, batch_first=True, padding_value=PAD).to(device)
    read = states[pad_sequence(places, batch_first=True).to(device)]
    counts = torch.tensor([len(row) for row in units], device=device)
    encoded = talker.encode_text(rows, read.to(talker.norm.weight.dtype), counts)
    for sentence, row, own_units in zip(sentences, encoded, units, strict=True):
        sentence.take(row[: len(own_units)], len(sentence.words))
