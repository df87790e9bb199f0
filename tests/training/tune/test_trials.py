"""Step configurations that take turns on random tokens: real processes on a model of no size."""

import pytest

from muomni.accel.step_config import StepConfig
from muomni.config import Recipe
from muomni.errors import MuOmniError
from muomni.training.tune.trials import take_turns


def make_recipe(**more: object) -> Recipe:
    data = {"train": "not read", "seq_len": 32}
    recipe = {"model": {"preset": "nano"}, "tokenizer": {"vocab_size": 384}, "data": data, "max_steps": 100}
    return Recipe.model_validate(recipe | {"device": "cpu", "batch_size": 2, "gradient_accumulation_steps": 8} | more)


def test_configurations_take_turns_and_their_steps_are_timed_whole() -> None:
    recipe, said = make_recipe(), list[str]()
    own = StepConfig.of(recipe)
    steps = [own, own.with_micro_batch(8)]
    seconds = take_turns(recipe, steps, said.append)
    assert list(seconds) == steps and all(len(times) == 3 and min(times) > 0 for times in seconds.values())
    assert said[-1] == "round 3 of 3"


def test_what_cannot_be_taken_here_is_told() -> None:
    said: list[str] = []
    with pytest.raises(MuOmniError, match="no step configuration could be measured here: .*a CPU has no fast fp16"):
        recipe = make_recipe(precision="fp16")
        take_turns(recipe, [StepConfig.of(recipe)], said.append)
