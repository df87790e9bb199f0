"""The public face: `MuOmni`."""

from muomni.api.model import MuOmni

__all__ = ["MuOmni"]
