"""How the next token is drawn. Every filter is a threshold on the logits, so a step is a few tensor operations.

Legend: B rows, V vocabulary.
"""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.errors import PromptError


@dataclass(frozen=True)
class SamplingParams:
    """The settings of one request. Filters apply in this order: penalty, temperature, top_k, top_p, min_p.

    Attributes:
        max_new_tokens: at most this many tokens; fewer where the context ends.
        temperature: the logits are divided by it; 0 takes the most likely token (greedy) and uses no filter.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities reach this sum
            (nucleus sampling, Holtzman et al., arXiv:1904.09751); 1 keeps all, 0 only the most likely.
        min_p: keep tokens at least this likely relative to the most likely one (Nguyen et al., arXiv:2407.01082).
        repetition_penalty: of tokens in the prompt or the reply so far, positive logits are divided and
            negative ones multiplied by it (Keskar et al., arXiv:1909.05858); 1 does nothing.
        stop: the reply ends before the first of these texts; a text or a list of texts.
        seed: the same seed gives the same reply; None draws a new one each time.
        ignore_eos: go on to `max_new_tokens` whatever the model says.

    Raises:
        PromptError: naming the setting, its value and what is allowed.
    """

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: str | list[str] | tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for key, rule in _RULES.items():
            value = getattr(self, key)
            if not rule.holds(value):
                raise PromptError(f"{key} = {value!r}: must be {rule.allowed}")
        object.__setattr__(self, "stop", self.stops)  # hashable, and no longer the caller's own list

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple of texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def of(cls, **settings: Any) -> "SamplingParams":
        """From keyword arguments; an unknown one is an error that says which was probably meant."""
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise PromptError(f"unknown sampling setting {key!r}{hint} There are: {', '.join(known)}")
        return cls(**settings)


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    allowed: str


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_RULES = {
    "max_new_tokens": _Rule(lambda v: _whole(v, 1), "a whole number, at least 1"),
    "temperature": _Rule(
        lambda v: _number(v) and (v == 0 or v >= 1e-6), "0 (greedy) or a positive number, at least 1e-6"
    ),
    "top_k": _Rule(lambda v: _whole(v, 0), "a whole number, at least 0 (0 keeps all tokens)"),
    "top_p": _Rule(lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1 (1 keeps all tokens)"),
    "min_p": _Rule(lambda v: _number(v) and 0 <= v <= 1, "a number from 0 to 1 (0 keeps all tokens)"),
    "repetition_penalty": _Rule(
        lambda v: _number(v) and 0.01 <= v <= 100, "a number from 0.01 to 100 (1 does nothing)"
    ),
    "stop": _Rule(
        lambda v: isinstance(v, str | list | tuple) and v != "" and all(isinstance(text, str) and text for text in v),
        "a text or a list of texts, none of them empty",
    ),
    "seed": _Rule(lambda v: v is None or (_whole(v, 0) and v < 2**63), "a whole number from 0 to 2**63 - 1, or None"),
    "ignore_eos": _Rule(lambda v: isinstance(v, bool), "true or false"),
}


def make_generator(seed: int | None, device: torch.device) -> torch.Generator:
    """The source of a request's randomness; it leaves torch's global one, and so a training run, untouched."""
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def sample(
    logits: Tensor, params: SamplingParams, generator: torch.Generator | None = None, seen: Tensor | None = None
) -> Tensor:
    """Draws one token a row, without waiting for the device.

    Args:
        logits: (B, V), any float dtype; computed on in fp32.
        params: for all rows.
        generator: on the logits' device; None takes torch's default one.
        seen: (B, V) bool, tokens of prompt and reply so far; needed by a repetition penalty other than 1.

    Returns:
        (B,) int64.
    """
    if params.repetition_penalty != 1:
        if seen is None:
            raise ValueError("repetition_penalty needs `seen`, the tokens so far")
        logits = penalise(logits.float(), seen, params.repetition_penalty)
    if params.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / params.temperature  # at most 0: cannot overflow
    logits = keep_likely(logits, params.top_k, params.top_p, params.min_p)
    # With E ~ Exponential(1), argmax(p / E) is distributed as p; in logarithms nothing underflows.
    noise = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - noise.log_()).argmax(dim=-1)


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """(B, V) logits with those of `seen` tokens made less likely, for a penalty above 1."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def keep_likely(logits: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """(B, V) logits with -inf where a filter drops a token.

    The most likely token always stays. Tokens exactly as likely as the least likely one that stays, stay too.
    The sum for `top_p` runs over the `top_k` most likely tokens.
    """
    V = logits.shape[-1]
    if top_k == 0 and top_p == 1 and min_p == 0:
        return logits
    k = min(top_k, V) if top_k > 0 else V
    if top_p == 1 and k == V:
        threshold = torch.full_like(logits[:, :1], -math.inf)
    else:
        best = logits.topk(k).values if k < V else logits.sort(dim=-1, descending=True).values
        reached = F.pad(best.softmax(dim=-1).cumsum(dim=-1)[:, :-1], (1, 0))  # the sum before each token
        stays = reached < top_p if top_p < 1 else torch.ones_like(reached, dtype=torch.bool)
        stays[:, 0] = True
        threshold = best.masked_fill(~stays, math.inf).amin(dim=-1, keepdim=True)
    if min_p > 0:
        threshold = threshold.maximum(logits.amax(dim=-1, keepdim=True) + math.log(min_p))
    return logits.masked_fill(logits < threshold, -math.inf)
