"""From a recipe's `tokenizer` and `data` to a tokenizer and token caches."""

from dataclasses import dataclass
from pathlib import Path

from muomni.config import DataSpec, TokenizerSpec
from muomni.data.cache import TokenCache, build_token_cache
from muomni.data.sources import iter_texts
from muomni.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prepared:
    """Token caches of the data to learn from and to validate on."""

    train: TokenCache
    val: TokenCache


def prepare_tokenizer(spec: TokenizerSpec, data: DataSpec) -> Tokenizer:
    """The tokenizer a recipe asks for: loaded, or trained on the training data.

    Raises:
        DataError: the folder holds no usable tokenizer, or the data cannot be read.
    """
    if spec.path is not None:
        return Tokenizer.load(Path(spec.path).expanduser())
    return Tokenizer.train(iter_texts(data.train, spec.max_bytes), spec.vocab_size)


def prepare(data: DataSpec, tokenizer: Tokenizer, progress: bool = True) -> Prepared:
    """Builds the token caches, or opens those that an earlier call left; see `build_token_cache`.

    Raises:
        DataError: a source cannot be read or is too small, or the cache cannot be written.
    """
    folder = Path(data.cache_dir).expanduser() if data.cache_dir is not None else None
    if data.val:
        return Prepared(
            build_token_cache(data.train, tokenizer, folder, progress=progress),
            build_token_cache(data.val, tokenizer, folder, progress=progress),
        )
    fraction = data.val_fraction
    return Prepared(
        build_token_cache(data.train, tokenizer, folder, part="train", val_fraction=fraction, progress=progress),
        build_token_cache(data.train, tokenizer, folder, part="val", val_fraction=fraction, progress=progress),
    )
