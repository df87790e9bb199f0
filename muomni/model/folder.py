"""A model as a Hugging Face style folder: `config.json` and `model.safetensors` (or shards of it).

No pickle is ever read. Loading builds the model on `meta` and moves each tensor in from the file,
so memory never holds the weights twice.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from muomni.config import OmniConfig, parse, read_json
from muomni.errors import CheckpointError, ConfigError, UserError
from muomni.files import write_json
from muomni.model.omni import OmniModel
from muomni.model.qwen3 import from_qwen3_config, from_qwen3_name, to_qwen3_config, to_qwen3_name

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TIED = "thinker.lm_head.weight"


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


def read_config(folder: Path) -> tuple[OmniConfig, bool]:
    """The configuration in `folder`, and whether it is a plain Qwen3 folder."""
    path = folder / CONFIG
    values = read_json(path)
    kind = values.get("model_type")
    if kind == "qwen3":
        return from_qwen3_config(values, str(path)), True
    if kind != "muomni":
        raise ConfigError(f"{path}: model_type = {kind!r}: μOmni loads 'muomni' and 'qwen3' (dense) folders")
    return parse(OmniConfig, values, str(path)), False


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    make: Callable[[OmniConfig], OmniModel] = OmniModel,
) -> OmniModel:
    """Reads a model from a folder written by `save_model` or by transformers (dense Qwen3).

    Args:
        folder: as `resolve_folder` gives it.
        dtype: of the weights in memory; None keeps the file's.
        device: where they go.
        make: builds the module.

    Raises:
        CheckpointError: a file is missing, cut short or corrupt, or its tensors do not fit the configuration.
    """
    config, is_qwen3 = read_config(folder)
    with torch.device("meta"):
        model = make(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.thinker.tie_word_embeddings:
        del expected[_TIED]
    state: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                for stored in file.keys():  # noqa: SIM118 - not a dict: it has no iterator
                    name = from_qwen3_name(stored) if is_qwen3 else stored
                    if name == _TIED and config.thinker.tie_word_embeddings:
                        continue
                    tensor = file.get_tensor(stored)
                    state[name] = tensor if dtype is None else tensor.to(dtype)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read, it is cut short or corrupt ({error})") from None
    _check_tensors(folder, expected, {name: tensor.shape for name, tensor in state.items()})
    model.load_state_dict(state, strict=False, assign=True)
    model.thinker.tie_weights()
    return model.eval()


def _check_tensors(folder: Path, expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> None:
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


def _weight_files(folder: Path) -> list[Path]:
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


def save_model(model: OmniModel, folder: Path, *, qwen3: bool = False) -> None:
    """Writes `config.json` and `model.safetensors` into an existing folder.

    Args:
        model: its weights are written in their own dtype, a tied head once.
        folder: usually one from `files.atomic_folder`.
        qwen3: write it as a Hugging Face Qwen3 folder.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    if model.config.thinker.tie_word_embeddings:
        del state[_TIED]
    values: dict[str, Any] = model.config.model_dump(mode="json")
    if qwen3:
        state = {to_qwen3_name(name): tensor for name, tensor in state.items()}
        values = to_qwen3_config(model.config, str(model.dtype).removeprefix("torch."))
    write_json(folder / CONFIG, values)
    save_tensors(state, folder / WEIGHTS)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file.

    Raises:
        CheckpointError: naming the file and the system's reason.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None
