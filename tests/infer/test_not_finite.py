"""Logits that are NaN or infinite are an error that names the weights, never a token."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from muomni import MuOmni
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import NonFiniteError, SpeechError
from muomni.infer.runners.compiled_step import run_step
from muomni.infer.runners.select import EagerRunner
from muomni.infer.sampling import SamplingParams, most_likely, sample
from muomni.model import SlotCache
from tests.infer.speech.models import make_speaking

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "speculate": True},
    {"temperature": 0, "repetition_penalty": 1.3},
    {"seed": 1},
    {"seed": 1, "top_k": 0, "top_p": 1.0},
    {"seed": 1, "top_k": 0, "min_p": 0.1},
]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(top_k=0, top_p=1),
        SamplingParams(top_k=5, top_p=1),
        SamplingParams(top_k=5),
        SamplingParams(top_k=0, top_p=0.5),
        SamplingParams(min_p=0.2),
    ],
)
def test_a_row_that_is_not_finite_is_marked_and_the_others_are_drawn(bad: float, params: SamplingParams) -> None:
    logits = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    uniform = torch.tensor([0.1, 0.5, 0.9])
    expected = sample(logits, params, uniform)
    if bad > 0 or bad != bad:
        logits[1, 7] = bad
    else:
        logits[1] = bad  # a single token that cannot come is none the worse
    assert sample(logits, params, uniform).tolist() == [expected[0], -1, expected[2]]


@pytest.fixture
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu")


@torch.no_grad()
def break_layer(model: MuOmni) -> str:
    weight: Any = model.thinker.layers[1].mlp.up_proj.weight
    weight[2, 3] = torch.nan
    return r"thinker\.layers\.1\.mlp\.up_proj\.weight holds some that are not finite; take an earlier checkpoint"


@torch.no_grad()
def overflow(model: MuOmni) -> str:
    model.thinker.norm.weight.fill_(3e38)
    return "all its weights are finite: something in between is too large for float32"


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_reply_is_an_error_that_names_the_weights(model: MuOmni, settings: dict[str, Any]) -> None:
    message = break_layer(model)
    with pytest.raises(NonFiniteError, match=message):
        model.complete("The cat sat", max_new_tokens=20, ignore_eos=True, **settings)
    if "speculate" not in settings:
        with pytest.raises(NonFiniteError, match=message):
            model.generate(torch.tensor([[1, 2, 3]]), use_cache=False, max_new_tokens=3, **settings)


def test_an_overflow_is_told_and_the_other_replies_are_given(model: MuOmni) -> None:
    with pytest.raises(NonFiniteError, match=overflow(model)):
        model.chat("Hello", max_new_tokens=3, temperature=0)


def test_greedy_steps_of_each_runner_mark_it(model: MuOmni) -> None:
    break_layer(model)
    cache = SlotCache(model.config.thinker, 2, 32)
    tokens, slots, positions = torch.tensor([1, 2]), torch.tensor([0, 1]), torch.tensor([0, 0])
    with torch.inference_mode():
        assert EagerRunner(model, cache).greedy(tokens, slots, positions, 3).tolist() == [[-1] * 3] * 2
        after: Tensor = torch.tensor([-1, -1])  # what a compiled step goes on with
        _, following = run_step(model.thinker, cache, 32, True, after, slots, positions, slots)
    assert following.tolist() == [-1, -1]
    assert most_likely(torch.tensor([[1.0, 3.0, 2.0]])).tolist() == [1]


@pytest.mark.parametrize("name", ["talker.layers.0.mlp.up_proj.weight", "talker.norm.weight"])
def test_speech_is_an_error_that_names_the_weights(small_tokenizer: Tokenizer, name: str) -> None:
    model = make_speaking(small_tokenizer)
    with torch.no_grad():
        model.get_parameter(name)[0] = torch.nan
    inside = name.removeprefix("talker.").replace(".", r"\.")
    with pytest.raises(SpeechError, match=f"the sentence 'Hello there.*{inside} holds some"):
        model.say("Hello there!", seed=1)
