"""μOmni: a compact omni model that one person trains and runs on one machine."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muomni.api.model import MuOmni

__all__ = ["MuOmni", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Loading torch takes a second; `muomni --help` and the configuration do without it.
    if name == "MuOmni":
        from muomni.api.model import MuOmni

        return MuOmni
    raise AttributeError(f"module 'muomni' has no attribute {name!r}")
