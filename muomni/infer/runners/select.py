"""What computes a step of the Thinker (`Runner`) or of the Talker (`Backbone`), and which of them on a device.

It computes over slots of a KV cache: as many as the memory holds. The engine's requests, a draft model's and the
sentences of speech all live in such slots.

A *flattened batch* is N tokens, each with its slot and its position: chunks of prompts and single tokens of
running replies, mixed, without padding. Keys and values of the whole batch are stored before anybody attends;
a token attends to positions 0 .. its own of its slot, so causality is by position.

Legend: N tokens of a batch or rows of the Talker, M of them whose logits are wanted, V vocabulary, B rows,
D hidden_size.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.accel.device import free_memory
from muomni.accel.measurements import verdicts
from muomni.config import ThinkerConfig
from muomni.errors import ConfigError, EngineError
from muomni.infer.prompt_media import MediaChunk
from muomni.infer.sampling import most_likely
from muomni.model import OmniModel, SlotBatch, SlotCache
from muomni.model.int8_layers import is_quantized
from muomni.model.kv_cache import check_places, slot_bytes
from muomni.model.module_modes import eval_mode
from muomni.model.placeholders import fill_placeholders
from muomni.model.talker import Talker
from muomni.ops.native import Library

RunnerName = Literal["auto", "eager", "native", "compiled"]
# Taken where no runner is named; tests set it to "eager", so that nothing there waits for a compiler.
DEFAULT_RUNNER: RunnerName = "auto"
# A library that was compiled before is loaded within this time, so that the first step is a fast one already.
_PATIENCE_S = 0.25
R = TypeVar("R")


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
    def note(self) -> str:
        """See the class."""

    def forward(self, tokens: Tensor, slots: Tensor, positions: Tensor, wanted: Tensor) -> Tensor:
        """One step.

        Args:
            tokens: (N,) int64 on the CPU; those of one slot stand together and in order.
            slots: (N,) int64 on the CPU.
            positions: (N,) int64 on the CPU.
            wanted: (M,) int64 on the CPU, places in the batch, rising.

        Returns:
            (M, V) fp32 logits on the model's device.
        """

    def greedy(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int, stop: NDArray[np.int64] | None = None
    ) -> Tensor:
        """Each of B rows of different slots goes on by `steps` tokens, always the most likely one.

        Args:
            tokens: (B,) int64 on the CPU, the newest of each row.
            slots: (B,) int64 on the CPU, each once.
            positions: (B,) int64 on the CPU, of the tokens.
            steps: at least 1.
            stop: (1,) which other threads may change: no step begins once it is not 0, but the first.

        Returns:
            (B, steps) int64 on the CPU, fewer after `stop`; -1 where a logit is NaN or infinite, and what follows it
            means nothing.
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
            x = thinker.embed_tokens(tokens.to(device)[None])
            x = fill_placeholders(x, media.places.to(device)[None], media.features, "of media")
            axes = media.positions.to(device)[:, None]
            hidden = thinker(inputs_embeds=x, positions=axes, cache=batch)[0]
        if len(wanted) != len(tokens):
            hidden = hidden[wanted.to(device)]
        logits: Tensor = thinker.lm_head(hidden)
        return logits.float()

    def greedy(
        self, tokens: Tensor, slots: Tensor, positions: Tensor, steps: int, stop: NDArray[np.int64] | None = None
    ) -> Tensor:
        """See `Runner`."""
        out = torch.empty(len(tokens), steps, dtype=torch.int64)
        wanted = torch.arange(len(tokens))
        for step in range(steps):
            tokens = most_likely(self.forward(tokens.clamp(min=0), slots, positions + step, wanted)).cpu()
            out[:, step] = tokens
            if stop is not None and stop[0]:
                return out[:, : step + 1]
        return out


class Backbone(Protocol):
    """Computes frames of the Talker over one `SlotCache`; backbones over the same one may take turns at any frame.

    Attributes:
        cache: the keys and values of all slots.
        own_threads, note: see `Runner`.
    """

    cache: SlotCache
    own_threads: bool

    @property
    def note(self) -> str:
        """See the class."""

    def hidden(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """One frame of each of N rows.

        Args:
            x: (N, D) what `Talker.inputs` gave.
            slots: (N,) int64 on the CPU, each once.
            positions: (N,) int64 on the CPU.

        Returns:
            (N, D) hidden states after the last norm.
        """


class EagerBackbone:
    """torch's modules as they are: any device, any weights.

    Args:
        talker: in evaluation mode while it is used.
        cache: on the Talker's device.
    """

    own_threads = False
    note = ""

    def __init__(self, talker: Talker, cache: SlotCache) -> None:
        self.cache = cache
        self._talker = talker

    def hidden(self, x: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
        """See `Backbone`."""
        batch = SlotBatch(self.cache, slots, positions)
        hidden: Tensor = self._talker.backbone(x[None], positions.to(x.device)[None], cache=batch)
        return hidden[0]


@contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Operations of torch inside compute on the calling thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_slot_cache(
    config: ThinkerConfig,
    slots: int,
    capacity: int,
    dtype: torch.dtype,
    device: torch.device,
    share: float,
    name: str,
    remedy: str,
) -> SlotCache:
    """A cache that takes at most `share` of the memory that is free.

    Args:
        config: sizes of the decoder.
        slots: as many as fit, up to this many.
        capacity: tokens of a slot.
        dtype: of the storage.
        device: of the storage.
        share: of the free memory, 0 to 1.
        name: what the cache is of, for the error.
        remedy: what to do, for the error.

    Raises:
        EngineError: not even one slot fits.
    """
    needed, free = slot_bytes(config, capacity, dtype), free_memory(device)
    fitting = int(free * share // needed)
    if fitting < 1:
        raise EngineError(
            f"the KV cache of {name} takes {needed / 2**30:.3g} GiB and {free / 2**30:.3g} GiB are free: {remedy}"
        )
    return SlotCache(config, min(slots, fitting), capacity, dtype, device)


@dataclass
class Runners(Generic[R]):
    """What computes now, and the faster one that is being made.

    Attributes:
        now: from the first step on.
        later: gives a faster one over the same cache once it is made; where that fails, `now` goes on.
        note: why it is not a faster one, for the log; or empty.
    """

    now: R
    later: "Future[R] | None" = None
    note: str = ""

    def switch(self) -> bool:
        """Takes the faster one if it has been made since; whether one was made or has failed just now."""
        if self.later is None or not self.later.done():
            return False
        later, self.later = self.later, None
        error = later.exception()
        if error is None:
            self.now = later.result()
        else:
            self.note = str(error)
        return True


def make_runner(model: OmniModel, cache: SlotCache, name: RunnerName | None = None) -> Runners[Runner]:
    """The fastest runner that this machine has for the Thinker, and what to use until it is made.

    Args:
        model: as it stays: after its weights were replaced (`.to`, `quantize`), make another one.
        cache: on the model's device.
        name: `auto` takes the native runner on CPUs where it can run the model, compiled in the background the first
            time on a machine, the compiled one on GPUs, and torch's modules until then and elsewhere. What
            `muomni bench` has measured to lose with this model here is not taken by `auto`. None takes
            `DEFAULT_RUNNER`.

    Raises:
        ConfigError: no such runner, or the named one cannot run this model here.
        UserError: two blocks have one place in the cache.
    """
    name = checked_runner(name)
    check_places(model.thinker.layers, model.config.thinker)
    eager: Runner = EagerRunner(model, cache)
    if (reason := _declined(name, "runner", cache.device, model.config.thinker, is_quantized(model))) is not None:
        return Runners(eager, note=reason)
    if name == "compiled" or (name == "auto" and cache.device.type != "cpu"):
        return _compiled(model, cache, eager, named=name == "compiled")
    from muomni.infer.runners.native import NativeRunner, why_not

    with eval_mode(model):
        fault = _said(name, cache, why_not(model, cache))
    return _native(eager, fault, name, lambda library: NativeRunner(library, model, cache, torch.get_num_threads()))


def make_backbone(
    model: OmniModel, talker: Talker, cache: SlotCache, name: RunnerName | None = None
) -> Runners[Backbone]:
    """As `make_runner`, for the Talker. It has no compiled runner: `compiled` takes what `auto` takes.

    Args:
        model: whose Talker it is.
        talker: as it stays.
        cache: of the Talker's sizes, on its device.
        name: see `make_runner`.

    Raises:
        ConfigError: no such runner, or the named one cannot run the Talker here.
    """
    name = checked_runner(name)
    eager: Backbone = EagerBackbone(talker, cache)
    reason = _declined(name, "speech.runner", cache.device, model.config.thinker, is_quantized(talker))
    if reason is not None:
        return Runners(eager, note=reason)
    from muomni.infer.runners.native import NativeBackbone, talker_why_not

    with eval_mode(talker):
        fault = _said(name, cache, talker_why_not(talker, cache))
    return _native(eager, fault, name, lambda library: NativeBackbone(library, talker, cache, torch.get_num_threads()))


def checked_runner(name: RunnerName | None) -> RunnerName:
    """The name, or `DEFAULT_RUNNER` for None.

    Raises:
        ConfigError: no such runner.
    """
    name = DEFAULT_RUNNER if name is None else name
    if name not in get_args(RunnerName):
        raise ConfigError(f"runner = {name!r}: there are {', '.join(get_args(RunnerName))}")
    return name


def _declined(name: RunnerName, technique: str, device: torch.device, thinker: ThinkerConfig, int8: bool) -> str | None:
    """Why torch's modules are to compute: they were named, or the benchmark found nothing faster; else None."""
    if name == "eager":
        return "as asked"
    if name != "auto":
        return None
    declined = verdicts.load_verdicts(device, thinker, "int8" if int8 else "float").declined(technique)
    return None if declined is None else declined.reason


def _compiled(model: OmniModel, cache: SlotCache, eager: Runner, named: bool) -> Runners[Runner]:
    from muomni.infer.runners import compiled

    fault = compiled.why_not(cache)
    if fault is None:
        return Runners(compiled.CompiledRunner(model, cache, eager))  # it uses torch's modules until a step is compiled
    if named:
        raise ConfigError(f"the compiled runner cannot be had: {fault}")
    return Runners(eager, note=fault)


def _said(name: RunnerName, cache: SlotCache, fault: str | None) -> str | None:
    """The fault, as a warning where somebody has changed the model: steps then take longer than they could."""
    from muomni.infer.runners.native import FLOATS

    if fault is not None and name == "auto" and cache.device.type == "cpu" and cache.dtype in FLOATS:
        warnings.warn(f"{fault}: torch's modules compute the steps", stacklevel=3)
    return fault


def _native(eager: R, fault: str | None, name: RunnerName, make: Callable[[Library], R]) -> Runners[R]:
    """What the native decoder makes, in the background where it has to be compiled; else `eager`."""
    from muomni.ops.native import Unavailable, load

    if fault is not None:
        if name == "native":
            raise ConfigError(f"the native runner cannot be had: {fault}")
        return Runners(eager, note=fault)

    def load_and_make() -> R:
        library = load()
        if isinstance(library, Unavailable):
            raise EngineError(library.reason)
        return make(library)

    later = _in_background(load_and_make)
    try:
        return Runners(later.result(timeout=None if name == "native" else _PATIENCE_S))
    except EngineError as error:
        if name == "native":
            raise ConfigError(f"the native runner cannot be had: {error}") from None
        return Runners(eager, note=str(error))
    except TimeoutError:
        return Runners(eager, later)


def _in_background(make: Callable[[], R]) -> "Future[R]":
    """What `make` gives, from a thread that does not keep the process from ending."""
    future: Future[R] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:  # noqa: BLE001 - told to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=work, name="muomni-compile", daemon=True).start()
    return future
