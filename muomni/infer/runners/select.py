"""Chooses what computes the steps of the Thinker and the frames of the Talker on a device."""

import threading
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

import torch

from muomni.accel.measurements import verdicts
from muomni.config import ThinkerConfig
from muomni.errors import ConfigError, EngineError
from muomni.infer.runners.base import Backbone, EagerBackbone, EagerRunner, Runner
from muomni.model import OmniModel, SlotCache
from muomni.model.int8_layers import is_quantized
from muomni.model.kv_cache import check_places
from muomni.model.module_modes import eval_mode
from muomni.model.talker import Talker
from muomni.ops.native import Library

RunnerName = Literal["auto", "eager", "native", "compiled"]
# Taken where no runner is named; tests set it to "eager", so that nothing there waits for a compiler.
DEFAULT_RUNNER: RunnerName = "auto"
# A library that was compiled before is loaded within this time, so that the first step is a fast one already.
_PATIENCE_S = 0.25
R = TypeVar("R")


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
        return Runners(compiled.CompiledRunner(model, cache))  # it uses torch's modules until a step is compiled
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
