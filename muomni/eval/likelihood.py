"""How likely a model takes texts to be: for pairs of sentences, endings of stories, bits per byte.

Legend: T tokens of all texts of a batch laid end to end, V vocabulary, D hidden_size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from muomni.data import Tokenizer
from muomni.model import OmniModel
from muomni.ops.attention import Segments

# Positions whose logits, (N, V) in fp32, are in memory at one time.
_POSITIONS = 512


@dataclass(frozen=True)
class Likelihood:
    """Of a continuation, given what stands before it.

    Attributes:
        nats: the logarithm of its probability.
        tokens: of the continuation that were predicted.
        size: bytes of their text.
    """

    nats: float
    tokens: int
    size: int

    @property
    def per_byte(self) -> float:
        """Nats per byte, which compares continuations of different lengths."""
        return self.nats / max(1, self.size)


@dataclass(frozen=True)
class _Text:
    ids: list[int]
    begin: int  # the first token that is predicted


@torch.inference_mode()
def likelihoods(
    model: OmniModel,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    tokens_at_once: int = 8192,
    report: Callable[[int], None] = lambda _: None,
) -> list[Likelihood]:
    """Of each continuation, given the text before it.

    A text's first token is predicted by nothing, as in training, so an empty beginning leaves it out.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        pairs: (beginning, continuation); what does not fit into the model's context loses its oldest tokens.
        tokens_at_once: T at most, or one text.
        report: called with the number of texts done since the last call.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("texts are judged in evaluation mode")
    context = model.config.thinker.max_position_embeddings
    byte_lengths = tokenizer.byte_lengths()
    results: list[Likelihood] = []
    for batch in _batches([_text(tokenizer, pair, context) for pair in pairs], tokens_at_once):
        nats = _nats(model, batch)
        for text, value in zip(batch, nats.tolist(), strict=True):
            predicted = text.ids[text.begin :]
            results.append(Likelihood(value, len(predicted), int(byte_lengths[predicted].sum()) if predicted else 0))
        report(len(batch))
    return results


def _text(tokenizer: Tokenizer, pair: tuple[str, str], context: int) -> _Text:
    before, after = (tokenizer.encode(text) for text in pair)
    ids = [*before, *after][-context:]
    return _Text(ids, max(1, len(ids) - len(after)))


def _batches(texts: Sequence[_Text], tokens_at_once: int) -> Iterator[list[_Text]]:
    batch: list[_Text] = []
    total = 0
    for text in texts:
        if batch and total + len(text.ids) > tokens_at_once:
            yield batch
            batch, total = [], 0
        batch.append(text)
        total += len(text.ids)
    if batch:
        yield batch


def _nats(model: OmniModel, texts: Sequence[_Text]) -> Tensor:
    """(texts,) fp64 on the CPU: sums of the log-probabilities of their predicted tokens."""
    device = model.device
    lengths = torch.tensor([len(text.ids) for text in texts])
    ends = lengths.cumsum(0)
    ids = torch.tensor([token for text in texts for token in text.ids], device=device)
    positions = torch.arange(len(ids)) - (ends - lengths).repeat_interleave(lengths)
    bounds = torch.cat((torch.zeros(1, dtype=torch.int64), ends)).int().to(device)
    segments = Segments(bounds, int(lengths.max()))
    states = model.thinker(ids[None], positions.to(device)[None], segments)[0]
    # A token is predicted at the place before it.
    first = (ends - lengths) + torch.tensor([text.begin for text in texts])
    places = torch.cat([torch.arange(a, b) for a, b in zip(first.tolist(), ends.tolist(), strict=True)])
    owner = torch.arange(len(texts)).repeat_interleave(ends - first)
    sums = torch.zeros(len(texts), dtype=torch.float64)
    for part, whose in zip(torch.split(places, _POSITIONS), torch.split(owner, _POSITIONS), strict=True):
        logits = model.thinker.lm_head(states[part - 1]).float()
        values = logits.log_softmax(-1).gather(1, ids[part][:, None])[:, 0]
        sums.index_add_(0, whose, values.double().cpu())
    return sums
