"""The ears of a session: its sound is kept, and turns are detected in it. All of it is computed in the pool."""

from collections.abc import Callable

from muomni.ops.audio_frames import SAMPLE_RATE
from muomni.serve.errors import ApiError
from muomni.serve.realtime.audio_buffer import AudioBuffer, pcm
from muomni.serve.realtime.session import ServerVad
from muomni.serve.realtime.vad import Mark, TurnDetector, Voice
from muomni.serve.speech import RATE

# Seconds of sound that are kept at least while nobody speaks: as much as an item needs.
KEPT_S = 0.1


class Listener:
    """Listens in one session.

    Args:
        make_voice: says how probable speech is.
        longest_s: seconds of sound that are held at most.

    Attributes:
        buffer: the sound that is no item yet.
    """

    def __init__(self, make_voice: Callable[[], Voice], longest_s: float) -> None:
        self.buffer = AudioBuffer()
        self._make_voice = make_voice
        self._longest_s = longest_s
        self._detector: TurnDetector | None = None

    @property
    def speaking(self) -> bool:
        """Whether a turn has begun and not ended."""
        return self._detector is not None and self._detector.speaking

    def detect(self, settings: ServerVad | None) -> None:
        """Detects turns from now on as the settings say; None leaves it to the client."""
        if settings is None:
            self._detector = None
        elif self._detector is None:
            longest = int(self._longest_s * SAMPLE_RATE)
            self._detector = TurnDetector(self._make_voice(), settings, self.buffer.end, longest)
        else:
            self._detector.settings = settings

    def hear(self, audio: str) -> list[Mark]:
        """Takes sound, 16 bit samples at 24 kHz in base64, and says what begins and ends in it.

        Raises:
            ApiError: it is none, or too much.
        """
        data = pcm(audio, "audio")
        if self._detector is not None:
            self.buffer.drop(min(self._detector.needed, self.buffer.end - int(KEPT_S * SAMPLE_RATE)))
        held = (self.buffer.end - self.buffer.begin) / SAMPLE_RATE + len(data) / (2 * RATE)
        # A turn that is being detected is cut by itself.
        if held > self._longest_s * (1 if self._detector is None else 2):
            message = f"more than {self._longest_s:g} seconds of sound: commit or clear them"
            raise ApiError(400, message, param="audio", code="input_audio_buffer_full")
        samples = self.buffer.append(data)
        return [] if self._detector is None else self._detector.push(samples)

    def finish(self) -> None:
        """What is held belongs together, whatever comes then."""
        self.buffer.finish()
        if self._detector is not None:
            self._detector.restart(self.buffer.end)
