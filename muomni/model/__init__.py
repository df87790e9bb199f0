"""The model. Read `omni` first, then `thinker`, `layers`, `vision` and `audio`; `folder` reads and writes it."""

from muomni.model.cache import Cache, KVCache, SlotBatch, SlotCache
from muomni.model.omni import Features, OmniModel, OmniOutput

__all__ = ["Cache", "Features", "KVCache", "OmniModel", "OmniOutput", "SlotBatch", "SlotCache"]
