"""Speakers that a model keeps between calls, for as long as its weights stay the same."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from muomni.errors import UserError
from muomni.infer.runners.select import RunnerName, make_backbone
from muomni.infer.slots import make_slot_cache
from muomni.infer.speech.speaker import Speaker, capacity_for
from muomni.model import OmniModel
from muomni.model.codec import SpeechCodec
from muomni.model.module_modes import fingerprint
from muomni.model.talker import Talker

# Of the free memory, for the cache of a speaker.
_SHARE = 0.5


class SpeakerPool:
    """Lends speakers: one that was given back is lent again while the weights stay and it has slots enough.

    Any number may be lent at a time, each to one thread or stream. Copies and pickles of a pool are new ones.

    Args:
        runner: computes the Talker; see `make_backbone`.
    """

    def __init__(self, runner: RunnerName | None = None) -> None:
        self.runner = runner
        self._lock = threading.Lock()
        self._kept: Speaker | None = None
        self._key: tuple[object, ...] = ()

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
        talker, codec = talker_of(model), codec_of(model)
        place = talker.norm.weight
        with self._lock:
            self._key = (self.runner, place.device, place.dtype, *fingerprint(talker))
            speaker, self._kept = self._kept, None
            if speaker is not None and speaker.key == self._key and speaker.slots.count >= slots:
                return speaker
            speaker = None  # its cache is freed before the next one is made
            config, capacity = talker.config.backbone, capacity_for(talker, codec.frame_rate)
            remedy = "free some memory, or speak fewer sentences side by side with batch_size"
            cache = make_slot_cache(config, slots, capacity, place.dtype, place.device, _SHARE, "speech", remedy)
            backbones = make_backbone(model, talker, cache, self.runner)
            return Speaker(talker, backbones, codec.frame_rate, self._key)

    def give_back(self, speaker: Speaker) -> None:
        """Takes back a speaker, once; sentences that are not finished leave it."""
        speaker.clear()
        with self._lock:
            larger = self._kept is None or self._kept.slots.count < speaker.slots.count
            if larger and speaker.key == self._key:
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
