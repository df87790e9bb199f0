"""How the next token is drawn: a few tensor operations for all rows, each row with its own settings.

Legend: B rows, V vocabulary, R rows of a group, k tokens that are looked at.
"""

import difflib
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from muomni.errors import PromptError, SettingError
from muomni.infer.penalties import penalise
from muomni.infer.structured import grammar_text

# Of vocabularies from this size on the most likely tokens are found by stretches of that many.
_LARGE, _STRETCH = 16_384, 32
# Tokens that `logit_bias` may name.
MOST_BIASES = 1024
# Tokens that `logprobs` may tell at a place.
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """The settings of one request.

    They apply in this order: grammar, repetition_penalty, frequency_penalty, presence_penalty, logit_bias, temperature,
    top_k, top_p, min_p. The bias of a token is thus the same whatever the penalties.

    Attributes:
        max_new_tokens: at most this many tokens; fewer where the context ends.
        temperature: the logits are divided by it; 0 takes the most likely token (greedy) and uses no filter.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the fewest most likely tokens whose probabilities reach this sum
            (nucleus sampling, Holtzman et al., arXiv:1904.09751); 1 keeps all, 0 only the most likely.
        min_p: keep tokens at least this likely relative to the most likely one (Nguyen et al., arXiv:2407.01082).
        repetition_penalty: of tokens in the prompt or the reply so far, positive logits are divided and
            negative ones multiplied by it (Keskar et al., arXiv:1909.05858); 1 does nothing.
        frequency_penalty: taken from a token's logit for each time that it is in the reply so far; -2 to 2.
        presence_penalty: taken once from the logit of each token in the reply so far; -2 to 2. As OpenAI and vLLM
            define both; the prompt does not count.
        logit_bias: token ids with what is added to their logits, -100 to 100; -100 means never. Kept as pairs in the
            order of the ids.
        logprobs: so many of the most likely tokens are told at each place, 0 to 20, besides the reply's own; None tells
            nothing. They are the model's own, from its logits in fp32 before any of these settings: so they can be
            compared between requests, and that of a token in the reply is finite whatever is banned.
        stop: the reply ends before the first of these texts; a text or a list of texts.
        seed: the same seed gives the same reply; None draws a new one each time.
        ignore_eos: go on to `max_new_tokens` whatever the model says.
        grammar: the reply follows it, and ends where it does: a JSON schema, or a text in llguidance's form of Lark.
            Where `max_new_tokens` comes first, the reply is the beginning of one that does.

    Raises:
        SettingError: naming the setting, its value and what is allowed.
    """

    max_new_tokens: int = 512
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    stop: str | list[str] | tuple[str, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    grammar: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for key, rule in _RULES.items():
            value = getattr(self, key)
            if not rule.holds(value):
                raise SettingError(f"{key} = {_shown(value)}: must be {rule.allowed}", key)
        # Hashable, and no longer the caller's own list and dict.
        object.__setattr__(self, "stop", self.stops)
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        if self.grammar is not None:
            if self.ignore_eos:
                raise SettingError(
                    "ignore_eos = True: a reply with a grammar ends where the grammar does", "ignore_eos"
                )
            object.__setattr__(self, "grammar", grammar_text(self.grammar))

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple of texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """`logit_bias` as pairs in the order of the ids."""
        return cast("tuple[tuple[int, float], ...]", self.logit_bias)

    @property
    def penalises(self) -> bool:
        """Whether the logits of tokens depend on how often they have come."""
        return self.repetition_penalty != 1 or self.frequency_penalty != 0 or self.presence_penalty != 0

    @property
    def non_greedy_setting(self) -> str | None:
        """A setting for which the next token is another than the model's most likely one; None where it is that."""
        return next((name for name, neutral in GREEDY.items() if getattr(self, name) != neutral), None)

    @property
    def is_greedy(self) -> bool:
        """Without penalties and biases: the next token is the most likely one."""
        return self.temperature == 0 and not self.penalises and not self.logit_bias

    @classmethod
    def of(cls, **settings: Any) -> "SamplingParams":
        """From keyword arguments; an unknown one is an error that says which was probably meant."""
        check_names(cls, "sampling", settings)
        return cls(**settings)


def check_names(settings: type, kind: str, given: Iterable[str]) -> None:
    """Refuses what is no field of a dataclass of settings.

    Raises:
        PromptError: says which field was probably meant.
    """
    known = [field.name for field in fields(settings)]
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise PromptError(f"unknown {kind} setting {key!r}{hint} There are: {', '.join(known)}")


# The penalties with the values that change nothing, and the settings of a greedy request.
PENALTIES: Mapping[str, float] = {"repetition_penalty": 1, "frequency_penalty": 0, "presence_penalty": 0}
GREEDY: Mapping[str, Any] = {"temperature": 0, **PENALTIES, "logit_bias": ()}


def _pairs(bias: Mapping[int, float] | tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    return tuple(sorted((int(token), value) for token, value in dict(bias).items()))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


class _Rule(NamedTuple):
    holds: Callable[[Any], bool]
    allowed: str


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number, at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_penalty(value: Any) -> bool:
    return is_number(value) and -2 <= value <= 2


def _is_bias(value: Any) -> bool:
    """Whether it maps ids, also as the texts that they are in JSON, to numbers."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple) or len(pairs) > MOST_BIASES:
        return False
    return all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and (is_whole(pair[0]) or (isinstance(pair[0], str) and re.fullmatch("0|[1-9][0-9]{0,9}", pair[0])))
        and is_number(pair[1])
        and -100 <= pair[1] <= 100
        for pair in pairs
    )


_RULES = {
    "max_new_tokens": _Rule(lambda v: is_whole(v, 1), "a whole number, at least 1"),
    "temperature": _Rule(
        lambda v: is_number(v) and (v == 0 or v >= 1e-6), "0 (greedy) or a positive number, at least 1e-6"
    ),
    "top_k": _Rule(lambda v: is_whole(v, 0), "a whole number, at least 0 (0 keeps all tokens)"),
    "top_p": _Rule(lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1 (1 keeps all tokens)"),
    "min_p": _Rule(lambda v: is_number(v) and 0 <= v <= 1, "a number from 0 to 1 (0 keeps all tokens)"),
    "repetition_penalty": _Rule(
        lambda v: is_number(v) and 0.01 <= v <= 100, "a number from 0.01 to 100 (1 does nothing)"
    ),
    "frequency_penalty": _Rule(_is_penalty, "a number from -2 to 2 (0 does nothing)"),
    "presence_penalty": _Rule(_is_penalty, "a number from -2 to 2 (0 does nothing)"),
    "logit_bias": _Rule(_is_bias, f"at most {MOST_BIASES} token ids, each with a number from -100 (never) to 100"),
    "logprobs": _Rule(
        lambda v: v is None or (is_whole(v) and v <= MOST_LOGPROBS),
        f"a whole number from 0 to {MOST_LOGPROBS}, or None",
    ),
    "stop": _Rule(
        lambda v: isinstance(v, str | list | tuple) and v != "" and all(isinstance(text, str) and text for text in v),
        "a text or a list of texts, none of them empty",
    ),
    "seed": _Rule(lambda v: v is None or (is_whole(v, 0) and v < 2**63), "a whole number from 0 to 2**63 - 1, or None"),
    "ignore_eos": _Rule(lambda v: isinstance(v, bool), "true or false"),
    "grammar": _Rule(
        lambda v: v is None or isinstance(v, Mapping) or (isinstance(v, str) and v != ""),
        "a JSON schema (a dict), a text in llguidance's form of Lark, or None",
    ),
}


def check_biases(params: SamplingParams, vocabulary: int) -> None:
    """Refuses biases of tokens that a model does not have, and of all that it has.

    Raises:
        SettingError: says which.
    """
    biases = params.biases
    if biases and biases[-1][0] >= vocabulary:
        raise SettingError(
            f"logit_bias: there is no token {biases[-1][0]}; ids are whole numbers from 0 to {vocabulary - 1}",
            "logit_bias",
        )
    if sum(value == -100 for _, value in biases) == vocabulary:
        raise SettingError("logit_bias: no token is left", "logit_bias")


def make_random(seed: int | None, row: int = 0) -> random.Random:
    """The source of one row's randomness; rows of one seed differ, and nothing global is touched."""
    return random.Random(None if seed is None else seed + (row << 63))


def draw_uniform(source: random.Random) -> float:
    """A multiple of 2⁻²⁴ from 0 up to, never, 1: exact in fp32, which some devices know nothing finer than."""
    return source.getrandbits(24) / 2**24


def most_likely(logits: Tensor) -> Tensor:
    """The most likely tokens, (..., V) to (...) int64; -1 where a logit is NaN or infinite."""
    tokens = logits.argmax(dim=-1)  # of a NaN where there is one
    return torch.where(logits.gather(-1, tokens[..., None])[..., 0].isfinite(), tokens, -1)


@torch.no_grad()
def why_not_finite(module: nn.Module) -> str:
    """What is wrong with a model whose logits are NaN or infinite, in words."""
    for name, weight in (*module.named_parameters(), *module.named_buffers()):
        if weight.is_floating_point() and not bool(weight.isfinite().all()):
            return (
                f"the model gives no numbers (NaN or infinity): {name} holds some that are not finite; take an earlier "
                "checkpoint, or load the weights again"
            )
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    return (
        "the model gives no numbers (NaN or infinity) though all its weights are finite: something in between is too "
        f"large for {dtype}; load it with dtype=torch.float32, or train it longer or with a lower learning rate"
    )


def sample(
    logits: Tensor, params: SamplingParams, uniform: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """Draws one token a row, all rows with the same settings; see `Sampler`.

    Args:
        logits: (B, V), any float dtype; computed on in fp32.
        params: for all rows.
        uniform: (B,) fp32 numbers of `draw_uniform` on the logits' device; not needed to be greedy.
        counts: (B, V) int32, see `TokenCounts`; needed by penalties.

    Returns:
        (B,) int64; -1 where a logit is NaN or infinite.
    """
    return Sampler([params] * logits.shape[0], logits.device)(logits, uniform, counts)


@dataclass(frozen=True)
class _Group:
    """Rows that are drawn together, as they keep the same number of tokens; None are all rows."""

    rows: Tensor | None
    top_k: int
    temperature: Tensor
    top_p: Tensor | None
    min_p: Tensor | None


class Sampler:
    """Draws one token for each of B rows with settings of their own, without waiting for the device.

    A row's token depends on its logits, its settings and its number alone, never on the other rows: its
    probabilities are laid end to end in the order of the vocabulary, and the token is where the number falls.

    Made once for as long as the rows stay the same: its tensors of settings are then on the device.

    Args:
        params: B settings.
        device: of the logits.

    Attributes:
        greedy: every row takes its most likely token.
        penalised: rows whose tokens are counted.
        scored: rows whose logprobs are told.
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        self._count = len(params)
        self.scored = [row for row, p in enumerate(params) if p.logprobs is not None]
        self.penalised = [row for row, p in enumerate(params) if p.penalises]
        if self.penalised:
            every = len(self.penalised) == self._count
            self._penalised = None if every else on_device(self.penalised, torch.int64, device)
            self._penalties = [
                self._penalty(name, [params[row] for row in self.penalised], device) for name in PENALTIES
            ]
        self._biases = _biases(params, device)
        kinds: dict[tuple[int, bool], list[int]] = {}
        for row, p in enumerate(params):
            if p.temperature > 0:
                kinds.setdefault((p.top_k, p.top_p < 1), []).append(row)
        self.greedy = all(p.is_greedy for p in params)
        self._some_greedy = any(p.temperature == 0 for p in params)
        self._groups = [self._group(rows, [params[row] for row in rows], device) for rows in kinds.values()]

    @staticmethod
    def _penalty(name: str, params: Sequence[SamplingParams], device: torch.device) -> Tensor | None:
        """(R, 1) the penalties of rows; None where none of them has it."""
        values = [getattr(p, name) for p in params]
        return None if set(values) == {PENALTIES[name]} else on_device(values, torch.float32, device)[:, None]

    def _group(self, rows: list[int], params: Sequence[SamplingParams], device: torch.device) -> _Group:
        def column(values: list[float]) -> Tensor:
            return on_device(values, torch.float32, device)[:, None]

        nucleus = params[0].top_p < 1
        floor = any(p.min_p > 0 for p in params)
        return _Group(
            rows=None if len(rows) == self._count else on_device(rows, torch.int64, device),
            top_k=params[0].top_k,
            temperature=column([p.temperature for p in params]),
            top_p=column([p.top_p for p in params]) if nucleus else None,
            min_p=column([p.min_p for p in params]) if floor else None,
        )

    def __call__(self, logits: Tensor, uniform: Tensor | None = None, counts: Tensor | None = None) -> Tensor:
        """Draws.

        Args:
            logits: (B, V), any float dtype; computed on in fp32.
            uniform: (B,) fp32 numbers of `draw_uniform` on the logits' device; not needed where all are greedy.
            counts: (number of rows in `penalised`, V) int32, see `TokenCounts`.

        Returns:
            (B,) int64; -1 where a logit is NaN or infinite.
        """
        if self.penalised:
            if counts is None:
                raise ValueError("a penalty needs `counts`, the tokens so far")
            logits = logits.float()
            if self._penalised is None:
                logits = penalise(logits, counts, *self._penalties)
            else:
                changed = penalise(logits.index_select(0, self._penalised), counts, *self._penalties)
                logits = logits.index_copy(0, self._penalised, changed)
        if self._biases is not None:
            places, values = self._biases
            logits = logits.float()
            logits = logits.index_put(places, logits[places] + values)
        if not self._groups:
            return most_likely(logits)
        if uniform is None:
            raise ValueError("a temperature above 0 needs a number a row to draw with")
        tokens = most_likely(logits) if self._some_greedy else None
        for group in self._groups:
            if group.rows is None:
                return _draw(logits.float(), group, uniform)
            drawn = _draw(logits[group.rows].float(), group, uniform[group.rows])
            tokens = logits.new_empty(self._count, dtype=torch.int64) if tokens is None else tokens
            tokens.index_copy_(0, group.rows, drawn)
        assert tokens is not None
        return tokens


def _biases(params: Sequence[SamplingParams], device: torch.device) -> tuple[tuple[Tensor, Tensor], Tensor] | None:
    """The places of biases, row and token of each, with what is added there; None where there are none."""
    entries = [(row, token, value) for row, p in enumerate(params) for token, value in p.biases]
    if not entries:
        return None
    rows, tokens, values = zip(*entries, strict=True)
    places = on_device(rows, torch.int64, device), on_device(tokens, torch.int64, device)
    # However large the logit: what is banned is never drawn.
    return places, on_device([-math.inf if value == -100 else value for value in values], torch.float32, device)


def on_device(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of numbers, sent without waiting for the device."""
    tensor = torch.tensor(values, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _draw(logits: Tensor, group: _Group, uniform: Tensor) -> Tensor:
    """(R, V) fp32 logits and (R,) numbers to (R,) tokens."""
    weights, ids = keep_likely(logits, group.top_k, group.temperature, group.top_p, group.min_p)
    order = None
    if ids is not None:
        # In the order of the vocabulary a rounding error that swaps two tokens nearly as likely changes nothing.
        ids, order = ids.sort(dim=-1)
        weights = weights.gather(-1, order)
    ends = weights.cumsum(dim=-1)
    # The first token whose stretch ends behind the number; a dropped one has no stretch.
    hit = (ends > uniform[:, None] * ends[:, -1:]) & (weights > 0)
    place = hit.to(torch.uint8).argmax(dim=-1, keepdim=True)
    tokens = place if ids is None else ids.gather(-1, place)
    # One logit that is no number makes them all so, and infinity less infinity is none.
    return torch.where(ends[:, -1].isnan(), -1, tokens[:, 0])


def largest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`logits.topk(k)`, which on a CPU looks at every token of a large vocabulary one by one.

    There the k stretches with the largest maxima are found first, vectorised: they hold the k largest logits. With
    32,000 tokens and k = 50 this takes half the time for a row and less than a third for 16.
    """
    B, V = logits.shape
    if logits.device.type != "cpu" or V < _LARGE or V % _STRETCH or k * 8 * _STRETCH > V:
        values, ids = logits.topk(k)
        return values, ids
    best = logits.view(B, V // _STRETCH, _STRETCH).amax(dim=2).topk(k, sorted=False).indices
    near = (best[:, :, None] * _STRETCH + torch.arange(_STRETCH)).flatten(1)
    values, places = logits.gather(1, near).topk(k)
    return values, near.gather(1, places)


def keep_likely(
    logits: Tensor, top_k: int, temperature: Tensor | float, top_p: Tensor | None, min_p: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Weights of the tokens that stay, relative to the most likely one's 1; those dropped weigh 0.

    The most likely token always stays. `top_k` keeps exactly k: of tokens equally likely at its border torch's
    `topk` takes some. Elsewhere tokens as likely as the least likely one that stays, stay too. The sum for
    `top_p` runs over the `top_k` most likely tokens.

    Args:
        logits: (B, V) fp32.
        top_k: 0 keeps all.
        temperature: (B, 1) or a number.
        top_p: (B, 1); None where no row asks for it.
        min_p: the same.

    Returns:
        weights (B, k), and their tokens (B, k) int64, or None for the whole vocabulary in its order.
    """
    ids = None
    if 0 < top_k < logits.shape[-1]:
        logits, ids = largest(logits, top_k)
    elif top_p is not None:
        logits, ids = logits.sort(dim=-1, descending=True)
    best = logits.amax(dim=-1, keepdim=True) if ids is None else logits[:, :1]
    weights = ((logits - best) / temperature).exp()  # at most 1: cannot overflow
    if top_p is not None:
        sums = weights.cumsum(dim=-1)
        # A token stays where the sum before it is less than top_p: as many as sums are, besides the first.
        others = (sums / sums[:, -1:] < top_p).sum(dim=-1, keepdim=True)
        threshold = weights.gather(-1, others)
        weights = weights.masked_fill(weights < threshold, 0)
    if min_p is not None:
        weights = weights.masked_fill(weights < min_p, 0)
    return weights, ids
