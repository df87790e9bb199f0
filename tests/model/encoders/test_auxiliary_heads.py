"""The auxiliary heads: what they compute, and that they can be learnt from."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from muomni.model.encoders.auxiliary_heads import CLASSES, STEPS, ContrastiveHead, CtcHead
from muomni.model.inputs import Captions, Transcripts


def transcripts(*said: tuple[int, str]) -> Transcripts:
    """(clip, text) each."""
    raw = [text.encode() for _, text in said]
    targets = torch.tensor([byte + 1 for text in raw for byte in text], dtype=torch.int64)
    return Transcripts(targets, tuple(map(len, raw)), tuple(clip for clip, _ in said))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make_ctc(dtype: torch.dtype = torch.float64) -> CtcHead:
    head = CtcHead(6)
    head.init_weights(torch.Generator().manual_seed(0))
    return head.to(dtype)


def test_ctc_sums_over_all_ways_to_say_it():
    """One token, four steps, the text of two bytes: every path that collapses to it."""
    head, token = make_ctc(), draw(1, 6)
    steps = head.spell(token).view(STEPS, CLASSES).softmax(-1)
    first, second = ord("h") + 1, ord("i") + 1
    total = torch.zeros((), dtype=torch.float64)
    for path in itertools.product((0, first, second), repeat=STEPS):
        if [label for label, _ in itertools.groupby(path) if label] == [first, second]:
            total = total + torch.stack([steps[i, label] for i, label in enumerate(path)]).prod()
    torch.testing.assert_close(head(token, [1], transcripts((0, "hi"))).total, -total.log())


@given(
    counts=st.lists(st.integers(2, 12), min_size=1, max_size=5),
    texts=st.lists(st.text("abé", max_size=4), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_ctc_of_several_clips_is_the_sum_of_each(counts, texts, seed):
    head, tokens = make_ctc(), draw(sum(counts), 6, seed=seed).requires_grad_()
    parts = torch.split(tokens, counts)
    chosen = list(range(len(counts)))[::2][::-1]
    together = head(tokens, counts, transcripts(*((clip, texts[clip]) for clip in chosen)))
    alone = [head(parts[clip], [counts[clip]], transcripts((0, texts[clip]))).total for clip in chosen]
    torch.testing.assert_close(together.total, torch.stack(alone).sum())
    found, right = (torch.autograd.grad(x, tokens)[0] for x in (together.total, sum(alone)))
    torch.testing.assert_close(found, right)
    assert int(together.impossible) == 0


def test_impossible_transcripts_are_counted_and_cost_nothing():
    head, tokens = make_ctc(torch.float32), draw(3, 6, dtype=torch.float32).requires_grad_()
    # One token has four steps: four different bytes fit, with a repeated one only three.
    found = head(tokens, [1, 1, 1], transcripts((0, "abcd"), (1, "aabc"), (2, "abcde")))
    assert int(found.impossible) == 2
    torch.testing.assert_close(found.total, head(tokens, [1, 1, 1], transcripts((0, "abcd"))).total)
    found.total.backward()
    assert bool(tokens.grad[0].any())
    assert not bool(tokens.grad[1:].any())


def test_equal_bytes_of_two_transcripts_are_no_repetition():
    head, tokens = make_ctc(), draw(2, 6)
    assert int(head(tokens, [1, 1], transcripts((0, "abcd"), (1, "dabc"))).impossible) == 0


def test_ctc_learns_to_spell():
    head = make_ctc(torch.float32)
    tokens, counts = draw(9, 6, dtype=torch.float32), [4, 5]
    optimizer = torch.optim.Adam([*head.parameters()], lr=0.1)
    said = transcripts((0, "né"), (1, "all"))
    for _ in range(100):
        optimizer.zero_grad()
        head(tokens, counts, said).total.backward()
        optimizer.step()
    assert head.decode(tokens, counts) == ["né", "all"]


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


def test_contrastive_loss_by_its_definition():
    head = make_contrastive()
    counts, lengths = [3, 1, 4, 2], [2, 3, 1]
    tokens, embeddings = draw(10, 8), draw(6, 6, seed=1)
    chosen, groups = [2, 0, 3], [7, 5, 7]
    images = [part.mean(0) for part in torch.split(tokens, counts)]
    images = [F.normalize(head.image(images[i]), dim=0) for i in chosen]
    texts = [part.mean(0) for part in torch.split(embeddings, lengths)]
    texts = [F.normalize(head.text(F.layer_norm(x, x.shape)), dim=0) for x in texts]
    total = 0.0
    for i in range(3):
        others = [j for j in range(3) if j == i or groups[j] != groups[i]]
        for pairs in ([(i, j) for j in others], [(j, i) for j in others]):
            scores = torch.stack([images[a] @ texts[b] / 0.07 for a, b in pairs])
            total = total - 0.5 * scores.log_softmax(0)[others.index(i)]
    loss = head(tokens, counts, embeddings, captions(lengths, chosen, groups))
    torch.testing.assert_close(loss, total)


@torch.no_grad()
def test_one_caption_or_one_meaning_costs_nothing():
    head = make_contrastive()
    tokens, embeddings = draw(4, 8), draw(4, 6)
    assert float(head(tokens, [4], embeddings, captions([4], [0], [0]))) == 0
    assert float(head(tokens, [2, 2], embeddings, captions([1, 3], [0, 1], [3, 3]))) == 0


def test_captions_do_not_pull_the_embedding():
    head = make_contrastive()
    tokens, embeddings = draw(4, 8).requires_grad_(), draw(4, 6).requires_grad_()
    head(tokens, [2, 2], embeddings, captions([1, 3], [0, 1], [0, 1])).backward()
    assert embeddings.grad is None
    assert bool(tokens.grad.any())
    assert all(bool(parameter.grad.any()) for parameter in head.parameters())


@torch.no_grad()
def test_the_scale_is_bounded():
    head = make_contrastive()
    assert math.isclose(float(head.scale), 1 / 0.07, rel_tol=1e-6)
    torch.nn.init.constant_(head.log_scale, 30.0)
    assert math.isclose(float(head.scale), 100.0, rel_tol=1e-6)


def test_pictures_find_their_captions():
    head = make_contrastive(torch.float32)
    tokens, embeddings = draw(12, 8, dtype=torch.float32), 0.02 * draw(8, 6, seed=1, dtype=torch.float32)
    pairs = captions([2, 2, 2, 2], [0, 1, 2, 3], [0, 1, 2, 3])
    counts = [3, 3, 3, 3]
    optimizer = torch.optim.Adam([*head.parameters()], lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss = head(tokens, counts, embeddings, pairs)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    scores = head.images(tokens, counts) @ head.texts(embeddings, pairs.lengths).T
    assert scores.argmax(1).tolist() == [0, 1, 2, 3]


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cannot be groups"):
        make_contrastive().images(draw(4, 8), [2, 3])
    with pytest.raises(ValueError, match="cannot be groups"):
        make_contrastive().texts(draw(4, 6), [4, 0])
    with pytest.raises(ValueError, match="cannot be groups"):
        make_ctc()(draw(4, 6), [5], transcripts((0, "a")))
