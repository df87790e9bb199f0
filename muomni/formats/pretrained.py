"""A model as a Hugging Face style folder: `config.json` and `model.safetensors` (or shards of it).

No pickle is ever read. Loading builds the model on `meta` and moves each tensor in from the file,
so memory never holds the weights twice. An int8 folder says so in its `config.json`
(`"quantization": {"method": "int8"}`); its layers have int8 weights from the start, and no float one is made.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muomni.config import OmniConfig, parse, read_json
from muomni.errors import CheckpointError, ConfigError, UserError
from muomni.files import write_json
from muomni.formats.qwen3 import from_qwen3_config, from_qwen3_name, to_qwen3_config, to_qwen3_name
from muomni.formats.tensors import (
    CONFIG,
    GENERATION,
    INDEX,
    WEIGHTS,
    check_tensors,
    read_tensors,
    save_tensors,
    weight_files,
)
from muomni.model.int8_layers import float_state, int8_layers, to_int8
from muomni.model.omni import OmniModel
from muomni.model.structure import checked_config
from muomni.ops.int8 import quantize_rows

_EMBEDDING, _HEAD = "thinker.embed_tokens", "thinker.lm_head"
_QUANTIZATION = "quantization"
# Stays in fp32, see `codec.frozen`.
_CODEC = "codec."
# What a model may compute in. Narrower types go with scales, which a folder of float weights does not have.
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Files of a saved model, ours or transformers'; a folder of nothing else may be replaced by a new one.
_SAVED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json"
    r"|merges\.txt|chat_template\.jinja|README\.md|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


def read_config(folder: Path) -> tuple[OmniConfig, bool]:
    """The configuration in `folder`, and whether it is a plain Qwen3 folder.

    Whether the head is tied is up to the weights: with one of their own it is not, as in transformers.
    """
    path = folder / CONFIG
    values = read_json(path)
    kind = values.get("model_type")
    if kind == "muomni":
        values.pop(_QUANTIZATION, None)
    elif "quantization_config" in values:
        raise ConfigError(f"{path}: quantization_config: μOmni reads float Qwen3 folders and quantises them itself")
    if kind == "qwen3":
        generation = folder / GENERATION
        config = from_qwen3_config(values, read_json(generation) if generation.is_file() else {}, str(path))
    elif kind != "muomni":
        raise ConfigError(f"{path}: model_type = {kind!r}: μOmni loads 'muomni' and 'qwen3' (dense) folders")
    else:
        config = parse(OmniConfig, values, str(path))
    if config.thinker.tie_word_embeddings and _has_head(folder, _rename(kind == "qwen3")):
        config = config.replace(thinker=config.thinker.replace(tie_word_embeddings=False))
    return config, kind == "qwen3"


def _rename(is_qwen3: bool) -> Callable[[str], str]:
    return from_qwen3_name if is_qwen3 else str


def _has_head(folder: Path, rename: Callable[[str], str]) -> bool:
    """Whether the files hold a head that is not the embedding."""
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        return False
    names = {f"{module}.{kind}" for module in (_EMBEDDING, _HEAD) for kind in ("weight", "scale")}
    tables: dict[str, Tensor] = {}
    for path in weight_files(folder):
        tables |= {rename(name): tensor for name, tensor in read_tensors(path, "cpu", lambda n: rename(n) in names)}
    pairs = [
        (tables[f"{_HEAD}.{kind}"], tables.get(f"{_EMBEDDING}.{kind}"))
        for kind in ("weight", "scale")
        if f"{_HEAD}.{kind}" in tables
    ]
    return any(b is None or a.dtype != b.dtype or not torch.equal(a, b) for a, b in pairs)


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
        dtype: of the weights in memory, or of what int8 layers compute; None keeps the files', and of several the one
            of most weights, with a warning.
        device: where they go.
        int8: quantise float weights on the way, one at a time; what an int8 folder holds is int8 anyway.
        make: builds the module.

    Raises:
        UserError: `int8` for a folder that holds int8 weights already.
        CheckpointError: a file is missing, cut short or corrupt, or its tensors do not fit the configuration.
    """
    config, is_qwen3 = read_config(folder)
    stored_int8 = read_quantization(folder) == "int8"
    if int8 and stored_int8:
        raise UserError(f"{folder} holds int8 weights already")
    try:
        with torch.device("meta"):
            model = make(config)
    except (TypeError, RuntimeError) as error:  # of torch, for sizes that no tensor can have
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{folder / CONFIG}: a model of these sizes cannot be built: {reason}") from error
    if stored_int8 or int8:
        to_int8(model)
    scales = {f"{name}.weight": f"{name}.scale" for name in int8_layers(model)}
    types = dict.fromkeys(scales, torch.int8) | dict.fromkeys(scales.values(), torch.float32)
    expected = model.state_dict()
    files, rename = weight_files(folder), _rename(is_qwen3)
    if dtype is None:
        dtype = _common_dtype(folder, files, lambda name: rename(name) not in types and not name.startswith(_CODEC))
    state: dict[str, Tensor] = {}
    for path in files:
        for stored, tensor in read_tensors(path, device):
            name = rename(stored)
            if config.thinker.tie_word_embeddings and name.startswith(f"{_HEAD}."):
                continue
            _check_type(folder, name, tensor, types.get(name) if stored_int8 else None)
            if name in scales and tensor.is_floating_point() and tensor.ndim == 2:
                try:
                    state[name], state[scales[name]] = quantize_rows(tensor)
                except ValueError as error:
                    raise CheckpointError(f"{folder}: {name} cannot be quantised: {error}") from None
            else:
                wanted = torch.float32 if name.startswith(_CODEC) else dtype
                kept = tensor if name in types else tensor.to(wanted)
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


def _common_dtype(folder: Path, files: Sequence[Path], counts: Callable[[str], bool]) -> torch.dtype:
    """One type for the floating point tensors whose names count: what the configuration names, else what most have."""
    elements: Counter[torch.dtype] = Counter()
    for path in files:
        for _, tensor in read_tensors(path, "cpu", counts):
            if tensor.dtype in _FLOATS:
                elements[tensor.dtype] += tensor.numel()
    if len(elements) < 2:
        return next(iter(elements), torch.float32)
    values = read_json(folder / CONFIG)
    named: torch.dtype | None = getattr(torch, str(values.get("dtype") or values.get("torch_dtype")), None)
    chosen = named if named is not None and named in elements else elements.most_common(1)[0][0]
    present = ", ".join(str(each)[6:] for each in elements)
    warnings.warn(f"{folder}: weights are {present}: all are read as {str(chosen)[6:]} (dtype)", stacklevel=3)
    return chosen


def _check_type(folder: Path, name: str, tensor: Tensor, wanted: torch.dtype | None) -> None:
    """`wanted` is the type of a tensor of an int8 layer, None means any floating point."""
    if tensor.dtype not in (_FLOATS if wanted is None else (wanted,)):
        right = "floating point of at least 16 bits" if wanted is None else str(wanted)[6:]
        raise CheckpointError(f"{folder}: {name} is {str(tensor.dtype)[6:]}, and by {CONFIG} it must be {right}")


def save_model(model: OmniModel, folder: Path, *, qwen3: bool = False, end_ids: Sequence[int] = ()) -> None:
    """Writes `config.json` and `model.safetensors` into an existing folder.

    Args:
        model: its weights are written in their own dtype, a tied head once.
        folder: usually one from `files.atomic_folder`.
        qwen3: write the Thinker as a Hugging Face Qwen3 folder, int8 weights dequantised to `model.dtype`; encoders,
            which Qwen3 does not have, stay behind.
        end_ids: of a Qwen3 folder, in the place of the configuration's; other programs know no others.

    Raises:
        UserError: the model is not what its configuration makes; see `model.structure`.
        CheckpointError: the disk is full or the folder cannot be written.
    """
    config = checked_config(model)
    state: dict[str, Tensor] = float_state(model, model.dtype) if qwen3 else model.state_dict()
    values: dict[str, Any] = config.model_dump(mode="json")
    if qwen3:
        state = {to_qwen3_name(name): tensor for name, tensor in state.items() if name.startswith("thinker.")}
        config = config.replace(eos_token_ids=end_ids) if end_ids else config
        values = to_qwen3_config(config, str(model.dtype).removeprefix("torch."))
        if end_ids:
            write_json(folder / GENERATION, {"eos_token_id": list(end_ids), "pad_token_id": end_ids[-1]})
    elif model.is_quantized:
        values[_QUANTIZATION] = {"method": "int8"}
    write_json(folder / CONFIG, values)
    save_tensors(state, folder / WEIGHTS)


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
