"""μOmni's own ways to decode: the bare loop of steps, and the call its users make."""

import time
from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray

from muomni import __version__
from muomni.accel import attention
from muomni.api import MuOmni
from muomni.bench.infer_cases import Decoded, InferCase
from muomni.infer import SamplingParams
from muomni.infer.generate import next_tokens

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


class Ours:
    """A loaded model.

    Args:
        case: `model` is one of our folders, in fp32; it is quantised here where the case says so.
        length: tokens a row may grow to.
    """

    def __init__(self, case: InferCase, length: int) -> None:
        torch.set_num_threads(case.threads)
        self._case = case
        self._model = MuOmni.from_pretrained(case.model, dtype=_DTYPES[case.weights])
        chosen = attention.pick_attention(
            case.attention, self._model.device, self._model.dtype, self._model.config.thinker.head_dim
        )
        attention.apply(self._model, chosen)
        self.settings = f"muomni {__version__}, torch {torch.__version__}"

    def decode(self, prompts: Sequence[Sequence[int]], new: int) -> Decoded:
        """Steps of the chosen runner."""
        began = time.perf_counter()
        ids = torch.tensor(prompts, device=self._model.device)
        params = SamplingParams(max_new_tokens=new, temperature=0, ignore_eos=True)
        taken = []
        with closing(next_tokens(self._model, ids, params, use_cache=self._case.cache != "off")) as steps:
            taken.append(next(steps))
            _ = int(taken[0][0])  # waits for the device
            prefill_s = time.perf_counter() - began
            taken += list(steps)
            tokens = torch.stack(taken, 1).tolist()
        call_s = time.perf_counter() - began
        return Decoded(tokens, prefill_s, call_s - prefill_s, call_s)

    def logits(self, ids: Sequence[int], count: int) -> NDArray[np.float32]:
        with torch.inference_mode():
            out = self._model(torch.tensor([ids], device=self._model.device), last=count).logits
        return np.asarray(out[0].float().cpu().numpy())
