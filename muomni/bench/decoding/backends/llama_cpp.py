"""llama.cpp as a peer, through the C API that `llama-cpp-python` carries: no Python of theirs in the loop."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from muomni.bench.decoding.case import Decoded, InferCase, Task
from muomni.bench.decoding.fidelity import Logits
from muomni.bench.decoding.models import NOT_INSTALLED
from muomni.errors import ConfigError


class Backend:
    """One context with a sequence for each row.

    Keys and values are fp16, its default, except beside fp32 weights, where they are fp32 so that tokens can be
    compared. Each sequence has its own storage, which is what llama.cpp advises where rows share no prefix.

    Args:
        case: `model` is a GGUF file.
        task: for how long rows grow.
    """

    call = None

    def __init__(self, case: InferCase, task: Task) -> None:
        try:
            import llama_cpp
        except ImportError:
            raise ConfigError(f"llama-cpp-python {NOT_INSTALLED}") from None
        self._api = llama_cpp
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(case.model.encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise ConfigError(f"llama.cpp does not load {case.model}")
        params = llama_cpp.llama_context_default_params()
        length = task.length
        tokens = case.batch * length
        params.n_ctx = max(256, case.batch * -(-length // 256) * 256)
        params.n_batch = params.n_ubatch = max(64, min(tokens, 2048))
        params.n_seq_max = case.batch
        params.n_threads = params.n_threads_batch = case.threads
        params.kv_unified = case.batch == 1
        if case.weights == "fp32":
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise ConfigError(f"llama.cpp makes no context for {case.model}")
        self._vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(max(tokens, 1), 0, 1)
        self._capacity = int(params.n_batch)
        info = llama_cpp.llama_print_system_info().decode()
        self.settings = f"llama-cpp-python {llama_cpp.__version__}; {' '.join(info.split())}"

    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        """Prefill, then `new` - 1 steps; what Python does between the steps counts in `call_s` alone."""
        began = time.perf_counter()
        self._clear()
        length = len(prompts[0])
        flat = [(token, place, row) for row, ids in enumerate(prompts) for place, token in enumerate(ids)]
        logits = self._run(flat, wanted=[place == length - 1 for _, place, _ in flat])
        token = logits.argmax(-1)
        prefill_s = time.perf_counter() - began
        out = [token]
        steps_s = 0.0
        rows = len(prompts)
        every = [True] * rows
        for place in range(length, length + new - 1):
            self._fill([(int(token[row]), place, row) for row in range(rows)], every)
            step = time.perf_counter()
            self._step()
            steps_s += time.perf_counter() - step
            token = self._last(rows).argmax(-1)
            out.append(token)
        call_s = time.perf_counter() - began
        return Decoded(np.stack(out, 1).tolist(), prefill_s, steps_s, call_s)

    def logits(self, ids: Sequence[int], count: int) -> Logits:
        """Token by token behind a prompt, as decoding computes them."""
        self._clear()
        flat = [(token, place, 0) for place, token in enumerate(ids)]
        start = len(ids) - count + 1
        rows = [self._run(flat[:start], wanted=[place == start - 1 for place in range(start)])]
        rows += [self._run([one], wanted=[True]) for one in flat[start:]]
        return np.concatenate(rows)

    def _run(self, tokens: Sequence[tuple[int, int, int]], wanted: Sequence[bool]) -> Logits:
        """Tokens in as many batches as needed; the logits of those wanted, in order."""
        logits = []
        for start in range(0, len(tokens), self._capacity):
            kept = wanted[start : start + self._capacity]
            self._fill(tokens[start : start + self._capacity], kept)
            self._step()
            if any(kept):
                logits.append(self._last(sum(kept)).copy())
        return np.concatenate(logits)

    def _fill(self, tokens: Sequence[tuple[int, int, int]], wanted: Sequence[bool]) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, (token, place, row) in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = place
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row
            batch.logits[index] = wanted[index]

    def _step(self) -> None:
        code = self._api.llama_decode(self._context, self._batch)
        if code:
            raise ConfigError(f"llama_decode gave {code}")
        self._api.llama_synchronize(self._context)

    def _last(self, count: int) -> Logits:
        """(count, V) logits of the last step, without a copy."""
        pointer: Any = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(count, self._vocab))

    def _clear(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
