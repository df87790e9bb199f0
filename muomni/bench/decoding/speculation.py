"""Speculative decoding on against off: one process, one model, greedy replies in turns."""

import time
from typing import Any

import torch

from muomni.api.model import MuOmni

# A text whose continuation may repeat it: what prompt lookup drafts well.
_PROMPT = (
    "Repeat this list: one apple, two pears, three plums, four figs. One apple, two pears, three plums, four figs. "
    "One apple, two pears,"
)
_WARM_UPS = 3
_SETTLE_S = 0.5


class SpeculationSubject:
    """For `accel.measurements.worker`.

    Args:
        model: a folder with its tokenizer.
        new: greedy tokens of a reply.
        threads: of the computation.

    Attributes:
        first: `equal`, whether the replies are the same tokens with it as without.
    """

    def __init__(self, model: str, new: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = MuOmni.from_pretrained(model, dtype=torch.float32)
        self._new = new
        plain, _ = self._reply(False)
        time.sleep(_SETTLE_S)  # an engine may take a faster runner once that is made
        for _ in range(_WARM_UPS):
            drafted, _ = self._reply(True)
            self._reply(False)
        self.first: dict[str, Any] = {"equal": plain == drafted}

    def _reply(self, speculate: bool) -> tuple[list[int], float]:
        began = time.perf_counter()
        reply = self._model.complete(
            _PROMPT, speculate=speculate, max_new_tokens=self._new, temperature=0, ignore_eos=True
        )
        return list(reply.tokens), time.perf_counter() - began

    def turn(self, speculate_first: bool) -> dict[str, Any]:
        """Tokens a second `off` and `on`; the command says which comes first, so that turns alternate."""
        speeds = {}
        for speculate in (speculate_first, not speculate_first):
            tokens, seconds = self._reply(speculate)
            speeds["on" if speculate else "off"] = len(tokens) / seconds
        return speeds
