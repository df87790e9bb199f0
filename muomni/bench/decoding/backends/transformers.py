"""transformers' own Qwen3 as a peer: `model.generate`, and the bare loop of steps below it."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muomni.bench.decoding.case import Decoded, InferCase, Task
from muomni.bench.decoding.models import NOT_INSTALLED
from muomni.errors import ConfigError


class Backend:
    """A loaded model; its cache grows, or is preallocated where the case says `static`.

    Args:
        case: `model` is a Qwen3 folder. With int8 weights it is torch's `quantize_dynamic` of the model.
        task: whose prompts calls are made with.
    """

    def __init__(self, case: InferCase, task: Task) -> None:
        try:
            import transformers
        except ImportError:
            raise ConfigError(f"transformers {NOT_INSTALLED}") from None
        torch.set_num_threads(case.threads)
        transformers.logging.set_verbosity_error()
        dtype = torch.bfloat16 if case.weights == "bf16" else torch.float32
        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(case.model, dtype=dtype).eval()
        if case.weights == "int8":
            self._model = torch.ao.quantization.quantize_dynamic(self._model, {torch.nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
        self._caches: Any = transformers
        self._cache = case.cache
        self._length = task.length
        self._prompts = torch.tensor(task.ids)
        self.settings = f"transformers {transformers.__version__}, torch {torch.__version__}, {case.cache} cache"

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        """The bare loop."""
        began = time.perf_counter()
        ids = torch.tensor(prompts)
        cache = self._new_cache()
        token = self._step(ids, cache)
        taken = [token]
        prefill_s = time.perf_counter() - began
        for _ in range(new - 1):
            token = self._step(token[:, None] if cache is not None else torch.cat([ids, *_columns(taken)], 1), cache)
            taken.append(token)
        tokens = torch.stack(taken, 1).tolist()
        call_s = time.perf_counter() - began
        return Decoded(tokens, prefill_s, call_s - prefill_s, call_s)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int], count: int) -> NDArray[np.float32]:
        """One forward pass over all of it."""
        out = self._model(torch.tensor([ids]), use_cache=False, logits_to_keep=count).logits[0]
        return np.asarray(out.float().numpy())

    def call(self, new: int) -> float:
        """Seconds of `model.generate`."""
        settings: dict[str, Any] = {"use_cache": self._cache != "off"}
        if self._cache == "static":
            settings |= {"cache_implementation": "static", "disable_compile": True}
        began = time.perf_counter()
        out = self._model.generate(
            self._prompts,
            attention_mask=torch.ones_like(self._prompts),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            **settings,
        )
        seconds = time.perf_counter() - began
        assert out.shape[1] == self._prompts.shape[1] + new
        return seconds

    def _step(self, ids: Tensor, cache: Any) -> Tensor:
        out = self._model(ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
        best: Tensor = out.logits[:, -1].argmax(-1)
        return best

    def _new_cache(self) -> Any:
        if self._cache == "off":
            return None
        config = self._model.config
        if self._cache == "static":
            return self._caches.StaticCache(config=config, max_cache_len=self._length)
        return self._caches.DynamicCache(config=config)


def _columns(tokens: Sequence[Tensor]) -> list[Tensor]:
    return [token[:, None] for token in tokens]
