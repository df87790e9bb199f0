"""The bigram baseline against a count by hand."""

import json
import math
from collections import Counter

import pytest

from muomni.config import DataSpec, TokenizerSpec
from muomni.data import PackedDataset, prepare, prepare_tokenizer
from muomni.eval.bigram_baseline import Bigram
from muomni.ops.cross_entropy import IGNORE, shift_labels


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"the cat {i % 7} sees the dog {i % 5}"}) for i in range(80)))
    spec = DataSpec.model_validate(
        {"train": str(path), "val_fraction": 0.2, "seq_len": 16, "cache_dir": str(tmp_path / "cache")}
    )
    tokenizer = prepare_tokenizer(TokenizerSpec(vocab_size=320), spec)
    data = prepare(spec, tokenizer)
    return tokenizer, *(PackedDataset(part, 16, shuffle=False) for part in (data.train, data.val))


def pairs(rows: PackedDataset) -> list[tuple[int, int]]:
    batch = rows.batch(0, rows.num_rows)
    targets = shift_labels(batch.labels)
    return [
        (a, b)
        for row_ids, row_targets in zip(batch.input_ids.tolist(), targets.tolist(), strict=True)
        for a, b in zip(row_ids, row_targets, strict=True)
        if b != IGNORE
    ]


def test_it_equals_a_count_by_hand(rows):
    tokenizer, train, val = rows
    lengths = tokenizer.byte_lengths()
    V = tokenizer.vocab_size
    bits, k = Bigram(train, V).bits_per_byte(val, lengths, max_rows=1000)
    learnt = pairs(train)
    both, first, second = Counter(learnt), Counter(a for a, _ in learnt), Counter(b for _, b in learnt)
    unigram = {b: (second[b] + 1) / (len(learnt) + V) for b in range(V)}

    def bits_with(strength: float) -> float:
        asked = pairs(val)
        total = -sum(math.log2((both[a, b] + strength * unigram[b]) / (first[a] + strength)) for a, b in asked)
        return total / sum(int(lengths[b]) for _, b in asked)

    assert bits == pytest.approx(bits_with(k))
    assert bits <= min(bits_with(other) for other in (0.1, 1.0, 1000.0)) + 1e-12


def test_rows_are_counted_as_far_as_asked(rows):
    tokenizer, train, val = rows
    few, _ = Bigram(train, tokenizer.vocab_size, max_rows=1).bits_per_byte(val, tokenizer.byte_lengths(), 1000)
    every, _ = Bigram(train, tokenizer.vocab_size).bits_per_byte(val, tokenizer.byte_lengths(), 1000)
    assert every < few
