"""Sentences and how they were spoken, as the Talker learns from them.

Legend: S sentences, U units of the longest, N tokens of all, F frames of all, K codebooks.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from muomni.config.talker import TalkerConfig
from muomni.model.inputs import moved

# Units of text that the Talker points at: the UTF-8 bytes of a sentence between BEGIN and END.
BEGIN, END, PAD, UNITS = 256, 257, 258, 259


@dataclass(frozen=True)
class SpeechBatch:
    """Sentences with their speech.

    Attributes:
        ids: (N,) int64, the Thinker's tokens of all sentences, one sentence behind the other.
        id_lengths: tokens of each sentence, at least 1; known on the host.
        units: (S, U) int64, see `units`; PAD behind the end of a sentence.
        unit_lengths: units of each sentence, BEGIN and END included.
        words: (S, U) int64, the place in `ids` of the last token of the unit's word; 0 in padding.
        codes: (F, K) int64 of the codec, frames of all sentences, one sentence behind the other.
        pointers: (F,) int64, the unit of its sentence that a frame speaks.
        moves: (F,) int64, how many units the pointer moves to the next frame; `TalkerConfig.stop` on a sentence's last.
        frames: of each sentence, at least 1; known on the host.
        voices: (S,) int64, numbers of `TalkerConfig.voices`.
        bad: descriptions of pairs that could not be read and are not in the batch.
    """

    ids: Tensor
    id_lengths: tuple[int, ...]
    units: Tensor
    unit_lengths: tuple[int, ...]
    words: Tensor
    codes: Tensor
    pointers: Tensor
    moves: Tensor
    frames: tuple[int, ...]
    voices: Tensor
    bad: tuple[str, ...] = ()

    @property
    def num_frames(self) -> int:
        """F."""
        return sum(self.frames)

    def to(self, device: torch.device | str) -> Self:
        """The same on a device; to a GPU the copy runs beside the computation."""
        place = torch.device(device)
        return replace(
            self,
            ids=moved(self.ids, place),
            units=moved(self.units, place),
            words=moved(self.words, place),
            codes=moved(self.codes, place),
            pointers=moved(self.pointers, place),
            moves=moved(self.moves, place),
            voices=moved(self.voices, place),
        )


def blank_speech(config: TalkerConfig, device: torch.device) -> SpeechBatch:
    """One empty sentence of one frame, for a pass that must compute the Talker and has nothing for it."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    return SpeechBatch(
        ids=zeros(1),
        id_lengths=(1,),
        units=torch.tensor([[BEGIN, END]], device=device),
        unit_lengths=(2,),
        words=zeros(1, 2),
        codes=zeros(1, config.num_codebooks),
        pointers=zeros(1),
        moves=zeros(1) + config.stop,
        frames=(1,),
        voices=zeros(1),
    )
