"""A codec as a folder: `config.json` (`"model_type": "muomni-codec"`) and `model.safetensors`."""

from pathlib import Path

import torch

from muomni.config import parse, read_json
from muomni.config.codec import CodecConfig
from muomni.errors import CheckpointError, UserError
from muomni.files import write_json
from muomni.formats.tensors import (
    CONFIG,
    WEIGHTS,
    check_tensors,
    read_tensors,
    resolve_folder,
    save_tensors,
    weight_files,
)
from muomni.model.codec.codec import SpeechCodec


def read_codec_config(path: Path) -> CodecConfig:
    """The sizes of the codec at `path`, a run or a folder.

    Raises:
        UserError: there is no codec at `path`.
    """
    folder = resolve_folder(path)
    values = read_json(folder / CONFIG)
    if values.get("model_type") != "muomni-codec":
        raise UserError(f"{folder}: holds a model of type {values.get('model_type')!r}, not a speech codec")
    return parse(CodecConfig, values, str(folder / CONFIG))


def load_codec(path: str | Path, *, device: torch.device | str = "cpu") -> SpeechCodec:
    """A trained codec from its folder, or from a run's (its best checkpoint): in fp32, in evaluation mode.

    Raises:
        UserError: there is no codec at `path`.
        CheckpointError: a file is missing, cut short or corrupt, or its tensors do not fit the configuration.
    """
    folder = resolve_folder(Path(path))
    codec = SpeechCodec(read_codec_config(folder))
    state = {}
    for file in weight_files(folder):
        for name, tensor in read_tensors(file, device):
            if not tensor.is_floating_point():
                raise CheckpointError(f"{folder}: {name} is {tensor.dtype}, and must be floating point")
            state[name] = tensor.float()
    expected = {name: tensor.shape for name, tensor in codec.state_dict().items()}
    check_tensors(folder, expected, {name: tensor.shape for name, tensor in state.items()})
    codec.load_state_dict(state)
    return codec.to(device).eval()


def save_codec(codec: SpeechCodec, folder: Path) -> None:
    """Writes a codec into an existing folder.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    write_json(folder / CONFIG, codec.config.model_dump(mode="json"))
    save_tensors({name: tensor.detach() for name, tensor in codec.state_dict().items()}, folder / WEIGHTS)
