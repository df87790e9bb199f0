"""Frozen parts do not learn, keep nothing for a backward pass, and may still carry adapters that do."""

import pytest
import torch
from torch import nn

from muomni.accel import activation_checkpointing
from muomni.errors import UserError
from muomni.model.inputs import MediaBatch
from muomni.training.freezing import freeze, frozen_parts, parts_of
from muomni.training.objectives.module import LossModule
from tests.model.media import make_clips, make_config, make_images, make_model
from tests.training.objectives.batches import losses_of
from tests.training.objectives.test_module import BOTH, HEADS, head_batch


@pytest.mark.parametrize("frozen", [("vision",), ("audio", "vision"), ("thinker",), ("vision_projector", "thinker")])
def test_frozen_parts_get_no_gradient_and_stay_in_evaluation_mode(frozen):
    model = make_model(make_config(**HEADS))
    freeze(model, frozen)
    LossModule(model, BOTH).train()
    assert set(frozen_parts(model)) == set(frozen)
    for name, modules in parts_of(model).items():
        for module in modules:
            assert all(m.training == (name not in frozen) for m in module.modules())
    losses_of(model, head_batch(), BOTH).total.backward()
    for name, modules in parts_of(model).items():
        for module in modules:
            assert all((p.grad is None) == (name in frozen) for p in module.parameters())
    freeze(model, ())
    LossModule(model).train()
    assert model.vision.training and all(p.requires_grad for p in model.parameters()) and not frozen_parts(model)
    with pytest.raises(UserError, match="cannot freeze ears: the model has thinker, vision, "):
        freeze(model, ["ears"])


def test_a_frozen_encoder_keeps_nothing_for_a_backward_pass(monkeypatch):
    model, saved, recomputed = make_model().train(), [], []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        assert model.encode_images(make_images((4, 6))).requires_grad and saved
        saved.clear()
        freeze(model, ["vision", "audio"])
        # Nor is there anything for gradient checkpointing to do.
        activation_checkpointing.enable(model)
        monkeypatch.setattr(activation_checkpointing, "checkpoint", lambda *_a, **_k: recomputed.append(1))
        seen, heard = model.encode_images(make_images((4, 6))), model.encode_clips(make_clips(13))
    assert not saved and not recomputed and seen.grad_fn is None and heard.grad_fn is None


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("part", ["vision", "audio"])
def test_lora_in_a_frozen_encoder_learns(part, checkpointing):
    peft = pytest.importorskip("peft")
    model = make_model().train()
    freeze(model, ["vision", "audio", "thinker"])
    targets = [
        name for name, m in model.named_modules() if isinstance(m, nn.Linear) and name.startswith(f"{part}.layers")
    ]
    assert targets
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, init_lora_weights="gaussian"))
    if checkpointing:
        activation_checkpointing.enable(model)
    batch = head_batch()
    media = MediaBatch(batch.media.images, batch.media.clips)
    out = adapted(batch.input_ids, media=media, positions=batch.positions, labels=batch.labels)
    out.loss.backward()
    adapters = {name: p for name, p in adapted.named_parameters() if "lora_" in name}
    assert adapters and all(p.requires_grad and p.grad is not None for p in adapters.values())
    # B begins at zero, so A's gradient is zero in the first step.
    assert all(p.grad.any() for name, p in adapters.items() if "lora_B" in name)
    frozen = [p for name, p in adapted.named_parameters() if f".{part}." in name and "lora_" not in name]
    assert frozen and all(p.grad is None for p in frozen)
