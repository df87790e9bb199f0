"""A model as one GGUF file, which llama.cpp and what is built on it load.

The Thinker is a Qwen3, an architecture llama.cpp knows: names of tensors and sizes are translated, weights
go in row-major as they are. llama.cpp turns Qwen3's rotary pairs (i, i + D/2) as the Thinker does, so no
row changes its place (its Llama conversion does permute). Matrices are written one at a time.

Needs the `gguf` package (MIT): `pip install 'muomni[gguf]'`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from muomni.errors import CheckpointError, ConfigError, UserError
from muomni.model.int8_layers import weight_of
from muomni.model.omni import OmniModel
from muomni.model.structure import checked_config

if TYPE_CHECKING:
    from numpy.typing import NDArray

GgufDtype = Literal["f32", "f16", "bf16", "q8_0"]
TokenKind = Literal["normal", "control", "user_defined", "unused"]

_TOP = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_BLOCK = {
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
_Q8_BLOCK = 32


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE as llama.cpp has it (its `gpt2` type).

    Attributes:
        tokens: by id, in GPT-2's alphabet of bytes; special ones by their names.
        kinds: of each.
        merges: pairs, joined by a space, the earliest first.
        pre: llama.cpp's name of the rule that cuts text into words.
        bos, eos, pad: ids; `eos` ends a reply.
        add_bos: whether `bos` stands before every text.
        chat_template: in Jinja, or None.
    """

    tokens: Sequence[str]
    kinds: Sequence[TokenKind]
    merges: Sequence[str]
    pre: str
    bos: int
    eos: int
    pad: int
    add_bos: bool = False
    chat_template: str | None = None


def write_gguf(
    model: OmniModel,
    path: Path,
    dtype: GgufDtype = "f32",
    vocabulary: Vocabulary | None = None,
    *,
    name: str | None = None,
    each: Callable[[str], None] | None = None,
) -> None:
    """Writes the file in place; see `files.atomic_file` for whole or not at all.

    Args:
        model: int8 weights are dequantised first.
        path: of the file.
        dtype: of the matrices; norms are f32.
        vocabulary: None writes none, and llama.cpp then only takes token ids.
        name: of the model, for people.
        each: called with the name of each tensor before its turn.

    Raises:
        ConfigError: no such dtype.
        UserError: the `gguf` package is missing, the dtype cannot hold the weights, or the model is not what its
            configuration makes; see `model.structure`.
        CheckpointError: the disk is full or the file cannot be written.
    """
    if dtype not in get_args(GgufDtype):
        raise ConfigError(f"GGUF dtype {dtype!r}: there are {', '.join(get_args(GgufDtype))}")
    if find_spec("gguf") is None:
        raise UserError("a GGUF file needs the gguf package: pip install 'muomni[gguf]'")
    import gguf
    import numpy as np

    kinds = {name: gguf.GGMLQuantizationType[name.upper()] for name in get_args(GgufDtype)}
    matrix = kinds[dtype]
    tensors = list(_tensors(model))
    _check_fits(tensors, dtype)
    writer = gguf.GGUFWriter(path, "qwen3")
    _add_sizes(writer, model, name)
    writer.add_file_type(gguf.LlamaFileType[("ALL_" if dtype == "f32" else "MOSTLY_") + dtype.upper()])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_vocabulary(writer, vocabulary)
    for full, shape, _ in tensors:
        kind = matrix if len(shape) == 2 else kinds["f32"]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        elements = shape.numel()
        # Where a kind is given, the writer reads the element type only to tell bytes from values.
        writer.add_tensor_info(full, list(shape), np.dtype(np.float32), elements // block * size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for full, shape, values in tensors:
            if each is not None:
                each(full)
            kind = matrix if len(shape) == 2 else kinds["f32"]
            writer.write_tensor_data(gguf.quants.quantize(_numpy(values()), kind))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None
    finally:
        writer.close()


def gguf_name(name: str) -> str:
    """`layers.0.mlp.up_proj.weight` of the Thinker becomes `blk.0.ffn_up.weight`."""
    if not name.startswith("layers."):
        module, _, kind = name.rpartition(".")
        return f"{_TOP[module]}.{kind}"
    _, layer, rest = name.split(".", 2)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_BLOCK[module]}.{kind}"


def _tensors(model: OmniModel) -> Iterator[tuple[str, torch.Size, Callable[[], Tensor]]]:
    """Name, shape and how to get the float values of each tensor; a tied head is left out, as llama.cpp wants it."""
    thinker = model.thinker
    checked_config(model)
    for path, module in thinker.named_modules():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, Tensor) or (path == "lm_head" and thinker.is_tied):
            continue
        yield gguf_name(f"{path}.weight"), weight.shape, partial(weight_of, module)


def _numpy(values: Tensor) -> "NDArray[Any]":
    array: NDArray[Any] = values.to("cpu", torch.float32).contiguous().numpy()
    return array


def _check_fits(tensors: list[tuple[str, torch.Size, Callable[[], Tensor]]], dtype: GgufDtype) -> None:
    for name, shape, values in tensors:
        if len(shape) != 2:
            continue
        if dtype == "q8_0" and shape[1] % _Q8_BLOCK:
            raise UserError(
                f"q8_0 keeps weights in blocks of {_Q8_BLOCK}, and {name} has rows of {shape[1]}: take f16 or f32"
            )
        if dtype == "f16" and bool(values().abs().max() > torch.finfo(torch.float16).max):
            raise UserError(f"{name} has a weight beyond f16's range: take f32")


def _add_sizes(writer: Any, model: OmniModel, name: str | None) -> None:
    thinker = model.config.thinker
    if name:
        writer.add_name(name)
    writer.add_context_length(thinker.max_position_embeddings)
    writer.add_embedding_length(thinker.hidden_size)
    writer.add_block_count(thinker.num_hidden_layers)
    writer.add_feed_forward_length(thinker.intermediate_size)
    writer.add_head_count(thinker.num_attention_heads)
    writer.add_head_count_kv(thinker.num_key_value_heads)
    writer.add_key_length(thinker.head_dim)
    writer.add_value_length(thinker.head_dim)
    writer.add_layer_norm_rms_eps(thinker.rms_norm_eps)
    writer.add_rope_freq_base(thinker.rope_theta)
    writer.add_vocab_size(thinker.vocab_size)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary | None) -> None:
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    import gguf

    kinds = {
        "normal": gguf.TokenType.NORMAL,
        "control": gguf.TokenType.CONTROL,
        "user_defined": gguf.TokenType.USER_DEFINED,
        "unused": gguf.TokenType.UNUSED,
    }
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([kinds[kind] for kind in vocabulary.kinds])
    writer.add_token_merges(vocabulary.merges)
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_pad_token_id(vocabulary.pad)
    writer.add_add_bos_token(vocabulary.add_bos)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)
