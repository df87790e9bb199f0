"""Forced alignment: which unit of its text each frame of a recording speaks, learnt from the recordings alone.

How it works. A small convolutional network learns the letters of all recordings with CTC (Graves et al., 2006) for
some hundred steps. The most likely way through the letters of a recording's own text (Viterbi) then says when each
of them is spoken. Between two letters the middle is the border; before the first sound the text stands at BEGIN,
behind the last one at END.

The network reads 50 frames a second (`FRAME_SAMPLES`) of log-mel features. It sees a third of a second to either
side, so that it cannot learn to write a word down long after it was spoken.

Legend: B recordings, T frames at 50 Hz, M mel bins, C classes (blank and the letters), S letters of a recording,
U units of its text, L states of a path (2·S + 1), F frames of the codec.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from muomni.errors import DataError
from muomni.model.talker.batch import BEGIN, END
from muomni.ops.log_mel import log_mel

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

FRAME_SAMPLES = 320
MEL_BINS = 80
# Where the middle of frame 0 is, in samples: of two windows, around samples 0 and 160.
_MIDDLE = 80
_PAUSES = frozenset(",;:.!?")
_SPACE, _PAUSE = ord(" "), ord(",")
# A frame is silent where no bin comes within 45 dB of the loudest of the recording (features are 0 to 255 for 80 dB).
_SILENT = 255 * (80 - 45) // 80
# Seconds that sound may begin before the middle of the first letter, and last after that of the last.
_ONSET, _RELEASE = 0.3, 0.5
_WIDTH, _BLOCKS, _KERNEL = 160, 4, 7
# What is read at once while letters are found.
_BATCH_FRAMES = 20_000


@dataclass(frozen=True)
class AlignerSpec:
    """How the network learns.

    Attributes:
        steps: of the optimizer.
        batch_frames: frames of a step.
        lr: the highest learning rate.
        seed: of the initial weights and of the order.
    """

    steps: int = 400
    batch_frames: int = 6400
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Recordings:
    """Features of recordings one behind the other, with what is said in them.

    Attributes:
        features: (all T, M) uint8, see `features_of`; may be mapped into memory.
        starts: (recordings,) int64, where each begins.
        lengths: (recordings,) int64.
        units: of each, BEGIN and END included.
    """

    features: NDArray[np.uint8]
    starts: Ints
    lengths: Ints
    units: Sequence[Ints]

    def read(self, numbers: Ints) -> Tensor:
        """(B, T, M) float32 of −1 to 1, −1 behind the end of a recording."""
        longest = int(self.lengths[numbers].max())
        rows = torch.zeros(len(numbers), longest, MEL_BINS, dtype=torch.uint8)
        for row, number in zip(rows, numbers, strict=True):
            begin, length = int(self.starts[number]), int(self.lengths[number])
            row[:length] = torch.from_numpy(np.array(self.features[begin : begin + length]))
        return rows.float() / 127.5 - 1


def features_of(samples: Tensor) -> NDArray[np.uint8]:
    """(S,) float32 at 16 kHz to (T, 80): log-mel features of 20 ms, 0 for 80 dB below the loudest bin, 255 for it."""
    mel = log_mel(samples, MEL_BINS)
    pairs = F.pad(mel, (0, 0, 0, len(mel) % 2), value=-1.0).view(-1, 2, MEL_BINS).mean(1)
    values: NDArray[np.uint8] = ((pairs + 1) * 127.5).round().to(torch.uint8).numpy()
    return values


def letters_of(units: Ints) -> tuple[Ints, Ints]:
    """What of a text is heard: letters and digits in small, spaces between words, and pauses (as commas).

    Quotes, brackets, hyphens and what stands at the very end are not heard.

    Args:
        units: (U,) with BEGIN and END.

    Returns:
        (S,) bytes, and (S,) which unit each is.
    """
    found: list[tuple[int, int]] = []
    for place, unit in enumerate(units.tolist()):
        if unit in (BEGIN, END):
            continue
        character = chr(unit) if unit < 128 else "\N{LATIN SMALL LETTER A}"
        if character.isalnum():
            found.append((ord(character.lower()) if unit < 128 else unit, place))
        elif character == " " and found and found[-1][0] not in (_SPACE, _PAUSE):
            found.append((_SPACE, place))
        elif character in _PAUSES and found and found[-1][0] != _PAUSE:
            if found[-1][0] == _SPACE:
                found.pop()
            found.append((_PAUSE, place))
    while found and found[-1][0] in (_SPACE, _PAUSE):
        found.pop()
    letters = np.array(found, np.int64).reshape(-1, 2)
    return letters[:, 0], letters[:, 1]


class Listener(nn.Module):
    """Features to letters, with so few steps of training in mind."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(MEL_BINS, _WIDTH, 5, padding=2)
        self.blocks = nn.ModuleList(_Block() for _ in range(_BLOCKS))
        self.norm = nn.LayerNorm(_WIDTH)
        self.last = nn.Linear(_WIDTH, classes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, M) to (B, T, C) logarithms of probabilities."""
        x = self.first(features.mT).mT
        for block in self.blocks:
            x = block(x)
        return F.log_softmax(self.last(self.norm(x)), -1)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(_WIDTH, _WIDTH, _KERNEL, padding=_KERNEL // 2, groups=_WIDTH)
        self.norm = nn.LayerNorm(_WIDTH)
        self.up, self.down = nn.Linear(_WIDTH, 2 * _WIDTH), nn.Linear(2 * _WIDTH, _WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) to the same."""
        mixed: Tensor = self.down(F.gelu(self.up(self.norm(self.conv(x.mT).mT))))
        return x + mixed


@dataclass(frozen=True)
class Spoken:
    """When the letters of a recording are spoken.

    Attributes:
        middles: (S,) float32, middle of each letter, in frames at 50 Hz; rising.
        score: mean logarithm of the probability of what was chosen, of a frame; −inf where the text has too many
            letters for the recording.
    """

    middles: Floats
    score: float


def align(
    recordings: Recordings, spec: AlignerSpec | None = None, report: Callable[[float], None] = lambda _: None
) -> list[Spoken]:
    """Learns the letters of the recordings, and finds them.

    The same recordings and spec give the same result on the same machine. Random numbers of others are not touched.

    Args:
        recordings: with their texts.
        spec: how the network learns.
        report: called with the share of the work that is done.

    Raises:
        DataError: no recording has a letter.
    """
    spec = spec or AlignerSpec()
    letters = [letters_of(units)[0] for units in recordings.units]
    alphabet = np.unique(np.concatenate(letters)) if letters else np.zeros(0, np.int64)
    if not len(alphabet):
        raise DataError("none of the texts has a letter that could be found in its recording")
    classes = [1 + np.searchsorted(alphabet, own) for own in letters]  # 0 is the blank
    # CTC needs a frame for each letter and one between equal neighbours.
    needed = np.array([len(own) + int((own[1:] == own[:-1]).sum()) for own in classes])
    usable = (needed > 0) & (needed <= recordings.lengths)
    listener = _learn(recordings, classes, np.flatnonzero(usable), len(alphabet) + 1, spec, report)
    found = [Spoken(np.zeros(len(own), np.float32), float("-inf")) for own in classes]
    done = 0
    for numbers in _batches(np.flatnonzero(usable), recordings.lengths, _BATCH_FRAMES):
        with torch.inference_mode():
            scores = listener(recordings.read(numbers)).numpy()
        lengths = recordings.lengths[numbers]
        for number, spoken in zip(numbers, best_paths(scores, lengths, [classes[n] for n in numbers]), strict=True):
            found[number] = spoken
        done += len(numbers)
        report(0.9 + 0.1 * done / len(found))
    return found


def _learn(
    recordings: Recordings,
    classes: Sequence[Ints],
    usable: Ints,
    count: int,
    spec: AlignerSpec,
    report: Callable[[float], None],
) -> Listener:
    """Trains on batches of recordings of about one length, drawn anew in each epoch."""
    if not len(usable):
        raise DataError("no recording is long enough for its text: texts and recordings do not belong together")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        listener = Listener(count)
    drawn = np.random.default_rng(spec.seed)
    optimizer = torch.optim.AdamW(listener.parameters(), lr=spec.lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, spec.lr, total_steps=spec.steps, pct_start=0.15)
    for step, numbers in zip(range(spec.steps), _forever(usable, recordings.lengths, spec, drawn), strict=False):
        scores = listener(recordings.read(numbers))
        targets = torch.from_numpy(np.concatenate([classes[n] for n in numbers]))
        lengths = torch.tensor([len(classes[n]) for n in numbers])
        loss = F.ctc_loss(
            scores.transpose(0, 1),
            targets,
            torch.from_numpy(recordings.lengths[numbers]),
            lengths,
            reduction="sum",
        ) / int(lengths.sum())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(listener.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        report(0.9 * (step + 1) / spec.steps)
    return listener.eval()


def _forever(usable: Ints, lengths: Ints, spec: AlignerSpec, drawn: np.random.Generator) -> Iterator[Ints]:
    while True:
        # Lengths blurred by a tenth, so that each epoch has other neighbours.
        blurred = np.zeros(len(lengths))
        blurred[usable] = lengths[usable] * drawn.uniform(0.9, 1.1, len(usable))
        batches = list(_batches(usable, blurred, spec.batch_frames))
        for place in drawn.permutation(len(batches)):
            yield batches[place]


def _batches(numbers: Ints, lengths: NDArray[Any], frames: int) -> Iterator[Ints]:
    """Recordings from short to long, as many at a time as have so many frames together; at least one."""
    order = numbers[np.argsort(lengths[numbers], kind="stable")]
    begin = 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] * (end + 1 - begin) > frames:
            yield order[begin:end]
            begin = end


def best_paths(scores: Floats, lengths: Ints, classes: Sequence[Ints]) -> list[Spoken]:
    """The most likely path through the letters of each recording, all recordings at once.

    Args:
        scores: (B, T, C) logarithms of probabilities, class 0 the blank.
        lengths: (B,) frames of each, enough for its letters.
        classes: (S,) int64 of each recording, at least one letter.
    """
    B, T, _ = scores.shape
    longest = 2 * max(map(len, classes)) + 1
    states = np.zeros((B, longest), np.int64)
    for row, own in zip(states, classes, strict=True):
        row[1 : 2 * len(own) : 2] = own
    lasts = np.array([2 * len(own) for own in classes])
    # From one letter to the next without a blank, unless they are equal.
    skips = np.full((B, longest), -np.inf, np.float32)
    skips[:, 2:][(states[:, 2:] != 0) & (states[:, 2:] != states[:, :-2])] = 0
    of_states = np.take_along_axis(scores, np.broadcast_to(states[:, None], (B, T, longest)), 2)
    padded = np.full((B, longest + 2), -np.inf, np.float32)
    padded[:, 2:4] = of_states[:, 0, :2]
    back = np.zeros((T, B, longest), np.uint8)
    for t in range(1, T):
        options = np.stack((padded[:, 2:], padded[:, 1:-1], padded[:, :-2] + skips))
        chosen = options.argmax(0)
        best = np.take_along_axis(options, chosen[None], 0)[0] + of_states[:, t]
        going = (t < lengths)[:, None]
        back[t] = np.where(going, chosen, 0)
        padded[:, 2:] = np.where(going, best, padded[:, 2:])
    rows = np.arange(B)
    ends = padded[:, 2:]
    state = np.where(ends[rows, lasts] >= ends[rows, lasts - 1], lasts, lasts - 1)
    totals = ends[rows, state] / lengths
    path = np.zeros((T, B), np.int64)
    for t in range(T - 1, -1, -1):
        path[t] = state
        state = state - back[t, rows, state]
    return [Spoken(_middles(path[: lengths[n], n], len(classes[n])), float(totals[n])) for n in range(B)]


def _middles(path: Ints, count: int) -> Floats:
    """(T,) states to the (S,) mean frame of each letter."""
    spoken = np.flatnonzero(path % 2)
    letters = path[spoken] // 2
    sums = np.bincount(letters, spoken, count)
    middles: Floats = (sums / np.bincount(letters, minlength=count)).astype(np.float32)
    return middles


def unit_starts(units: Ints, spoken: Spoken, features: NDArray[np.uint8]) -> Floats:
    """(U,) float32: the sample at 16 kHz where each unit begins; never falling, −inf for BEGIN.

    A unit that is not heard has no time of its own: it begins with the next one that is.

    Args:
        units: (U,).
        spoken: its letters as they were found.
        features: (T, M) of the recording.
    """
    _, places = letters_of(units)
    middles = spoken.middles * FRAME_SAMPLES + _MIDDLE
    loud = np.flatnonzero(features.max(1) > _SILENT)
    rate = 50 * FRAME_SAMPLES
    onset = float(loud[0] if len(loud) else 0) * FRAME_SAMPLES - _MIDDLE
    release = float(loud[-1] + 1 if len(loud) else len(features)) * FRAME_SAMPLES
    first = min(max(onset, middles[0] - _ONSET * rate), middles[0])
    end = max(min(release, middles[-1] + _RELEASE * rate), middles[-1] + FRAME_SAMPLES)
    starts = np.full(len(units), np.inf, np.float32)
    starts[places] = np.concatenate(([first], (middles[1:] + middles[:-1]) / 2))
    starts[-1] = end
    result: Floats = np.minimum.accumulate(starts[::-1])[::-1].astype(np.float32)
    result[0] = -np.inf
    return result


def pointers_of(starts: Floats, frames: int, frame_samples: float, delay: float, max_advance: int) -> Ints | None:
    """Which unit each of the codec's frames speaks.

    Args:
        starts: (U,) see `unit_starts`.
        frames: F.
        frame_samples: of the codec, in samples at 16 kHz.
        delay: of the codec, likewise: frame t gives back the samples from t · frame_samples − delay on.
        max_advance: how many units a frame may be ahead of the one before.

    Returns:
        (F,) int64 from 0 to U − 1, never falling; None where there are too few frames for the units.
    """
    last = len(starts) - 1
    steps = max_advance * np.arange(frames)
    if frames < 2 or steps[-1] < last:
        return None
    middles = np.arange(frames) * frame_samples + frame_samples / 2 - delay
    wanted = np.searchsorted(starts, middles, side="right") - 1
    # It begins at 0, and from everywhere the end can be reached.
    wanted = wanted.clip(np.maximum(0, last - steps[::-1]), np.minimum(last, steps))
    # Where more units come at once than a move can pass, half of them are passed before and half after.
    early = np.maximum.accumulate((wanted - steps)[::-1])[::-1] + steps
    late = np.minimum.accumulate(wanted - steps) + steps
    pointers: Ints = (early + late) // 2
    return pointers
