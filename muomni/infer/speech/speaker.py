"""Sentences spoken side by side: each in a slot of its own, at its own place, until it ends by itself.

A row's speech depends on its text, its settings and its seed alone: numbers to draw with are its own, and a row that
has ended leaves the others as they are. Rows are looked at every few frames only; what a row that has ended computes
until then is thrown away.

The one rule by which the Talker's place in the text moves on, and by which speech ends (`advance`): the pointer
only moves forward, by at most `max_advance` units a frame, and speech ends on END only: nothing is skipped
over, said twice or cut off. What is left to the rule is how fast.

* `expected`: the mean of the predicted moves is saved up, and the pointer moves by the whole units of it. It has no
  luck and keeps the pace that was learnt even where every single "stay" is more likely than any move, which would
  keep an argmax in its place for ever. Rounded, not cut: half a unit is there at the beginning, so that a move that
  is nearly certain is made when it is predicted and not a frame later.
* `drawn`: a move is drawn from the predicted distribution.

On END the classes are "stop" and "stay". `expected` stops once the probability of having stopped by now reaches 1/2
(the median of what `drawn` would do), and that frame is the last.

Legend: N rows that take part, S slots, U units, D hidden_size, K codebooks, n steps of a run, C = max_advance + 2
classes: moves by 0 to max_advance units, and stop.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from muomni.data.speech.spoken_text import MAX_UNITS
from muomni.errors import SpeechError, UserError
from muomni.infer.engine.scheduler import Slots
from muomni.infer.runners.select import (
    Backbone,
    RunnerName,
    Runners,
    make_backbone,
    make_slot_cache,
    torch_on_one_thread,
)
from muomni.infer.sampling import Sampler, SamplingParams, make_random, why_not_finite
from muomni.infer.speech.settings import SpeechSettings
from muomni.infer.speech.text import SentenceText
from muomni.model import OmniModel
from muomni.model.codec import SpeechCodec
from muomni.model.module_modes import eval_mode, fingerprint
from muomni.model.talker import NONE, Talker, undelay

# Seconds that the pointer may stay where it is.
PATIENCE_S = 4.0
# Seconds that a sentence may take for a unit, on the average; slow speech takes a third of it.
_SLOWEST_S = 0.3
# Steps whose numbers are drawn at once.
_BLOCK = 64
# Of the free memory, for the cache of a speaker.
_SHARE = 0.5
# Listeners who share a speaker, and the seconds of a sentence that are computed ahead of its listener for others' sake.
_LISTENERS = 8
_WAITING_S = 2.0
# Saved up at the beginning, in units: makes rounding down rounding to the nearest.
_HALF = 0.5


def most_frames(units: int, frame_rate: float) -> int:
    """Frames that a sentence of so many units may take."""
    return int(frame_rate * (PATIENCE_S + _SLOWEST_S * units))


def capacity_for(talker: Talker, frame_rate: float) -> int:
    """Steps of the longest sentence that there can be, with those that are computed in vain behind its end."""
    return most_frames(MAX_UNITS, frame_rate) + talker.config.flush + _BLOCK


@dataclass(eq=False)
class Sentence:
    """A sentence that is to be spoken, and how far it has come.

    Attributes:
        text: its words.
        settings: how it is spoken.
        voice: number of the voice.
        seed: of its own numbers; see `sentence_seed`.
        progress: how far it has come; changes in one assignment, so that an exception leaves it whole.
        frames: of the whole sentence, once it has ended.
        error: why it could not be spoken.
        slot: of its keys and values, -1 without one.
        sounded: frames that have become sound.
        left: nobody listens any more.
    """

    text: SentenceText
    settings: SpeechSettings
    voice: int
    seed: int
    progress: "Progress | None" = None
    frames: int | None = None
    error: SpeechError | None = None
    slot: int = -1
    sounded: int = 0
    left: bool = False
    _generator: torch.Generator | None = None
    _numbers: list[Tensor] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """That were computed."""
        return 0 if self.progress is None else self.progress.steps

    @property
    def pointer(self) -> int:
        """The unit it stands at."""
        return 0 if self.progress is None else self.progress.pointer

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self.frames is not None or self.error is not None

    def ready(self, flush: int) -> int:
        """Frames whose codes are all there."""
        return max(0, self.steps - flush) if self.frames is None else self.frames

    def codes(self, begin: int, end: int, flush: int) -> Tensor:
        """(end − begin, K) codes of frames."""
        assert self.progress is not None
        steps = torch.cat(self.progress.drawn)[begin : end + flush]
        return undelay(steps) if flush else steps

    def units(self, begin: int, end: int) -> list[int]:
        """The unit that each of the frames says."""
        assert self.progress is not None
        frames: list[int] = torch.cat(self.progress.units)[begin:end].tolist()
        return frames

    def numbers(self, count: int, columns: int) -> Tensor:
        """(count, columns) what the next steps draw with, whatever was asked for before."""
        if self._generator is None:
            self._generator = torch.Generator().manual_seed(self.seed)
        while len(self._numbers) * _BLOCK < self.steps + count:
            self._numbers.append(torch.rand(_BLOCK, columns, generator=self._generator))
        first, last = self.steps // _BLOCK, (self.steps + count - 1) // _BLOCK
        blocks = torch.cat(self._numbers[first : last + 1])
        return blocks[self.steps - first * _BLOCK :][:count]


def sentence_seed(seed: int, number: int) -> int:
    """The seed of a text's sentence."""
    return make_random(seed, number).getrandbits(63)


class Place(NamedTuple):
    """Where N rows stand.

    Attributes:
        pointer: (N,) int64, the unit that is being said.
        saved: (N,) float32, the part of a unit that the expected moves are ahead of the pointer.
        going: (N,) float32, the probability of not having stopped yet.
        waited: (N,) int64, frames since the pointer last moved.
        frames: (N,) int64, frames that were spoken, the last one included.
        ended: (N,) bool.
    """

    pointer: Tensor
    saved: Tensor
    going: Tensor
    waited: Tensor
    frames: Tensor
    ended: Tensor

    @classmethod
    def start(cls, rows: int, device: torch.device) -> "Place":
        """Before the first frame."""
        zeros = torch.zeros(rows, dtype=torch.int64, device=device)
        saved = torch.full((rows,), _HALF, device=device)
        ended = torch.zeros(rows, dtype=torch.bool, device=device)
        return cls(zeros, saved, torch.ones_like(saved), zeros.clone(), zeros.clone(), ended)

    @classmethod
    def join(cls, places: Sequence["Place"]) -> "Place":
        """The rows of all of them."""
        return cls(*(torch.cat(columns) for columns in zip(*places, strict=True)))


class Progress(NamedTuple):
    """How far a sentence has come.

    Attributes:
        place: of one row.
        codes: (K,) of the newest step.
        steps: that were computed.
        pointer: the unit it stands at.
        drawn: (n, K) codes of the steps, run by run.
        units: (n,) the unit that each step says, run by run.
    """

    place: Place
    codes: Tensor
    steps: int = 0
    pointer: int = 0
    drawn: tuple[Tensor, ...] = ()
    units: tuple[Tensor, ...] = ()


class Speaker:
    """Speaks sentences in the slots of a cache, for any number of threads: whoever computes does so for all.

    Args:
        talker: in evaluation mode while it computes, then as it was.
        backbones: compute its frames; their cache is the speaker's alone.
        frame_rate: frames a second.
        key: of what it was made for; see `SpeakerPool`.

    Attributes:
        slots: of the cache.
        lock: held while it computes; who changes the text of a sentence that has a slot holds it, too.
        listeners: who have a slot for the sentence that they listen to; see `SpeakerPool.join`.
    """

    def __init__(
        self,
        talker: Talker,
        backbones: Runners[Backbone],
        frame_rate: float,
        key: tuple[object, ...] | None = None,
    ) -> None:
        config, place = talker.config, talker.norm.weight
        slots = backbones.now.cache.slots
        self.slots, self.key = Slots(slots), key
        self.listeners = 0
        self._rows: list[Sentence] = []
        # The garbage collector may close a listener inside a run, on the thread that holds it.
        self.lock = threading.RLock()
        self._running = False
        self._talker, self._backbones, self._rate = talker, backbones, frame_rate
        self._patience = int(PATIENCE_S * frame_rate)
        self._device = place.device
        self._text = torch.zeros(slots, 0, config.hidden_size, dtype=place.dtype, device=self._device)
        self._sampler: tuple[list[SpeechSettings], Sampler] = ([], Sampler([], self._device))

    def add(self, sentence: Sentence) -> None:
        """Gives a sentence a free slot; its text has been encoded, at least its beginning."""
        with self.lock:
            self._sweep()
            codes = torch.zeros(self._talker.config.num_codebooks, dtype=torch.int64, device=self._device)
            sentence.progress = Progress(Place.start(1, self._device), codes)
            sentence.slot = self.slots.take()
            self._rows.append(sentence)
            self.renew(sentence)

    def remove(self, sentence: Sentence) -> None:
        """Takes a sentence out that nobody listens to any more, at the latest before the next run."""
        sentence.left = True
        if self.lock.acquire(blocking=False):
            try:
                if not self._running:
                    self._sweep()
            finally:
                self.lock.release()

    def clear(self) -> None:
        """Takes all sentences out."""
        with self.lock:
            for sentence in self._rows:
                sentence.left = True
            self._sweep()

    def _sweep(self) -> None:
        """Takes out what is done or left; every slot without a sentence is free, also after an exception anywhere."""
        for sentence in self._rows:
            if sentence.done or sentence.left:
                sentence.slot = -1
        self._rows = [sentence for sentence in self._rows if sentence.slot >= 0]
        self.slots.reset({sentence.slot for sentence in self._rows})

    def renew(self, sentence: Sentence) -> None:
        """More of its text has been encoded."""
        assert sentence.text.encoded is not None
        with self.lock:
            missing = sentence.text.known - self._text.shape[1]
            if missing > 0:
                wider = -(-missing // 64) * 64
                self._text = torch.nn.functional.pad(self._text, (0, 0, 0, wider))
            self._text[sentence.slot, : sentence.text.known] = sentence.text.encoded

    def safe(self, sentence: Sentence) -> int:
        """Steps the sentence can go for certain with the text that is known; 0 where it waits for more."""
        config, text = self._talker.config, sentence.text
        if text.complete:
            return _BLOCK
        # END may be the next unit: a move must not lead behind it.
        ahead = min(text.known - config.lookahead - 1, text.known - config.max_advance) - sentence.pointer
        return min(_BLOCK, ahead // config.max_advance + 1) if ahead >= 0 else 0

    @torch.inference_mode()
    def run(self, most: int, leader: Sentence | None = None) -> list[Sentence]:
        """Computes at most so many steps for every sentence that can go on; those that are done leave their slots.

        Args:
            most: steps.
            leader: whose listener waits: it takes as many steps as it can, and those that can go as far take part,
                but for whom much waits to be heard already. None lets the slowest decide.

        Returns:
            the sentences that have come further.
        """
        goal = most if leader is None else leader.steps + most
        with self.lock:
            self._sweep()
            if leader is None:
                sentences = [sentence for sentence in self._rows if self.safe(sentence) > 0]
                count = min(most, *(self.safe(sentence) for sentence in sentences), _BLOCK)
            else:  # others may have taken it further since
                count = 0 if leader.slot < 0 else min(goal - leader.steps, self.safe(leader))
                sentences = [s for s in self._rows if s is leader or (self.safe(s) >= count and self._is_short(s))]
            if count <= 0 or not sentences:
                return []
            self._backbones.switch()
            backbone = self._backbones.now
            alone = torch_on_one_thread() if backbone.own_threads else nullcontext()
            self._running = True
            try:
                with eval_mode(self._talker), alone:
                    self._compute(backbone, sentences, count)
            finally:
                self._running = False
            self._sweep()
            return sentences

    def _is_short(self, sentence: Sentence) -> bool:
        """Whether little of a sentence waits to be heard."""
        return sentence.ready(self._talker.config.flush) - sentence.sounded < _WAITING_S * self._rate

    def _compute(self, backbone: Backbone, sentences: Sequence[Sentence], count: int) -> None:
        talker, device = self._talker, self._device
        slots = torch.tensor([sentence.slot for sentence in sentences])
        rows = slots.to(device)
        positions = torch.tensor([sentence.steps for sentence in sentences])
        none = torch.zeros(len(rows), dtype=torch.bool, device=device)
        begins = (positions == 0).to(device)
        voices = torch.tensor([sentence.voice for sentence in sentences], device=device)
        ends = torch.tensor([sentence.text.end for sentence in sentences], device=device)
        progress = [sentence.progress for sentence in sentences if sentence.progress is not None]
        place, codes = Place.join([each.place for each in progress]), torch.stack([each.codes for each in progress])
        draws, drawn = self._draws(sentences, count)
        sampler = self._sampler_of(sentences)
        steps, pointers = [], []
        lost = torch.zeros(len(rows), dtype=torch.bool, device=device)  # logits that are not finite
        for step in range(count):
            draw = None if draws is None else draws[step]

            def pick(logits: Tensor, k: int, draw: Tensor | None = draw) -> Tensor:
                drawn = sampler(logits, None if draw is None else draw[:, k])
                lost.logical_or_(drawn < 0)
                return drawn.clamp(min=0)

            pointers.append(place.pointer)
            x = talker.inputs(codes, begins if step == 0 else none, self._text[rows, place.pointer], voices)
            hidden = backbone.hidden(x, slots, positions + step)
            codes = talker.frame(hidden, pick)
            uniform = None if draw is None else draw[:, -1]
            moves = talker.move_logits(hidden)
            lost.logical_or_(~moves.isfinite().all(-1))
            place = advance(moves, place, ends, self._patience, uniform, drawn)
            if talker.config.flush:
                codes = _existing(codes, (positions + step).to(device), place.frames)
            steps.append(codes)
        whole, units = torch.stack(steps), torch.stack(pointers)
        # The one wait for the device.
        state = torch.stack((place.pointer, place.waited, place.frames, place.ended.long(), lost.long())).tolist()
        for n, (sentence, old) in enumerate(zip(sentences, progress, strict=True)):
            row = Place(*(x[n : n + 1] for x in place))
            done = (*old.drawn, whole[:, n]), (*old.units, units[:, n])
            sentence.progress = Progress(row, codes[n], old.steps + count, state[0][n], *done)
            self._look(sentence, *(column[n] for column in state))

    def _look(self, sentence: Sentence, pointer: int, waited: int, frames: int, ended: int, lost: int) -> None:
        """What became of a sentence."""
        words = sentence.text.words
        name = f"the sentence {' '.join(word.spoken for word in words)!r}"
        most = most_frames(sentence.text.known if sentence.text.complete else MAX_UNITS, self._rate)
        if lost:
            sentence.error = SpeechError(f"{name}: {why_not_finite(self._talker)}")
        elif waited >= self._patience:
            where = "at its end" if pointer >= sentence.text.end else f"after {said_until(sentence, pointer)!r}"
            sentence.error = SpeechError(
                f"{name}: the talker stood still for {PATIENCE_S:g} seconds {where}; it has not learnt this well "
                "enough: train it longer, or try another seed or temperature"
            )
        elif frames > most or (not ended and frames >= most):
            sentence.error = SpeechError(
                f"{name}: the talker was not done after {most / self._rate:.0f} seconds and stood after "
                f"{said_until(sentence, pointer)!r}; train it longer, or try another seed or temperature"
            )
        elif ended and sentence.steps >= frames + self._talker.config.flush:
            sentence.frames = frames

    def _draws(self, sentences: Sequence[Sentence], count: int) -> tuple[Tensor | None, Tensor | None]:
        """(n, N, K + 1) numbers, the last for the move, and (N,) whose moves are drawn; None where not needed."""
        drawn = [sentence.settings.draws_moves for sentence in sentences]
        if not any(drawn) and all(sentence.settings.temperature == 0 for sentence in sentences):
            return None, None
        columns = self._talker.config.num_codebooks + 1
        numbers = torch.stack([sentence.numbers(count, columns) for sentence in sentences], dim=1)
        return numbers.to(self._device), None if all(drawn) else torch.tensor(drawn, device=self._device)

    def _sampler_of(self, sentences: Sequence[Sentence]) -> Sampler:
        settings = [sentence.settings for sentence in sentences]
        if settings != self._sampler[0]:
            params = [SamplingParams(temperature=s.temperature, top_k=s.top_k, top_p=1.0) for s in settings]
            self._sampler = settings, Sampler(params, self._device)
        return self._sampler[1]


def _existing(codes: Tensor, step: Tensor, frames: Tensor) -> Tensor:
    """(N, K) codes of the delay pattern, NONE for those that are of no frame: code k is of frame step − k."""
    frame = step[:, None] - torch.arange(codes.shape[1], device=codes.device)
    return torch.where((frame >= 0) & (frame < frames[:, None]), codes, NONE)


def said_until(sentence: Sentence, pointer: int) -> str:
    """What of the sentence has been said at a place in its units."""
    said = " ".join(word.spoken for word in sentence.text.words).encode()
    return said[: max(0, pointer - 1)].decode(errors="ignore")


def advance(
    logits: Tensor,
    place: Place,
    ends: Tensor,
    patience: int,
    numbers: Tensor | None = None,
    drawn: Tensor | None = None,
) -> Place:
    """One frame further.

    Args:
        logits: (N, C), of the frame that was just spoken.
        place: before it.
        ends: (N,) int64, the place of END; beyond any pointer where it is not known yet.
        patience: frames that the pointer may stay; one that has stayed so long is stuck, and keeps that count.
        numbers: (N,) from 0 up to, never, 1, for `drawn` rows; None where none are.
        drawn: (N,) bool, rows whose moves are drawn; None where all are or, without `numbers`, none.

    Returns:
        a new one; rows that had ended stay as they were.
    """
    logits = logits.float().nan_to_num()  # who computes it tells of them; no place lies outside the text
    # What cannot be here takes no part: no stop before END, no move on it.
    moves, chance = logits[:, :-1].softmax(-1), (logits[:, -1] - logits[:, 0]).sigmoid()
    on_end = place.pointer >= ends
    steps = torch.arange(moves.shape[1], device=logits.device, dtype=torch.float32)
    saved = place.saved + moves @ steps
    step = saved.floor().clamp_(max=moves.shape[1] - 1)
    going = torch.where(on_end, place.going * (1 - chance), place.going)
    stopped = going <= 0.5
    if numbers is not None:
        sums = moves.cumsum(-1)
        chosen = (sums > numbers[:, None] * sums[:, -1:]).to(torch.uint8).argmax(-1).float()
        step = chosen if drawn is None else torch.where(drawn, chosen, step)
        stopped = numbers < chance if drawn is None else torch.where(drawn, numbers < chance, stopped)
    pointer = torch.minimum(place.pointer + step.long(), ends)
    pointer = torch.where(on_end, place.pointer, pointer)
    waited = torch.where((pointer > place.pointer) & (place.waited < patience), 0, place.waited + 1)
    new = Place(pointer, saved - step, going, waited, place.frames + 1, on_end & stopped)
    return Place(*(torch.where(place.ended, old, x) for old, x in zip(place, new, strict=True)))


class SpeakerPool:
    """Lends speakers: one that was given back is lent again while the weights stay and it has slots enough.

    Texts that are known get one to themselves; listeners to texts that still come share one, so that their sentences
    are computed side by side. Any number may be lent at a time. Copies and pickles of a pool are new ones.

    Args:
        runner: computes the Talker; see `make_backbone`.
    """

    def __init__(self, runner: RunnerName | None = None) -> None:
        self.runner = runner
        self._lock = threading.RLock()  # the garbage collector may close a listener while another one comes
        self._kept: Speaker | None = None
        self._shared: Speaker | None = None
        self._key: tuple[object, ...] | None = None

    def __deepcopy__(self, _: dict[int, object]) -> "SpeakerPool":
        return SpeakerPool(self.runner)

    def __reduce__(self) -> tuple[type["SpeakerPool"], tuple[RunnerName | None]]:
        return SpeakerPool, (self.runner,)

    def take(self, model: OmniModel, slots: int) -> Speaker:
        """A speaker for the caller alone, until it is given back.

        Args:
            model: whose weights may have changed since.
            slots: sentences side by side; fewer where memory asks for it.

        Raises:
            UserError: the model has no Talker.
            ConfigError: the runner cannot compute this Talker.
            EngineError: the memory does not hold one slot.
        """
        with self._lock:
            self._key = self._key_of(model)
            speaker, self._kept = self._kept, None
            same = speaker is not None and self._key is not None and speaker.key == self._key
            if speaker is not None and same and speaker.slots.count >= slots:
                return speaker
            speaker = None  # its cache is freed before the next one is made
            return self._make(model, slots, self._key)

    def join(self, model: OmniModel) -> Speaker:
        """A speaker that is shared with other listeners and has a slot for one sentence at a time, until `leave`.

        Raises:
            as `take`.
        """
        with self._lock:
            key, speaker = self._key_of(model), self._shared
            if speaker is None or key is None or speaker.key != key or speaker.listeners >= speaker.slots.count:
                # An old one goes on for as long as it has listeners; else its cache is freed first.
                self._shared = speaker = None
                self._shared = speaker = self._make(model, _LISTENERS, key)
            speaker.listeners += 1
            return speaker

    def leave(self, speaker: Speaker, sentence: Sentence | None) -> None:
        """Ends a `join`, once; the sentence that is not finished leaves the speaker."""
        if sentence is not None:
            speaker.remove(sentence)
        with self._lock:
            speaker.listeners -= 1

    def _key_of(self, model: OmniModel) -> tuple[object, ...] | None:
        talker = talker_of(model)
        return fingerprint([talker], self.runner, talker.norm.weight.device, talker.norm.weight.dtype)

    def _make(self, model: OmniModel, slots: int, key: tuple[object, ...] | None) -> Speaker:
        talker, codec = talker_of(model), codec_of(model)
        place, config = talker.norm.weight, talker.config.backbone
        capacity = capacity_for(talker, codec.frame_rate)
        remedy = "free some memory, or speak fewer sentences side by side with batch_size"
        cache = make_slot_cache(config, slots, capacity, place.dtype, place.device, _SHARE, "speech", remedy)
        return Speaker(talker, make_backbone(model, talker, cache, self.runner), codec.frame_rate, key)

    def give_back(self, speaker: Speaker) -> None:
        """Takes back a speaker, once; sentences that are not finished leave it."""
        speaker.clear()
        with self._lock:
            larger = self._kept is None or self._kept.slots.count < speaker.slots.count
            if larger and self._key is not None and speaker.key == self._key:
                self._kept = speaker

    @contextmanager
    def lend(self, model: OmniModel, slots: int) -> Iterator[Speaker]:
        """`take` before the block, `give_back` after it."""
        speaker = self.take(model, slots)
        try:
            yield speaker
        finally:
            self.give_back(speaker)


def talker_of(model: OmniModel) -> Talker:
    """The model's Talker.

    Raises:
        UserError: it has none.
    """
    if model.talker is None or model.codec is None:
        raise UserError(
            "the model does not speak: it has no talker; train one with the recipe speak-tiny, or with a recipe of "
            "your own that has model.talker, losses.speech and data.speech"
        )
    return model.talker


def codec_of(model: OmniModel) -> SpeechCodec:
    """The codec of a model with a Talker; see `talker_of`."""
    talker_of(model)
    assert model.codec is not None
    return model.codec
