"""μOmni: a compact omni model that one person trains and runs on one machine."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.data.text.tokenizer import Tokenizer
    from muomni.infer.reply import Reply
    from muomni.infer.sampling import SamplingParams

__all__ = ["MuOmni", "Reply", "SamplingParams", "Tokenizer", "__version__"]
__version__ = "0.1.0"

# Where each public name is defined. Loading torch takes a second; `muomni --help` and the configuration do without it.
_HOMES = {
    "MuOmni": "muomni.api.model",
    "Reply": "muomni.infer.reply",
    "SamplingParams": "muomni.infer.sampling",
    "Tokenizer": "muomni.data.text.tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'muomni' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
