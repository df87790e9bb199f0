"""Encoders from Hugging Face folders: what their configurations say, and their weights.

A folder holds `config.json` and `model.safetensors` (or shards) as transformers writes them, of the encoder alone or of
the whole model it is part of. What else is in it, such as SigLIP's text model or Whisper's decoder, is not read.
"""

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from muomni.config import SiglipConfig, WhisperConfig, parse, read_json
from muomni.config.base import Frozen
from muomni.errors import ConfigError, UserError
from muomni.files import user_path
from muomni.formats.tensors import CONFIG, check_tensors, read_tensors, weight_files
from muomni.model.encoders.siglip import SiglipEncoder, siglip_name
from muomni.model.encoders.whisper import FRAMES, WhisperEncoder, whisper_name

ConfigT = TypeVar("ConfigT", bound=Frozen)

_PREPROCESSOR = "preprocessor_config.json"
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}
# transformers leaves out what equals its own defaults: these.
_SIGLIP: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
_WHISPER: dict[str, Any] = {
    "d_model": 384,
    "encoder_ffn_dim": 1536,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "num_mel_bins": 80,
    "max_source_positions": FRAMES // 2,
    "activation_function": "gelu",
}


def read_siglip(folder: Path, **changes: Any) -> SiglipConfig:
    """The configuration of a SigLIP folder's vision encoder.

    Args:
        folder: of `SiglipModel` or `SiglipVisionModel`.
        changes: fields of `SiglipConfig` that a folder does not say, such as `pixel_shuffle_factor` and `max_tokens`.

    Raises:
        UserError: there is no such folder.
        ConfigError: it holds something else, or something that is not done here.
    """
    folder = user_path(folder)
    values, origin = _read(
        folder, {"siglip": "vision_config", "siglip_vision_model": None}, "a vision encoder", "SigLIP"
    )
    values = _SIGLIP | values
    for name in ("image_size", "patch_size"):
        if isinstance(values[name], list) and len(set(values[name])) == 1:
            values[name] = values[name][0]
        if not isinstance(values[name], int) or values[name] < 1:
            raise ConfigError(f"{origin}: {name} = {values[name]!r}: must be one number of pixels, for a square")
    if values["num_channels"] != 3:
        raise ConfigError(f"{origin}: num_channels = {values['num_channels']!r}: pictures have 3, red, green and blue")
    _check_pixels(folder)
    taken = {
        "kind": "siglip",
        "patch_size": values["patch_size"],
        "grid": values["image_size"] // values["patch_size"],
        "hidden_size": values["hidden_size"],
        "intermediate_size": values["intermediate_size"],
        "num_hidden_layers": values["num_hidden_layers"],
        "num_attention_heads": values["num_attention_heads"],
        "layer_norm_eps": values["layer_norm_eps"],
        "activation": _activation(values["hidden_act"], "hidden_act", origin),
    }
    return _parsed(SiglipConfig, taken, changes, origin)


def read_whisper(folder: Path, **changes: Any) -> WhisperConfig:
    """The configuration of a Whisper folder's encoder.

    Args:
        folder: of `WhisperModel` or `WhisperForConditionalGeneration`.
        changes: fields of `WhisperConfig` that a folder does not say, such as `ctc` and `max_seconds`.

    Raises:
        UserError: there is no such folder.
        ConfigError: it holds something else, or something that is not done here.
    """
    folder = user_path(folder)
    values, origin = _read(folder, {"whisper": None}, "an audio encoder", "Whisper")
    values = _WHISPER | values
    if values["max_source_positions"] != FRAMES // 2:
        given = values["max_source_positions"]
        raise ConfigError(
            f"{origin}: max_source_positions = {given!r}: Whisper's windows are 30 s, {FRAMES // 2} positions"
        )
    taken = {
        "kind": "whisper",
        "num_mel_bins": values["num_mel_bins"],
        "hidden_size": values["d_model"],
        "intermediate_size": values["encoder_ffn_dim"],
        "num_hidden_layers": values["encoder_layers"],
        "num_attention_heads": values["encoder_attention_heads"],
        "activation": _activation(values["activation_function"], "activation_function", origin),
    }
    return _parsed(WhisperConfig, taken, changes, origin)


@torch.no_grad()
def load_encoder(encoder: SiglipEncoder | WhisperEncoder, folder: Path) -> None:
    """Copies a folder's weights into an encoder that was made from its configuration.

    Args:
        encoder: changed in place; its dtype and device stay.
        folder: as for `read_siglip` and `read_whisper`.

    Raises:
        CheckpointError: a file is missing, cut short or corrupt, or its tensors do not fit the encoder.
    """
    folder = user_path(folder)
    own: dict[str, Tensor] = encoder.state_dict()
    found: dict[str, torch.Size] = {}
    read: dict[str, Tensor] = {}
    rename = siglip_name if isinstance(encoder, SiglipEncoder) else whisper_name
    for path in weight_files(folder):
        for stored, tensor in read_tensors(path, "cpu"):
            name = rename(stored)
            if name is None:
                continue
            if name == "patch_embed.weight":
                tensor = tensor.flatten(1)
            found[name] = tensor.shape
            read[name] = tensor
    check_tensors(folder, {name: tensor.shape for name, tensor in own.items()}, found)
    for name, tensor in read.items():
        own[name].copy_(tensor)


def _read(folder: Path, types: dict[str, str | None], what: str, family: str) -> tuple[dict[str, Any], str]:
    """The part of a folder's configuration that is the encoder's; `types` says under which key it is."""
    path = folder / CONFIG
    if not path.is_file():
        missing = f"it has no {CONFIG}" if folder.is_dir() else "the folder does not exist"
        raise UserError(f"no {family} model in {folder}: {missing}")
    values = read_json(path)
    kind = values.get("model_type")
    if kind not in types:
        known = " or ".join(map(repr, types))
        raise ConfigError(f"{path}: model_type = {kind!r}: {what} is taken from {family} folders, {known}")
    part = types[kind]
    if part is None:
        return values, str(path)
    inner = values.get(part, {})
    if not isinstance(inner, dict):
        raise ConfigError(f"{path}: {part} = {inner!r}: must be an object")
    return inner, f"{path}: {part}"


def _parsed(kind: type[ConfigT], taken: dict[str, Any], changes: dict[str, Any], origin: str) -> ConfigT:
    fixed = sorted(taken.keys() & changes.keys())
    if fixed:
        raise ConfigError(f"{', '.join(fixed)}: the folder says it ({origin}); remove it")
    return parse(kind, taken | changes, origin)


def _activation(value: object, key: str, origin: str) -> str:
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise ConfigError(f"{origin}: {key} = {value!r}: must be one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[value]


def _check_pixels(folder: Path) -> None:
    """Pictures come as −1 to 1, which is what SigLIP was trained on; a folder may say that it wants others."""
    path = folder / _PREPROCESSOR
    if not path.is_file():
        return
    values = read_json(path)
    for key in ("image_mean", "image_std"):
        value = values.get(key, [0.5])
        if any(number != 0.5 for number in (value if isinstance(value, list) else [value])):
            raise ConfigError(f"{path}: {key} = {value!r}: pictures are given as −1 to 1, mean and deviation 0.5")
