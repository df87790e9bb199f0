"""μOmni: a compact omni model that one person trains and runs on one machine.

Environment variables, all of them:

| name                     | meaning, and the module that reads it                                  |
|--------------------------|------------------------------------------------------------------------|
| `MUOMNI_CACHE`           | folder of token caches, compiled code and measurements (`files`)       |
| `MUOMNI_DEBUG`           | 1: an error on the command line shows its traceback (`cli`)            |
| `MUOMNI_IGNORE_MEASURED` | 1: earlier measurements decide nothing (`accel.measurements.verdicts`) |
| `MUOMNI_SHARED_DATA`     | folder of the development data (tests only)                            |
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muomni.api.model import MuOmni
    from muomni.api.training import train
    from muomni.config.loader import load_recipe
    from muomni.data.text.tokenizer import Tokenizer
    from muomni.infer.sampling import SamplingParams
    from muomni.infer.streaming import Reply

__all__ = [
    "MuOmni",
    "Reply",
    "SamplingParams",
    "Tokenizer",
    "__version__",
    "load_recipe",
    "train",
]
__version__ = "0.1.0"

# Where each public name is defined. Loading torch takes a second; `muomni --help` and the configuration do without it.
_HOMES = {
    "MuOmni": "muomni.api.model",
    "Reply": "muomni.infer.streaming",
    "SamplingParams": "muomni.infer.sampling",
    "Tokenizer": "muomni.data.text.tokenizer",
    "load_recipe": "muomni.config.loader",
    "train": "muomni.api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'muomni' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
