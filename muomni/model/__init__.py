"""The model. Read `omni` first, then `thinker` and `layers`; `folder` reads and writes it."""

from muomni.model.cache import Cache, KVCache, SlotBatch, SlotCache
from muomni.model.omni import OmniModel, OmniOutput

__all__ = ["Cache", "KVCache", "OmniModel", "OmniOutput", "SlotBatch", "SlotCache"]
