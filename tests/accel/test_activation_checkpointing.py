"""Gradient checkpointing: the same gradients bit by bit, less kept in between, no cache."""

import copy

import pytest
import torch
from torch import Tensor

from muomni import MuOmni
from muomni.accel import activation_checkpointing
from muomni.config import OmniConfig, ThinkerConfig
from muomni.errors import ConfigError
from muomni.model import KVCache
from muomni.ops.attention import Segments

CONFIG = OmniConfig(
    thinker=ThinkerConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        dropout=0.2,
    )
)
IDS = torch.randint(64, (2, 24), generator=torch.Generator().manual_seed(0))
SEGMENTS = Segments(torch.tensor([0, 7, 24, 48], dtype=torch.int32), 24)


def make_model(config: OmniConfig = CONFIG) -> MuOmni:
    return MuOmni.from_config(config, device="cpu", seed=0)


def gradients(model: MuOmni, precision: torch.dtype | None = None) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        loss = model(IDS, labels=IDS, segments=SEGMENTS).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


class _Kept:
    """Bytes that autograd keeps between the forward and the backward pass."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        self.sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self.sizes.values())


def kept_by(model: MuOmni) -> int:
    kept = _Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        model(IDS, labels=IDS, segments=SEGMENTS)
    return kept.total


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_gradients_are_bit_equal_with_dropout_on(mode, precision):
    plain, checkpointed = make_model(), make_model()
    checkpointed.gradient_checkpointing_enable(mode)
    assert activation_checkpointing.is_enabled(checkpointed)
    for a, b in zip(gradients(plain, precision), gradients(checkpointed, precision), strict=True):
        assert torch.equal(a, b)


def test_dropout_would_be_noticed():
    """The comparison above can fail: other random numbers give other gradients."""
    one, other = make_model(), make_model()
    first = gradients(one)
    torch.manual_seed(2)
    other(IDS, labels=IDS, segments=SEGMENTS).loss.backward()
    grad = next(other.parameters()).grad
    assert grad is not None and not torch.equal(first[1], grad)


def test_full_keeps_less_than_half_and_disabling_keeps_all_again():
    model = make_model()
    everything = kept_by(model)
    model.gradient_checkpointing_enable("full")
    least = kept_by(model)
    model.gradient_checkpointing_disable()
    assert not activation_checkpointing.is_enabled(model)
    assert kept_by(model) == everything
    assert least < 0.5 * everything


def test_a_kv_cache_is_refused_in_training_and_works_without_gradients():
    model = make_model()
    model.gradient_checkpointing_enable()
    cache = KVCache(CONFIG.thinker, 2, 24)
    with pytest.raises(ValueError, match="gradient_checkpointing_disable"):
        model(IDS, cache=cache)
    model.eval()
    with torch.no_grad():
        model(IDS, cache=cache)
    assert cache.length == 24
    assert model.generate(IDS[:1], max_new_tokens=3, temperature=0, ignore_eos=True).shape == (1, 3)


def test_names_of_weights_and_copies_are_not_changed():
    model = make_model()
    names = list(model.state_dict())
    model.gradient_checkpointing_enable()
    assert list(model.state_dict()) == names
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_disable()
    assert activation_checkpointing.is_enabled(model)
    inner = copy.deepcopy(model).thinker.layers[0]
    assert inner.__dict__["forward"].block is inner


def test_an_unknown_mode_is_an_error():
    with pytest.raises(ConfigError, match="'half': there are full, selective"):
        make_model().gradient_checkpointing_enable("half")  # type: ignore[arg-type]
