"""Auxiliary heads, which teach an encoder more directly than the Thinker's loss does. Nothing else needs them.

Legend: N tokens of an encoder, D its width, C clips with a transcript or pictures with a caption, E projection_dim.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from muomni.model.inputs import Captions, moved, row_length
from muomni.ops.audio_frames import CTC_STEPS

# The blank, and 256 bytes.
CLASSES = 257
# Similarities are multiplied by at most 100, as in CLIP (Radford et al., arXiv:2103.00020).
_START_SCALE, _LARGEST_SCALE = 1 / 0.07, 100.0


class CtcHead(nn.Module):
    """Spells what is said in UTF-8 bytes (Graves et al., 2006), four steps a token: 50 a second."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.spell = nn.Linear(hidden_size, CTC_STEPS * CLASSES)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Small normal weights, no bias: all bytes are as likely."""
        with torch.no_grad():
            self.spell.weight.normal_(0.0, 0.02, generator=generator)
            self.spell.bias.zero_()

    def forward(self, tokens: Tensor, counts: Sequence[int], clips: Sequence[int]) -> Tensor:
        """What some of the clips may say at each step.

        Args:
            tokens: (N, D) of the audio encoder, clip behind clip.
            counts: tokens of each clip; they add up to N.
            clips: the chosen ones, C, at least one; others are not computed.

        Returns:
            (C, S, CLASSES) logits, fp32 (fp64 for fp64), S steps of the longest; of others those behind the end mean
            nothing.
        """
        _check_counts(tokens, counts)
        rows = _padded_places(counts, clips, tokens.device)
        flat = rows.flatten()
        spelt = self.spell(_filled(tokens[flat]))[: len(flat)]
        return _wide(spelt).view(len(clips), -1, CLASSES)

    @torch.no_grad()
    def decode(self, tokens: Tensor, counts: Sequence[int]) -> list[str]:
        """What each clip says by the likeliest class of each step; bytes that are no UTF-8 become U+FFFD."""
        _check_counts(tokens, counts)
        best = self.spell(tokens).view(-1, CLASSES).argmax(-1).cpu()
        texts = []
        for steps in torch.split(best, [CTC_STEPS * count for count in counts]):
            said = torch.unique_consecutive(steps)
            texts.append(bytes((said[said > 0] - 1).tolist()).decode("utf-8", errors="replace"))
        return texts


class ContrastiveHead(nn.Module):
    """Pictures and captions as directions in one space, each picture nearest to its own caption.

    A picture is the mean of its tokens, a caption the mean of the Thinker's embeddings of its tokens. Those are taken
    as they are: captions must not pull the embedding that the Thinker reads and writes with.

    Args:
        image_size: width of a token as the vision encoder gives it.
        text_size: width of the Thinker's embedding.
        size: E.
    """

    def __init__(self, image_size: int, text_size: int, size: int) -> None:
        super().__init__()
        self.image = nn.Linear(image_size, size)
        self.text = nn.Sequential(nn.Linear(text_size, size), nn.GELU(), nn.Linear(size, size))
        self.log_scale = nn.Parameter(torch.empty(1))  # FSDP divides no scalars

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights that keep the size of what comes in; embeddings are small, so what they give is enlarged."""
        with torch.no_grad():
            for layer in (self.image, *self.text):
                if isinstance(layer, nn.Linear):
                    layer.weight.normal_(0.0, layer.in_features**-0.5, generator=generator)
                    layer.bias.zero_()
            self.log_scale.fill_(math.log(_START_SCALE))

    def forward(self, tokens: Tensor, counts: Sequence[int], embeddings: Tensor, captions: Captions) -> Tensor:
        """How well each caption goes with each captioned picture.

        Args:
            tokens: (N, image_size) of the vision encoder, picture behind picture.
            counts: tokens of each picture; they add up to N.
            embeddings: (S, text_size) the Thinker's embeddings of `captions.ids`.
            captions: of some of the pictures, at least one.

        Returns:
            (C, C) scaled cosines of the pictures of the captions with the captions, fp32 (fp64 for fp64).
        """
        count = len(captions.lengths)
        images = self.images(tokens, counts)[moved(torch.tensor(captions.images), tokens.device)]
        texts = self.texts(embeddings, captions.lengths)
        return (_filled(images) @ _filled(texts).T)[:count, :count] * self.scale

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied by, one over the learnt temperature; at most 100."""
        return _wide(self.log_scale).clamp(max=math.log(_LARGEST_SCALE)).exp()

    def images(self, tokens: Tensor, counts: Sequence[int]) -> Tensor:
        """(pictures, E) fp32 directions of length 1; arguments as in `forward`."""
        _check_counts(tokens, counts)
        return _directions(self.image(_filled(_means(tokens, counts)))[: len(counts)])

    def texts(self, embeddings: Tensor, lengths: Sequence[int]) -> Tensor:
        """(captions, E) fp32 directions of length 1.

        Args:
            embeddings: (S, text_size) the Thinker's embeddings of all tokens, caption behind caption.
            lengths: tokens of each caption.
        """
        _check_counts(embeddings, lengths)
        means = _means(embeddings.detach(), lengths)
        # Embeddings start at 0.02: brought to the size that the layers were made for.
        return _directions(self.text(_filled(F.layer_norm(means, means.shape[-1:])))[: len(lengths)])


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _filled(x: Tensor) -> Tensor:
    """(N, D) rows and as many zeros as make one of few lengths; see `row_length`."""
    return F.pad(x, (0, 0, 0, row_length(x.shape[0]) - x.shape[0]))


def _directions(x: Tensor) -> Tensor:
    return F.normalize(_wide(x), dim=-1)


def _means(x: Tensor, counts: Sequence[int]) -> Tensor:
    """(groups, width) means of rows in groups of `counts`."""
    sizes = torch.tensor(counts)
    group = moved(torch.repeat_interleave(torch.arange(len(counts)), sizes), x.device)
    wide = _wide(x)
    sums = wide.new_zeros(len(counts), x.shape[1]).index_add(0, group, wide)
    return (sums / moved(sizes, x.device)[:, None]).to(x.dtype)


def _padded_places(counts: Sequence[int], chosen: Sequence[int], device: torch.device) -> Tensor:
    """(C, longest) int64: where the tokens of the chosen clips are; behind the end of a clip some other place."""
    sizes = torch.tensor(counts)
    starts = (sizes.cumsum(0) - sizes)[list(chosen)]
    longest = max(counts[clip] for clip in chosen)
    places = starts[:, None] + torch.arange(longest)
    return moved(places.clamp(max=int(sizes.sum()) - 1), device)


def _check_counts(tokens: Tensor, counts: Sequence[int]) -> None:
    if sum(counts) != tokens.shape[0] or 0 in counts:
        raise ValueError(f"{tokens.shape[0]} rows cannot be groups of {tuple(counts)}, each of at least one")
