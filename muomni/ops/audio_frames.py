"""How many frames and tokens a sound becomes. Without torch, so that data can be counted before a model is loaded."""

from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
# Samples from one frame of 10 ms to the next.
HOP = 160
# Three convolutions of stride 2 in the encoder.
FRAMES_PER_TOKEN = 8
# Steps of CTC in a token of 80 ms: speech has up to some 25 letters a second, and CTC needs a step for each.
CTC_STEPS = 4

Frames = TypeVar("Frames", int, NDArray[np.int64])


def num_frames(samples: int) -> int:
    """Frames of a sound of so many samples: one for every 10 ms begun, at least 8, which are one token."""
    return max(FRAMES_PER_TOKEN, -(-samples // HOP))


def num_tokens(frames: Frames) -> Frames:
    """Tokens that the audio encoder makes of so many frames: one for every 8 begun."""
    return -(-frames // FRAMES_PER_TOKEN)


def ctc_steps(transcript: bytes) -> int:
    """Steps that a transcript needs at least: one for each byte, and one between two equal bytes."""
    return len(transcript) + sum(a == b for a, b in pairwise(transcript))
