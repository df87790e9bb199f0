"""A prompt as the engine takes it, one request with its state, and the reply that comes of it.

The engine alone writes the state of a request; any thread may read it. A token is visible once it is appended, and
nothing follows once `finished` is set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from threading import Event
from typing import Literal, NamedTuple

from torch import Tensor

from muomni.errors import PromptError, UserError
from muomni.infer.prompt_media import PromptMedia
from muomni.infer.sampling import SamplingParams, draw_uniform, make_random
from muomni.infer.speculative.drafts import DraftProposer, Guesses
from muomni.model import OmniModel

FinishReason = Literal["stop", "length"]
STOP_NEEDS_TEXT = "stop: token ids hold no text to stop at; use chat, complete or stream"


def token_budget(model: OmniModel, shape: Sequence[int], params: SamplingParams, of_which: str = "") -> int:
    """How many tokens may follow prompts of `shape` (B, T): `max_new_tokens`, less where the context ends.

    Args:
        model: has the context.
        shape: of the token ids.
        params: have `max_new_tokens`.
        of_which: what in the prompt takes how many tokens, for the error.

    Raises:
        PromptError: the prompt is empty or fills the context.
    """
    if len(shape) != 2:
        raise PromptError(f"token ids must be (rows, tokens), not of shape {tuple(shape)}")
    if 0 in shape:
        raise PromptError("the prompt is empty: there is nothing to continue")
    context = model.config.thinker.max_position_embeddings
    if shape[1] >= context:
        raise PromptError(
            f"the prompt has {shape[1]} tokens{f' ({of_which})' if of_which else ''} and the model's context is "
            f"{context}: no room is left for a reply; shorten the prompt"
        )
    return min(params.max_new_tokens, context - shape[1])


class EngineInput(NamedTuple):
    """A prompt as the engine takes it.

    Attributes:
        ids: of its tokens.
        params: the settings.
        limit: its token budget, new tokens at most.
        media: its pictures and sounds, or None.
        error: what is wrong with it; then nothing is computed for it.
    """

    ids: Sequence[int]
    params: SamplingParams
    limit: int = 0
    media: PromptMedia | None = None
    error: UserError | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt and of the longest reply."""
        return len(self.ids) + self.limit


@dataclass(eq=False, slots=True)
class Request:
    """A prompt to be continued.

    Attributes:
        prompt: token ids, at least one.
        params: the settings.
        limit: at most this many new tokens; `max_new_tokens`, less where the context ends.
        ends: tokens that end the reply and are kept as its last.
        batch_invariant: compute alone, so that not one bit depends on the other requests.
        speculate: guess tokens where that pays, from the text so far (True) or by a smaller model (a `DraftProposer`);
            greedy requests only. See `speculate`.
        row: tells rows of one seed apart.
        media: pictures and sounds of the prompt, or None.
        on_token: called with each new token that is not an end before it is visible, in order, by the thread that
            computes; True ends the reply with that token. What it raises ends this request alone. After an
            interruption (Ctrl-C) it may be called again for the same place in the reply.
        on_update: called by the same thread after new tokens and at the end; must not block.

        tokens: new ones so far.
        reason: why it ended; None while it runs, and where it was cancelled or failed.
        error: what it failed with.
        finished: nothing more will come.
        cancelled: was asked to end early.

        slot: of its keys and values, -1 without one.
        stored: tokens of the prompt whose keys and values are there.
        reused: tokens of the prompt that were computed before, for another request.
        hashes: chained hashes of the prompt's blocks; see `prefix`.
        drafts: its draft tokens, once the first were asked for.
        began, first, last: the engine's clock at its start, its first and its newest token.
        stops_at: length of the reply with the token that `on_token` ends it with, or 0.
        event: set after new tokens and at the end, where a model thread computes.
    """

    prompt: Sequence[int]
    params: SamplingParams
    limit: int
    ends: frozenset[int] = frozenset()
    batch_invariant: bool = False
    speculate: bool | DraftProposer = False
    row: int = 0
    media: PromptMedia | None = None
    on_token: Callable[[int], bool] | None = None
    on_update: Callable[[], None] | None = None

    tokens: list[int] = field(default_factory=list)
    reason: FinishReason | None = None
    error: BaseException | None = None
    finished: bool = False
    cancelled: bool = False

    slot: int = -1
    stored: int = 0
    reused: int = 0
    hashes: list[int] = field(default_factory=list)
    began: float = 0.0
    first: float = 0.0
    last: float = 0.0
    stops_at: int = 0
    event: Event | None = None
    drafts: Guesses | None = None
    _seed: int | None = None
    _source: Random | None = None
    _numbers: int = 0
    _number: float = 0.0

    @property
    def keys(self) -> Sequence[int]:
        """What the prompt is compared by with other prompts; as long as it."""
        return self.prompt if self.media is None else self.media.keys

    @property
    def position(self) -> int:
        """Of the newest token; once the prompt is read, the next to be computed."""
        return len(self.prompt) + len(self.tokens) - 1

    def number(self) -> float:
        """What the next token is drawn with: the same however often it is asked for, a step may be tried again."""
        if self.params.temperature == 0:
            return 0.0
        if self._source is None:
            if self._seed is None:
                self._seed = make_random(None).getrandbits(63) if self.params.seed is None else self.params.seed
            self._source, self._numbers = make_random(self._seed, self.row), 0
        while self._numbers <= len(self.tokens):
            self._number = draw_uniform(self._source)
            self._numbers += 1
        return self._number

    def rewind(self) -> None:
        """Draws the numbers anew, and the same: an exception may have come between two of them."""
        self._source = None

    @property
    def end_reached(self) -> FinishReason | None:
        """Why the newest token ends the reply, or None."""
        if self.tokens[-1] in self.ends or len(self.tokens) == self.stops_at:
            return "stop"
        return "length" if len(self.tokens) == self.limit else None


@dataclass(frozen=True)
class Chunk:
    """What became known since the piece before.

    Attributes:
        text: whole characters only; may be empty in the last piece.
        tokens: ids taken in since the piece before. Text held back belongs to a later piece than its tokens do.
        audio: (samples,) float32 mono that follows the sound before, in a piece of its own; None in a piece of text.
        sample_rate: of `audio`, in hertz.
    """

    text: str
    tokens: tuple[int, ...]
    audio: Tensor | None = None
    sample_rate: int | None = None


@dataclass(frozen=True)
class Timing:
    """Where the time went; times are seconds of computing, without what the reader of a stream spends between pieces.

    Attributes:
        prompt_tokens: tokens given.
        new_tokens: tokens generated, the end token included.
        prefill_s: from the start to the first new token.
        decode_s: from there to the last.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens after the first, per second of decoding; 0 where there are none."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 and self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Reply:
    """A finished answer; `str(reply)` is its text.

    Attributes:
        text: without end token, cut before a stop text.
        tokens: every id generated, the end token included.
        finish_reason: "stop" at an end token or a stop text, "length" at `max_new_tokens` or the end of the context,
            "error" where the prompt could not be answered, or the answer not be spoken.
        timing: see `Timing`.
        audio: (samples,) float32 mono, or None.
        sample_rate: of `audio`, in hertz.
        error: what is wrong with the prompt, where it could not be answered, or why the answer could not be spoken;
            else None.
        speech: where the time of speaking went, or None.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason | Literal["error"]
    timing: Timing
    audio: Tensor | None = None
    sample_rate: int | None = None
    error: str | None = None
    speech: "SpeechTiming | None" = None

    @classmethod
    def failed(cls, error: str) -> "Reply":
        """What stands in the place of the answer to a prompt that has none."""
        return cls("", (), "error", Timing(0, 0, 0.0, 0.0), error=error)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class SpeechTiming:
    """Where the time went.

    Attributes:
        sentences: that were spoken.
        audio_s: seconds of sound.
        work_s: seconds of computing it; of texts spoken side by side, all of it together divided by their length.
        first_s: seconds from the first text to the first sound, for speech that came in pieces; else None.
    """

    sentences: int
    audio_s: float
    work_s: float
    first_s: float | None = None

    @property
    def real_time(self) -> float:
        """Seconds of computing for a second of sound."""
        return self.work_s / self.audio_s if self.audio_s > 0 else 0.0
