"""μOmni's decoding: the bare steps of a runner, and the call that its users make."""

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni import __version__
from muomni.accel import attention_backend
from muomni.api.model import MuOmni
from muomni.bench.decoding.case import Decoded, InferCase, Task
from muomni.errors import ConfigError, EngineError
from muomni.infer import EagerRunner, Runner, SamplingParams, make_runner
from muomni.infer.reference import next_tokens
from muomni.infer.runners import compiled
from muomni.model import SlotCache


class Backend:
    """A loaded model with the runner that the case names.

    `call` is `chat_batch` on texts, with the runner that the model chooses; only cases of the runner `auto` have it.
    Without a cache there is neither runner nor call, but the plain loop of `infer.reference`.

    Args:
        case: `model` is one of our folders.
        task: with more texts than rows: a prompt must not come again while the engine still holds it, or its
            prefill would be free.

    Raises:
        ConfigError: the runner or the attention backend is not available here.
    """

    def __init__(self, case: InferCase, task: Task) -> None:
        torch.set_num_threads(case.threads)
        dtype = torch.bfloat16 if case.weights == "bf16" else torch.float32
        model = MuOmni.from_pretrained(case.model, dtype=dtype)
        if model.is_quantized != (case.weights == "int8"):
            raise ConfigError(f"{case.model} does not hold {case.weights} weights")
        head_dim = model.config.thinker.head_dim
        attention_backend.apply(
            model, attention_backend.pick_attention(case.attention, model.device, model.dtype, head_dim)
        )
        self._model = model
        self._runner: Runner | None = None
        self.call: Callable[[int], float] | None = None
        note = ""
        if case.cache != "off":
            cache = SlotCache(model.config.thinker, case.batch, task.length, model.dtype, model.device)
            self._runner, note = make_case_runner(case, model, cache, task.length)
            if case.runner == "auto" and case.calls:
                self._rows = case.batch
                self._texts = itertools.cycle(task.texts)
                self.call = self._call
        runner = "plain loop" if self._runner is None else f"{type(self._runner).__name__} {note}".strip()
        self.settings = f"muomni {__version__}, torch {torch.__version__}, {runner}"

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        """Steps of the case's runner; the prompts of all rows are one step."""
        if self._runner is None:
            return self._plain(prompts, new)
        began = time.perf_counter()
        B, T = len(prompts), len(prompts[0])
        rows = torch.arange(B)
        logits = self._prefill(self._runner, prompts)
        first = logits.argmax(-1).cpu()
        prefill_s = time.perf_counter() - began
        later = self._runner.greedy(first, rows, torch.full((B,), T), new - 1)
        tokens = torch.cat([first[:, None], later.cpu()], 1).tolist()
        call_s = time.perf_counter() - began
        return Decoded(tokens, prefill_s, call_s - prefill_s, call_s)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """Token by token behind a prompt, as decoding computes them."""
        if self._runner is None:
            out = self._model(torch.tensor([ids], device=self._model.device), logits_to_keep=count).logits[0]
            return np.asarray(out.float().cpu().numpy())
        start = len(ids) - count + 1
        rows = [self._prefill(self._runner, [ids[:start]])]
        for place in range(start, len(ids)):
            one = torch.tensor([place])
            rows.append(self._runner.forward(torch.tensor([ids[place]]), one * 0, one, one * 0))
        return np.asarray(torch.cat(rows).float().cpu().numpy())

    @staticmethod
    def _prefill(runner: Runner, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(B, V) logits behind prompts of equal length."""
        B, T = len(prompts), len(prompts[0])
        tokens = torch.tensor(prompts).flatten()
        slots, positions = torch.arange(B).repeat_interleave(T), torch.arange(T).repeat(B)
        return runner.forward(tokens, slots, positions, torch.arange(B) * T + T - 1)

    def _plain(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        began = time.perf_counter()
        ids = torch.tensor(prompts, device=self._model.device)
        params = SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)
        with closing(next_tokens(self._model, ids, params, use_cache=False)) as steps:
            taken = [next(steps)]
            taken[0].tolist()  # waits for the device
            prefill_s = time.perf_counter() - began
            tokens = torch.stack([*taken, *steps], 1).tolist()
        call_s = time.perf_counter() - began
        return Decoded(tokens, prefill_s, call_s - prefill_s, call_s)

    def _call(self, new: int) -> float:
        texts = list(itertools.islice(self._texts, self._rows))
        began = time.perf_counter()
        replies = self._model.chat_batch(
            texts, max_new_tokens=new, temperature=0, ignore_eos=True, batch_size=self._rows, progress=False
        )
        seconds = time.perf_counter() - began
        assert all(len(reply.tokens) == new for reply in replies)
        return seconds


def make_case_runner(case: InferCase, model: MuOmni, cache: SlotCache, length: int) -> tuple[Runner, str]:
    """The runner that the case names, ready, and a note: why it is not a faster one.

    Raises:
        ConfigError: the named runner is not available here.
    """
    if case.runner == "compiled":  # nothing may be compiled in the background while it is timed
        if (missing := compiled.why_not(cache)) is not None:
            raise ConfigError(f"the compiled runner cannot be had: {missing}")
        made = compiled.CompiledRunner(model, cache, EagerRunner(model, cache), background=False)
        made.prepare(case.batch, length)
        return made, made.note
    runners = make_runner(model, cache, case.runner)
    try:
        later = None if runners.later is None else runners.later.result()
    except EngineError as error:  # told late that it cannot be made, for example by a compiler that fails
        return runners.now, str(error)
    runner = runners.now if later is None else later
    if isinstance(runner, compiled.CompiledRunner):
        runner.prepare(case.batch, length)
    return runner, runner.note or runners.note
