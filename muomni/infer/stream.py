"""One request as a stream: tokens become text as they come, until an end token, a stop text or the length."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from muomni.infer.generate import next_tokens, room
from muomni.infer.sampling import SamplingParams
from muomni.model import OmniModel

if TYPE_CHECKING:
    from muomni.data.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What became known since the piece before.

    Attributes:
        text: whole characters only; may be empty in the last piece.
        tokens: ids taken in since the piece before. Text held back belongs to a later piece than its tokens do.
    """

    text: str
    tokens: tuple[int, ...]


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
        finish_reason: "stop" at an end token or a stop text, "length" at `max_new_tokens` or the end of the context.
        timing: see `Timing`.
        audio: (samples,) float32 mono, or None.
        sample_rate: of `audio`, in hertz.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    timing: Timing
    audio: Tensor | None = None
    sample_rate: int | None = None

    def __str__(self) -> str:
        return self.text


class StopTexts:
    """Finds the first stop text to be completed, however the text is cut into pieces.

    What may be the beginning of a stop text is held back until it is known not to be one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is certain to belong to the reply. After `found`, nothing more does."""
        if self.found:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if ends:
            self.found, self._held = True, ""
            return text[: min(ends)[1]]
        keep = next(
            (n for n in range(self._longest(text), 0, -1) if any(stop.startswith(text[-n:]) for stop in self.stops)), 0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What is still held back: no stop text can complete any more."""
        held, self._held = self._held, ""
        return held

    def _longest(self, text: str) -> int:
        return min(len(text), max((len(stop) for stop in self.stops), default=1) - 1)


class TextStream(Iterator[Piece]):
    """Iterates over the pieces of one reply; `reply` is there once they are all read.

    Args:
        model: in evaluation mode while this runs.
        tokenizer: turns ids into text.
        prompt: ids, at least one.
        params: the settings.
        end_ids: tokens that end the reply; their text is not part of it. None takes the configuration's,
            else the tokenizer's.

    Raises:
        PromptError: there is no prompt, or no room in the context; raised here, before the first piece.
    """

    def __init__(
        self,
        model: OmniModel,
        tokenizer: "Tokenizer",
        prompt: Sequence[int],
        params: SamplingParams,
        end_ids: Sequence[int] | None = None,
    ) -> None:
        self._limit = room(model, (1, len(prompt)), params)
        self._prompt_tokens = len(prompt)
        ids = torch.tensor([list(prompt)], dtype=torch.int64, device=model.device)
        self._steps = next_tokens(model, ids, params)
        if end_ids is None:
            end_ids = model.config.eos_token_ids or tokenizer.end_ids
        self._end_ids: frozenset[int] = frozenset() if params.ignore_eos else frozenset(end_ids)
        self._text = tokenizer.stream()
        self._stop = StopTexts(params.stops)
        self._pieces = self._run()
        self._said: list[str] = []
        self._reply: Reply | None = None

    def __next__(self) -> Piece:
        return next(self._pieces)

    @property
    def text(self) -> str:
        """The text of the pieces so far."""
        return "".join(self._said)

    @property
    def reply(self) -> Reply:
        """The whole answer.

        Raises:
            RuntimeError: pieces are still to come.
        """
        if self._reply is None:
            raise RuntimeError("the reply is not finished: read the stream to its end, or call `finish`")
        return self._reply

    def finish(self) -> Reply:
        """Reads what is left and returns the reply."""
        for _ in self:
            pass
        return self.reply

    def close(self) -> None:
        """Stops early; there will be no `reply`."""
        self._pieces.close()
        self._steps.close()

    def _run(self) -> Generator[Piece]:
        taken: list[int] = []
        shown = 0
        seconds = [0.0, 0.0]  # until the first token, and after it
        last = False
        while not last:
            started = time.perf_counter()
            token = int(next(self._steps))  # the one wait for the device in a step
            seconds[bool(taken)] += time.perf_counter() - started
            taken.append(token)
            ended = token in self._end_ids
            text = "" if ended else self._stop.push(self._text.push([token]))
            last = ended or self._stop.found or len(taken) == self._limit
            if last:
                self._steps.close()
                text += self._stop.push(self._text.finish()) + self._stop.finish()
                reason: FinishReason = "stop" if ended or self._stop.found else "length"
                timing = Timing(self._prompt_tokens, len(taken), *seconds)
                self._reply = Reply(self.text + text, tuple(taken), reason, timing)
            if text or last:
                self._said.append(text)
                yield Piece(text, tuple(taken[shown:]))
                shown = len(taken)
