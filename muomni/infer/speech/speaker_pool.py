"""What a model that speaks keeps between calls: backbones with their caches, as long as the weights stay the same."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future

from muomni.accel.measurements import verdicts
from muomni.errors import ConfigError, UserError
from muomni.infer.engine.engine_cache import fingerprint
from muomni.infer.speech.backbone import Backbone, make_backbone
from muomni.infer.speech.speaker import Speaker, capacity_for
from muomni.model import OmniModel
from muomni.model.codec import SpeechCodec
from muomni.model.int8_layers import is_quantized
from muomni.model.module_modes import eval_mode
from muomni.model.talker import Talker
from muomni.ops.native import Library, Unavailable, load

# A library that was compiled before is found within this time.
_PATIENCE_S = 0.25
_COMPILING = "the native decoder is still being compiled"


class SpeechSession:
    """Lends speakers: one that was given back is lent again while the weights stay and it has slots enough.

    Any number may be lent at a time, each to one thread or stream. Copies and pickles of a session are new ones.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: Backbone | None = None
        self._weights: tuple[object, ...] = ()
        self._library: Future[Library | Unavailable] | None = None

    def __deepcopy__(self, _: dict[int, object]) -> "SpeechSession":
        return SpeechSession()

    def __reduce__(self) -> tuple[type["SpeechSession"], tuple[()]]:
        return SpeechSession, ()

    def take(self, model: OmniModel, slots: int) -> "Loan":
        """A speaker for the caller alone, until it is given back.

        Args:
            model: whose weights may have changed since.
            slots: sentences side by side.

        Raises:
            UserError: the model has no Talker.
            ConfigError: the runner that was asked for cannot be had.
        """
        talker, codec = talker_of(model), codec_of(model)
        with self._lock:
            weights = (talker.norm.weight.device, talker.norm.weight.dtype, *fingerprint(talker))
            backbone, self._kept = self._kept, None
            if backbone is None or weights != self._weights or backbone.cache.slots < slots:
                backbone = None  # its cache is given back before the next one is made
                with eval_mode(talker):
                    capacity = capacity_for(talker, codec.frame_rate)
                    backbone = make_backbone(talker, slots, capacity, self._native(model, talker))
            self._weights = weights
        return Loan(self, weights, backbone, Speaker(talker, backbone, codec.frame_rate))

    def _give(self, weights: tuple[object, ...], backbone: Backbone) -> None:
        with self._lock:
            larger = self._kept is None or self._kept.cache.slots < backbone.cache.slots
            if weights == self._weights and larger and _COMPILING not in backbone.note:
                self._kept = backbone

    def _native(self, model: OmniModel, talker: Talker) -> Library | str:
        """The compiled decoder, or why it is not used; compiled in the background the first time on a machine."""
        name = os.environ.get("MUOMNI_RUNNER", "auto")
        if name == "eager":
            return "as asked"
        if talker.norm.weight.device.type != "cpu":
            return "the native decoder is for CPUs"
        if name == "auto":
            weights = "int8" if is_quantized(talker) else "float"
            known = verdicts.load_verdicts(talker.norm.weight.device, model.config.thinker, weights)
            declined = known.declined("speech.runner")
            if declined is not None:
                return declined.reason
        if self._library is None:
            self._library = _in_background(load)
        try:
            library = self._library.result(timeout=None if name == "native" else _PATIENCE_S)
        except TimeoutError:
            return _COMPILING
        if isinstance(library, Library):
            return library
        if name == "native":
            raise ConfigError(f"the native decoder cannot be had for the talker: {library.reason}")
        return library.reason


class Loan:
    """A speaker that is lent.

    Attributes:
        speaker: without sentences.
        note: for the log: what computes the Talker.
    """

    def __init__(
        self, session: SpeechSession, weights: tuple[object, ...], backbone: Backbone, speaker: Speaker
    ) -> None:
        self.speaker = speaker
        self.note = backbone.note
        self._session = session
        self._weights = weights
        self._backbone: Backbone | None = backbone

    def close(self) -> None:
        """Gives it back; nothing happens the second time."""
        backbone, self._backbone = self._backbone, None
        if backbone is not None:
            self._session._give(self._weights, backbone)

    def __enter__(self) -> Speaker:
        return self.speaker

    def __exit__(self, *_: object) -> None:
        self.close()


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


def _in_background(make: Callable[[], Library | Unavailable]) -> "Future[Library | Unavailable]":
    """What `make` gives, from a thread that does not keep the process from ending."""
    future: Future[Library | Unavailable] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:  # noqa: BLE001 - told to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=work, name="muomni-compile", daemon=True).start()
    return future
