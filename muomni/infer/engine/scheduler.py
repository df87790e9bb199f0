"""Which requests have a slot, and how much of which prompt is read in the next step. No tensors here.

A request waits, then fills its slot with its prompt chunk by chunk, then runs, a token a step. Requests get
slots in the order they came. Running ones take part in every step; what is left of a step's tokens is shared
evenly by the prompts being read, so that a short one does not wait for a long one. A slot is as long as the
longest request that is admitted: a running request is never preempted.
"""

from collections import deque
from collections.abc import Callable

from muomni.infer.engine.prefix_cache import BLOCK, PrefixIndex, block_hashes
from muomni.infer.request import Request
from muomni.infer.slots import Slots

# Prompts of batch_invariant requests are always cut here, whatever else there is to do.
FIXED_CHUNK = 256


class Scheduler:
    """The state of all slots.

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

    def admit(self) -> list[Request]:
        """Gives free slots to those who wait, in their order; returns them."""
        admitted = []
        while self.waiting and self._slots.free:
            request = self.waiting[0]
            source, length = self.prefix.match(request.keys[:-1], request.hashes)
            if self._is_being_read(request, length):
                break  # in a step or two it can be copied
            self.waiting.popleft()
            request.slot = self._take(source, length)
            if length and source != request.slot:
                self._copy(source, request.slot, length)
            request.stored = request.reused = length
            self.prefix.insert(request.slot, list(request.keys[:length]))
            self.filling.append(request)
            admitted.append(request)
        return admitted

    def _is_being_read(self, request: Request, length: int) -> bool:
        """Whether a block behind the first `length` tokens is just being computed for another request."""
        block = length // BLOCK
        if block >= len(request.hashes):
            return False
        wanted = request.hashes[block]
        return any(wanted in other.hashes[other.stored // BLOCK :] for other in self.filling)

    def _take(self, source: int, length: int) -> int:
        """A free slot: the one that holds the beginning, where little else would be lost, or the oldest."""
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
            self.filling.remove(request)
            self.running.append(request)
        return done

    def remove(self, request: Request) -> None:
        """Takes a request out wherever it is; its slot is free at once and what it holds can be found."""
        if request.slot < 0:
            if request in self.waiting:
                self.waiting.remove(request)
            return
        (self.running if request in self.running else self.filling).remove(request)
        slot, request.slot = request.slot, -1
        self._slots.release(slot)
        if self._reuse and not request.batch_invariant:
            self.prefix.insert(slot, [*request.keys[: request.stored], *request.tokens[:-1]])
