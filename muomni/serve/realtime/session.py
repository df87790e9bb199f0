"""The configuration of a session: what a client may set, and how a partial update changes it."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from muomni.serve.errors import ApiError

# Characters of a text that an event may hold: events that tell of it stay below 1 MiB, the limit of many clients.
MAX_TEXT = 150_000
_NEUTRAL: tuple[Any, ...] = (None, [], "auto", "none")


def _refuse(value: Any) -> Any:
    if value not in _NEUTRAL:
        raise ValueError("is not supported by this server")
    return value


def _limit(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value != "inf" and not (whole and 1 <= value <= 4096):
        raise ValueError('must be a whole number from 1 to 4096, or "inf"')
    return value


# Keys that are known but have no effect here: only their neutral values are taken.
Refused = Annotated[Any, AfterValidator(_refuse)]
Limit = Annotated[Any, BeforeValidator(_limit)]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]


class Strict(BaseModel):
    """Refuses keys that it does not know: what a client sets has an effect, or is an error."""

    model_config = ConfigDict(extra="forbid")


class PcmFormat(Strict):
    """16 bit mono samples at 24 kHz."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24000] = 24000


class VoiceId(Strict):
    """A voice by its name."""

    id: str


class ServerVad(Strict):
    """The server says when somebody speaks.

    Attributes:
        threshold: probability of speech from which on it is some.
        prefix_padding_ms: of sound that are taken from before the speech.
        silence_duration_ms: after which the speech has ended.
        create_response: answer then.
        interrupt_response: speech ends a response that is being made.
        idle_timeout_ms: of silence after a response has been played, until the model speaks again; None waits.
    """

    type: Literal["server_vad"]
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5000)
    silence_duration_ms: int = Field(default=500, ge=0, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = Field(default=None, ge=100, le=60_000)


class InputTranscription(Strict):
    """What is said is written down.

    Attributes:
        model: the one that is served; None takes it.
        language: a hint without effect: a model hears the languages that it has learnt.
        prompt: the subject, or spellings.
    """

    model: str | None = None
    language: str | None = Field(default=None, max_length=64)
    prompt: str | None = Field(default=None, max_length=4000)


class AudioInput(Strict):
    """Sound that comes in.

    Attributes:
        format: its form.
        turn_detection: None leaves it to the client to say what is a turn.
        transcription: None writes nothing down.
        noise_reduction: None.
    """

    format: PcmFormat = PcmFormat()
    turn_detection: ServerVad | None = None
    transcription: InputTranscription | None = None
    noise_reduction: Refused = None


class Voice(Strict):
    """How something is spoken.

    Attributes:
        format: its form.
        voice: one of the model's; None takes the first.
    """

    format: PcmFormat = PcmFormat()
    voice: str | VoiceId | None = None

    @property
    def voice_name(self) -> str | None:
        """The name."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class AudioOutput(Voice):
    """Sound that goes out.

    Attributes:
        speed: 1.
    """

    speed: float = Field(default=1.0, ge=1, le=1)


class Audio(Strict):
    """Sound in both directions."""

    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class Session(Strict):
    """A session.

    Attributes:
        id, object, expires_at: the server's; what a client says of them has no effect.
        type: no sessions for transcription alone.
        model: the name that is served.
        instructions: the system message.
        output_modalities: ["audio"], which includes its text, or ["text"].
        max_output_tokens: of a response, or "inf".
        audio: sound in both directions.
        truncation: "auto" leaves the oldest items out of a prompt that would not fit, "disabled" is an error then.
    """

    id: str = ""
    object: Literal["realtime.session"] = "realtime.session"
    expires_at: int = 0
    type: Literal["realtime"] = "realtime"
    model: str
    instructions: Text = ""
    output_modalities: Modalities
    max_output_tokens: Limit = "inf"
    audio: Audio = Audio()
    truncation: Literal["auto", "disabled"] = "auto"
    tools: Refused = []
    tool_choice: Refused = "auto"
    parallel_tool_calls: bool | None = None
    include: Refused = None
    prompt: Refused = None
    reasoning: Refused = None
    tracing: Refused = None


class ResponseAudio(Strict):
    """Sound of one response."""

    output: Voice = Voice()


def updated(session: Session, update: Mapping[str, Any], voices: Sequence[str], *, hears: bool) -> Session:
    """The session with what an update names; the rest stays, also inside objects. The old one is not changed.

    Args:
        session: so far.
        update: parts of a session.
        voices: of the model.
        hears: whether the model takes sound.

    Raises:
        ApiError: the model cannot do it.
        ValidationError: a key or value is wrong.
    """
    new = Session.model_validate(_merged(session.model_dump(), update))
    if new.model != session.model:
        raise ApiError(400, "the model of a session cannot be changed", param="session.model", code="invalid_value")
    for key in ("turn_detection", "transcription"):
        if getattr(new.audio.input, key) is not None and not hears:
            where = f"session.audio.input.{key}"
            raise ApiError(400, "this model does not hear", param=where, code="unsupported_value")
    writes = new.audio.input.transcription
    if writes is not None and writes.model not in (None, session.model):
        where = "session.audio.input.transcription.model"
        raise ApiError(404, f"this server has the model {session.model!r}", param=where, code="model_not_found")
    check_voice(new.output_modalities, new.audio.output.voice_name, voices, "session")
    return new.model_copy(update={"id": session.id, "expires_at": session.expires_at})


def check_voice(modalities: Sequence[str], voice: str | None, voices: Sequence[str], where: str) -> None:
    """Checks that the model can speak, where it is to, and with that voice.

    Raises:
        ApiError: it cannot.
    """
    if "audio" in modalities and not voices:
        param = f"{where}.output_modalities"
        raise ApiError(400, 'this model does not speak: use ["text"]', param=param, code="unsupported_value")
    if voice is not None and voice not in voices:
        known = ", ".join(voices) or "none"
        message = f"the voices of this model are {known}, not {voice[:40]!r}"
        raise ApiError(400, message, param=f"{where}.audio.output.voice", code="invalid_value")


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
