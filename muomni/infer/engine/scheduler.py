"""Requests: which of them have a slot, and how much of which prompt is read in the next step. No tensors here.

A request waits, then fills its slot with its prompt chunk by chunk, then runs, a token a step. Requests get
slots in the order they came. Running ones take part in every step; what is left of a step's tokens is shared
evenly by the prompts being read, so that a short one does not wait for a long one. A slot is as long as the
longest request that is admitted: a running request is never preempted.

A slot may already hold the beginning of a prompt. Tokens are cut into blocks; the hash of a block includes the hash of
the block before it, so one look-up says whether everything up to the block's end is the same. A match is compared token
by token before it is used, and goes on behind its last whole block as far as the tokens agree. In a prompt with
pictures or sounds their tokens, which all have the same id, are numbers made from the content (`PromptMedia.keys`).

The engine alone writes the state of a request; any thread may read it. A token is visible once it is appended, and
nothing follows once `finished` is set.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from threading import Event
from typing import Literal

from muomni.infer.logprobs import TokenLogprob
from muomni.infer.prompt_media import PromptMedia
from muomni.infer.sampling import SamplingParams, draw_uniform, make_random
from muomni.infer.speculative.drafts import DraftProposer, Guesses
from muomni.infer.structured import Constraint

FinishReason = Literal["stop", "length"]
BLOCK = 16
# Slots compared for one block: with more of the same beginning it matters little which is taken.
_COMPARED = 8


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
        constraint: what the reply may go on with, or None; for this request alone.
        on_token: called with each new token that is not an end before it is visible, in order, by the thread that
            computes; True ends the reply with that token. What it raises ends this request alone. After an
            interruption (Ctrl-C) it may be called again for the same place in the reply.
        on_update: called by the same thread after new tokens and at the end; must not block.

        tokens: new ones so far.
        logprobs: of the tokens, where the settings want them; may run ahead of the tokens.
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
    constraint: Constraint | None = None
    on_token: Callable[[int], bool] | None = None
    on_update: Callable[[], None] | None = None

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
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
        if self.constraint is not None:
            self.constraint.rewind()

    @property
    def end_reached(self) -> FinishReason | None:
        """Why the newest token ends the reply, or None."""
        if self.tokens[-1] in self.ends or len(self.tokens) == self.stops_at:
            return "stop"
        return "length" if len(self.tokens) == self.limit else None


def block_hashes(tokens: Sequence[int], before: Sequence[int] = ()) -> list[int]:
    """Hashes of the whole blocks of `tokens`, of which `before` are the first."""
    hashes = list(before)
    last = hashes[-1] if hashes else 0
    for start in range(len(hashes) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
        last = hash((last, *tokens[start : start + BLOCK]))
        hashes.append(last)
    return hashes


class Slots:
    """The free slots, the least recently used one first.

    Args:
        count: of all slots.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free: dict[int, None] = dict.fromkeys(range(count))

    @property
    def free(self) -> int:
        """How many are free."""
        return len(self._free)

    def __contains__(self, slot: int) -> bool:
        return slot in self._free

    def take(self, slot: int | None = None, but: int | None = None) -> int:
        """Takes `slot`, or the least recently used one other than `but`; there is one."""
        if slot is None:
            slot = next(free for free in self._free if free != but)
        del self._free[slot]
        return slot

    def release(self, slot: int) -> None:
        """The slot is free."""
        self._free[slot] = None

    def reset(self, held: Collection[int] = ()) -> None:
        """All slots are free but those `held`."""
        order = dict.fromkeys((*self._free, *range(self.count)))
        self._free = {slot: None for slot in order if slot not in held}


class PrefixIndex:
    """What each slot holds, found by hash.

    Args:
        slots: how many there are.
    """

    def __init__(self, slots: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(slots)]
        self._hashes: list[list[int]] = [[] for _ in range(slots)]
        self._slots: dict[int, dict[int, None]] = {}

    def insert(self, slot: int, tokens: list[int]) -> None:
        """`slot` now holds exactly these tokens; those it has in common with what it held cost nothing."""
        held, hashes = self.tokens[slot], self._hashes[slot]
        keep = min(len(hashes), _common(tokens, held) // BLOCK)
        for gone in hashes[keep:]:
            del self._slots[gone][slot]
            if not self._slots[gone]:
                del self._slots[gone]
        self.tokens[slot] = tokens
        self._hashes[slot] = block_hashes(tokens, hashes[:keep])
        for new in self._hashes[slot][keep:]:
            self._slots.setdefault(new, {})[slot] = None

    def rebuild(self) -> None:
        """Makes the index anew from `tokens`, of which each entry is right even when `insert` was interrupted."""
        held = self.tokens
        PrefixIndex.__init__(self, len(held))
        for slot, tokens in enumerate(held):
            self.insert(slot, tokens)

    def match(self, tokens: Sequence[int], hashes: Sequence[int]) -> tuple[int, int]:
        """The slot that holds most of the beginning of `tokens`, and how many; (-1, 0) for less than a block.

        Args:
            tokens: looked for.
            hashes: `block_hashes(tokens)`.
        """
        found: dict[int, None] = {}
        for value in hashes:
            slots = self._slots.get(value)
            if not slots:
                break
            found = slots
        best = (-1, 0)
        for slot in islice(found, _COMPARED):
            length = _common(tokens, self.tokens[slot])
            if length > best[1] and length >= BLOCK:
                best = slot, length
        return best


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning; whole blocks are compared at once."""
    length = min(len(a), len(b))
    same = 0
    while same + BLOCK <= length and a[same : same + BLOCK] == b[same : same + BLOCK]:
        same += BLOCK
    while same < length and a[same] == b[same]:
        same += 1
    return same


# Prompts of batch_invariant requests are always cut here, whatever else there is to do.
FIXED_CHUNK = 256


class Scheduler:
    """The state of all slots.

    A request's `slot`, `stored` and `finished` decide where it stands; each changes in one assignment, and a request
    enters its next list before it leaves the last. So `mend` makes everything else anew from them after an exception
    at any place. What a slot holds is in `prefix` only once it is stored.

    Args:
        slots: how many.
        copy: copies the first tokens of one slot into another: source, target, how many.
        chunk: tokens of prompts read in one step while replies are being written.
        chunk_alone: the same while none are.
        reuse: look for the beginnings of prompts in other slots.
    """

    def __init__(
        self,
        slots: int,
        copy: Callable[[int, int, int], None],
        *,
        chunk: int = 512,
        chunk_alone: int = 2048,
        reuse: bool = True,
    ) -> None:
        self.waiting: deque[Request] = deque()
        self.filling: list[Request] = []
        self.running: list[Request] = []
        self.prefix = PrefixIndex(slots)
        self._copy = copy
        self._chunk = chunk
        self._chunk_alone = chunk_alone
        self._reuse = reuse
        self._slots = Slots(slots)

    @property
    def active(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.running or self.filling or self.waiting)

    def add(self, request: Request) -> None:
        """Lets a request wait for a slot."""
        if self._reuse and not request.batch_invariant:
            # The last token is always computed: its logits are needed.
            request.hashes = block_hashes(request.keys[:-1])
        self.waiting.append(request)

    def admit(self, now: float = 0.0) -> None:
        """Gives free slots to those who wait, in their order; `now` is their beginning on the engine's clock."""
        while self.waiting and self._slots.free:
            request = self.waiting[0]
            source, length = self.prefix.match(request.keys[:-1], request.hashes)
            if self._is_being_read(request, length):
                break  # in a step or two it can be copied
            slot = self._take(source, length)
            if source != slot:
                self.prefix.insert(slot, [])  # what it held is written over
                if length:
                    self._copy(source, slot, length)
            request.began, request.stored, request.reused = now, length, length
            self.prefix.insert(slot, list(request.keys[:length]))
            request.slot = slot
            self.filling.append(request)
            self.waiting.popleft()

    def _is_being_read(self, request: Request, length: int) -> bool:
        """Whether a block behind the first `length` tokens is just being computed for another request."""
        block = length // BLOCK
        if block >= len(request.hashes):
            return False
        wanted = request.hashes[block]
        return any(wanted in other.hashes[other.stored // BLOCK :] for other in self.filling)

    def _take(self, source: int, length: int) -> int:
        """Takes a free slot: the one that holds the beginning, where little else would be lost, or the oldest."""
        if source in self._slots and (2 * length >= len(self.prefix.tokens[source]) or self._slots.free == 1):
            return self._slots.take(source)
        return self._slots.take(but=source)

    def chunks(self) -> list[tuple[Request, int]]:
        """How many tokens of which prompts the next step reads."""
        left = self._chunk if self.running else self._chunk_alone
        chunks = []
        waiting = sorted(self.filling, key=lambda r: len(r.prompt) - r.stored)  # those who need least leave the rest
        for place, request in enumerate(waiting):
            rest = len(request.prompt) - request.stored
            if request.batch_invariant:
                count = min(rest, FIXED_CHUNK)
            else:
                count = min(rest, max(left // (len(waiting) - place), min(left, BLOCK)))
                left -= count
            if count:
                chunks.append((request, count))
        return chunks

    def read(self, request: Request, count: int) -> bool:
        """Notes that `count` more tokens of the prompt are stored; True when that was the last of them."""
        request.stored += count
        done = request.stored == len(request.prompt)
        if self._reuse and not request.batch_invariant:
            self.prefix.insert(request.slot, list(request.keys[: request.stored]))
        if done:
            self.running.append(request)
            self.filling.remove(request)
        return done

    def remove(self, request: Request) -> None:
        """Takes a finished request out wherever it is; its slot is free at once and what it holds can be found."""
        slot = request.slot
        if slot >= 0:
            if self._reuse and not request.batch_invariant:
                self.prefix.insert(slot, [*request.keys[: request.stored], *request.tokens[:-1]])
            request.slot = -1
            self._slots.release(slot)
        for requests in (self.running, self.filling) if slot >= 0 else (self.waiting,):
            if request in requests:
                requests.remove(request)

    def mend(self) -> None:
        """Makes lists, free slots and index whole after an exception anywhere; a prompt's last tokens are read again.

        The logits behind a prompt whose reply has not begun are gone.
        """
        requests = [r for r in dict.fromkeys((*self.running, *self.filling, *self.waiting)) if not r.finished]
        for request in requests:
            last = len(request.prompt) - 1
            if request.slot >= 0 and not request.tokens and request.stored > last:
                request.stored = last - last % FIXED_CHUNK if request.batch_invariant else last
        inside = [request for request in requests if request.slot >= 0]
        self.waiting = deque(request for request in requests if request.slot < 0)
        self.filling = [request for request in inside if request.stored < len(request.prompt)]
        self.running = [request for request in inside if request.stored == len(request.prompt)]
        self._slots.reset({request.slot for request in inside})
        self.prefix.rebuild()
