"""A model in the forms that other programs load."""

from collections.abc import Callable
from pathlib import Path

from muomni.data.text.tokenizer import Tokenizer
from muomni.files import atomic_folder, user_path
from muomni.formats.gguf import GgufDtype
from muomni.formats.pretrained import check_replaceable, save_model
from muomni.infer.preprocess import end_ids
from muomni.model import OmniModel


def export_hf(model: OmniModel, tokenizer: Tokenizer | None, out: str | Path) -> None:
    """Writes a Qwen3 folder for `transformers`, vLLM and llama.cpp's converter; whole or not at all.

    Raises:
        UserError: the folder holds other files, or the model is not what its configuration makes.
        CheckpointError: it cannot be written.
    """
    target = user_path(out).resolve()
    check_replaceable(target)
    with atomic_folder(target) as folder:
        save_model(model, folder, qwen3=True, end_ids=end_ids(model, tokenizer))
        if tokenizer is not None:
            tokenizer.save(folder)


def export_gguf(
    model: OmniModel,
    tokenizer: Tokenizer | None,
    out: str | Path,
    dtype: GgufDtype = "f32",
    each: Callable[[str], None] | None = None,
) -> None:
    """Writes a GGUF file, tokenizer and chat template included, for llama.cpp; whole or not at all.

    Args:
        model: is written.
        tokenizer: of the model, or None.
        out: the file; one that is there is replaced.
        dtype: of the matrices: `f32`, `f16`, `bf16` or `q8_0` (int8 in blocks of 32).
        each: called with the name of each tensor before it is written.

    Raises:
        ConfigError: no such dtype.
        UserError: the `gguf` package is missing, the dtype cannot hold the weights, or the model is not what its
            configuration makes.
        DataError: llama.cpp has no tokenizer that cuts text as this one does.
        CheckpointError: the file cannot be written.
    """
    from muomni.formats.gguf_tokenizer import save_gguf

    save_gguf(model, tokenizer, end_ids(model, tokenizer), user_path(out).resolve(), dtype, each)
