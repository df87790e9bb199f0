"""What a run is put together from: tokenizer, rows, model, optimizer and step, each as the recipe has it."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from muomni.accel.device import pick_device
from muomni.accel.distributed import Group
from muomni.accel.execution_plan import Plan, make_plan
from muomni.accel.measurements.verdicts import load_verdicts
from muomni.config import OmniConfig, Recipe, read_json
from muomni.data import (
    PreparedRows,
    SpeechDataset,
    Tokenizer,
    WithSpeech,
    prepare_rows,
    prepare_tokenizer,
)
from muomni.formats.tensors import resolve_folder
from muomni.model import OmniModel
from muomni.train.forecast.memory import expected_config
from muomni.train.init_model import initial_config, initial_model
from muomni.train.init_talker import Speech, prepare_speech
from muomni.train.optim.build import build_optimizers
from muomni.train.optim.lr_schedule import lr_factors
from muomni.train.step import TrainStep

ResultT = TypeVar("ResultT")
DECLINED = "declined.json"
# Between the seeds of two processes, so that neighbouring recipe seeds share no process's random numbers.
_RANK_SEEDS = 0x9E3779B97F4A7C15


def plan_of(recipe: Recipe, run: Path | None = None) -> Plan:
    """The optimizations of a run; what was measured to lose with this model here is declined, see `make_plan`.

    Args:
        recipe: of the run.
        run: the folder of a run that is resumed: it declines what it declined when it began.
    """
    config = expected_config(recipe)
    if run is not None:
        path = run / DECLINED
        return make_plan(recipe.replace(**read_json(path)) if path.is_file() else recipe, config)
    return make_plan(recipe, config, load_verdicts(pick_device(recipe.device), config.thinker))


def find_tokenizer(recipe: Recipe, start: Path | None = None) -> Tokenizer:
    """That of the checkpoint that a run goes on from, of the model that it begins with, or the recipe's."""
    if start is not None:
        return Tokenizer.load(start)
    if recipe.model.init_from is not None:
        return Tokenizer.load(resolve_folder(Path(recipe.model.init_from)))
    return prepare_tokenizer(recipe.tokenizer, recipe.data)


@dataclass(frozen=True)
class Read:
    """What a run reads, and the sizes of the model that follow from it."""

    rows: PreparedRows
    config: OmniConfig


@contextmanager
def open_rows(recipe: Recipe, tokenizer: Tokenizer, plan: Plan, group: Group) -> Iterator[Read]:
    """The rows of a run; threads that read ahead end with the block.

    Raises:
        DataError: the data cannot be read.
        ConfigError: they do not go with the model.
    """
    speech = _on_each_machine(group, partial(prepare_speech, recipe, plan.device)) if recipe.data.speech else None
    config = initial_config(recipe, tokenizer, () if speech is None else speech.voices)
    read = Read(_data(recipe, tokenizer, config, group, speech), config)
    with closing(read.rows.train):
        yield read


def build(
    recipe: Recipe, config: OmniConfig, plan: Plan, group: Group, total_steps: int
) -> tuple[OmniModel, TrainStep]:
    """The model as it begins, with the plan's optimizations, and what takes its steps."""
    torch.manual_seed((recipe.seed + group.rank * _RANK_SEEDS) % 2**63)
    model = initial_model(recipe, config)
    model.freeze(recipe.freeze)
    if group.kind != "fsdp":
        model = model.to(plan.device)
    called = plan.apply(model, group)
    optimizers = build_optimizers(model, recipe.optimizer, plan.precision)
    factors = lr_factors(recipe.schedule, total_steps)
    losses = recipe.losses.model_dump()
    return model, TrainStep(called, optimizers, factors, recipe.max_grad_norm, plan.precision, group, losses)


def _data(
    recipe: Recipe, tokenizer: Tokenizer, config: OmniConfig, group: Group, speech: Speech | None
) -> PreparedRows:
    """The rows: of text and media, of pairs of text and speech, or both."""
    if recipe.data.train:
        prepare = partial(prepare_rows, recipe.data, tokenizer, config, recipe.seed)
        data = _on_each_machine(group, lambda progress: prepare(progress=progress))
        if speech is None:
            return data
    assert speech is not None and recipe.data.speech is not None and config.talker is not None
    spoken = SpeechDataset(speech.train, tokenizer, config.talker, recipe.seed, shuffle=recipe.data.shuffle)
    held_out = SpeechDataset(speech.val, tokenizer, config.talker, recipe.seed, shuffle=False)
    if not recipe.data.train:
        return PreparedRows(spoken, held_out, speech.notes)
    count = recipe.data.speech.pairs_per_sequence
    return PreparedRows(
        WithSpeech(data.train, spoken, count), WithSpeech(data.val, held_out, count), (*data.notes, *speech.notes)
    )


def _on_each_machine(group: Group, prepare: Callable[[bool], ResultT]) -> ResultT:
    """What `prepare` gives; its caches are built by one process of each machine and then opened by the others.

    Args:
        group: all of them.
        prepare: called with whether to show progress.
    """
    if group.local_rank == 0:
        result = prepare(group.is_main)
    group.wait()
    if group.local_rank != 0:
        result = prepare(False)
    return result
