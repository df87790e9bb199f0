"""Steps with pictures and sounds: gradients do not depend on the cut, frozen parts do not move."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from muomni.accel.mixed_precision import Precision
from muomni.config import AudioConfig, OmniConfig, ThinkerConfig, VisionConfig
from muomni.config.recipe import OptimizerSpec
from muomni.data import Batch
from muomni.model import OmniModel
from muomni.model.inputs import AudioBatch, Captions, ImageBatch, MediaBatch, Transcripts
from muomni.model.mrope import mrope_positions
from muomni.ops.cross_entropy import IGNORE
from muomni.training.evaluate import evaluate
from muomni.training.freezing import freeze, parts_of
from muomni.training.objectives.module import LossModule, num_targets
from muomni.training.optim.build import build_optimizers
from muomni.training.step import TrainStep

IMAGE, SOUND, T, PATCH, BINS = 48, 49, 20, 2, 8
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = OmniConfig(
    thinker=ThinkerConfig(vocab_size=50, num_key_value_heads=1, head_dim=8, **SIZES),
    vision=VisionConfig(patch_size=PATCH, min_tokens=1, max_tokens=4, projection_dim=8, **SIZES),
    audio=AudioConfig(num_mel_bins=BINS, ctc=True, **SIZES),
    image_token_id=IMAGE,
    audio_token_id=SOUND,
)
FP32 = Precision("fp32", torch.device("cpu"), "test")
WEIGHTS = {"ctc": 0.5, "contrastive": 0.25}
# Rows have very different numbers of targets and of transcript bytes.
TARGETS = (14, 3, 9, 1)
BYTES = (12, 1, 5, 2)


def make_model(double: bool = True) -> OmniModel:
    model = OmniModel(CONFIG, torch.Generator().manual_seed(0))
    return model.double() if double else model


def make_batch(rows: range) -> Batch:
    """Each row: a picture of 1 × 2 tokens, a clip of 3 tokens, text; row 3 is text alone."""
    draw = [torch.Generator().manual_seed(row) for row in range(4)]
    ids = torch.stack([torch.randint(48, (T,), generator=draw[row]) for row in rows])
    labels = ids.clone()
    places, patches, mel, spelled, named = [], [], [], [], []
    for n, row in enumerate(rows):
        labels[n, : T - TARGETS[row]] = IGNORE
        places.append([(1, 1, 2)] if row < 3 else [])
        if row == 3:
            continue
        ids[n, 1:3], ids[n, 3:6] = IMAGE, SOUND
        labels[n, :6] = IGNORE
        patches.append(torch.randn(2 * 4, 3 * PATCH**2, generator=draw[row]))
        mel.append(torch.randn(24, BINS, generator=draw[row]))
        spelled.append(bytes(i % 250 + row for i in range(BYTES[row])))
        named.append(torch.randint(48, (2,), generator=draw[row]))
    media = None
    if patches:
        count = len(patches)
        media = MediaBatch(
            ImageBatch(torch.cat(patches), ((2, 4),) * count),
            AudioBatch(torch.cat(mel), (24,) * count),
            Transcripts.of(enumerate(spelled)),
            Captions(torch.cat(named), (2,) * count, tuple(range(count)), torch.arange(count)),
        )
    axes = torch.stack([torch.from_numpy(mrope_positions(T, images)) for images in places], 1)
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=axes if media is not None else axes[0],
        cu_seqlens=torch.arange(len(rows) + 1, dtype=torch.int32) * T,
        max_seqlen=T,
        num_targets=int((labels[:, 1:] != IGNORE).sum()),
        id="",
        media=media,
    )


def doubled(batch: Batch) -> Batch:
    media = batch.media
    if media is None:
        return batch
    assert media.images is not None and media.clips is not None
    images = replace(media.images, patches=media.images.patches.double())
    clips = replace(media.clips, mel=media.clips.mel.double())
    return replace(batch, media=replace(media, images=images, clips=clips))


def gradients(size: int, weights: dict[str, float]) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model = make_model()
    step = TrainStep(LossModule(model, weights), [], torch.ones(2), 0, FP32)
    losses = step.accumulate([doubled(make_batch(range(n, n + size))) for n in range(0, 4, size)])
    found = {"text": float(losses.text)} | {name: float(loss) for name, loss in losses.others.items()}
    return found, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_do_not_depend_on_the_cut_into_micro_batches() -> None:
    """Text and CTC, each with the divisor of the whole step. The contrastive loss compares captions of a micro-batch,
    so it depends on the cut by nature and is left out.
    """
    whole_losses, whole = gradients(4, {"ctc": 0.5})
    for size in (2, 1):
        losses, cut = gradients(size, {"ctc": 0.5})
        assert losses == pytest.approx(whole_losses, rel=1e-6)
        assert cut.keys() == whole.keys()
        for name, gradient in cut.items():
            torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-10, msg=name)


def test_a_mean_over_micro_batches_would_be_noticed() -> None:
    """What the divisors are for: CTC means of micro-batches differ from that of the step."""
    _, whole = gradients(4, {"ctc": 0.5})
    model = make_model()
    for n in range(4):
        batch = doubled(make_batch(range(n, n + 1)))
        step = TrainStep(LossModule(model, {"ctc": 0.5}), [], torch.ones(2), 0, FP32)
        step.accumulate([batch])
    wrong = {name: p.grad / 4 for name, p in model.named_parameters() if p.grad is not None}
    assert (wrong["audio_head.spell.weight"] - whole["audio_head.spell.weight"]).abs().max() > 1e-4


def test_weights_scale_gradients_and_not_the_reported_losses() -> None:
    one_losses, one = gradients(4, {"contrastive": 1.0})
    half_losses, half = gradients(4, {"contrastive": 0.5})
    assert one_losses == half_losses and set(one_losses) == {"text", "contrastive"}
    torch.testing.assert_close(half["vision_head.image.weight"], one["vision_head.image.weight"] / 2)
    assert "audio_head.spell.weight" not in one


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("frozen", [("thinker",), ("vision", "audio"), ("vision_projector", "thinker", "audio")])
def test_frozen_parts_do_not_move_and_the_others_do(frozen: tuple[str, ...], optimizer: str) -> None:
    model = make_model(double=False)
    freeze(model, frozen)
    model.train()
    weights = {} if "vision" in frozen or "audio" in frozen else WEIGHTS
    optimizers = build_optimizers(model, OptimizerSpec.model_validate({"name": optimizer, "lr": 1e-2}), FP32)
    held = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = TrainStep(LossModule(model, weights), optimizers, torch.ones(9), 1.0, FP32)
    for _ in range(2):
        step([make_batch(range(2)), make_batch(range(2, 4))])
    still = {name for part in frozen for m in parts_of(model)[part] for name, p in model.named_parameters()
             if any(p is q for q in m.parameters())}  # fmt: skip
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name in still or _idle(name, weights)), name
        assert (id(parameter) in held) == (name not in still), name
    assert all(not m.training for part in frozen for m in parts_of(model)[part])


def _idle(name: str, weights: dict[str, float]) -> bool:
    """Heads whose loss is off learn nothing."""
    return not weights and name.startswith(("audio_head", "vision_head"))


class Rows:
    """Four rows, over and over."""

    num_rows = 4

    def batch(self, first_index: int, count: int, stride: int = 1) -> Batch:
        return make_batch(range(first_index, first_index + count))


@pytest.mark.parametrize("size", [1, 2, 4])
def test_validation_means_are_over_all_targets(size: int) -> None:
    model = make_model(double=False)
    lengths = torch.ones(50, dtype=torch.int64)
    found = evaluate(LossModule(model, {"ctc": 0.5}), cast("Any", Rows()), 4, size, lengths)
    with torch.no_grad():
        batch = make_batch(range(4))
        output = LossModule(model, {"ctc": 1.0})(batch, num_targets(batch))
    assert found.targets == batch.num_targets
    assert found.loss == pytest.approx(float(output.losses["text"]), rel=1e-5)
    assert found.others == pytest.approx({"ctc": float(output.losses["ctc"])}, rel=1e-5)
