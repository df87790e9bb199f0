"""The generation loop: ends, lengths, modes, seeds, errors."""

from typing import Any

import pytest
import torch
from torch import Tensor

from muomni.config import OmniConfig, preset
from muomni.errors import PromptError
from muomni.infer import SamplingParams, generate
from muomni.infer.reference import next_tokens
from muomni.model import OmniModel, OmniOutput
from muomni.model.module_modes import eval_mode


@pytest.fixture(scope="module")
def model() -> OmniModel:
    return make()


def make(**changes: Any) -> OmniModel:
    thinker = preset("nano").thinker.replace(vocab_size=100, initializer_range=0.2, **changes)
    return OmniModel(OmniConfig(thinker=thinker), torch.Generator().manual_seed(0)).eval()


GREEDY = SamplingParams(temperature=0, max_new_tokens=20)
IDS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])


def test_rows_end_separately_and_are_filled(model: OmniModel) -> None:
    whole = generate(model, IDS, GREEDY)
    assert whole.shape == (3, 20) and whole.dtype == torch.int64
    # An end token for each row, so that all end, at different steps.
    first = {int(token): step for step, token in reversed(list(enumerate(whole[0].tolist())))}
    ends = [next(t for t in whole[0].tolist() if first[t] > 1), int(whole[1, 4]), int(whole[2, 7])]
    out = generate(model, IDS, GREEDY, end_ids=ends)
    lengths = [next(i for i, t in enumerate(row.tolist()) if t in ends) + 1 for row in whole]
    assert out.shape == (3, max(lengths))
    assert len(set(lengths)) > 1
    for row, full, length in zip(out, whole, lengths, strict=True):
        assert torch.equal(row[:length], full[:length])
        assert (row[length:] == ends[0]).all()


def test_the_configurations_end_tokens_count_when_none_are_given(model: OmniModel) -> None:
    end = int(generate(model, IDS[:1], GREEDY)[0, 3])
    other = make()
    other.config = other.config.replace(eos_token_ids=(end,))
    out = generate(other, IDS[:1], GREEDY)
    assert out.shape[1] <= 4 and out[0, -1] == end
    assert generate(other, IDS[:1], SamplingParams(temperature=0, max_new_tokens=20, ignore_eos=True)).shape == (1, 20)


def test_a_row_does_not_depend_on_its_neighbours(model: OmniModel) -> None:
    together = generate(model, IDS, GREEDY)
    assert torch.equal(together, torch.cat([generate(model, row[None], GREEDY) for row in IDS]))


def test_each_step_computes_one_token_and_one_row_of_logits(model: OmniModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    forward = OmniModel.forward

    def spy(self: OmniModel, input_ids: Tensor, **options: Any) -> OmniOutput:
        assert torch.is_inference_mode_enabled()
        out = forward(self, input_ids, **options)
        assert out.logits is not None
        seen.append((input_ids.shape[1], out.logits.shape[1]))
        return out

    monkeypatch.setattr(OmniModel, "forward", spy)
    generate(model, IDS, GREEDY)
    assert seen == [(3, 1)] + [(1, 1)] * 19


def test_the_context_caps_the_length(model: OmniModel) -> None:
    ids = torch.randint(100, (2, 250))
    assert generate(model, ids, GREEDY).shape == (2, 6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 256), "256 tokens and the model's context is 256"),
        ((2, 300), "300 tokens and the model's context is 256"),
        ((1, 0), "empty"),
        ((0, 3), "empty"),
        ((5,), r"must be \(rows, tokens\), not of shape \(5,\)"),
    ],
)
def test_ids_that_cannot_be_continued_are_refused(model: OmniModel, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generate(model, torch.zeros(shape, dtype=torch.int64), GREEDY)


def test_stop_texts_are_refused_where_there_is_no_text(model: OmniModel) -> None:
    with pytest.raises(PromptError, match="stop"):
        generate(model, IDS, SamplingParams(stop="x"))


def test_a_seed_repeats_and_no_seed_does_not(model: OmniModel) -> None:
    def draw(seed: int | None, **settings: Any) -> list[list[int]]:
        return generate(model, IDS, SamplingParams(seed=seed, max_new_tokens=30, **settings)).tolist()

    assert draw(1) == draw(1) != draw(2)
    assert draw(1, repetition_penalty=1.3) == draw(1, repetition_penalty=1.3) != draw(1)
    assert draw(None) != draw(None)


def test_generation_does_not_touch_the_global_random_state(model: OmniModel) -> None:
    before = torch.get_rng_state()
    generate(model, IDS, SamplingParams(max_new_tokens=5))
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_is_off_while_generating_and_the_mode_comes_back(model: OmniModel) -> None:
    other = make(dropout=0.5)
    other.load_state_dict(model.state_dict())
    other.train()
    other.thinker.layers[0].eval()  # frozen by its user
    modes = [module.training for module in other.modules()]
    assert torch.equal(generate(other, IDS, GREEDY), generate(model, IDS, GREEDY))
    assert [module.training for module in other.modules()] == modes
    with pytest.raises(RuntimeError, match="expected"), eval_mode(other):
        raise RuntimeError("expected")
    assert [module.training for module in other.modules()] == modes
    steps = next_tokens(other, IDS, GREEDY)
    next(steps)
    assert not other.training
    steps.close()
    assert [module.training for module in other.modules()] == modes


def test_gradients_stay_on_for_the_reader_of_a_stream(model: OmniModel) -> None:
    for token in next_tokens(model, IDS, GREEDY):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert not token.requires_grad
    out = generate(model, IDS, GREEDY)
    assert not out.is_inference()
    assert model(torch.cat((IDS, out), 1), labels=torch.cat((IDS, out), 1)).loss.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_generate(dtype: torch.dtype) -> None:
    assert generate(make().to(dtype), IDS, GREEDY).shape == (3, 20)


def test_generation_works_under_autocast(model: OmniModel) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(model, IDS, GREEDY).shape == (3, 20)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{"temperature": 0}, {"seed": 1}, {"min_p": 0.1, "repetition_penalty": 1.2}])
def test_the_loop_never_waits_for_the_device(settings: dict[str, Any]) -> None:
    model = make().cuda()
    ids = IDS.cuda()
    params = SamplingParams(max_new_tokens=20, ignore_eos=True, **settings)
    expected = generate(model, ids, params)  # also loads kernels, which waits
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = generate(model, ids, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    if "temperature" in settings or "seed" in settings:
        assert torch.equal(out, expected)
