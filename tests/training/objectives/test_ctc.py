import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.model.encoders.auxiliary_heads import CLASSES
from muomni.model.inputs import MediaBatch
from muomni.ops.audio_frames import CTC_STEPS
from muomni.training.objectives.ctc import ctc_loss, fitting
from tests.model.encoders.test_auxiliary_heads import draw, make_ctc, transcripts
from tests.model.media import make_clips, make_config
from tests.model.media import make_model as make_omni
from tests.training.objectives.batches import losses_of, make_batch


def test_ctc_sums_over_all_ways_to_say_it():
    """One token, four steps, the text of two bytes: every path that collapses to it."""
    head, token = make_ctc(), draw(1, 6)
    steps = head.spell(token).view(CTC_STEPS, CLASSES).softmax(-1)
    first, second = ord("h") + 1, ord("i") + 1
    total = torch.zeros((), dtype=torch.float64)
    for path in itertools.product((0, first, second), repeat=CTC_STEPS):
        if [label for label, _ in itertools.groupby(path) if label] == [first, second]:
            total = total + torch.stack([steps[i, label] for i, label in enumerate(path)]).prod()
    torch.testing.assert_close(ctc_loss(head, token, [1], transcripts((0, "hi"))), -total.log())


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
    together = ctc_loss(head, tokens, counts, transcripts(*((clip, texts[clip]) for clip in chosen)))
    alone = [ctc_loss(head, parts[clip], [counts[clip]], transcripts((0, texts[clip]))) for clip in chosen]
    torch.testing.assert_close(together, torch.stack(alone).sum())
    found, right = (torch.autograd.grad(x, tokens)[0] for x in (together, torch.stack(alone).sum()))
    torch.testing.assert_close(found, right)
    said = transcripts(*((clip, texts[clip]) for clip in chosen))
    assert fitting(said, counts) == list(said.lengths)


def test_impossible_transcripts_are_not_counted_and_cost_nothing():
    head, tokens = make_ctc(torch.float32), draw(3, 6, dtype=torch.float32).requires_grad_()
    # One token has four steps: four different bytes fit, with a repeated one only three.
    said = transcripts((0, "abcd"), (1, "aabc"), (2, "abcde"))
    assert fitting(said, [1, 1, 1]) == [4]
    found = ctc_loss(head, tokens, [1, 1, 1], said)
    torch.testing.assert_close(found, ctc_loss(head, tokens, [1, 1, 1], transcripts((0, "abcd"))))
    found.backward()
    assert bool(tokens.grad[0].any())
    assert not bool(tokens.grad[1:].any())


def test_equal_bytes_of_two_transcripts_are_no_repetition():
    assert fitting(transcripts((0, "abcd"), (1, "dabc")), [1, 1]) == [4, 4]


def test_what_cannot_be_said_does_not_dilute_what_can():
    """The mean over bytes is that of the transcripts that fit, whatever stands beside them."""
    model = make_omni(make_config(audio_={"ctc": True}))

    def mean(*said: tuple[int, str]) -> float:
        media = MediaBatch(clips=make_clips(16, 16), transcripts=transcripts(*said))
        batch = make_batch(torch.tensor([[1, 2]]), torch.full((1, 2), -100), media=media)
        losses = losses_of(model, batch, {"text": 0.0, "ctc": 1.0})
        return float(losses.losses["ctc"].detach()) if "ctc" in losses.losses else math.nan

    assert mean((0, "abc"), (1, "a" * 200)) == pytest.approx(mean((0, "abc")), rel=1e-6)
    assert math.isnan(mean((1, "a" * 200)))


def test_ctc_learns_to_spell():
    head = make_ctc(torch.float32)
    tokens, counts = draw(9, 6, dtype=torch.float32), [4, 5]
    optimizer = torch.optim.Adam([*head.parameters()], lr=0.1)
    said = transcripts((0, "né"), (1, "all"))
    for _ in range(100):
        optimizer.zero_grad()
        ctc_loss(head, tokens, counts, said).backward()
        optimizer.step()
    assert head.decode(tokens, counts) == ["né", "all"]
