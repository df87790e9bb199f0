"""Tensors in safetensors files: read, checked and written."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muomni.errors import CheckpointError, UserError

CONFIG = "config.json"


WEIGHTS = "model.safetensors"


_INDEX = "model.safetensors.index.json"
# Names of types in a file's header; others are no weights.
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def resolve_folder(path: Path) -> Path:
    """The folder that holds the model: `path` itself, or a run folder's `best`, else its `last` checkpoint.

    Raises:
        UserError: there is no model at `path`.
    """
    for candidate in (path, path / "best", path / "last"):
        if (candidate / CONFIG).is_file():
            return candidate
    if not path.exists():
        raise UserError(f"no run or model at {path}: the folder does not exist")
    raise UserError(f"no model in {path}: it has no {CONFIG}, and no checkpoint under best or last")


def read_tensors(path: Path, device: torch.device | str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, one at a time: what a caller drops no longer takes memory.

    On a CPU a tensor is the file itself, mapped into memory; opening it anew for each tensor lets go of the others.
    """
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            names = list(file.keys())
        for name in names:
            with safe_open(path, framework="pt", device=str(device)) as file:
                tensor = file.get_tensor(name)
            yield name, tensor
            del tensor
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read, it is cut short or corrupt ({error})") from None


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a file, mapped into memory.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with _opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def tensor_names(path: Path) -> list[str]:
    """The names of a file's tensors.

    Raises:
        CheckpointError: it cannot be read.
    """
    with _opened(path) as file:
        return list(file.keys())


def tensor_types(path: Path) -> dict[str, tuple[torch.dtype, int]]:
    """Type and number of elements of each tensor of a file, by its name; no tensor is read.

    Raises:
        CheckpointError: it cannot be read.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return {name: (_TYPES[part.get_dtype()], math.prod(part.get_shape())) for name, part in slices.items()}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read, it is cut short or corrupt ({error})") from None


def misfits(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> str:
    """What of the tensors that a configuration asks for is missing, too many or of another shape; "" if nothing."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is not part of the model" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(found[name])}, the configuration says {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(sorted(problems)[:5]) + more


def check_tensors(folder: Path, expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> None:
    """Compares the tensors that a configuration asks for with those that the files hold.

    Raises:
        CheckpointError: naming those that are missing, too many or of another shape.
    """
    if problems := misfits(expected, found):
        raise CheckpointError(f"{folder}: weights and {CONFIG} do not fit: {problems}")


def weight_files(folder: Path) -> list[Path]:
    """The file with the weights, or the shards that the index names.

    Raises:
        CheckpointError: there is none, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / _INDEX
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder}: {', '.join(missing)} missing, though {_INDEX} names it")
        return [folder / name for name in names]
    raise CheckpointError(f"{folder}: no {WEIGHTS} (pickled .bin weights are not read: they can run code)")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        CheckpointError: naming the file and the system's reason.
    """
    try:
        path.touch()
        mode = path.stat().st_mode  # that of any new file: safetensors lets nobody else read
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
        path.chmod(mode)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None
