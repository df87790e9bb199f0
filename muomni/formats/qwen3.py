"""Translation between μOmni's Thinker and Hugging Face's dense Qwen3."""

import warnings
from typing import Any

from muomni.config import OmniConfig, ThinkerConfig, parse
from muomni.errors import ConfigError

_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "initializer_range",
)
# What μOmni's Thinker does not do; a folder that asks for it is refused rather than misread.
_MUST_BE = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "attention_dropout": (0, 0.0),
    "partial_rotary_factor": (1, 1.0, None),
    "mlp_bias": (False,),
    "is_decoder": (True, False),
}
# What changes nothing here: how a folder came to be, what only other programs need, and what transformers writes of any
# configuration.
_WITHOUT_EFFECT = """
    _name_or_path _commit_hash architectures auto_map dtype torch_dtype transformers_version model_type name_or_path
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id use_cache return_dict output_attentions
    output_hidden_states max_window_layers sliding_window layer_types rope_theta rope_scaling rope_parameters rope_type
    chunk_size_feed_forward is_encoder_decoder cross_attention_hidden_size add_cross_attention tie_encoder_decoder
    id2label label2id problem_type finetuning_task tokenizer_class task_specific_params torchscript pruned_heads
    type attn_implementation _attn_implementation _attn_implementation_internal
"""
_KNOWN = {*_SAME, *_MUST_BE, *_WITHOUT_EFFECT.split()}


def from_qwen3_config(values: dict[str, Any], generation: dict[str, Any], origin: str) -> OmniConfig:
    """The configuration of a Qwen3 folder.

    Args:
        values: its `config.json`; `rope_theta` as transformers 4 or 5 writes it.
        generation: its `generation_config.json`, whose end ids go before those of `values`, or nothing.
        origin: names the file in errors.

    Raises:
        ConfigError: the folder asks for something the Thinker does not do.
    """
    # transformers 4 and 5 look here for rotary positions; a folder may have both, of which the first counts.
    ropes = [rope for key in ("rope_scaling", "rope_parameters") if isinstance(rope := values.get(key), dict) and rope]
    for part in (values, *ropes):
        for key, allowed in _MUST_BE.items():
            if key in part and part[key] not in allowed:
                raise ConfigError(f"{origin}: {key} = {part[key]!r}: the Thinker only does {allowed[0]!r}")
    for rope in ropes:
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise ConfigError(f"{origin}: rope type {kind!r}: the Thinker only does plain rotary positions ('default')")
    kinds = values.get("layer_types")
    if kinds is not None and not (isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds)):
        raise ConfigError(f"{origin}: layer_types = {kinds!r}: the Thinker only does 'full_attention'")
    unknown = sorted({*values, *(key for rope in ropes for key in rope)} - _KNOWN)
    if unknown:
        warnings.warn(f"{origin}: not known here, and without effect: {', '.join(unknown)}", stacklevel=2)
    missing = [key for key in _SAME[:7] if values.get(key) is None]
    if missing:
        raise ConfigError(f"{origin}: {', '.join(missing)} missing: not a Qwen3 configuration")
    thinker = {key: values[key] for key in _SAME if key in values}
    # transformers leaves out what equals its own defaults
    thinker.setdefault("tie_word_embeddings", False)
    thinker["rope_theta"] = (ropes[0] if ropes else {}).get("rope_theta", values.get("rope_theta", 10_000.0))
    ends = generation.get("eos_token_id")
    ends = values.get("eos_token_id") if ends is None else ends
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return parse(OmniConfig, {"thinker": parse(ThinkerConfig, thinker, origin), "eos_token_ids": ends}, origin)


def to_qwen3_config(config: OmniConfig, dtype: str = "float32") -> dict[str, Any]:
    """A `config.json` that transformers 4.51 and later load as `Qwen3ForCausalLM`."""
    thinker = config.thinker
    ends = list(config.eos_token_ids)
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **{key: getattr(thinker, key) for key in _SAME},
        "rope_theta": thinker.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": thinker.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }


def from_qwen3_name(name: str) -> str:
    """`model.layers.0...` becomes `thinker.layers.0...`, `lm_head.weight` becomes `thinker.lm_head.weight`."""
    return "thinker." + name.removeprefix("model.")


def to_qwen3_name(name: str) -> str:
    """The inverse of `from_qwen3_name`."""
    name = name.removeprefix("thinker.")
    return name if name.startswith("lm_head.") else "model." + name
