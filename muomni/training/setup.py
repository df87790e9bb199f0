"""What a run is put together from: tokenizer, rows, model, optimizer and step, each as the recipe has it."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from muomni.accel.distributed import Group
from muomni.config import DataSpec, OmniConfig, TokenizerSpec
from muomni.data import (
    PreparedRows,
    SpeechDataset,
    Tokenizer,
    WithSpeech,
    prepare_rows,
    prepare_tokenizer,
)
from muomni.model import OmniModel
from muomni.training.freezing import freeze
from muomni.training.init_model import initial_model
from muomni.training.objectives.module import LossModule
from muomni.training.optim.build import build_optimizers
from muomni.training.optim.lr_schedule import lr_factors
from muomni.training.resolve import ModelRun
from muomni.training.speech_data import Speech, prepare_speech
from muomni.training.step import TrainStep

ResultT = TypeVar("ResultT")
# Between the seeds of two processes, so that neighbouring recipe seeds share no process's random numbers.
_RANK_SEEDS = 0x9E3779B97F4A7C15


def find_tokenizer(spec: TokenizerSpec, data: DataSpec, folder: Path | None) -> Tokenizer:
    """That of the checkpoint that a run goes on from, or of the model that it begins with, else the recipe's.

    Args:
        spec: the recipe's `tokenizer`.
        data: and its data.
        folder: of checkpoint or model; None where there is neither.
    """
    return prepare_tokenizer(spec, data) if folder is None else Tokenizer.load(folder)


@dataclass(frozen=True)
class Read:
    """What a run reads, and the sizes of the model that follow from it."""

    rows: PreparedRows
    config: OmniConfig


@contextmanager
def open_rows(run: ModelRun, tokenizer: Tokenizer, group: Group) -> Iterator[Read]:
    """The rows of a run; threads that read ahead end with the block.

    Raises:
        DataError: the data cannot be read.
        ConfigError: they do not go with the model.
    """
    data, speech = run.data, None
    if data.speech is not None:
        speech = _on_each_machine(group, partial(prepare_speech, data, run.model, run.plan.device))
    config = run.model.fit(tokenizer, {} if speech is None else speech.voices)
    read = Read(_rows(data, run.seed, tokenizer, config, group, speech), config)
    with closing(read.rows.train):
        yield read


def build(run: ModelRun, config: OmniConfig, group: Group, total_steps: int) -> tuple[OmniModel, TrainStep]:
    """The model as it begins, with the plan's optimizations, and what takes its steps."""
    plan, optim = run.plan, run.optim
    torch.manual_seed((run.seed + group.rank * _RANK_SEEDS) % 2**63)
    model = initial_model(run.model, config, run.seed)
    losses = LossModule(model, run.losses.model_dump())
    freeze(model, run.freeze, losses.weights)
    if group.kind != "fsdp":
        model = model.to(plan.device)
    called = plan.apply(losses, group)
    optimizers = build_optimizers(model, optim.optimizer, plan.precision)
    factors = lr_factors(optim.schedule, total_steps)
    return model, TrainStep(called, optimizers, factors, optim.max_grad_norm, plan.precision, group)


def _rows(
    data: DataSpec, seed: int, tokenizer: Tokenizer, config: OmniConfig, group: Group, speech: Speech | None
) -> PreparedRows:
    """The rows: of text and media, of pairs of text and speech, or both."""
    if data.train:
        prepare = partial(prepare_rows, data, tokenizer, config, seed)
        rows = _on_each_machine(group, lambda progress: prepare(progress=progress))
        if speech is None:
            return rows
    assert speech is not None and data.speech is not None and config.talker is not None
    spoken = SpeechDataset(speech.train, tokenizer, config.talker, seed, shuffle=data.shuffle)
    held_out = SpeechDataset(speech.val, tokenizer, config.talker, seed, shuffle=False)
    if not data.train:
        return PreparedRows(spoken, held_out, speech.notes)
    count = data.speech.pairs_per_sequence
    return PreparedRows(
        WithSpeech(rows.train, spoken, count), WithSpeech(rows.val, held_out, count), (*rows.notes, *speech.notes)
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
