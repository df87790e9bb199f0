"""Checkpoints: a model folder with the training state beside it, written whole or not at all.

    runs/NAME/
      recipe.json               what was asked for
      metrics.jsonl             what happened
      step-00000200/            config.json, model.safetensors, tokenizer files: loads anywhere
        training/state.json     counters, position in the data, checksums
        training/state.safetensors   optimizer moments, random states
      last -> step-00000400     symbolic links
      best -> step-00000200

Several processes write one checkpoint of the same form, with whole tensors, so that any number of them can go
on from it. Random states are one a process; a process that finds none of its own there begins a new one.

A folder gets its name only when everything in it is on disk, then the link is moved: a kill at any
moment leaves the links on a whole checkpoint.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from muomni.accel.distributed import Group, alone, divided, whole
from muomni.data import Tokenizer
from muomni.errors import CheckpointError
from muomni.files import atomic_folder, follow, link_atomic, remove_folder, remove_partial, write_json
from muomni.formats.pretrained import save_model
from muomni.formats.tensors import save_tensors
from muomni.model import OmniModel

_STATE = "training/state.json"
_TENSORS = "training/state.safetensors"


@dataclass
class Progress:
    """Where a run stands; JSON in the checkpoint.

    Attributes:
        attempts: optimizer steps begun, skipped ones included; the position in the data.
        applied: optimizer steps taken.
        skipped: steps left out for non-finite gradients; `streak` of them in a row.
        best_loss: lowest validation loss so far, and `best_step` where.
        seconds: of training so far, over all sessions.
        tokens: read so far.
        scaler: the state of fp16's loss scaler; empty with other precisions.
        micro_batch: rows in a micro-batch since memory ran out; None while it is the recipe's `batch_size`.
        bad: media met so far that could not be read, each once with the reason.
        bad_documents: numbers of the documents that were left out for them.
        compile: what `"compile": "auto"` became, so that a resumed run computes the same; None before that.
        data: a hash of the training data, so that a run goes on with the same; "" where none was taken.
    """

    attempts: int = 0
    applied: int = 0
    skipped: int = 0
    streak: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    seconds: float = 0.0
    tokens: int = 0
    scaler: dict[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    bad: list[str] = field(default_factory=list)
    bad_documents: list[int] = field(default_factory=list)
    compile: Literal["off", "blocks", "full"] | None = None
    data: str = ""

    @property
    def counts(self) -> tuple[int, int, int]:
        """Of steps: applied, skipped, and skipped in a row; see `training.step.Counters`."""
        return self.applied, self.skipped, self.streak


def checkpoint_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return run / f"step-{step:08d}"


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    last = follow(run / "last")
    if (last / _STATE).is_file():
        return last.resolve()
    return max((path for path in run.glob("step-*") if (path / _STATE).is_file()), default=None)


def save_checkpoint(
    run: Path,
    model: OmniModel,
    tokenizer: Tokenizer,
    optimizers: list[Optimizer],
    progress: Progress,
    *,
    best: bool,
    keep: int,
    group: Group | None = None,
) -> Path:
    """Writes a checkpoint, moves `last` (and `best`) to it and removes those beyond the newest `keep`.

    Of the processes of `group` the first writes, and all wait until it has.

    Raises:
        CheckpointError: it could not be written; the checkpoints before it are untouched.
    """
    group = alone() if group is None else group
    folder = checkpoint_folder(run, progress.applied)
    whole_model, tensors = group.whole_model(model), training_tensors(model, optimizers, group)
    if whole_model is not None and group.is_main:
        _write(folder, whole_model, tokenizer, tensors, progress, best=best, keep=keep)
    group.wait()
    return folder


def _write(
    folder: Path,
    model: OmniModel,
    tokenizer: Tokenizer,
    tensors: dict[str, Tensor],
    progress: Progress,
    *,
    best: bool,
    keep: int,
) -> None:
    def save(partial: Path) -> None:
        save_model(model, partial)
        tokenizer.save(partial)

    write_checkpoint(folder, save, tensors, progress, best=best, keep=keep)


def write_checkpoint(
    folder: Path,
    save: Callable[[Path], None],
    tensors: dict[str, Tensor],
    progress: Progress,
    *,
    best: bool,
    keep: int,
) -> None:
    """Writes one folder of a run whole or not at all, moves the links and removes old ones, see `save_checkpoint`.

    Args:
        folder: of the checkpoint.
        save: writes the model into an existing folder.
        tensors: the training state, from `training_tensors` and what else has to be kept.
        progress: where the run stands.
        best: it is the best one so far.
        keep: how many checkpoints are kept.

    Raises:
        CheckpointError: it could not be written; the checkpoints before it are untouched.
    """
    run = folder.parent
    try:
        with atomic_folder(folder) as partial:
            (partial / "training").mkdir()
            save(partial)
            save_tensors(tensors, partial / _TENSORS)
            digests = {
                str(file.relative_to(partial)): _digest(file) for file in sorted(partial.rglob("*")) if file.is_file()
            }
            write_json(partial / _STATE, {"progress": asdict(progress), "sha256": digests})
        link_atomic(run / "last", folder.name)
        if best:
            link_atomic(run / "best", folder.name)
        _remove_old(run, keep)
    except (OSError, CheckpointError) as error:
        last = last_checkpoint(run)
        kept = f"the last whole checkpoint is {last}" if last else "no checkpoint was written before it"
        raise CheckpointError(f"checkpoint {folder} could not be written: {error}; {kept}") from error


def load_checkpoint(
    folder: Path, model: OmniModel, optimizers: list[Optimizer], group: Group | None = None
) -> Progress:
    """Restores weights, optimizer moments and random states in place; each process of `group` its part of them.

    Raises:
        CheckpointError: a file is missing or its checksum is wrong; names the file and what to resume from instead.
    """
    progress, tensors, weights = read_checkpoint(folder)
    parameters = dict(model.named_parameters())
    weights = {name: divided(w, parameters[name]) if name in parameters else w for name, w in weights.items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise CheckpointError(f"checkpoint {folder} is of another model: {sorted(missing) + unexpected}")
    restore_training(parameters, optimizers, tensors, progress, group)
    return progress


def read_checkpoint(folder: Path) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor]]:
    """Progress, training state and weights of a checkpoint, after checking every file's checksum.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        for name, digest in state["sha256"].items():
            if _digest(folder / name) != digest:
                raise CheckpointError(f"{folder / name} is corrupt: its SHA-256 is not the one it was written with")
        tensors = load_file(folder / _TENSORS)
        return Progress(**state["progress"]), tensors, load_file(folder / "model.safetensors")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {folder} does not load: {error}{_others(folder)}") from None
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_others(folder)}") from None


def restore_training(
    parameters: dict[str, nn.Parameter],
    optimizers: list[Optimizer],
    tensors: dict[str, Tensor],
    progress: Progress,
    group: Group | None = None,
) -> None:
    """Random states and optimizer moments from what `training_tensors` gave; those of `tensors` are taken out."""
    _restore_random(tensors, alone() if group is None else group, progress)
    try:
        _restore(parameters, optimizers, tensors)
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"the training state of the checkpoint is another model's: {error}") from None


def _others(folder: Path) -> str:
    others = [path for path in sorted(folder.parent.glob("step-*")) if path.name != folder.resolve().name]
    return f"; an earlier one is {others[-1]} (give it as --resume-from)" if others else ""


def training_tensors(model: nn.Module, optimizers: list[Optimizer], group: Group) -> dict[str, Tensor]:
    """Random states and whole optimizer state, together; empty but for the process that writes."""
    own = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        own["cuda"] = torch.cuda.get_rng_state()
    tensors = {_random_key(rank, kind): s for rank, r in enumerate(group.gather(own)) for kind, s in r.items()}
    names = {id(p): name for name, p in model.named_parameters()}
    for index, optimizer in enumerate(optimizers):
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                tensors[f"optimizer/{index}/{key}/{names[id(parameter)]}"] = _on_host(value.detach(), group)
    return tensors if group.is_main else {}


def _on_host(value: Tensor, group: Group) -> Tensor:
    """The whole of a divided tensor, where it does not take memory of the device; any other as it is."""
    gathered = whole(value)
    if gathered is value:
        return value
    return gathered.cpu() if group.is_main else gathered.new_empty(0)


def _random_key(rank: int, kind: str) -> str:
    return f"rng/{kind}" if rank == 0 else f"rng/{rank}/{kind}"


def _restore_random(tensors: dict[str, Tensor], group: Group, progress: Progress) -> None:
    """Takes all random states out of `tensors` and sets those of this process."""
    states = {key: tensors.pop(key) for key in sorted(tensors) if key.startswith("rng/")}
    cpu, cuda = (states.get(_random_key(group.rank, kind)) for kind in ("cpu", "cuda"))
    if cpu is None:
        # Not in the run before: other numbers than at the run's beginning, the same whenever it is resumed here.
        torch.manual_seed((torch.initial_seed() + progress.attempts) % 2**63)
        return
    torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def _restore(parameters: dict[str, nn.Parameter], optimizers: list[Optimizer], tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        _, index, key, parameter_name = name.split("/", 3)
        parameter = parameters[parameter_name]
        # Scalars such as AdamW's step count live where the fused kernel wants them: with the weights.
        state = divided(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)
        optimizers[int(index)].state[parameter][key] = state


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _remove_old(run: Path, keep: int) -> None:
    remove_partial(run)
    kept = {follow(run / link).resolve().name for link in ("last", "best") if (run / link).exists()}
    for folder in sorted(run.glob("step-*"))[:-keep]:
        if folder.name not in kept:
            remove_folder(folder)
