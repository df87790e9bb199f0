"""A model as a Hugging Face style folder: `config.json` and `model.safetensors` (or shards of it).

No pickle is ever read. Loading builds the model on `meta` and moves each tensor in from the file,
so memory never holds the weights twice. An int8 folder says so in its `config.json`
(`"quantization": {"method": "int8"}`); its layers have int8 weights from the start, and no float one is made.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from muomni.config import OmniConfig, parse, read_json
from muomni.errors import CheckpointError, ConfigError, UserError
from muomni.files import write_json
from muomni.formats.qwen3 import from_qwen3_config, from_qwen3_name, to_qwen3_config, to_qwen3_name
from muomni.formats.tensors import (
    CONFIG,
    WEIGHTS,
    check_tensors,
    misfits,
    read_tensor,
    read_tensors,
    save_tensors,
    tensor_names,
    tensor_types,
    weight_files,
)
from muomni.model.int8_layers import float_state, int8_layers, to_int8
from muomni.model.omni import OmniModel
from muomni.ops.int8 import quantize_rows

_TIED = ("thinker.lm_head.weight", "thinker.lm_head.scale")
_QUANTIZATION = "quantization"
# Stays in fp32, see `codec.frozen`.
_CODEC = "codec."

# Files of a saved model, ours or transformers'; a folder of nothing else may be replaced by a new one.
_SAVED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|chat_template\.jinja|README\.md|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


def read_config(folder: Path) -> tuple[OmniConfig, bool]:
    """The configuration in `folder`, and whether it is a plain Qwen3 folder."""
    path = folder / CONFIG
    values = read_json(path)
    kind = values.get("model_type")
    if kind == "muomni":
        values.pop(_QUANTIZATION, None)
    elif "quantization_config" in values:
        raise ConfigError(f"{path}: quantization_config: μOmni reads float Qwen3 folders and quantises them itself")
    if kind == "qwen3":
        generation = folder / "generation_config.json"
        if generation.is_file() and (ends := read_json(generation).get("eos_token_id")) is not None:
            values["eos_token_id"] = ends  # as transformers has it
        return from_qwen3_config(values, str(path)), True
    if kind != "muomni":
        raise ConfigError(f"{path}: model_type = {kind!r}: μOmni loads 'muomni' and 'qwen3' (dense) folders")
    return parse(OmniConfig, values, str(path)), False


def read_quantization(folder: Path) -> str | None:
    """`"int8"` for a folder with int8 weights, None for one with float weights.

    Raises:
        ConfigError: the folder says something else.
    """
    path = folder / CONFIG
    value = read_json(path).get(_QUANTIZATION)
    if value is None:
        return None
    if value != {"method": "int8"}:
        raise ConfigError(f'{path}: {_QUANTIZATION} = {value!r}: μOmni knows {{"method": "int8"}} and none at all')
    return "int8"


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
    int8: bool = False,
    make: Callable[[OmniConfig], OmniModel] = OmniModel,
) -> OmniModel:
    """Reads a model from a folder written by `save_model` or by transformers (dense Qwen3).

    Args:
        folder: as `resolve_folder` gives it.
        dtype: of the weights in memory, or of what int8 layers compute; None keeps the file's.
        device: where they go.
        int8: quantise float weights on the way, one at a time; what an int8 folder holds is int8 anyway.
        make: builds the module.

    Raises:
        UserError: `int8` for a folder that holds int8 weights already.
        CheckpointError: a file is missing, cut short or corrupt, or its tensors do not fit the configuration.
    """
    config, is_qwen3 = read_config(folder)
    config = _as_stored(folder, config)
    stored_int8 = read_quantization(folder) == "int8"
    if dtype is None and not stored_int8:
        dtype = _one_dtype(folder)
    if int8 and stored_int8:
        raise UserError(f"{folder} holds int8 weights already")
    with torch.device("meta"):
        model = make(config)
    if stored_int8 or int8:
        to_int8(model)
    scales = {f"{name}.weight": f"{name}.scale" for name in int8_layers(model)}
    types = dict.fromkeys(scales, torch.int8) | dict.fromkeys(scales.values(), torch.float32)
    expected = model.state_dict()
    state: dict[str, Tensor] = {}
    for path in weight_files(folder):
        for stored, tensor in read_tensors(path, device):
            name = from_qwen3_name(stored) if is_qwen3 else stored
            if name in _TIED and config.thinker.tie_word_embeddings:
                continue
            _check_type(folder, name, tensor, types.get(name) if stored_int8 else None)
            if name in scales and tensor.is_floating_point() and tensor.ndim == 2:
                try:
                    state[name], state[scales[name]] = quantize_rows(tensor)
                except ValueError as error:
                    raise CheckpointError(f"{folder}: {name} cannot be quantised: {error}") from None
            else:
                wanted = torch.float32 if name.startswith(_CODEC) else dtype
                kept = tensor if wanted is None or name in types else tensor.to(wanted)
                # A copy, which lets go of the file, and at an address that kernels can rely on: torch's own crash
                # on some that a file gives.
                state[name] = kept.clone() if types and kept is tensor else kept
    check_tensors(folder, {n: t.shape for n, t in expected.items()}, {n: t.shape for n, t in state.items()})
    model.load_state_dict(state, strict=False, assign=True)
    if model.codec is not None:
        model.codec.to(device)  # with what is not in the file
    for layer in int8_layers(model).values():
        layer.dtype = model.thinker.norm.weight.dtype
    model.thinker.tie_weights()
    return model.eval().requires_grad_(not model.is_quantized)


def _as_stored(folder: Path, config: OmniConfig) -> OmniConfig:
    """The configuration with the head as the files have it: one that differs from the embedding is no tied one."""
    if not config.thinker.tie_word_embeddings:
        return config
    tables: dict[str, dict[str, Tensor]] = {"lm_head": {}, "embed_tokens": {}}
    for path in weight_files(folder):
        for name in tensor_names(path):
            table, _, kind = name.rpartition(".")
            if (key := table.rpartition(".")[2]) in tables and "talker" not in name:
                tables[key][kind] = read_tensor(path, name)
    head, embedding = tables["lm_head"], tables["embed_tokens"]
    same = all(kind in embedding and torch.equal(head[kind], embedding[kind]) for kind in head)
    return config if same else config.replace(thinker=config.thinker.replace(tie_word_embeddings=False))


def _one_dtype(folder: Path) -> torch.dtype | None:
    """What all weights are read as where a file has several floating point types; None where it has one.

    What its configuration names, else what most weights have.
    """
    counts: Counter[torch.dtype] = Counter()
    for path in weight_files(folder):
        for name, (dtype, elements) in tensor_types(path).items():
            if dtype.is_floating_point and not name.startswith(_CODEC):
                counts[dtype] += elements
    if len(counts) < 2:
        return None
    values = read_json(folder / CONFIG)
    named = getattr(torch, str(values.get("dtype") or values.get("torch_dtype")), None)
    chosen = named if named in counts else counts.most_common(1)[0][0]
    given = ", ".join(str(dtype).removeprefix("torch.") for dtype in counts)
    warnings.warn(f"{folder}: weights are {given}: all are read as {str(chosen)[6:]} (dtype)", stacklevel=4)
    return chosen


def _check_type(folder: Path, name: str, tensor: Tensor, wanted: torch.dtype | None) -> None:
    """`wanted` is the type of a tensor of an int8 layer, None means any floating point."""
    if not (tensor.is_floating_point() if wanted is None else tensor.dtype == wanted):
        right = "floating point" if wanted is None else str(wanted)[6:]
        raise CheckpointError(f"{folder}: {name} is {str(tensor.dtype)[6:]}, and by {CONFIG} it must be {right}")


def save_model(model: OmniModel, folder: Path, *, qwen3: bool = False) -> None:
    """Writes `config.json` and `model.safetensors` into an existing folder.

    Args:
        model: its weights are written in their own dtype, a tied head once.
        folder: usually one from `files.atomic_folder`.
        qwen3: write the Thinker as a Hugging Face Qwen3 folder, int8 weights dequantised to `model.dtype`; encoders,
            which Qwen3 does not have, stay behind.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    config = model.current_config
    _check_whole(model, config)
    state: dict[str, Tensor] = float_state(model, model.dtype) if qwen3 else model.state_dict()
    values: dict[str, Any] = config.model_dump(mode="json")
    if qwen3:
        state = {to_qwen3_name(name): tensor for name, tensor in state.items() if name.startswith("thinker.")}
        values = to_qwen3_config(config, str(model.dtype).removeprefix("torch."))
    elif model.is_quantized:
        values[_QUANTIZATION] = {"method": "int8"}
    write_json(folder / CONFIG, values)
    save_tensors(state, folder / WEIGHTS)


def _check_whole(model: OmniModel, config: OmniConfig) -> None:
    """Refuses a model that its configuration does not describe: it could be written, but never loaded.

    Raises:
        UserError: naming what is too many, missing or of another shape.
    """
    with torch.device("meta"):
        described = OmniModel(config)
    if model.is_quantized:
        to_int8(described)
    state = model.state_dict()
    odd = [name for name, value in state.items() if type(value) not in (Tensor, nn.Parameter, DTensor)]
    if odd:
        kind = type(state[odd[0]]).__name__
        raise UserError(f"this model cannot be saved: {odd[0]} is a {kind}, which another library has put there")
    problems = misfits({n: t.shape for n, t in described.state_dict().items()}, {n: t.shape for n, t in state.items()})
    if problems:
        raise UserError(
            f"this model cannot be saved, its configuration does not describe it: {problems}. Merge an adapter first "
            "(PEFT: merge_and_unload), and take out modules that were added"
        )


def check_replaceable(target: Path) -> None:
    """Refuses to replace a folder that holds anything but a saved model.

    Raises:
        UserError: naming what is in the way.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file: give a folder")
    others = (
        [] if not target.exists() else sorted(path.name for path in target.iterdir() if not _SAVED.fullmatch(path.name))
    )
    if others:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        raise UserError(f"{target} holds other files ({shown}), which saving would remove: give a new folder")
