"""Chooses the runner of a model on a device."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch

from muomni.accel.measurements import verdicts
from muomni.errors import ConfigError, EngineError
from muomni.infer.runners.base import EagerRunner, Runner
from muomni.model import OmniModel, SlotCache
from muomni.model.int8_layers import is_quantized
from muomni.model.module_modes import eval_mode


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
        declined = verdicts.load_verdicts(cache.device, model.config.thinker, weights).declined("runner")
        if declined is not None:
            return Runners(eager, note=declined.reason)
    if name == "compiled" or (name == "auto" and cache.device.type != "cpu"):
        return _compiled(model, cache, eager, named=name == "compiled")
    from muomni.infer.runners import native
    from muomni.ops.native import Unavailable, load

    with eval_mode(model):
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
    from muomni.infer.runners import compiled

    fault = compiled.why_not(cache)
    if fault is None:
        return Runners(compiled.CompiledRunner(model, cache))  # it uses torch's modules until a step is compiled
    if named:
        raise ConfigError(f"the compiled runner cannot be had: {fault}")
    return Runners(eager, note=fault)


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
