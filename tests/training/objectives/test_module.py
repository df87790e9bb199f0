"""The losses of a batch: their denominators and weights, what they refuse, and the stand-ins for what is missing."""

from typing import TYPE_CHECKING, Any

import pytest
import torch

from muomni.data import Batch
from muomni.errors import UserError
from muomni.model.inputs import Captions, MediaBatch, Transcripts
from muomni.model.mrope import mrope_positions
from muomni.training.freezing import freeze, parts_of
from muomni.training.objectives.module import LossModule
from tests.model.media import AUDIO, IMAGE, make_clips, make_config, make_images, make_model
from tests.training.objectives.batches import losses_of, make_batch

if TYPE_CHECKING:
    from muomni.model import OmniModel

# Ten tokens, a picture of 2 × 3 tokens, a clip of 2 tokens, three tokens, a picture of one token.
IDS = torch.tensor([[5, 6, *[IMAGE] * 6, 7, *[AUDIO] * 2, 8, 9, 10, IMAGE]])
TEXT = torch.tensor([[5, 6, 7, 8]])
HEADS: dict[str, Any] = {"vision_": {"projection_dim": 8}, "audio_": {"ctc": True}}
BOTH = {"ctc": 1.0, "contrastive": 1.0}


def head_media() -> MediaBatch:
    transcripts = Transcripts.of([(0, b"hi")])
    captions = Captions(torch.tensor([5, 6, 7]), (1, 2), (0, 1), torch.tensor([0, 1]))
    return MediaBatch(make_images((4, 6), (2, 2)), make_clips(13), transcripts, captions)


def head_batch() -> Batch:
    positions = torch.from_numpy(mrope_positions(15, [(2, 2, 3), (14, 1, 1)]))[:, None]
    return make_batch(IDS, IDS.masked_fill(IDS < 5, -100), positions, media=head_media())


def test_losses_have_their_own_denominators_and_weights():
    model, batch = make_model(make_config(**HEADS)), head_batch()
    plain = losses_of(model, batch)
    assert set(plain.losses) == {"text"} and torch.equal(plain.total, plain.losses["text"])
    direct = model(batch.input_ids, media=batch.media, positions=batch.positions, labels=batch.labels)
    torch.testing.assert_close(direct.loss, plain.total)
    own = losses_of(model, batch, {"ctc": 0.3, "contrastive": 0.5})
    assert list(own.losses) == ["text", "contrastive", "ctc"] and own.details["impossible"].item() == 0
    assert torch.equal(own.losses["text"], plain.total)
    total = own.losses["text"] + 0.3 * own.losses["ctc"] + 0.5 * own.losses["contrastive"]
    torch.testing.assert_close(own.total, total)
    # 2 bytes, 2 captions: what they are divided by here unless told otherwise.
    step = losses_of(model, batch, {"ctc": 0.3, "contrastive": 0.5}, ctc=8, contrastive=4, text=100)
    torch.testing.assert_close(step.losses["ctc"], own.losses["ctc"] / 4)
    torch.testing.assert_close(step.losses["contrastive"], own.losses["contrastive"] / 2)
    torch.testing.assert_close(step.losses["text"], own.losses["text"] * batch.num_targets / 100)
    again = losses_of(model, batch, text=100)
    assert torch.equal(again.total, step.losses["text"])
    named = losses_of(model, batch, {"text": 0.5, "ctc": 0.0})
    assert set(named.losses) == {"text"} and torch.equal(named.total, plain.total * 0.5)


def test_every_weight_learns_from_the_loss():
    model = make_model(make_config(**HEADS)).train()
    losses_of(model, head_batch(), BOTH).total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ({"ctc": 1.0}, UserError, "no head for the ctc loss"),
        ({"contrastive": 1.0}, UserError, "no head for the contrastive loss"),
        ({"speech": 1.0}, UserError, "does not speak"),
        ({"talk": 1.0}, ValueError, "no loss is called talk"),
    ],
)
def test_losses_that_a_model_has_no_part_for_are_refused(weights, error, words):
    with pytest.raises(error, match=words):
        LossModule(make_model(), weights)


def test_only_the_models_names_are_in_a_checkpoint():
    model = make_model(make_config(**HEADS))
    assert set(LossModule(model, BOTH).state_dict()) == {f"model.{name}" for name in model.state_dict()}


def test_a_batch_of_text_runs_every_part():
    model = make_model(make_config(**HEADS)).train()
    alone = model(TEXT, labels=TEXT).loss
    for weights in ({}, BOTH):
        model.zero_grad(set_to_none=True)
        together = losses_of(model, make_batch(TEXT), weights)
        assert torch.equal(alone, together.total) and set(together.losses) == {"text"}
        together.total.backward()
        idle = [model.vision_head, model.audio_head] if not weights else []
        parts = [m for name, group in parts_of(model).items() if name != "thinker" for m in group if m not in idle]
        unused = [p for module in parts for p in module.parameters()]
        assert unused and all(p.grad is not None and not p.grad.any() for p in unused)


def test_heads_without_a_loss_do_not_learn():
    """DDP would wait for their gradients."""
    model = make_model(make_config(**HEADS)).train()
    freeze(model, (), {"text": 1.0, "ctc": 0.3})
    assert not any(p.requires_grad for p in model.vision_head.parameters())
    losses_of(model, make_batch(TEXT), {"ctc": 0.3}).total.backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in model.parameters())


def test_stand_ins_are_only_for_what_is_missing():
    model: OmniModel = make_model(make_config(**HEADS)).train()
    calls: list[int] = []
    model.vision.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0].grids)))
    losses_of(model, head_batch(), BOTH)
    losses_of(model, make_batch(TEXT), BOTH)
    # Encoders are not run for text that is not computed.
    losses_of(model, head_batch(), {"text": 0, "ctc": 1.0})
    assert calls == [2, 1]
