"""Tensors in safetensors files: read, checked and written."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muomni.errors import CheckpointError, UserError
from muomni.files import follow

CONFIG = "config.json"
GENERATION = "generation_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def resolve_folder(path: Path) -> Path:
    """The folder that holds the model: `path` itself, or a run folder's `best`, else its `last` checkpoint.

    Raises:
        UserError: there is no model at `path`.
    """
    for candidate in (path, follow(path / "best"), follow(path / "last")):
        if (candidate / CONFIG).is_file():
            return candidate
    if not path.exists():
        raise UserError(f"no run or model at {path}: the folder does not exist")
    raise UserError(f"no model in {path}: it has no {CONFIG}, and no checkpoint under best or last")


def read_tensors(
    path: Path, device: torch.device | str, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file whose names are `wanted`, one at a time: what a caller drops no longer takes memory.

    On a CPU a tensor is the file itself, mapped into memory; opening it anew for each tensor lets go of the others.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 - no dictionary
        for name in names:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensor = file.get_tensor(name)
            yield name, tensor
            del tensor
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read, it is cut short or corrupt ({error})") from None


def check_tensors(folder: Path, expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> None:
    """Compares the tensors that a configuration asks for with those that the files hold.

    Raises:
        CheckpointError: naming those that are missing, too many or of another shape.
    """
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not part of the model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(found[name])}, the configuration says {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:5])
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{folder}: weights and {CONFIG} do not fit: {shown}{more}")


def weight_files(folder: Path) -> list[Path]:
    """The file with the weights, or the shards that the index names.

    Raises:
        CheckpointError: there is none, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if index.is_file():
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            files = sorted({folder / name for name in names})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise CheckpointError(f"{index}: cannot be read as the index of a model's files") from None
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(f"{folder}: {', '.join(missing)} missing, though {INDEX} names it")
        return files
    raise CheckpointError(f"{folder}: no {WEIGHTS} (pickled .bin weights are not read: they can run code)")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        CheckpointError: naming the file and the system's reason.
    """
    storages: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().contiguous()
        # safetensors takes no memory twice; two names of one tensor, or two views, are two tensors in a file.
        apart[name] = whole.clone() if whole.untyped_storage().data_ptr() in storages else whole
        storages.add(apart[name].untyped_storage().data_ptr())
    try:
        # safetensors makes a file that its owner alone may read; one made here has the mode that the umask gives.
        path.touch()
        mode = path.stat().st_mode
        save_file(apart, path, metadata={"format": "pt"})
        path.chmod(mode)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None
