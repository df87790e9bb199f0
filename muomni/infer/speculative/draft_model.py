"""Speculative decoding by a smaller model: it writes the next few tokens, the larger one reads them in one step.

The smaller model guesses greedily (Leviathan et al., arXiv:2211.17192, at temperature 0), with a cache and a
runner of its own; `speculate` says how a guess is verified and when guessing stops. A request has a slot here from
its first guess to its end. What is stored for tokens that turned out wrong is written over, as in the larger
model's cache.

Reading the prompt, and what was written while guessing paused, is not counted as what drafts cost: it is not done
again, whatever is decided.
"""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from muomni.errors import UserError
from muomni.infer.runners.select import Runner, RunnerName, Runners, make_runner, make_slot_cache
from muomni.infer.speculative.drafts import Guesses
from muomni.model import OmniModel, SlotCache
from muomni.model.module_modes import eval_mode

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from muomni.data.text.tokenizer import Tokenizer

_CHUNK = 512
# The larger model's step time is measured anew from time to time, or a first one that was too long would speak for
# guessing ever after.
_DRAFTS_IN_A_ROW = 128


class Drafter:
    """A model that guesses for the requests of engines, each in a slot of its own.

    Args:
        model: in evaluation mode while it guesses for anybody, then as it was before.
        cache: on the model's device; its slots are the drafter's alone.
        runners: None takes what `make_runner` makes.

    Attributes:
        runners: `now` computes.
    """

    def __init__(self, model: OmniModel, cache: SlotCache, runners: Runners[Runner] | None = None) -> None:
        self.model = model
        self.cache = cache
        self.runners = make_runner(model, cache) if runners is None else runners
        self._owners: list[ModelGuesses | None] = [None] * cache.slots
        self._mode: AbstractContextManager[None] | None = None
        # Engines have threads of their own; a thread that holds it may come back through the garbage collector.
        self._lock = threading.RLock()

    @property
    def free(self) -> int:
        """Slots without a request."""
        return sum(owner is None or owner.closed for owner in self._owners)

    def begin(self, tokens: Sequence[int]) -> "ModelGuesses":
        """The drafts of a request with this prompt; they take a slot when they are first asked for."""
        return ModelGuesses(tokens, self)

    def take(self, owner: "ModelGuesses") -> int:
        """A slot for as long as `owner` is not closed, or -1 where there is none."""
        with self._lock:
            free = [slot for slot, other in enumerate(self._owners) if other is None or other.closed]
            if not free:
                return -1
            if self._mode is None:
                mode = eval_mode(self.model)
                mode.__enter__()
                self._mode = mode
            self._owners[free[0]] = owner
            return free[0]

    def rest(self) -> None:
        """Gives the model its mode back where nobody has a slot."""
        with self._lock:
            if self._mode is not None and self.free == self.cache.slots:
                self._mode.__exit__(None, None, None)
                self._mode = None

    def read(self, slot: int, tokens: Sequence[int], position: int) -> int:
        """Stores `tokens` from `position` on; gives the most likely one behind them."""
        with self._lock, torch.inference_mode():
            for start in range(0, len(tokens), _CHUNK):
                chunk = torch.tensor(tokens[start : start + _CHUNK])
                count = len(chunk)
                positions = torch.arange(position + start, position + start + count)
                logits = self._computer().forward(
                    chunk, torch.full((count,), slot), positions, torch.tensor([count - 1])
                )
            return int(logits.argmax(dim=-1))

    def go_on(self, slot: int, token: int, position: int, count: int) -> list[int]:
        """Stores `token` at `position`; gives the `count` most likely tokens behind it, each stored but the last."""
        with self._lock, torch.inference_mode():
            row = torch.tensor([token]), torch.tensor([slot]), torch.tensor([position])
            new: list[int] = self._computer().greedy(*row, count)[0].tolist()
            return new[: new.index(-1)] if -1 in new else new

    def _computer(self) -> Runner:
        self.runners.switch()
        return self.runners.now


class ModelGuesses(Guesses):
    """The drafts of one request by a smaller model.

    Args:
        tokens: its prompt.
        drafter: computes them.
    """

    def __init__(self, tokens: Sequence[int], drafter: Drafter) -> None:
        super().__init__(tokens)
        self._drafter = drafter
        self._slot = -1
        self.closed = False
        self._stored = 0  # tokens in the slot that are known to be right,
        self._unsure: list[int] = []  # and those behind them that were guesses when they were stored
        self._row = 0

    def close(self) -> None:
        """Its slot is free."""
        self.closed = True
        self._drafter.rest()

    def _guess(self, count: int) -> list[int]:
        self.once_s = 0.0
        self._row = (self._row + 1) % _DRAFTS_IN_A_ROW
        tokens, drafter = self._tokens, self._drafter
        # Every guess but the last is stored; the newest token is too.
        count = min(count, drafter.cache.capacity - len(tokens) + 1)
        if count < 1 or self._row == 0 or self.closed:
            return []
        if self._slot < 0:
            self._slot = drafter.take(self)
            if self._slot < 0:
                return []
        self._set_back()
        begin = min(self._stored, len(tokens) - 1)
        if len(tokens) - begin > 2:
            started = time.perf_counter()
            drafter.read(self._slot, tokens[begin:-1], begin)
            begin = len(tokens) - 1
            self.once_s = time.perf_counter() - started
        draft: list[int] = []
        if len(tokens) - begin > 1:  # all of the last draft was right: its last token is not stored yet
            draft = [drafter.read(self._slot, tokens[begin:], begin)]
        last, position = (draft or tokens)[-1], len(tokens) - 1 + len(draft)
        if len(draft) < count:
            draft += drafter.go_on(self._slot, last, position, count - len(draft))
        self._stored, self._unsure = len(tokens), draft[:-1]
        return draft

    def _set_back(self) -> None:
        """Forgets what was stored of guesses that turned out wrong."""
        came = self._tokens[self._stored : self._stored + len(self._unsure)]
        same = next((i for i, (a, b) in enumerate(zip(self._unsure, came, strict=False)) if a != b), len(came))
        self._stored += same
        self._unsure = []


def check_same_tokens(
    models: tuple[OmniModel, OmniModel], tokenizers: "tuple[Tokenizer | None, Tokenizer | None]"
) -> None:
    """Lets a model guess for another only where ids mean the same to both.

    Args:
        models: the one, and the one that guesses.
        tokenizers: of both; without them only sizes are compared.

    Raises:
        UserError: they differ.
    """
    size, draft_size = (model.config.thinker.vocab_size for model in models)
    tokenizer, draft_tokenizer = tokenizers
    if size != draft_size:
        fault = f"its vocabulary has {draft_size} tokens and this model's has {size}"
    elif tokenizer and draft_tokenizer and not tokenizer.same_tokens(draft_tokenizer):
        fault = "its tokenizer gives the ids to other tokens"
    else:
        return
    raise UserError(f"the draft model cannot guess for this one: {fault}; take one trained with the same tokenizer")


def make_drafter(
    model: OmniModel, slots: int, capacity: int, share: float = 0.5, runner: RunnerName | None = None
) -> Drafter:
    """A drafter whose cache takes at most `share` of the memory that is free.

    Args:
        model: on its device.
        slots: as many as fit, up to this many; requests beyond them go without guesses.
        capacity: tokens of the longest request; less where the model's context ends, behind which nothing is guessed.
        share: of the free memory, 0 to 1.
        runner: see `make_runner`.

    Raises:
        EngineError: not even one slot fits.
    """
    thinker = model.config.thinker
    capacity = min(capacity, thinker.max_position_embeddings)
    remedy = "shorten the prompt, set max_new_tokens lower, or do without a draft model"
    cache = make_slot_cache(thinker, slots, capacity, model.dtype, model.device, share, "the draft model", remedy)
    return Drafter(model, cache, make_runner(model, cache, runner))
