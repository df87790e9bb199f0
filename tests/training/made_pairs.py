"""Pairs of text and speech without recordings: codes that follow from the units they speak.

For tests, and for the processes they start, which no fixture reaches; so it is loaded by its path.
"""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from muomni.data import SpeechPairs, clip_words, units_of

WORDS = ["the", "a", "small", "big", "red", "old", "cat", "dog", "tree", "sees", "finds", "near"]
CODEBOOKS, CODES = 4, 64


def make_pairs(sources: Sequence[Any], *_: object, language: str = "en", **__: object) -> SpeechPairs:
    """In the place of `prepare_pairs`: each source's path is `COUNT` or `COUNT-VOICE-VOICE`."""
    draw = random.Random(0)
    texts, voices, origins, codes, pointers = [], [], [], [], []
    names = sorted({name for source in sources for name in _voices(source)})
    for number, source in enumerate(sources):
        for n in range(int(source.path.split("-")[0])):
            text = " ".join(draw.choices(WORDS, k=draw.randint(2, 5))).capitalize() + "."
            units = units_of(clip_words(text))[0]
            pointer = np.repeat(np.arange(len(units)), [draw.randint(1, 2) for _ in units])
            texts.append(text)
            voices.append(names.index(_voices(source)[n % len(_voices(source))]))
            origins.append(number)
            pointers.append(pointer.astype(np.uint16))
            spoken = np.array(units)[pointer][:, None]
            codes.append((spoken * np.arange(3, 3 + CODEBOOKS) + voices[-1]) % CODES)
    frames = np.array([len(pointer) for pointer in pointers], np.int64)
    return SpeechPairs(
        texts=texts,
        voices=np.array(voices, np.int64),
        speakers=tuple(names),
        languages=(language,) * len(names),
        starts=np.cumsum(frames) - frames,
        frames=frames,
        codes=np.concatenate(codes).astype(np.uint16),
        pointers=np.concatenate(pointers),
        sources=np.array(origins, np.int64),
        frame_rate=25.0,
        left_out=(),
        key=" ".join(source.path for source in sources),
    )


def _voices(source: Any) -> list[str]:
    return source.path.split("-")[1:] or ["default"]
