"""The codec inside a model that speaks: trained before, it only decodes what the Talker predicts."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor

from muomni.config.codec import CodecConfig
from muomni.model.codec.codec import SpeechCodec


class FrozenCodec(SpeechCodec):
    """A codec that does not learn, is always in evaluation mode, and keeps fp32 whatever the model is converted to.

    In lower precision its spectra would be off by what one hears; and it is a small part of the work.
    """

    def __init__(self, config: CodecConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(config, generator)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def to_be_loaded(cls, config: CodecConfig) -> Self:
        """One whose weights are to come from a file: draws nothing from torch's generator, and is never on `meta`.

        Some of its buffers are in no file, so that it could not be loaded into from there.
        """
        device = torch.empty(0).device
        with torch.random.fork_rng(devices=[]), torch.device("cpu" if device.type == "meta" else device):
            return cls(config)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        del mode
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Stays without gradients."""
        del requires_grad
        return super().requires_grad_(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            return new if new.dtype == tensor.dtype else tensor.to(new.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self
