"""The comparison of two models' predictions, against its definition over whole logits."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from muomni import MuOmni
from muomni.config import DataSpec
from muomni.data import PackedDataset
from muomni.data.index.build import build_index
from muomni.eval import quantization_quality as quality_module
from muomni.eval.quantization_quality import Quality, compare_caches, compare_models
from muomni.ops.attention import Segments
from muomni.ops.cross_entropy import shift_labels


@pytest.fixture
def rows(nano_folder: Any, tmp_path: Any) -> PackedDataset:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(f'{{"text": "The cat sat on mat {i}. What is this?"}}\n' for i in range(30)))
    tokenizer = MuOmni.from_pretrained(nano_folder, device="cpu").tokenizer
    assert tokenizer is not None
    sources = DataSpec.model_validate({"train": [str(path)]}).train
    return PackedDataset(build_index(sources, tokenizer), 64, shuffle=False)


def test_a_model_is_like_itself(nano_folder: Any, rows: PackedDataset) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    found = compare_models(model, model, rows, 3)
    assert (found.kl, found.top1, found.perplexity_change) == (0, 1, 0)


def test_it_is_the_definition(nano_folder: Any, rows: PackedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_module, "_POSITIONS", 13)
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    done: list[int] = []
    found = compare_models(model, other, rows, 2, done.append)
    assert done == [1, 2]
    batch = rows.batch(0, 2)
    segments = Segments(batch.cu_seqlens, batch.max_seqlen)
    with torch.no_grad():
        old, new = (
            m(batch.input_ids, positions=batch.positions, segments=segments).logits.double().flatten(0, 1)
            for m in (model, other)
        )
    targets = shift_labels(batch.labels).flatten()
    keep = targets != -100
    old, new, targets = old[keep], new[keep], targets[keep]
    expected = Quality(
        len(targets),
        math.exp(nn.functional.cross_entropy(old, targets)),
        math.exp(nn.functional.cross_entropy(new, targets)),
        float(nn.functional.kl_div(new.log_softmax(-1), old.log_softmax(-1), log_target=True, reduction="batchmean")),
        float((old.argmax(-1) == new.argmax(-1)).double().mean()),
    )
    assert expected.kl > 0.01 and expected.top1 < 1
    assert found.targets == expected.targets and found.top1 == pytest.approx(expected.top1)
    for name in ("reference_perplexity", "perplexity", "kl"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-3)


def test_training_mode_is_refused(nano_folder: Any, rows: PackedDataset) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    with pytest.raises(ValueError, match="evaluation mode"):
        compare_models(model, copy.deepcopy(model).train(), rows, 1)


def _texts(model: MuOmni) -> list[list[int]]:
    assert model.tokenizer is not None
    sentences = ["The cat sat on the mat. What is this?", "Hello there! The dog slept, and then the dog ate the bone."]
    return [model.tokenizer.encode(sentence * 8) for sentence in sentences]


def test_an_int8_cache_costs_next_to_nothing(nano_folder: Any) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    texts = _texts(model)
    same = compare_caches(model, texts, torch.float32)
    assert (same.kl, same.top1, same.perplexity_change) == (0, 1, 0)
    assert same.targets == sum(len(ids) - 1 for ids in texts)
    found = compare_caches(model, texts)
    assert 0 < found.kl < 1e-3
    assert found.top1 > 0.97
    assert abs(found.perplexity_change) < 5e-3


def test_a_coarser_cache_is_seen(nano_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bounds above must be able to fail: with 3 bits instead of 8 they do.
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    round_up = torch.Tensor.round_
    monkeypatch.setattr(torch.Tensor, "round_", lambda x: round_up(x / 32) * 32)
    assert compare_caches(model, _texts(model)).kl > 1e-3


def test_caches_are_compared_by_what_the_whole_model_says(nano_folder: Any) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    ids = torch.tensor(_texts(model)[0])
    with torch.no_grad():
        logits = model(ids[None, :-1]).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, ids[1:])
    found = compare_caches(model, [ids.tolist(), [1]])
    assert found.reference_perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    for wrong in ([], [[1]]):
        with pytest.raises(ValueError, match="no token to predict"):
            compare_caches(model, wrong)
    with pytest.raises(ValueError, match="evaluation mode"):
        compare_caches(model.train(), [[1, 2]])
