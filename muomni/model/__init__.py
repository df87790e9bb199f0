"""The model. Read `omni` first, then `thinker`, `layers`, `vision`, `audio`, `talker`; `folder` reads and writes."""

from muomni.model.kv_cache import Cache, KVCache, SlotBatch, SlotCache
from muomni.model.omni import OmniModel
from muomni.model.outputs import Features, OmniOutput

__all__ = ["Cache", "Features", "KVCache", "OmniModel", "OmniOutput", "SlotBatch", "SlotCache"]
