"""Who computes a step: the protocol, torch's modules as its plain form, and the choice between runners.

A *flattened batch* is N tokens, each with its slot and its position: chunks of prompts and single tokens of
running replies, mixed, without padding. Keys and values of the whole batch are stored before anybody attends;
a token attends to positions 0 .. its own of its slot, so causality is by position.

Legend: N tokens of a batch, M of them whose logits are wanted, V vocabulary, B rows.
"""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor

from muomni.accel import measured
from muomni.errors import ConfigError, EngineError
from muomni.infer.generate import evaluating
from muomni.infer.request import MediaChunk
from muomni.model import OmniModel, SlotBatch, SlotCache
from muomni.model.quantized import is_quantized


class Runner(Protocol):
    """Computes steps over one `SlotCache`; runners over the same one may take turns at any step.

    Attributes:
        can_greedy: whether `greedy` is faster than as many calls of `forward`.
        own_threads: whether it computes on threads of its own, which torch's threads, spinning for a while after
            each operation, would keep from their cores.
        batch_invariant: logits of a token do not depend, bit by bit, on the other tokens of the batch.
        note: what the log should know of it; empty where its name says all.
    """

    can_greedy: bool
    own_threads: bool
    batch_invariant: bool

    @property
    def note(self) -> str: ...

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """One step.

        Args:
            tokens, slots, positions: (N,) int64 on the CPU. The tokens of one slot stand together and in order.
            wanted: (M,) int64 on the CPU, places in the batch, rising.

        Returns:
            (M, V) fp32 logits on the model's device.
        """

    def greedy(self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int) -> Tensor:
        """Each of B rows of different slots goes on by `steps` tokens, always the most likely one.

        Args:
            tokens, slots, positions: (B,) int64 on the CPU: the newest token of each row, its slot and position.
            steps: at least 1.

        Returns:
            (B, steps) int64 on the CPU.
        """


class EagerRunner:
    """torch's modules as they are: any device, any weights.

    Args:
        model: in evaluation mode while it is used.
        cache: on the model's device.
    """

    can_greedy = False
    own_threads = False
    batch_invariant = False
    note = ""

    def __init__(self, model: OmniModel, cache: SlotCache) -> None:
        self._model = model
        self._cache = cache

    def forward(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor, media: MediaChunk | None = None
    ) -> Tensor:
        """See `Runner`; with `media`, some of the tokens are embeddings of pictures and sounds."""
        thinker, device = self._model.thinker, self._cache.device
        batch = SlotBatch(self._cache, slots, positions)
        if media is None:
            hidden = thinker(tokens.to(device)[None], positions.to(device)[None], cache=batch)[0]
        else:
            x = thinker.embed_tokens(tokens.to(device))
            x = x.index_copy(0, media.places.to(device), media.features.to(x.dtype))
            axes = media.positions.to(device)[:, None]
            hidden = thinker(inputs_embeds=x[None], positions=axes, cache=batch)[0]
        if len(wanted) != len(tokens):
            hidden = hidden[wanted.to(device)]
        logits: Tensor = thinker.lm_head(hidden)
        return logits.float()

    def greedy(self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int) -> Tensor:
        out = torch.empty(len(tokens), steps, dtype=torch.int64)
        wanted = torch.arange(len(tokens))
        for step in range(steps):
            tokens = self.forward(tokens, slots, positions + step, wanted).argmax(dim=-1).cpu()
            out[:, step] = tokens
        return out


@dataclass(frozen=True)
class Runners:
    """What an engine computes with.

    Attributes:
        now: from the first step on.
        later: gives a faster one over the same cache once it is made, or None where that was declined; an
            exception is kept and told, and `now` goes on.
        note: why it is not a faster one, for the log.
    """

    now: Runner
    later: "Future[Runner | None] | None" = None
    note: str = ""


RunnerName = Literal["auto", "eager", "native", "compiled"]
# A library that was compiled before is found within this time, so that the first step is a fast one already.
_PATIENCE_S = 0.25


def make_runner(model: OmniModel, cache: SlotCache, name: RunnerName | None = None) -> Runners:
    """The fastest way this machine has to run the model, and what to use until it is made.

    Args:
        model: as it stays: after its weights were replaced (`.to`, `quantize`), make another one.
        cache: on the model's device.
        name: `auto` takes the native runner on CPUs where it can run the model, compiled in the background the first
            time on a machine, the compiled one on GPUs, and torch's modules until then and elsewhere. None is what the
            environment variable `MUOMNI_RUNNER` says, or `auto`. What `muomni bench` has measured to lose with this
            model here is not taken by `auto`.

    Raises:
        ConfigError: no such runner, or the named one cannot run this model here.
    """
    name = cast(RunnerName, os.environ.get("MUOMNI_RUNNER", "auto")) if name is None else name
    if name not in get_args(RunnerName):
        raise ConfigError(f"runner = {name!r}: there are {', '.join(get_args(RunnerName))}")
    eager = EagerRunner(model, cache)
    if name == "eager":
        return Runners(eager, note="as asked")
    if name == "auto":
        weights = "int8" if is_quantized(model) else "float"
        found = measured.recall(cache.device, model.config.thinker, weights)
        lost = found.loss(measured.DECODE_STEP, "a step in one call")
        if lost is not None:
            return Runners(eager, note=lost)
    if name == "compiled" or (name == "auto" and cache.device.type != "cpu"):
        return _compiled(model, cache, eager, named=name == "compiled")
    from muomni.infer import native
    from muomni.ops.native import Unavailable, load

    with evaluating(model):
        fault = native.why_not(model, cache)
    if fault is not None:
        if name == "native":
            raise ConfigError(f"the native runner cannot be had: {fault}")
        return Runners(eager, note=fault)

    def make() -> Runner:
        library = load()
        if isinstance(library, Unavailable):
            raise EngineError(library.reason)
        return native.NativeRunner(library, model, cache, torch.get_num_threads())

    later = _in_background(make)
    try:
        ready = later.result(timeout=None if name == "native" else _PATIENCE_S)
        return Runners(eager if ready is None else ready)
    except EngineError as error:
        if name == "native":
            raise ConfigError(f"the native runner cannot be had: {error}") from None
        return Runners(eager, note=str(error))
    except TimeoutError:
        return Runners(eager, later)


def _compiled(model: OmniModel, cache: SlotCache, eager: EagerRunner, named: bool) -> Runners:
    from muomni.infer import compiled

    fault = compiled.why_not(cache)
    if fault is None:
        return Runners(compiled.CompiledRunner(model, cache))  # it uses torch's modules until a step is compiled
    if named:
        raise ConfigError(f"the compiled runner cannot be had: {fault}")
    return Runners(eager, note=fault)


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Operations of torch inside compute on the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_background(make: Callable[[], Runner]) -> "Future[Runner | None]":
    """What `make` gives, from a thread that does not keep the process from ending."""
    future: Future[Runner | None] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:  # noqa: BLE001 - told to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=work, name="muomni-compile", daemon=True).start()
    return future
