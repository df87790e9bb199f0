"""Attention: one signature for every backend.

Legend: B batch, T query tokens, S key tokens, H query heads, K key/value heads (K divides H), D head_dim,
N = B·T tokens of packed rows.

What a query may see is said by two things, never by a dense (T, S) mask:

* causal, aligned at the end: query t of T sees keys 0 .. S - T + t. With a KV cache S > T. Encoders say
  `causal=False`: every query sees every key.
* `Segments`: rows packed from several documents; attention stays inside a document.

| backend | packed documents | everything else |
|---|---|---|
| `sdpa.attention` | CPU: a kernel a document (bidirectional: a length); elsewhere SDPA, once a document | torch SDPA |
| `varlen.attention` | torch's varlen flash kernel (CUDA) | as `sdpa` |
| `flash_attn.attention` | the installed flash-attn 2 package (CUDA) | as `sdpa` |
| `flex.attention` | FlexAttention with a block mask of documents | as `sdpa` |
| `attention_reference` | the definition, in the dtype given | the definition |

flash-attn 3 and 4 plug into torch and are reached through `varlen` and `sdpa`; see `accel.attention_backend`, which
chooses a backend for a model. Here `attention` is `sdpa`, which works everywhere.
"""

from muomni.ops.attention.interface import AttentionFunction, Segments
from muomni.ops.attention.reference import attention_reference
from muomni.ops.attention.sdpa import attention

__all__ = ["AttentionFunction", "Segments", "attention", "attention_reference"]
