"""The auxiliary heads: what they compute, and that they can be learnt from."""

import math

import pytest
import torch
from torch import Tensor

from muomni.model.encoders.auxiliary_heads import ContrastiveHead, CtcHead
from muomni.model.inputs import Captions, Transcripts


def transcripts(*said: tuple[int, str]) -> Transcripts:
    """(clip, text) each."""
    return Transcripts.of((clip, text.encode()) for clip, text in said)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_ctc(dtype: torch.dtype = torch.float64) -> CtcHead:
    head = CtcHead(6)
    head.init_weights(torch.Generator().manual_seed(0))
    return head.to(dtype)


def test_bytes_that_are_no_text_are_marked():
    head = make_ctc()
    torch.nn.init.zeros_(head.spell.weight)
    torch.nn.init.zeros_(head.spell.bias)
    with torch.no_grad():
        head.spell.bias[0xC3 + 1] = 1.0
    assert head.decode(draw(1, 6), [1]) == ["\ufffd"]


def captions(lengths: list[int], images: list[int], groups: list[int]) -> Captions:
    return Captions(torch.zeros(sum(lengths), dtype=torch.int64), tuple(lengths), tuple(images), torch.tensor(groups))


def make_contrastive(dtype: torch.dtype = torch.float64) -> ContrastiveHead:
    head = ContrastiveHead(8, 6, 5)
    head.init_weights(torch.Generator().manual_seed(0))
    return head.to(dtype)


@torch.no_grad()
def test_the_scale_is_bounded():
    head = make_contrastive()
    assert math.isclose(float(head.scale), 1 / 0.07, rel_tol=1e-6)
    torch.nn.init.constant_(head.log_scale, 30.0)
    assert math.isclose(float(head.scale), 100.0, rel_tol=1e-6)


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cannot be groups"):
        make_contrastive().images(draw(4, 8), [2, 3])
    with pytest.raises(ValueError, match="cannot be groups"):
        make_contrastive().texts(draw(4, 6), [4, 0])
    with pytest.raises(ValueError, match="cannot be groups"):
        make_ctc()(draw(4, 6), [5], [0])
