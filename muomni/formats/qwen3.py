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
    "partial_rotary_factor": (1, 1.0),
    "mlp_bias": (False,),
    "is_decoder": (True, False),
}
# What changes nothing here: how a folder came to be, what only other programs need, and what transformers writes of any
# configuration.
_WITHOUT_EFFECT = """
    _name_or_path _commit_hash architectures auto_map dtype torch_dtype transformers_version model_type name_or_path
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id use_cache return_dict output_attentions
    output_hidden_states max_window_layers sliding_window layer_types rope_theta rope_scaling rope_parameters
    chunk_size_feed_forward is_encoder_decoder cross_attention_hidden_size add_cross_attention tie_encoder_decoder
    id2label label2id problem_type finetuning_task tokenizer_class task_specific_params torchscript pruned_heads
    attn_implementation _attn_implementation _attn_implementation_internal
"""
_KNOWN = {*_SAME, *_MUST_BE, *_WITHOUT_EFFECT.split()}


def from_qwen3_config(values: dict[str, Any], origin: str) -> OmniConfig:
    """The configuration of a Qwen3 folder.

    Args:
        values: its `config.json`; `rope_theta` as transformers 4 or 5 writes it.
        origin: names the file in errors.

    Raises:
        ConfigError: the folder asks for something the Thinker does not do.
    """
    for key, allowed in _MUST_BE.items():
        if key in values and values[key] not in allowed:
            raise ConfigError(f"{origin}: {key} = {values[key]!r}: the Thinker only does {allowed[0]!r}")
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):  # transformers 4 and 5; a folder may have both
        given = values.get(key) or {}
        kind = given.get("rope_type", given.get("type", "default"))
        if kind != "default":
            raise ConfigError(
                f"{origin}: {key}: rope type {kind!r}: the Thinker only does plain rotary positions ('default')"
            )
        rope |= given
    unknown = sorted(values.keys() - _KNOWN) + sorted(rope.keys() - {"rope_type", "type", "rope_theta"})
    if unknown:
        warnings.warn(f"{origin}: not known here, and without effect: {', '.join(unknown)}", stacklevel=2)
    windows = [kind for kind in values.get("layer_types") or () if kind != "full_attention"]
    if windows:
        raise ConfigError(f"{origin}: layer_types: {windows[0]!r}: the Thinker only does 'full_attention'")
    missing = [key for key in _SAME[:7] if values.get(key) is None]
    if missing:
        raise ConfigError(f"{origin}: {', '.join(missing)} missing: not a Qwen3 configuration")
    thinker = {key: values[key] for key in _SAME if key in values}
    # transformers leaves out what equals its own defaults
    thinker.setdefault("tie_word_embeddings", False)
    thinker["rope_theta"] = float(rope.get("rope_theta", values.get("rope_theta", 10_000.0)))
    eos = values.get("eos_token_id")
    ends = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
    return OmniConfig(thinker=parse(ThinkerConfig, thinker, origin), eos_token_ids=ends)


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
