"""Small models that see and hear, and random pictures and clips for them."""

from typing import Any

import torch

from muomni.config import OmniConfig, encoder_configs, preset
from muomni.model import OmniModel
from muomni.model.inputs import AudioBatch, ImageBatch

IMAGE, AUDIO = 3, 4


def make_config(vision: bool = True, audio: bool = True, **changes: Any) -> OmniConfig:
    """Nano with both encoders; `vision_=...`, `audio_=...` change them."""
    seeing, hearing = encoder_configs("nano")
    base = preset("nano")
    base = base.replace(thinker=base.thinker.model_dump() | {"vocab_size": 60} | changes.get("thinker_", {}))
    return base.with_encoders(
        seeing.replace(**changes.get("vision_", {})) if vision else None,
        hearing.replace(**changes.get("audio_", {})) if audio else None,
        IMAGE,
        AUDIO,
    )


def make_model(config: OmniConfig | None = None, seed: int = 0, dtype: torch.dtype = torch.float64) -> OmniModel:
    model = OmniModel(config or make_config(), torch.Generator().manual_seed(seed)).to(dtype).eval()
    # Norms and biases that are not ones and zeros.
    draw = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=draw).to(dtype)
    return model


def make_images(*grids: tuple[int, int], patch: int = 8, seed: int = 0) -> ImageBatch:
    """Pictures of these grids in patches."""
    count = sum(rows * columns for rows, columns in grids)
    draw = torch.Generator().manual_seed(seed)
    return ImageBatch(torch.rand(count, 3 * patch**2, generator=draw) * 2 - 1, grids)


def make_clips(*frames: int, bins: int = 80, seed: int = 0) -> AudioBatch:
    return AudioBatch(torch.randn(sum(frames), bins, generator=torch.Generator().manual_seed(seed)), frames)
