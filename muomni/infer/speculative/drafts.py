"""Speculative decoding: a guess says what may come next, one step tells whether it does.

The newest token and the guess (a draft) are computed in one step. The most likely token behind each of them is
right up to and including the first that contradicts the draft, so a greedy reply stays what it was; a step gives
1 + (accepted tokens) instead of 1. What was stored of the others is written over.

Here the text so far is what guesses: where the last tokens have occurred before, in the prompt or in the reply,
what followed them there may follow now (Saxena, "Prompt Lookup Decoding", 2023). `draft` has a smaller model
guess.

It pays where text is copied, or the smaller model agrees, and where a step of k + 1 tokens, and the guess, cost
little more than one of 1. All of it is measured: a request whose drafts have not paid pauses, each time for
longer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from muomni.errors import SettingError
from muomni.infer.sampling import GREEDY, SamplingParams

_LONGEST, _SHORTEST = 3, 2  # tokens that must have occurred before
_FIRST_DRAFT, _MOST_DRAFT, _LEAST_DRAFT = 4, 16, 2
_TRIALS = 3
_FIRST_PAUSE, _LONGEST_PAUSE = 32, 512
_MARGIN = 1.1
_FORGET = 0.7


class Guesses(ABC):
    """The drafts of one request, and whether they pay.

    Args:
        tokens: its prompt.

    Attributes:
        drafted, accepted: tokens so far.
        once_s: seconds that the last call of `draft` spent on what no other draft will have to do again, so that
            it says nothing about what drafts cost.
    """

    once_s = 0.0

    def __init__(self, tokens: Sequence[int]) -> None:
        self.drafted = 0
        self.accepted = 0
        self._tokens = list(tokens)
        self._length = _FIRST_DRAFT
        self._trials = 0
        self._yield = 1.0  # accepted tokens per draft, and drafted ones: running averages
        self._spent = 1.0
        self._pause = _FIRST_PAUSE
        self._resume_at = 0

    def draft(self, new: Sequence[int], prompt: int, most: int) -> list[int]:
        """What may follow, at most `most` tokens; nothing where there is no guess or guesses do not pay.

        Args:
            new: the reply so far.
            prompt: length of the prompt.
            most: that there is room for.
        """
        tokens = self._tokens
        tokens += new[len(tokens) - prompt :]
        if len(tokens) < self._resume_at or most < 1:
            return []
        return self._guess(min(self._length, most))

    @abstractmethod
    def _guess(self, count: int) -> list[int]:
        """`count` tokens that may follow, or fewer."""

    def close(self) -> None:  # noqa: B027 - most have nothing to give back
        """The request has ended: gives back what was held for it. May be called again."""

    def learn(self, drafted: int, accepted: int, saves: float, costs: float) -> None:
        """Notes how a draft fared, and pauses where drafts do not pay.

        Args:
            drafted: tokens.
            accepted: tokens of those.
            saves: seconds that an accepted token saves.
            costs: seconds that a drafted token costs.
        """
        self.drafted += drafted
        self.accepted += accepted
        self._yield = _FORGET * self._yield + (1 - _FORGET) * accepted
        self._spent = _FORGET * self._spent + (1 - _FORGET) * drafted
        if accepted < drafted / 2:
            self._length = max(self._length // 2, _LEAST_DRAFT)
        self._trials += 1
        if self._trials < _TRIALS:
            return
        if self._yield * saves > self._spent * costs * _MARGIN:
            self._pause = _FIRST_PAUSE
            if accepted == drafted:
                self._length = min(2 * self._length, _MOST_DRAFT)
        else:
            self._resume_at = len(self._tokens) + accepted + 1 + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            self._length = _FIRST_DRAFT
            self._trials = _TRIALS - 1  # one more failure is enough


class PromptLookup(Guesses):
    """Drafts from the text so far."""

    def __init__(self, tokens: Sequence[int]) -> None:
        super().__init__(tokens)
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def _guess(self, count: int) -> list[int]:
        self._index()
        for length in range(_LONGEST, _SHORTEST - 1, -1):
            place = self._after.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._copied(place, count)
        return []

    def _index(self) -> None:
        """Notes what followed each group of tokens, the last time it occurred; not yet the end's own groups."""
        tokens, after = self._tokens, self._after
        for place in range(max(self._indexed, _SHORTEST), len(tokens)):
            for length in range(_SHORTEST, min(_LONGEST, place) + 1):
                after[tuple(tokens[place - length : place])] = place
        self._indexed = len(tokens)

    def _copied(self, place: int, count: int) -> list[int]:
        """`count` tokens from `place` on; behind the end the draft goes on from itself."""
        known = self._tokens[place : place + count]
        period = len(self._tokens) - place
        return [known[i % period] for i in range(count)]


def check_guessable(params: SamplingParams) -> None:
    """Refuses settings with which no token is ever guessed.

    Raises:
        SettingError: naming the setting.
    """
    name = params.non_greedy_setting
    if name is not None:
        raise SettingError(
            f"speculate guesses the most likely tokens and has no effect with {name} = {getattr(params, name)}: "
            f"set {name}={GREEDY[name]}, or leave speculate out",
            "speculate",
        )


class DraftProposer(Protocol):
    """Whoever guesses for many requests."""

    def begin(self, tokens: Sequence[int]) -> Guesses:
        """The drafts of a request with this prompt."""


def accept(draft: Sequence[int], likely: Sequence[int]) -> list[int]:
    """The tokens that are certain: the most likely ones up to the first that contradicts the draft.

    Args:
        draft: k tokens.
        likely: the k + 1 most likely tokens behind the newest token and behind each of the draft.
    """
    count = next((i for i, (guess, right) in enumerate(zip(draft, likely, strict=False)) if guess != right), len(draft))
    return list(likely[: count + 1])
