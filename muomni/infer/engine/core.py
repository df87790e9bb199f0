"""The steps of an engine: what is computed, for whom, and what becomes of it. Used by one thread at a time.

Every step takes all running replies one token on and reads a piece of the prompts that have a slot, in one
forward pass. What one request does to itself (a sampling error, a failing callback, a forward pass that fails for
it alone) ends that request and no other.
"""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from muomni.errors import NonFiniteError, SettingError
from muomni.infer.engine.scheduler import FinishReason, Request, Scheduler
from muomni.infer.logprobs import OwnLogprobs, TokenLogprob
from muomni.infer.penalties import TokenCounts
from muomni.infer.prompt_media import MediaChunk
from muomni.infer.runners.select import EagerRunner, Runner, Runners, torch_on_one_thread
from muomni.infer.sampling import Sampler, most_likely, on_device, why_not_finite
from muomni.infer.speculative.drafts import PromptLookup, accept
from muomni.model import OmniModel, SlotCache
from muomni.model.module_modes import eval_mode

# Several greedy steps are one call of the runner where it can do that, but not for longer than this: whoever reads
# a reply waits for the call to end.
_LONGEST_CALL_S = 0.02
_MOST_STEPS = 32

NO_GUESS_APART = "speculate has no effect with batch_invariant"


@dataclass(frozen=True, slots=True)
class _Part:
    """What one request has in a step: its `tokens` from `position` on; the logits of the last `wanted` are wanted."""

    request: Request
    tokens: Sequence[int]
    position: int
    wanted: int
    media: MediaChunk | None = None


@dataclass(slots=True)
class _Rows:
    """The running requests as tensors, kept from step to step for as long as they are the same."""

    requests: list[Request]
    tokens: Tensor
    slots: Tensor
    positions: Tensor
    wanted: Tensor
    sampler: Sampler
    is_greedy: bool
    reads_logits: bool
    alone: bool
    guess: bool


class EngineCore:
    """See the module.

    Args:
        model: in evaluation mode while there is something to do, then as it was before.
        cache: on the model's device.
        runners: see `Runners`.
        scheduler: over the cache's slots.

    Attributes:
        runners: `now` computes.
        steps: how many there have been.
        stop: (1,) not 0 ends a call that takes several steps, so that who comes or goes need not wait for it.
    """

    def __init__(self, model: OmniModel, cache: SlotCache, runners: Runners[Runner], scheduler: Scheduler) -> None:
        self.runners = runners
        self.scheduler = scheduler
        self.steps = 0
        self.stop = np.zeros(1, np.int64)
        self._model = model
        self._cache = cache
        # Reads what holds pictures and sounds, which other runners cannot; they share the cache.
        self._reader = EagerRunner(model, cache)
        self._rows: _Rows | None = None
        self._counts: TokenCounts | None = None
        self._clock = 0.0  # seconds spent in steps
        self._step_s = 1.0
        self._mode: AbstractContextManager[None] | None = None
        self._ending: Request | None = None

    @torch.inference_mode()
    def step(self) -> None:
        """Computes one step for all. What fails is told to the requests it hits."""
        started = time.perf_counter()
        try:
            if self._mode is None:
                mode = eval_mode(self._model)
                mode.__enter__()
                self._mode = mode
            if self.runners.later is not None and self.runners.switch():
                self._switched()
            if self.scheduler.waiting:
                self.scheduler.admit(self._clock)
            if self.scheduler.filling:
                self._mixed_step(started)
            else:
                self._decode_step(started)
            self.steps += 1
        except Exception as error:  # noqa: BLE001 - told to every request; the engine lives on
            self.mend()
            self.fail_all(error)
        finally:
            self._clock += time.perf_counter() - started

    def end(self, request: Request, reason: FinishReason | None = None, error: BaseException | None = None) -> None:
        """Takes a request out wherever it is; nothing happens to one that has ended."""
        if request.finished:  # a callback has cancelled it
            return
        request.reason, request.error = reason, error
        self._ending = request
        request.finished = True
        self._settle(request)
        self._ending = None

    @torch.inference_mode()
    def mend(self) -> None:
        """Makes the state whole after an exception at any place, so that the next step computes the last one again."""
        if self._ending is not None and self._ending.finished:
            self._settle(self._ending)
        self._ending = self._rows = None
        self.scheduler.mend()
        for request in [*self.scheduler.filling, *self.scheduler.running]:
            request.rewind()
            request.reason = None
            if request.drafts is not None:  # what it has stored is not known
                request.drafts.close()
                request.drafts = None
            if request.slot >= 0 and request.params.penalises:
                self._count(request)
            if request.tokens and (reason := request.end_reached):
                self.end(request, reason)

    def _settle(self, request: Request) -> None:
        """What an end brings with it. May be done again."""
        self._rows = None
        self.scheduler.remove(request)
        if request.drafts is not None:
            request.drafts.close()
        if request.event is not None:
            request.event.set()
        if request.on_update is not None:
            try:
                request.on_update()
            except Exception as failed:  # noqa: BLE001 - told to the request whose callback failed
                request.error = request.error or failed

    def fail_all(self, error: BaseException) -> None:
        """Ends every request."""
        for request in [*self.scheduler.running, *self.scheduler.filling, *self.scheduler.waiting]:
            self.end(request, error=error)

    def rest(self) -> None:
        """Nothing is left to do: the model gets its mode back."""
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self._mode = None

    @property
    def runner(self) -> Runner:
        """Computes now."""
        return self.runners.now

    @property
    def guesses_deterministic(self) -> bool:
        """Whether batch_invariant requests are guessed for: now, or perhaps by a runner that is being made."""
        return self.runner.batch_invariant or self.runners.later is not None

    def _switched(self) -> None:
        """Another runner computes, or it is known that there is no faster one."""
        self._step_s = 1.0
        inside = (*self.scheduler.running, *self.scheduler.filling, *self.scheduler.waiting)
        if not self.runner.batch_invariant and any(r.batch_invariant and r.speculate for r in inside):
            warnings.warn(
                f"{NO_GUESS_APART} requests here: {self.runners.note or 'the runner allows none'}", stacklevel=2
            )

    def _mixed_step(self, started: float) -> None:
        scheduler = self.scheduler
        parts = [_Part(r, r.tokens[-1:], r.position, 1) for r in scheduler.running]
        chunks = scheduler.chunks()
        for request, count in chunks:
            begin, end = request.stored, request.stored + count
            media = None if request.media is None else request.media.chunk(begin, end)
            parts.append(_Part(request, request.prompt[begin:end], begin, int(end == len(request.prompt)), media))
        self._rows = None
        parts, logits = self._forward(parts)
        lost = {id(request) for request, _ in chunks} - {id(part.request) for part in parts}
        for request, count in chunks:
            if id(request) not in lost and scheduler.read(request, count) and request.params.penalises:
                self._count(request)
        requests = [part.request for part in parts if part.wanted]
        if requests:
            self._sample_and_deliver(requests, logits, started)

    def _decode_step(self, started: float) -> None:
        rows = self._rows or self._make_rows()
        if rows.guess and self._step_s < 1.0:
            drafts = [self._draft(request) for request in rows.requests]
            if self._rows is None:  # a guess has failed and its request has ended: the others go on with the next step
                return
            if any(drafts):
                self._verify_step(rows.requests, drafts, started)
                return
        if rows.alone:
            self._decode_apart(started)
            return
        try:
            new = self._decode(rows)
        except Exception:  # noqa: BLE001 - the step below tells whose fault it is
            self._step_s = 1.0
            self._decode_apart(started)
            return
        steps = new.shape[1]
        self._timed(started, steps)
        rows.tokens = new[:, -1]
        rows.positions += steps
        self._deliver(rows.requests, new.tolist(), started)

    def _decode(self, rows: _Rows) -> Tensor:
        """(B, steps) the next tokens of all rows."""
        if rows.is_greedy and not rows.reads_logits and self.runner.can_greedy:
            # Also for one step: taking the largest of all logits with torch wakes its threads, which then spin
            # for a while on the cores that the runner's threads need.
            steps = self._steps_at_once(rows)
            return self.runner.greedy(rows.tokens, rows.slots, rows.positions, steps, self.stop)
        logits = self.runner.forward(rows.tokens, rows.slots, rows.positions, rows.wanted)
        return self._sample(rows.requests, logits, rows.sampler)[:, None]

    def _decode_apart(self, started: float) -> None:
        """A decode step that isolates whom it fails for."""
        self._rows = None
        parts, logits = self._forward([_Part(r, r.tokens[-1:], r.position, 1) for r in self.scheduler.running])
        if parts:
            self._sample_and_deliver([part.request for part in parts], logits, started)

    def _draft(self, request: Request) -> list[int]:
        if not request.speculate:
            return []
        most = request.limit - len(request.tokens) - 1  # the step gives one more than is accepted
        try:
            if request.drafts is None:
                guesser = request.speculate
                prompt = request.prompt
                request.drafts = PromptLookup(prompt) if isinstance(guesser, bool) else guesser.begin(prompt)
            draft = request.drafts.draft(request.tokens, len(request.prompt), most)
            return draft if request.constraint is None else request.constraint.allowed(request.tokens, draft)
        except Exception as error:  # noqa: BLE001 - told to the request whose guess failed
            self.end(request, error=error)
            return []

    def _verify_step(self, requests: list[Request], drafts: list[list[int]], started: float) -> None:
        """A greedy step in which rows may have drafts."""
        self._rows = None
        asked = [
            _Part(r, [r.tokens[-1], *draft], r.position, len(draft) + 1)
            for r, draft in zip(requests, drafts, strict=True)
        ]
        parts, logits = self._forward(asked)
        with torch_on_one_thread() if self.runner.own_threads else nullcontext():
            scored = _scored(parts, logits)
            self._constrain(parts, logits)
            likely = most_likely(logits).tolist() if parts else []
        once = sum(r.drafts.once_s for r, draft in zip(requests, drafts, strict=True) if draft and r.drafts is not None)
        took = time.perf_counter() - started - once
        drafted = sum(len(part.tokens) - 1 for part in parts)
        costs = max(0.0, took - self._step_s) / max(1, drafted)
        new: list[list[int]] = []
        for part in parts:
            draft = part.tokens[1:]
            new.append(accept(draft, likely[: len(part.tokens)]))
            likely = likely[len(part.tokens) :]
            if draft and part.request.drafts is not None:
                accepted = len(new[-1]) - 1
                part.request.drafts.learn(len(draft), accepted, self._step_s / len(parts), costs)
            if part.request.params.logprobs is not None:
                logprobs, own = next(scored)
                _note(part.request, logprobs.of(own, torch.tensor(new[-1])))
        self._deliver([part.request for part in parts], new, started)

    def _make_rows(self) -> _Rows:
        requests = list(self.scheduler.running)
        is_greedy = all(r.params.is_greedy for r in requests)
        apart = any(r.batch_invariant for r in requests) and not self.runner.batch_invariant
        self._rows = _Rows(
            requests=requests,
            tokens=torch.tensor([r.tokens[-1] for r in requests]),
            slots=torch.tensor([r.slot for r in requests]),
            positions=torch.tensor([r.position for r in requests]),
            wanted=torch.arange(len(requests)),
            sampler=Sampler([r.params for r in requests], self._cache.device),
            is_greedy=is_greedy,
            reads_logits=any(r.constraint is not None or r.params.logprobs is not None for r in requests),
            alone=apart and len(requests) > 1,
            guess=is_greedy and not apart and any(r.speculate for r in requests),
        )
        return self._rows

    def _steps_at_once(self, rows: _Rows) -> int:
        left = min(r.limit - len(r.tokens) for r in rows.requests)
        return max(1, min(left, _MOST_STEPS, int(_LONGEST_CALL_S / self._step_s)))

    def _timed(self, started: float, steps: int) -> None:
        """A running average of a decode step's time; the first guess is far too long."""
        took = (time.perf_counter() - started) / steps
        self._step_s = took if self._step_s == 1.0 else 0.8 * self._step_s + 0.2 * took

    def _constrain(self, parts: Sequence[_Part], logits: Tensor) -> None:
        """Forbids what the constraints of requests with drafts do not allow; ends those that fail at it."""
        end = 0
        for part in parts:
            begin, end = end, end + part.wanted
            request = part.request
            if request.constraint is not None:
                try:
                    request.constraint.restrict(logits[begin:end], request.tokens, part.tokens[1:])
                except Exception as error:  # noqa: BLE001 - told to the request whose constraint failed
                    self.end(request, error=error)

    # -- one forward pass -----------------------------------------------------------------------------------

    def _forward(self, parts: list[_Part]) -> tuple[list[_Part], Tensor]:
        """Computes a flattened batch; gives the parts that did not fail and the logits wanted, in their order."""
        apart = not self.runner.batch_invariant
        # One pass for all where the same runner does text and media; else one for each.
        text: list[_Part] = []
        media: list[_Part] = text if type(self.runner) is EagerRunner else []
        groups = [text] if media is text else [text, media]
        for part in parts:
            if part.request.batch_invariant and (apart or part.media is not None):
                groups.append([part])
            else:
                (text if part.media is None else media).append(part)
        done: list[_Part] = []
        logits: list[Tensor] = []
        for group in groups:
            if not group:
                continue
            try:
                logits.append(self._run(group))
                done += group
            except Exception as error:  # noqa: BLE001 - told to the request whose part fails alone
                if len(group) == 1:
                    self.end(group[0].request, error=error)
                    continue
                for part in group:
                    try:
                        logits.append(self._run([part]))
                        done.append(part)
                    except Exception as own:  # noqa: BLE001 - as above
                        self.end(part.request, error=own)
        return done, torch.cat(logits) if logits else torch.empty(0)

    def _run(self, parts: list[_Part]) -> Tensor:
        tokens: list[int] = []
        slots: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for part in parts:
            tokens += part.tokens
            slots += [part.request.slot] * len(part.tokens)
            positions += range(part.position, part.position + len(part.tokens))
            wanted += range(len(tokens) - part.wanted, len(tokens))
        asked = torch.tensor(wanted or [len(tokens) - 1])
        batch = torch.tensor(tokens), torch.tensor(slots), torch.tensor(positions), asked
        if any(part.media is not None for part in parts):
            logits = self._reader.forward(*batch, _joined(parts, batch[2]))
        else:
            logits = self.runner.forward(*batch)
        return logits[: len(wanted)]

    # -- from logits to replies -----------------------------------------------------------------------------

    def _sample_and_deliver(self, requests: list[Request], logits: Tensor, started: float) -> None:
        try:
            drawn = self._sample(requests, logits, Sampler([r.params for r in requests], logits.device)).tolist()
        except Exception:  # noqa: BLE001 - told to the request whose row fails alone
            drawn, left = [], []
            for row, request in enumerate(requests):
                try:
                    sampler = Sampler([request.params], logits.device)
                    drawn += self._sample([request], logits[row : row + 1], sampler).tolist()
                    left.append(request)
                except Exception as error:  # noqa: BLE001 - as above
                    self.end(request, error=error)
            requests = left
        self._deliver(requests, [[token] for token in drawn], started)

    def _sample(self, requests: list[Request], logits: Tensor, sampler: Sampler) -> Tensor:
        """The next token of each request, on the CPU: the one wait for the device in a step."""
        with torch_on_one_thread() if self.runner.own_threads else nullcontext():
            return self._draw(requests, logits, sampler)

    def _draw(self, requests: list[Request], logits: Tensor, sampler: Sampler) -> Tensor:
        logprobs = None
        if sampler.scored:  # before anything changes the logits
            most = [requests[row].params.logprobs or 0 for row in sampler.scored]
            logprobs = OwnLogprobs(logits[sampler.scored], most)
        for row, request in enumerate(requests):
            if request.constraint is not None:
                request.constraint.restrict(logits[row : row + 1], request.tokens)
        counts = slots = uniform = None
        if not sampler.greedy:
            uniform = on_device([request.number() for request in requests], torch.float32, logits.device)
        if sampler.penalised:
            assert self._counts is not None
            slots = on_device([requests[row].slot for row in sampler.penalised], torch.int64, logits.device)
            counts = self._counts.of(slots)
        drawn = sampler(logits, uniform, counts)
        tokens = drawn.cpu()
        if logprobs is not None:
            told = logprobs.of(logits[sampler.scored], tokens[sampler.scored])
            for row, each in zip(sampler.scored, told, strict=True):
                _note(requests[row], [each])
        if self._counts is not None and slots is not None:  # last: nothing is drawn again once it is counted
            self._counts.add(slots, drawn[sampler.penalised])
        return tokens

    def _count(self, request: Request) -> None:
        device = self._cache.device
        if self._counts is None:
            self._counts = TokenCounts(self._cache.slots, self._model.config.thinker.vocab_size, device)
        prompt, reply = (on_device(ids, torch.int64, device) for ids in (request.prompt, request.tokens))
        self._counts.begin(request.slot, prompt, reply)

    def _deliver(self, requests: list[Request], rows: list[list[int]], started: float) -> None:
        now = self._clock + time.perf_counter() - started
        for request, new in zip(requests, rows, strict=True):
            if request.finished:  # its constraint has failed
                continue
            if not request.tokens:
                request.first = now
            request.last = now
            try:
                if min(new, default=0) < 0:
                    if request.constraint is not None and request.params.logit_bias:
                        raise SettingError("logit_bias bans all tokens that the grammar allows next", "logit_bias")
                    raise NonFiniteError(why_not_finite(self._model))
                reason = _append(request, new)
                if reason is None:
                    if request.event is not None:
                        request.event.set()
                    if request.on_update is not None:
                        request.on_update()
                    continue
            except Exception as error:  # noqa: BLE001 - told to the request whose callback failed
                self.end(request, error=error)
                continue
            self.end(request, reason)


def _scored(parts: Sequence[_Part], logits: Tensor) -> Iterator[tuple[OwnLogprobs, Tensor]]:
    """The model's own probabilities behind each token of the parts that want them, with their rows of the logits."""
    scored = []
    end = 0
    for part in parts:
        begin, end = end, end + part.wanted
        most = part.request.params.logprobs
        if most is not None:
            own = logits[begin:end]
            scored.append((OwnLogprobs(own, [most] * part.wanted), own))
    return iter(scored)


def _note(request: Request, logprobs: Sequence[TokenLogprob]) -> None:
    """Keeps what is told of the tokens that come next; they are appended after it, perhaps not all."""
    request.logprobs[len(request.tokens) :] = logprobs


def _joined(parts: Sequence[_Part], positions: Tensor) -> MediaChunk:
    """The media of a flattened batch of (N,) positions."""
    axes = positions.repeat(3, 1)
    places = torch.zeros(len(positions), dtype=torch.bool)
    features = []
    begin = 0
    for part in parts:
        end = begin + len(part.tokens)
        if part.media is not None:
            axes[:, begin:end] = part.media.positions
            features.append(part.media.features)
            places[begin:end] = part.media.places
        begin = end
    return MediaChunk(torch.cat(features), places, axes)


def _append(request: Request, new: Sequence[int]) -> FinishReason | None:
    """Adds tokens up to the end of the reply; why it ends, or None. What comes behind the end is thrown away."""
    tokens, ends, on_token = request.tokens, request.ends, request.on_token
    for token in new:
        if on_token is not None and token not in ends:
            request.stops_at = len(tokens) + 1 if on_token(token) else 0
        tokens.append(token)
        if reason := request.end_reached:
            return reason
    return None
