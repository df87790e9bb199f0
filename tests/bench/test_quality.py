"""The comparison of two models' predictions, against its definition over whole logits."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from muomni import MuOmni
from muomni.bench import quality as quality_module
from muomni.bench.quality import Quality, compare_models
from muomni.config import DataSpec
from muomni.data import PackedRows
from muomni.data.cache import build_token_cache
from muomni.ops.attention import Segments
from muomni.ops.loss import shift_labels


@pytest.fixture
def rows(nano_folder: Any, tmp_path: Any) -> PackedRows:
    path = tmp_path / "text.jsonl"
    path.write_text("".join(f'{{"text": "The cat sat on mat {i}. What is this?"}}\n' for i in range(30)))
    tokenizer = MuOmni.from_pretrained(nano_folder, device="cpu").tokenizer
    assert tokenizer is not None
    sources = DataSpec.model_validate({"train": [str(path)]}).train
    return PackedRows(build_token_cache(sources, tokenizer), 64, shuffle=False)


def test_a_model_is_like_itself(nano_folder: Any, rows: PackedRows) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    found = compare_models(model, model, rows, 3)
    assert (found.kl, found.top1, found.perplexity_change) == (0, 1, 0)


def test_it_is_the_definition(nano_folder: Any, rows: PackedRows, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_training_mode_is_refused(nano_folder: Any, rows: PackedRows) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    with pytest.raises(ValueError, match="evaluation mode"):
        compare_models(model, copy.deepcopy(model).train(), rows, 1)
