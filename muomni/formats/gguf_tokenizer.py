"""A tokenizer in the form of llama.cpp, for a GGUF file."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from muomni.data.text.tokenizer import SPLIT_PATTERN, Tokenizer
from muomni.errors import CheckpointError, DataError
from muomni.files import atomic_file
from muomni.formats.gguf import GgufDtype, TokenKind, Vocabulary, write_gguf
from muomni.model import OmniModel

# The rules that cut text into words, by their regular expressions, and what llama.cpp calls them: this one cuts
# numbers by up to three digits, as Llama 3 and DBRX do; Qwen's, which cuts numbers into digits, is the other.
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)" + SPLIT_PATTERN[SPLIT_PATTERN.index("|[^") :]
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def save_gguf(
    model: OmniModel,
    tokenizer: Tokenizer | None,
    end_ids: Sequence[int],
    target: Path,
    dtype: GgufDtype = "f32",
    each: Callable[[str], None] | None = None,
) -> None:
    """Writes a model with its tokenizer, whole or not at all; see `formats.gguf.write_gguf`.

    Args:
        model: int8 weights are dequantised first.
        tokenizer: None writes none.
        end_ids: the tokens that end a reply, the one of a turn first.
        target: the file; one that is there is replaced.
        dtype: of the matrices.
        each: called with the name of each tensor before its turn.

    Raises:
        DataError: as `gguf_vocabulary`.
        CheckpointError: the file cannot be written.
    """
    vocabulary = None
    if tokenizer is not None:
        eos = end_ids[0] if end_ids else tokenizer.eos_id
        vocabulary = gguf_vocabulary(tokenizer, model.config.thinker.vocab_size, eos)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as partial:
            write_gguf(model, partial, dtype, vocabulary, name=target.stem, each=each)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error}") from None


def gguf_vocabulary(tokenizer: Tokenizer, size: int, eos: int) -> Vocabulary:
    """The entries of a tokenizer, filled up to a model's vocabulary.

    Args:
        tokenizer: a byte-level BPE.
        size: rows of the model's embedding; ids without an entry get an unused one.
        eos: the token that ends a reply.

    Raises:
        DataError: the tokenizer is larger than that, cuts text by a rule that llama.cpp does not have, or puts more
            than one token before a text.
    """
    if tokenizer.vocab_size > size:
        raise DataError(f"the tokenizer has {tokenizer.vocab_size} entries and the model's vocabulary is {size}")
    values: dict[str, Any] = json.loads(tokenizer.backend.to_str())
    added = tokenizer.backend.get_added_tokens_decoder()
    tokens: list[str] = []
    kinds: list[TokenKind] = []
    for i in range(size):
        entry = tokenizer.backend.id_to_token(i)
        tokens.append(f"[UNUSED{i}]" if entry is None else entry)
        if entry is None:
            kinds.append("unused")
        else:
            kinds.append("normal" if i not in added else "control" if added[i].special else "user_defined")
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in values["model"]["merges"]]
    pre = _pre(values["pre_tokenizer"], bool(values["model"].get("ignore_merges")))
    template = tokenizer.chat_template.source
    begin = tokenizer.begin_ids
    if len(begin) > 1:
        raise DataError(f"this tokenizer puts {len(begin)} tokens before a text, and llama.cpp adds one at most")
    bos = begin[0] if begin else tokenizer.eos_id
    return Vocabulary(tokens, kinds, merges, pre, bos, eos, tokenizer.pad_id, bool(begin), template)


def _pre(value: dict[str, Any] | None, ignore_merges: bool) -> str:
    """llama.cpp's name of a pre-tokenizer.

    `llama-bpe` takes a word that is an entry whole, whatever the merges say; `dbrx` is the same without that.
    """
    steps = [] if value is None else value["pretokenizers"] if value["type"] == "Sequence" else [value]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex") and not steps[0].get("add_prefix_space"):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex") and not steps[1].get("add_prefix_space"):
        pattern = steps[0]["pattern"].get("Regex")
        if pattern in (SPLIT_PATTERN, _LLAMA3):
            return "llama-bpe" if ignore_merges else "dbrx"
        if pattern == _QWEN2 and not ignore_merges:
            return "qwen2"
    raise DataError("this tokenizer cuts text into words by a rule that llama.cpp does not have under any name")
