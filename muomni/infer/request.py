"""A prompt as the engine takes it, and one request: its settings, its state and its results.

The engine alone writes the results; any thread may read them. A token is visible once it is appended, and
nothing follows once `finished` is set.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from threading import Event
from typing import Literal, NamedTuple

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
        on_token: called with each new token that is not an end, in order, by the thread that computes; True ends the
            reply with that token. What it raises ends this request alone.
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
    event: Event | None = None
    drafts: Guesses | None = None
    _source: Random | None = None
    _number: tuple[int, float] = (-1, 0.0)

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
        if self.params.temperature > 0 and self._number[0] != len(self.tokens):
            if self._source is None:
                self._source = make_random(self.params.seed, self.row)
            self._number = len(self.tokens), draw_uniform(self._source)
        return self._number[1]
