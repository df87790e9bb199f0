"""Sound and codes that come piece by piece: the same values as in one go, for any cut.

What is remembered between pieces is explicit: a `History` of the last frames of each causal layer, besides samples
that do not fill a frame yet. Its size does not grow.

Legend: B rows, S samples, K codebooks, T frames of codes.
"""

import torch
from torch import Tensor

from muomni.model.codec.codec import SpeechCodec
from muomni.model.codec.layers import History


class StreamingDecoder:
    """Codes to samples as they come, of B rows side by side.

    After t frames of a row `num_samples(t)` samples are out: `delay` of them (30 ms) wait for the frames behind them,
    and the last frames of a clip that `encode` gave are such that none of its sound is among those.
    """

    def __init__(self, codec: SpeechCodec) -> None:
        self.codec = codec
        self._history = History()
        self._late = codec.config.delay

    @torch.no_grad()
    def push(self, codes: Tensor) -> Tensor:
        """The samples that these frames complete.

        Args:
            codes: (B, K, T) int64, T ≥ 1, the same B in every call.

        Returns:
            (B, S): at first `num_samples(T)` samples, then T·frame_samples.

        Raises:
            ValueError: another shape, or a code that there is not.
        """
        self.codec.check_codes(codes)
        if codes.shape[2] == 0:
            raise ValueError("there must be at least one frame")
        values = self.codec.quantizer.values(codes.to(self.codec.device), self.codec.dtype)
        samples: Tensor = self.codec.decoder(values, self._history)
        late, self._late = self._late, max(0, self._late - samples.shape[1])
        return samples[:, late:]

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows only: others have ended.

        Args:
            rows: (b,) int64, numbers of rows as they stand now.
        """
        self._history.select(rows.to(self.codec.device))


class StreamingEncoder:
    """Samples to codes as they come, of one clip."""

    def __init__(self, codec: SpeechCodec) -> None:
        self.codec = codec
        self._history = History()
        self._waiting = torch.empty(0, device=codec.device, dtype=codec.dtype)
        self._heard = self._frames = 0
        self._finished = False

    def push(self, samples: Tensor) -> Tensor:
        """The frames that these samples complete.

        Args:
            samples: (S,), S ≥ 0.

        Returns:
            (K, T) int64, T ≥ 0.
        """
        if self._finished:
            raise ValueError("this clip was finished: begin another StreamingEncoder")
        self._heard += len(samples)
        return self._encode(samples)

    def finish(self) -> Tensor:
        """(K, T) int64, the last frames: `encode` of all samples has no more.

        Raises:
            ValueError: there were no samples, or this was called before.
        """
        if self._finished or not self._heard:
            raise ValueError("there is nothing to finish")
        config = self.codec.config
        missing = (self.codec.num_frames(self._heard) - self._frames) * config.frame_samples - len(self._waiting)
        self._finished = True
        return self._encode(self._waiting.new_zeros(missing))

    @torch.no_grad()
    def _encode(self, samples: Tensor) -> Tensor:
        codec = self.codec
        waiting = torch.cat((self._waiting, samples.to(self._waiting)))
        count = len(waiting) // codec.config.frame_samples
        whole = count * codec.config.frame_samples
        self._waiting = waiting[whole:].clone()
        self._frames += count
        if not count:
            return torch.empty(codec.num_codebooks, 0, dtype=torch.int64, device=codec.device)
        _, codes, _ = codec.quantizer(codec.encoder(waiting[None, :whole], self._history))
        found: Tensor = codes[0]
        return found
