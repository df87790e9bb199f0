"""The whole model: packed rows, the loss, arguments that would be ignored, sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from muomni.config import OmniConfig, ThinkerConfig, preset
from muomni.model import KVCache, OmniModel
from muomni.ops.attention import Segments


def make(dtype: torch.dtype = torch.float32, **changes: object) -> OmniModel:
    values: dict[str, object] = {
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    thinker = ThinkerConfig.model_validate(values | changes)
    return OmniModel(OmniConfig(thinker=thinker), torch.Generator().manual_seed(0)).to(dtype).eval()


@st.composite
def packings(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    """Row length, and for each row the lengths of its documents, which fill it."""
    T = draw(st.integers(1, 16))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        left, lengths = T, []
        while left:
            lengths.append(draw(st.integers(1, left)))
            left -= lengths[-1]
        rows.append(lengths)
    return T, rows


@settings(max_examples=40)
@given(packings(), st.integers(0, 999))
def test_packed_documents_are_as_if_alone(packing: tuple[int, list[list[int]]], seed: int) -> None:
    T, rows = packing
    model = make()
    ids = torch.randint(40, (len(rows), T), generator=torch.Generator().manual_seed(seed))
    lengths = [length for row in rows for length in row]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in lengths]).view(len(rows), T)
    with torch.inference_mode():
        packed = model(ids, positions=positions, segments=Segments(cu_seqlens, max(lengths))).logits.flatten(0, 1)
        for document, logits in zip(ids.flatten().split(lengths), packed.split(lengths), strict=True):
            torch.testing.assert_close(logits, model(document[None]).logits[0], rtol=1e-5, atol=1e-5)


def test_the_loss_and_its_gradients_are_those_of_the_logits() -> None:
    model = make(torch.float64)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(40, (3, 10), generator=generator)
    labels = torch.where(torch.rand(3, 10, generator=generator) < 0.4, -100, ids)
    logits = model(ids).logits
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    out = model(ids, labels=labels)
    assert out.logits is None
    torch.testing.assert_close(out.loss, expected)
    for got, wanted in zip(torch.autograd.grad(out.loss, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(got, wanted)
    total = model.text_loss(out.hidden, labels)
    torch.testing.assert_close(total, expected * int((labels[:, 1:] != -100).sum()))


def test_no_target_at_all_is_a_loss_of_zero() -> None:
    ids = torch.ones(2, 5, dtype=torch.int64)
    assert make()(ids, labels=torch.full_like(ids, -100)).loss == 0


def test_logits_to_keep_gives_the_last_logits_only() -> None:
    model, ids = make(), torch.arange(10)[None]
    whole = model(ids).logits
    assert whole.shape == (1, 10, 40)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole[:, -3:])


def test_an_argument_that_would_be_ignored_is_an_error() -> None:
    model, ids = make(), torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="neither cache nor logits_to_keep"):
        model(ids, labels=ids, logits_to_keep=1)
    cache = KVCache(model.config.thinker, 1, 4, torch.float32)
    with pytest.raises(ValueError, match="neither cache nor logits_to_keep"):
        model(ids, labels=ids, cache=cache)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["nano", "tiny", "small", "base"])
def test_the_configuration_knows_the_number_of_parameters(name: str, tied: bool) -> None:
    config = preset(name)  # type: ignore[arg-type]
    config = config.replace(thinker=config.thinker.replace(tie_word_embeddings=tied))
    with torch.device("meta"):
        assert OmniModel(config).num_parameters() == config.thinker.num_parameters()


def test_every_matrix_is_a_plain_linear_or_the_embedding() -> None:
    owners = {type(module) for module in make().modules() for p in module.parameters(recurse=False) if p.ndim == 2}
    assert owners == {nn.Linear, nn.Embedding}


def test_a_generator_fixes_the_initial_weights() -> None:
    first, second = make(), make()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    std = float(first.thinker.layers[0].mlp.gate_proj.weight.detach().std())
    assert 0.25 < std < 0.35
    branch = float(first.thinker.layers[0].mlp.down_proj.weight.detach().std())
    assert branch == pytest.approx(0.3 / 2, rel=0.2)  # √(2L) = 2
