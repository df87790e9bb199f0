"""A GGUF file of a Thinker, for llama.cpp; without the tokenizer: the bench gives token ids."""

from pathlib import Path
from typing import Literal

import torch

from muomni.model import OmniModel

_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}


def write_gguf(model: OmniModel, path: Path, kind: Literal["f32", "bf16", "q8_0"]) -> None:
    """Writes the Thinker; matrices in `kind`, norms in fp32."""
    import gguf

    types = {
        "f32": gguf.GGMLQuantizationType.F32,
        "bf16": gguf.GGMLQuantizationType.BF16,
        "q8_0": gguf.GGMLQuantizationType.Q8_0,
    }
    t = model.config.thinker
    out = gguf.GGUFWriter(path, "qwen3")
    out.add_context_length(t.max_position_embeddings)
    out.add_embedding_length(t.hidden_size)
    out.add_block_count(t.num_hidden_layers)
    out.add_feed_forward_length(t.intermediate_size)
    out.add_head_count(t.num_attention_heads)
    out.add_head_count_kv(t.num_key_value_heads)
    out.add_key_length(t.head_dim)
    out.add_value_length(t.head_dim)
    out.add_layer_norm_rms_eps(t.rms_norm_eps)
    out.add_rope_freq_base(t.rope_theta)
    out.add_vocab_size(t.vocab_size)
    out.add_tokenizer_model("none")
    for name, tensor in model.thinker.state_dict().items():
        if name == "lm_head.weight" and t.tie_word_embeddings:
            continue
        values = tensor.detach().to(torch.float32).numpy()
        chosen = types[kind] if values.ndim == 2 else types["f32"]
        out.add_tensor(_gguf_name(name), gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _gguf_name(name: str) -> str:
    name = name.removesuffix(".weight")
    if name in _TOP:
        return f"{_TOP[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"blk.{layer}.{_NAMES[rest]}.weight"
