"""The Talker against a slow reference, step by step against all at once, and what it can see."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.config.talker import TalkerConfig
from muomni.model import KVCache, SlotBatch, SlotCache
from muomni.model.talker import NONE, SpeechBatch, Talker, delay, undelay
from muomni.training.objectives.speech import talker_losses
from tests.model.talker.speech import PATTERNS, make_model, make_speech

SIZES = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=4)


def make_talker(**changes: Any) -> Talker:
    talker = make_model(**changes).talker
    assert talker is not None
    return talker


def make_states(batch: SpeechBatch, seed: int = 3) -> torch.Tensor:
    return torch.randn(len(batch.ids), 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sentence(batch: SpeechBatch, states: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
    """Units, states of units, codes, pointers and moves of one sentence."""
    first = sum(batch.frames[:n])
    rows = slice(first, first + batch.frames[n])
    length = batch.unit_lengths[n]
    heard = states[batch.words[n, :length]]
    return batch.units[n, :length], heard, batch.codes[rows], batch.pointers[rows], batch.moves[rows]


def slow_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    kernel = weight.T[:, None]
    return F.conv1d(x.T[None], kernel, bias, padding=(weight.shape[0] - 1) // 2, groups=x.shape[1])[0].T


def slow_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def slow_text(talker: Talker, units: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
    part: Any = talker.text
    x = part.embed_units.weight[units] + slow_norm(heard, part.state_norm.weight) @ part.state_proj.weight.T
    for block in part.layers:
        seen = slow_norm(slow_conv(x, block.depthwise.weight, block.depthwise.bias), block.norm.weight)
        x = x + block.scale * (F.gelu(seen @ block.up.weight.T) @ block.down.weight.T)
    return slow_norm(x, part.norm.weight) @ part.out.weight.T


def slow_code_logits(talker: Talker, hidden: torch.Tensor, codes: list[int], k: int) -> torch.Tensor:
    if talker.config.pattern != "depth":
        return talker.codes.heads[k].weight @ hidden
    part = talker.codes
    z = part.proj.weight @ hidden
    for j in range(k):
        z = z + part.embed_codes[j].weight[codes[j]]
    step = part.steps[k]
    mixed = z + step.down.weight @ F.gelu(step.up.weight @ slow_norm(z, step.norm.weight))
    return step.head.weight @ slow_norm(mixed, step.out_norm.weight)


def slow_losses(talker: Talker, batch: SpeechBatch, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentence by sentence, frame by frame, code by code."""
    config = talker.config
    K, V = config.num_codebooks, config.codebook_size
    table = talker.embed_codes.weight
    total_codes = total_moves = torch.zeros((), dtype=torch.float64)
    for n in range(len(batch.frames)):
        units, heard, codes, pointers, moves = sentence(batch, states, n)
        text = slow_text(talker, units, heard)
        steps = delay(codes) if config.pattern == "delay" else codes
        rows = []
        for t in range(len(steps)):
            x = text[pointers[min(t, len(codes) - 1)]] + talker.embed_voices.weight[batch.voices[n]]
            for k in range(K):
                before = int(steps[t - 1, k]) if t else NONE
                x = x + table[K * V if before == NONE else k * V + before]
            rows.append(x)
        hidden = talker.backbone(torch.stack(rows)[None])[0]
        for t in range(len(codes)):
            logits = talker.moves.weight @ hidden[t]
            weight = config.stop_weight if moves[t] == config.stop else 1.0
            total_moves = total_moves - weight * logits.log_softmax(-1)[moves[t]]
            for k in range(K):
                at = hidden[t + k] if config.pattern == "delay" else hidden[t]
                logits = slow_code_logits(talker, at, codes[t].tolist(), k)
                total_codes = total_codes - logits.log_softmax(-1)[codes[t, k]] / K
    return total_codes, total_moves


@pytest.mark.parametrize("pattern", PATTERNS)
@given(SIZES, st.integers(0, 100))
@settings(max_examples=12, deadline=None)
def test_losses_are_those_of_a_slow_reference(pattern, sizes, seed):
    talker = make_talker(pattern=pattern)
    batch = make_speech(talker.config, sizes, seed)
    states = make_states(batch)
    found = talker_losses(talker, batch, states)
    codes, moves = slow_losses(talker, batch, states)
    torch.testing.assert_close(found.codes, codes, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.moves, moves, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_gradients_are_those_of_a_slow_reference(pattern):
    talker = make_talker(pattern=pattern)
    batch = make_speech(talker.config)
    states = make_states(batch).requires_grad_()
    wanted = torch.autograd.grad(torch.stack(slow_losses(talker, batch, states)).sum(), [states, *talker.parameters()])
    losses = talker_losses(talker, batch, states)
    found = torch.autograd.grad(losses.codes + losses.moves, [states, *talker.parameters()])
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-9)


def forced(talker: Talker, batch: SpeechBatch, text: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All code and move logits of a sentence at once: (M, K, V) and (M, num_moves)."""
    first = sum(batch.frames[:n])
    codes = batch.codes[first : first + batch.frames[n]]
    pointers = batch.pointers[first : first + batch.frames[n]]
    steps = delay(codes) if talker.config.pattern == "delay" else codes
    pointers = F.pad(pointers[None].double(), (0, len(steps) - len(codes)), mode="replicate")[0].long()
    before = F.pad(steps[:-1], (0, 0, 1, 0), value=5)  # a first step's do not matter
    begins = torch.arange(len(steps)) == 0
    x = talker.inputs(before, begins, text[n, pointers], batch.voices[n].expand(len(steps)))
    hidden = talker.backbone(x[None])[0]
    return torch.stack(list(talker.codes.teacher_forced_logits(hidden, steps.clamp(min=0))), 1), talker.move_logits(
        hidden
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_frame_by_frame_is_all_at_once(pattern):
    """Rows of different lengths side by side over a cache of slots, as they are spoken."""
    talker = make_talker(pattern=pattern)
    config = talker.config
    batch = make_speech(config)
    lengths = torch.tensor(batch.unit_lengths)
    text = talker.encode_text(batch.units, make_states(batch)[batch.words], lengths)
    spoken = torch.split(batch.codes, list(batch.frames))
    steps = [delay(codes) if pattern == "delay" else codes for codes in spoken]
    pointers = torch.split(batch.pointers, list(batch.frames))
    cache = SlotCache(config.backbone, len(steps), max(map(len, steps)), dtype=torch.float64)
    logits: list[list[torch.Tensor]] = [[] for _ in steps]
    moves: list[list[torch.Tensor]] = [[] for _ in steps]
    for t in range(max(map(len, steps))):
        alive = [n for n in range(len(steps)) if t < len(steps[n])]
        slots, positions = torch.tensor(alive), torch.full((len(alive),), t)
        before = torch.stack([steps[n][max(0, t - 1)] for n in alive])
        at = torch.stack([pointers[n][min(t, len(pointers[n]) - 1)] for n in alive])
        x = talker.inputs(before, positions == 0, text[slots, at], batch.voices[slots])
        hidden = talker.backbone(x[None], positions[None], cache=SlotBatch(cache, slots, positions))[0]
        seen: list[torch.Tensor] = []

        def pick(given, k, seen=seen, alive=alive, t=t):
            assert k == len(seen)
            seen.append(given)
            return torch.stack([steps[n][t, k].clamp(min=0) for n in alive])

        codes = talker.frame(hidden, pick)
        assert torch.equal(codes, torch.stack([steps[n][t].clamp(min=0) for n in alive]))
        for row, n in enumerate(alive):
            logits[n].append(torch.stack([given[row] for given in seen]))
            moves[n].append(talker.move_logits(hidden)[row])
    for n in range(len(steps)):
        wanted = forced(talker, batch, text, n)
        torch.testing.assert_close(torch.stack(logits[n]), wanted[0], rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(torch.stack(moves[n]), wanted[1], rtol=1e-9, atol=1e-10)


def test_a_plain_cache_counts_the_steps():
    talker = make_talker()
    x = torch.randn(2, 6, 24, dtype=torch.float64)
    cache = KVCache(talker.config.backbone, 2, 6, dtype=torch.float64)
    pieces = [talker.backbone(x[:, :2], cache=cache), talker.backbone(x[:, 2:], cache=cache)]
    torch.testing.assert_close(torch.cat(pieces, 1), talker.backbone(x), rtol=1e-9, atol=1e-10)
    assert cache.length == 6


@given(st.integers(1, 3), st.sampled_from([1, 3, 5, 7]), st.data())
@settings(max_examples=20, deadline=None)
def test_the_text_is_seen_so_far_ahead_and_no_further(layers, kernel, data):
    talker = make_talker(text_layers=layers, text_kernel=kernel)
    ahead = talker.config.lookahead
    assert ahead == layers * (kernel - 1) // 2
    U = 24
    units = torch.randint(256, (1, U))
    states = torch.randn(1, U, 64, dtype=torch.float64)
    base = talker.encode_text(units, states)
    place = data.draw(st.integers(0, U - 1))
    changed, heard = units.clone(), states.clone()
    changed[0, place] = (changed[0, place] + 1) % 256
    heard[0, place] += 1
    for other in (talker.encode_text(changed, states), talker.encode_text(units, heard)):
        differs = (other != base).any(-1)[0]
        near = (torch.arange(U) - place).abs() <= ahead
        assert torch.equal(differs, near)


@given(SIZES, st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_padding_of_the_text_does_not_matter(sizes, more):
    talker = make_talker()
    batch = make_speech(talker.config, sizes)
    states = make_states(batch)
    units, words = F.pad(batch.units, (0, more), value=7), F.pad(batch.words, (0, more), value=0)
    encoded = talker.encode_text(units, states[words], torch.tensor(batch.unit_lengths))
    for n, length in enumerate(batch.unit_lengths):
        alone = talker.encode_text(units[n : n + 1, :length], states[words[n : n + 1, :length]])
        torch.testing.assert_close(encoded[n, :length], alone[0], rtol=1e-9, atol=1e-11)
        assert not encoded[n, length:].any()
    padded = dataclasses.replace(batch, units=units, words=words)
    one, other = talker_losses(talker, batch, states), talker_losses(talker, padded, states)
    assert torch.equal(one.codes, other.codes) and torch.equal(one.moves, other.moves)


@given(st.integers(1, 20), st.integers(1, 8))
def test_undelay_undoes_delay(frames, K):
    codes = torch.randint(100, (frames, K))
    steps = delay(codes)
    assert steps.shape == (frames + K - 1, K)
    assert all(steps[t + k, k] == codes[t, k] for t in range(frames) for k in range(K))
    assert int((steps == NONE).sum()) == K * (K - 1)
    assert torch.equal(undelay(steps), codes)
    if K > 1:
        with pytest.raises(ValueError, match="are no frame"):
            undelay(steps[: K - 1])


def test_noise_replaces_the_share_it_says_and_only_in_training():
    talker = make_talker(code_corruption=0.25, conditioning_dropout=0.0)
    codes = torch.randint(7, (4000, 3))
    assert torch.equal(talker._with_noise(codes), codes)
    talker.train()
    torch.manual_seed(0)
    noisy = talker._with_noise(codes)
    # A frame of random codes is the same by chance once in 343 times.
    assert 0.22 < (noisy != codes).any(1).float().mean() < 0.28
    torch.manual_seed(0)
    assert torch.equal(talker._with_noise(codes), noisy)


def test_some_sentences_are_without_states_in_training():
    talker = make_talker(code_corruption=0.0, conditioning_dropout=0.5)
    batch = make_speech(talker.config, [(3, 4, 2)])
    states = make_states(batch)
    heard, deaf = (float(talker_losses(talker, batch, s).codes.detach()) for s in (states, torch.zeros_like(states)))
    talker.train()
    torch.manual_seed(0)
    found = [float(talker_losses(talker, batch, states).codes.detach()) for _ in range(40)]
    assert {round(x, 9) for x in found} == {round(heard, 9), round(deaf, 9)}
    assert 8 < sum(abs(x - deaf) < 1e-9 for x in found) < 32


def test_configurations_that_do_not_fit_are_refused():
    fits = make_talker().config.model_dump()
    for change, words in (
        ({"text_kernel": 4}, "must be odd"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"head_dim": 5}, "must be even"),
        ({"voices": ("a", "a")}, "must differ"),
    ):
        with pytest.raises(ValueError, match=words):
            TalkerConfig.model_validate(fits | change)
