"""Log-mel features of sound, as the encoders read them."""

from muomni.config.encoders import AudioEncoderConfig
from muomni.data.arrays import Floats


def mel_of(samples: Floats, config: AudioEncoderConfig) -> Floats:
    """(F, M) float32 features of a sound (S,) as the encoder takes them: of our own kind, or Whisper's."""
    import torch

    from muomni.ops.log_mel import log_mel, whisper_log_mel

    make = whisper_log_mel if config.kind == "whisper" else log_mel
    features: Floats = make(torch.from_numpy(samples), config.num_mel_bins).numpy()
    return features
