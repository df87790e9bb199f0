"""The voice activity detector of Silero (MIT), run from the weights that the package `silero-vad` carries.

The package itself is not imported: that would set the number of threads of this whole process to one, and load a
TorchScript, which PyTorch is giving up. The network is its `tinygrad_model.py`: magnitudes of a short Fourier
transform, four convolutions, an LSTM, and the probability of speech in 32 ms.

Legend: N windows.
"""

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from muomni.data.media.audio import Samples

# Samples of a window at 16 kHz, of what it sees of the one before, and of the mirrored end.
WINDOW = 512
_BEFORE = 64
_MIRRORED = 64
_BINS = 129
_RENAMED = {f"lstm_cell.{name}": f"lstm.{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}


class SileroNetwork(nn.Module):
    """The network; it keeps nothing between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 2 * _BINS, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(_BINS, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, windows: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """The probabilities of speech, and the state for the windows that follow.

        Args:
            windows: (N, 64 + 512) consecutive ones, each with the end of the one before.
            state: two of (1, 128); None at the beginning.

        Returns:
            (N,), and the state.
        """
        x = nn.functional.pad(windows[:, None], (0, _MIRRORED), mode="reflect")
        x = self.stft_conv(x)
        x = (x[:, :_BINS] ** 2 + x[:, _BINS:] ** 2).sqrt()
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = layer(x).relu()
        x, state = self.lstm(x[..., 0], state)
        return self.final_conv(x.relu()[..., None]).sigmoid().flatten(), state


def load_silero() -> SileroNetwork | None:
    """The network with its weights; None where the package is not installed."""
    spec = importlib.util.find_spec("silero_vad")
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin).parent / "data" / "silero_vad_16k.safetensors"
    if not file.is_file():  # another version of the package
        return None
    network = SileroNetwork().eval().requires_grad_(False)
    network.load_state_dict({_RENAMED.get(name, name): weight for name, weight in load_file(file).items()})
    return network


class SileroVoice:
    """Speech in one stream of sound.

    Args:
        network: may be shared.
    """

    def __init__(self, network: SileroNetwork) -> None:
        self._network = network
        self._state: tuple[Tensor, Tensor] | None = None
        self._before = np.zeros(_BEFORE, np.float32)

    def __call__(self, windows: Samples) -> NDArray[np.float64]:
        """(N,) probabilities of speech in (N, 512) samples at 16 kHz that follow those before."""
        ends = np.concatenate((self._before[None], windows[:-1, -_BEFORE:]))
        self._before = windows[-1, -_BEFORE:].copy()
        with torch.inference_mode():
            seen = torch.from_numpy(np.concatenate((ends, windows), axis=1))
            probabilities, self._state = self._network(seen, self._state)
        return np.asarray(probabilities.numpy(), np.float64)
