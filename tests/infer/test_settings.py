"""What is set once on a model, and settings that have no effect together."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni import MuOmni
from muomni.errors import ConfigError, PromptError

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 12, "ignore_eos": True}


@pytest.fixture
def model(nano_folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(nano_folder, device="cpu")


def test_an_int8_cache_is_set_on_the_model(model: MuOmni) -> None:
    assert model.cache_dtype == "auto"
    plain = model.chat("Hello there!", **GREEDY)
    assert model.runtime.engine(model, 1, 16).cache.dtype == torch.float32
    model.cache_dtype = "int8"
    model.runner = "auto"
    assert model.runtime.engine(model, 1, 16).cache.dtype == torch.int8
    assert "the native decoder knows float32 and bfloat16" in model.runtime.engine(model, 1, 16).note
    replies = [
        model.chat("Hello there!", **GREEDY),
        model.chat_batch(["Hello there!", "The cat"], **GREEDY)[0],
        model.stream("Hello there!", **GREEDY).finish(),
    ]
    assert len({reply.tokens for reply in replies}) == 1
    assert len(replies[0].tokens) == len(plain.tokens)
    assert model.generate(torch.tensor([[1, 2, 3]]), **GREEDY).shape == (1, 12)
    assert model.runtime.engine(model, 1, 16).cache.dtype == torch.int8
    model.cache_dtype = "auto"
    assert model.chat("Hello there!", **GREEDY).tokens == plain.tokens
    assert model.runtime.engine(model, 1, 16).cache.dtype == torch.float32


def test_a_runner_is_set_on_the_model_and_a_named_one_is_taken_or_refused(model: MuOmni, nano_folder: Path) -> None:
    assert model.runner == "eager"
    expected = model.chat("Hello there!", **GREEDY).tokens
    model.runner = "auto"
    assert model.runner == copy.deepcopy(model).runner == "auto"
    assert model.chat("Hello there!", **GREEDY).tokens == expected
    wrong: Any = "fast"
    with pytest.raises(ConfigError, match="runner = 'fast': there are auto, eager, native, compiled"):
        model.runner = wrong
    with pytest.raises(ConfigError, match="runner = 'fast'"):
        MuOmni.from_pretrained(nano_folder, device="cpu", runner=wrong)
    model.runner, model.cache_dtype = "native", "int8"
    with pytest.raises(ConfigError, match="the native runner cannot be had: a cache of torch.int8"):
        model.chat("Hello there!", **GREEDY)


def test_another_cache_is_refused(model: MuOmni) -> None:
    wrong: Any = "int4"
    with pytest.raises(ConfigError, match="cache_dtype = 'int4': there are auto, int8"):
        model.cache_dtype = wrong
    assert model.cache_dtype == "auto"


@pytest.mark.parametrize(
    ("settings", "named"),
    [({}, "temperature = 0.8"), ({"temperature": 0, "repetition_penalty": 1.2}, "repetition_penalty = 1.2")],
)
@pytest.mark.parametrize("draft", [False, True])
def test_guessing_where_nothing_can_be_guessed_is_refused(
    model: MuOmni, nano_folder: Path, settings: dict[str, Any], named: str, draft: bool
) -> None:
    speculate: Any = MuOmni.from_pretrained(nano_folder, device="cpu") if draft else True
    for call in (model.chat, model.complete, model.stream, lambda prompt, **how: model.chat_batch([prompt], **how)):
        with pytest.raises(PromptError, match=f"has no effect with {named}"):
            call("Hello", speculate=speculate, **settings)
    assert model.chat("Hello", **settings, max_new_tokens=3).tokens
    assert model.chat("Hello", speculate=speculate, **GREEDY).tokens


def test_the_prompt_whose_own_settings_leave_nothing_to_guess_is_named(model: MuOmni) -> None:
    own = [{}, {"temperature": 1.0}]
    with pytest.raises(PromptError, match=r"prompt 2 of 2: .* temperature = 1.0"):
        model.chat_batch(["Hello", "The cat"], sampling=own, speculate=True, **GREEDY)


def test_guesses_that_would_have_no_effect_on_deterministic_replies_are_refused(
    model: MuOmni, nano_folder: Path
) -> None:
    model.runner = "eager"
    draft: Any = MuOmni.from_pretrained(nano_folder, device="cpu")
    for speculate in (True, draft):
        with pytest.raises(PromptError, match="no effect with batch_invariant, as the steps of EagerRunner round by"):
            model.chat("Hello", batch_invariant=True, speculate=speculate, **GREEDY)
        with pytest.raises(PromptError, match="no effect with batch_invariant"):
            model.chat_batch(["Hello", "The cat"], batch_invariant=True, speculate=speculate, **GREEDY)
    assert not model.runtime.engine(model, 1, 16).active
    assert model.chat("Hello", batch_invariant=True, **GREEDY) and model.chat("Hello", speculate=True, **GREEDY)
