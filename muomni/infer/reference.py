"""Generation: the whole prompt once, then one token a step with the KV cache.

Legend: B rows, T prompt tokens, N new tokens, V vocabulary.
"""

from collections.abc import Generator, Sequence
from contextlib import closing

import torch
import torch.nn.functional as F
from torch import Tensor

from muomni.errors import NonFiniteError, PromptError
from muomni.infer.logprobs import TokenLogprob
from muomni.infer.penalties import TokenCounts
from muomni.infer.preprocess import check_ids_alone, token_budget
from muomni.infer.prompt_media import PromptMedia
from muomni.infer.sampling import (
    Sampler,
    SamplingParams,
    check_biases,
    draw_uniform,
    make_random,
    on_device,
    why_not_finite,
)
from muomni.infer.structured import Grammar
from muomni.model import KVCache, OmniModel
from muomni.model.kv_cache import check_places
from muomni.model.module_modes import eval_mode
from muomni.model.placeholders import fill_placeholders


def generate(
    model: OmniModel,
    ids: Tensor,
    params: SamplingParams,
    *,
    end_ids: Sequence[int] | None = None,
    use_cache: bool = True,
    media: PromptMedia | None = None,
    grammar: Grammar | None = None,
) -> Tensor:
    """Continues B prompts of equal length together.

    Args:
        model: on any device; in evaluation mode while this runs.
        ids: (B, T) int64 on the model's device.
        params: for all rows. Stop texts need a tokenizer: `TextStream` does them.
        end_ids: tokens that end a row, kept in the result; None takes the configuration's.
        use_cache: False computes every step from the first token on, to compare with.
        media: pictures and sounds of the one prompt there is then.
        grammar: that each row follows: the one of `params`, compiled.

    Returns:
        (B, N) int64 new tokens on the model's device. A row that ended is filled with the first of
        `end_ids`; N is at most `max_new_tokens`, less where the context ends or every row has ended.

    Raises:
        PromptError: there is nothing to continue, or no room for it.
        NonFiniteError: a logit is NaN or infinite.
    """
    check_ids_alone(params)
    ends = [] if params.ignore_eos else list(model.config.eos_token_ids if end_ids is None else end_ids)
    ended = torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)
    # Only made where there are ends: copying it to the device waits.
    end_set = torch.tensor(ends, dtype=torch.int64, device=ids.device) if ends else None
    new: list[Tensor] = []
    with closing(next_tokens(model, ids, params, use_cache=use_cache, media=media, grammar=grammar)) as steps:
        for token in steps:
            if end_set is None:
                new.append(token)
                continue
            new.append(torch.where(ended, end_set[0], token))
            ended |= torch.isin(token, end_set)
            if bool(ended.all()):  # the one wait for the device in a step
                break
    result = torch.stack(new, dim=1)
    if bool((result < 0).any()):
        raise NonFiniteError(why_not_finite(model))
    return result


@torch.inference_mode()
def score(model: OmniModel, ids: Tensor, new: Tensor, most: int) -> list[list[TokenLogprob]]:
    """What the model gives to tokens that are known, from one forward pass without a cache.

    Args:
        model: on any device; in evaluation mode while this runs.
        ids: (B, T) int64 prompts on the model's device.
        new: (B, N) int64 tokens behind them.
        most: how many of the most likely tokens are told at each place.

    Returns:
        B rows of N, as `Reply.logprobs`.
    """
    with eval_mode(model):
        logits = model(torch.cat([ids, new], dim=1)[:, :-1], logits_to_keep=new.shape[1]).logits.float()
    logprobs = logits.log_softmax(dim=-1)
    best = logits.sort(dim=-1, descending=True, stable=True).indices
    ranked = logprobs.gather(-1, best)[..., :most]
    own = logprobs.gather(-1, new[..., None])[..., 0]
    return [
        [
            TokenLogprob(token, logprob, tuple(zip(tokens, tops, strict=True)))
            for token, logprob, tokens, tops in zip(*row, strict=True)
        ]
        for row in zip(new.tolist(), own.tolist(), best[..., :most].tolist(), ranked.tolist(), strict=True)
    ]


@torch.inference_mode()
def next_tokens(
    model: OmniModel,
    ids: Tensor,
    params: SamplingParams,
    *,
    use_cache: bool = True,
    media: PromptMedia | None = None,
    grammar: Grammar | None = None,
) -> Generator[Tensor]:
    """The loop itself: yields the next (B,) tokens, as often as `token_budget` allows.

    Only a grammar makes it wait for the device. It knows nothing of ends: whoever reads it stops when it has enough.
    Of a row whose logits are not finite it is -1.
    """
    if params.grammar is not None and grammar is None:
        raise PromptError("grammar: token ids alone say nothing of their text; give the grammar compiled")
    limit = token_budget(model, ids.shape, params)
    B, T = ids.shape
    total = T + limit
    thinker = model.config.thinker
    sources = [make_random(params.seed, row) for row in range(B)] if params.temperature > 0 else []
    sampler = Sampler([params] * B, ids.device)
    constraints = [] if grammar is None else [grammar.begin() for _ in range(B)]
    check_biases(params, thinker.vocab_size)
    rows = torch.arange(B, device=ids.device)
    counts = None
    if params.penalises:
        counts = TokenCounts(B, thinker.vocab_size, ids.device)
        for row in range(B):
            counts.begin(row, ids[row])
    if use_cache:
        check_places(model.thinker.layers, thinker)
    cache = KVCache(thinker, B, total, model.dtype, ids.device) if use_cache else None
    whole = torch.empty(B, total, dtype=torch.int64, device=ids.device)
    whole[:, :T] = ids
    with eval_mode(model):
        for end in range(T, total):
            begin = cache.length if cache is not None else 0
            if cache is not None and (media is None or begin >= T):
                logits = model(whole[:, begin:end], cache=cache, logits_to_keep=1).logits
            else:
                logits = _logits(model, whole[:, begin:end], begin, media, cache)
            for row, constraint in enumerate(constraints):
                constraint.restrict(logits[row], whole[row, T:end].tolist())
            uniform = on_device([draw_uniform(source) for source in sources], torch.float32, ids.device)
            token = sampler(logits[:, -1], uniform, None if counts is None else counts.of(rows))
            whole[:, end] = token.clamp(min=0)
            if counts is not None:
                counts.add(rows, whole[:, end])
            yield token


def _logits(model: OmniModel, ids: Tensor, begin: int, media: PromptMedia | None, cache: KVCache | None) -> Tensor:
    """(B, 1, V) logits behind tokens (B, T) that stand at `begin` of a prompt and what follows it.

    A placeholder that the model has generated is a token like others, so places are known by their index.
    """
    if media is None:
        hidden = model.thinker(ids, cache=cache)
    elif ids.shape[0] != 1:
        raise ValueError(f"media belong to one prompt, not to {ids.shape[0]} rows")
    else:
        end = begin + ids.shape[1]
        x = model.thinker.embed_tokens(ids)
        positions = torch.arange(begin, end).repeat(3, 1)
        chunk = media.chunk(begin, end)
        if chunk is not None:
            width = chunk.positions.shape[1]
            places = F.pad(chunk.places, (0, ids.shape[1] - width)).to(x.device)[None]
            x = fill_placeholders(x, places, chunk.features, "of media")
            positions[:, :width] = chunk.positions
        hidden = model.thinker(inputs_embeds=x, positions=positions[:, None].to(x.device), cache=cache)
    logits: Tensor = model.thinker.lm_head(hidden[:, -1:])
    return logits
