"""The optimizer step: gradients do not depend on how it is cut, and a bad step changes nothing."""

import pytest
import torch

from muomni.accel.mixed_precision import Precision
from muomni.config import OmniConfig, ThinkerConfig
from muomni.config.recipe import OptimizerSpec
from muomni.data import Batch
from muomni.model import OmniModel
from muomni.ops.cross_entropy import IGNORE
from muomni.training.objectives.module import LossModule
from muomni.training.optim.build import build_optimizers, decay_groups
from muomni.training.step import TrainStep

CONFIG = OmniConfig(
    thinker=ThinkerConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
    )
)
T = 12
FP32 = Precision("fp32", torch.device("cpu"), "test")


def make_model(seed: int = 0) -> OmniModel:
    return OmniModel(CONFIG, torch.Generator().manual_seed(seed)).double()


def make_batch(ids: torch.Tensor, labels: torch.Tensor) -> Batch:
    rows = ids.shape[0]
    return Batch(
        input_ids=ids,
        labels=labels,
        positions=torch.arange(T).repeat(rows, 1),
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32) * T,
        max_seqlen=T,
        num_targets=int((labels[:, 1:] != IGNORE).sum()),
        id="",
    )


def make_rows(rows: int, valid: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of random tokens; row i has loss on its last `valid[i]` tokens only."""
    ids = torch.randint(50, (rows, T), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, 0] = IGNORE
    for row, count in enumerate(valid or []):
        labels[row, : T - count] = IGNORE
    return ids, labels


def gradients_of(model: OmniModel, batches: list[Batch]) -> tuple[float, dict[str, torch.Tensor]]:
    step = TrainStep(LossModule(model), [], torch.ones(2), max_grad_norm=0, precision=FP32)
    loss = step.accumulate(batches).text
    return float(loss), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("valid", [None, [8, 4, 2, 8, 4, 2, 8, 4, 2, 8, 4, 2, 8, 4, 2, 8]])
def test_gradients_do_not_depend_on_the_cut_into_micro_batches(valid):
    ids, labels = make_rows(16, valid)
    results = []
    for size in (16, 4, 1):
        batches = [make_batch(ids[i : i + size], labels[i : i + size]) for i in range(0, 16, size)]
        results.append(gradients_of(make_model(), batches))
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][name], rtol=0, atol=1e-10)


def test_a_mean_over_micro_batches_would_be_noticed():
    """The common mistake, mean of means, moves these gradients by far more than the bound above."""
    ids, labels = make_rows(2, [10, 2])
    right = gradients_of(make_model(), [make_batch(ids[:1], labels[:1]), make_batch(ids[1:], labels[1:])])[1]
    model = make_model()
    for row in range(2):
        (model(ids[row : row + 1], labels=labels[row : row + 1]).loss / 2).backward()
    wrong = {name: p.grad for name, p in model.named_parameters()}
    assert max((right[name] - wrong[name]).abs().max() for name in right) > 1e-4


def make_step(model: OmniModel, max_grad_norm: float = 1.0, lr: float = 1e-2) -> TrainStep:
    optimizers = build_optimizers(model, OptimizerSpec(lr=lr), FP32)
    return TrainStep(LossModule(model), optimizers, torch.ones(100), max_grad_norm, FP32)


def test_the_step_equals_plain_adamw_with_clipping():
    ids, labels = make_rows(4)
    ours, plain = make_model().float(), make_model().float()
    step = make_step(ours, max_grad_norm=0.05)
    decays, rest = ([p for _, p in group] for group in decay_groups(plain))
    optimizer = torch.optim.AdamW(
        [{"params": decays, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        foreach=False,
    )
    for _ in range(3):
        result = step([make_batch(ids, labels)])
        optimizer.zero_grad()
        loss = plain(ids, labels=labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
        assert float(norm) > 0.05
        torch.testing.assert_close(result.grad_norm, norm)
        torch.testing.assert_close(result.loss, loss.detach())
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)


def test_a_non_finite_step_changes_nothing_and_is_counted():
    ids, labels = make_rows(2)
    model = make_model().float()
    step = make_step(model)
    step([make_batch(ids, labels)])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {key: value.clone() for state in step.optimizers[0].state.values() for key, value in state.items()}
    poison = model.thinker.norm.weight.register_hook(lambda grad: grad * float("nan"))
    for streak in (1, 2):
        step([make_batch(ids, labels)])
        assert [int(x) for x in (step.counters.applied, step.counters.skipped, step.counters.streak)] == [
            1,
            streak,
            streak,
        ]
    poison.remove()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    after = {key: value for state in step.optimizers[0].state.values() for key, value in state.items()}
    for key, value in moments.items():
        assert torch.equal(after[key], value), key
    step([make_batch(ids, labels)])
    assert [int(x) for x in (step.counters.applied, step.counters.skipped, step.counters.streak)] == [2, 2, 0]


def test_the_schedule_follows_applied_steps_only():
    ids, labels = make_rows(2)
    model = make_model().float()
    optimizers = build_optimizers(model, OptimizerSpec(lr=1.0), FP32)
    step = TrainStep(LossModule(model), optimizers, torch.tensor([0.1, 0.2, 0.3]) * 1e-3, 1.0, FP32)
    poison = model.thinker.norm.weight.register_hook(lambda grad: grad * float("inf"))
    assert float(step([make_batch(ids, labels)]).lr_factor) == pytest.approx(1e-4)
    poison.remove()
    seen = [float(step([make_batch(ids, labels)]).lr_factor) for _ in range(3)]
    assert seen == pytest.approx([1e-4, 2e-4, 3e-4])


def test_norms_and_embeddings_do_not_decay():
    decays, rest = decay_groups(make_model())
    assert all("proj" in name for name, _ in decays)
    assert {name.split(".")[-2] for name, _ in rest} == {
        "embed_tokens",
        "norm",
        "q_norm",
        "k_norm",
        "input_layernorm",
        "post_attention_layernorm",
    }
    assert len(decays) + len(rest) == len(list(make_model().parameters()))


def test_a_frozen_model_part_gets_no_gradient():
    ids, labels = make_rows(2)
    model = make_model().float()
    for parameter in model.thinker.layers[0].parameters():
        parameter.requires_grad_(False)
    before = model.thinker.layers[0].mlp.up_proj.weight.clone()
    make_step(model)([make_batch(ids, labels)])
    assert torch.equal(model.thinker.get_parameter("layers.0.mlp.up_proj.weight"), before)
    assert model.thinker.layers[0].mlp.up_proj.weight.grad is None
