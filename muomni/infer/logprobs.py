"""Logarithms of probabilities: of the tokens of a reply, and of the most likely ones at their places.

Legend: R rows, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from muomni.infer.sampling import MOST_LOGPROBS, largest


class TokenLogprob(NamedTuple):
    """A token of a reply.

    Attributes:
        token: its id.
        logprob: natural logarithm of the probability that the model gave it.
        top: the most likely tokens at its place with theirs, the most likely first; as many as were wanted.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class OwnLogprobs:
    """The model's own probabilities, read before anything changes its logits.

    Args:
        logits: (R, V), any float dtype; computed on in fp32.
        most: how many of the most likely tokens are wanted, by row.
    """

    def __init__(self, logits: Tensor, most: Sequence[int]) -> None:
        logits = logits.float()
        self._most = most
        self._sums = logits.logsumexp(dim=-1, keepdim=True)
        self._top: tuple[Tensor, Tensor] | None = None
        if any(most):
            # Always as many, so that of tokens equally likely a row tells the same ones beside any others.
            self._top = largest(logits, min(MOST_LOGPROBS, logits.shape[1]))

    def of(self, logits: Tensor, tokens: Tensor) -> list[TokenLogprob]:
        """What is told of the tokens of the first rows.

        Args:
            logits: (R, V), the same, by now perhaps with some at −inf.
            tokens: (up to R,) int64; their logits are as they were.
        """
        count = len(tokens)
        places = tokens.to(logits.device).clamp(min=0)[:, None]  # -1 where nothing could be drawn
        logprobs = (logits[:count].gather(-1, places).float() - self._sums[:count])[:, 0].tolist()
        told: list[list[tuple[int, float]]] = [[]] * count
        if self._top is not None:
            values, ids = (tensor[:count] for tensor in self._top)
            pairs = zip(ids.tolist(), (values - self._sums[:count]).tolist(), values.tolist(), strict=True)
            told = [_ranked(*row) for row in pairs]
        return [
            TokenLogprob(token, logprob, tuple(top[:most]))
            for token, logprob, top, most in zip(tokens.tolist(), logprobs, told, self._most, strict=False)
        ]


def _ranked(ids: list[int], logprobs: list[float], logits: list[float]) -> list[tuple[int, float]]:
    """The most likely first; of equal logits the smallest id, which is also what greedy decoding takes."""
    order = sorted(range(len(ids)), key=lambda place: (-logits[place], ids[place]))
    return [(ids[place], logprobs[place]) for place in order]
