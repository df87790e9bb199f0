"""Log-mel features of sound, as the encoders read them."""

from typing import TYPE_CHECKING

from muomni.config import OmniConfig
from muomni.data.arrays import Floats

if TYPE_CHECKING:
    pass


def mel_of(samples: Floats, config: OmniConfig) -> Floats:
    """(F, M) float32 features of a sound as the model's encoder takes them: its own kind, or Whisper's."""
    import torch

    from muomni.ops.log_mel import log_mel, whisper_log_mel

    assert config.audio is not None
    make = whisper_log_mel if config.audio.kind == "whisper" else log_mel
    features: Floats = make(torch.from_numpy(samples), config.audio.num_mel_bins).numpy()
    return features
