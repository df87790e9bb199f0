"""From a recipe's `tokenizer` and `data` to a tokenizer, and to indexes and datasets."""

from dataclasses import dataclass
from itertools import chain

from muomni.config import AnySource, DataSpec, OmniConfig, TokenizerSpec
from muomni.data.datasets.batch import Batch
from muomni.data.datasets.dataset import Dataset
from muomni.data.datasets.multimodal import MultimodalDataset
from muomni.data.datasets.packed import PackedDataset
from muomni.data.datasets.prefetch import PrefetchLoader
from muomni.data.documents import iter_texts
from muomni.data.index.build import build_index
from muomni.data.index.token_index import TokenIndex
from muomni.data.index.writer import Part
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import ConfigError, DataError
from muomni.files import user_path


@dataclass(frozen=True)
class TokenIndexes:
    """Token indexes of the data to learn from and to validate on."""

    train: TokenIndex
    val: TokenIndex


def prepare_tokenizer(spec: TokenizerSpec, data: DataSpec) -> Tokenizer:
    """The tokenizer a recipe asks for: loaded, or trained on the training data.

    Raises:
        DataError: the folder holds no usable tokenizer, or the data cannot be read.
    """
    if spec.path is not None:
        return Tokenizer.load(user_path(spec.path))
    texts = iter_texts(data.train, spec.max_bytes)
    first = next(filter(None, texts), None)
    if first is None:
        sources = ", ".join(source.path for source in data.train)
        raise DataError(f"{sources or 'data.train'}: holds no text, so no tokenizer can be trained on it")
    return Tokenizer.train(chain([first], texts), spec.vocab_size)


def prepare(data: DataSpec, tokenizer: Tokenizer, progress: bool = True) -> TokenIndexes:
    """Builds the token indexes of texts, or opens those that an earlier call left; see `build_index`.

    Raises:
        DataError: a source cannot be read, is too small or holds media, or an index cannot be written.
        ConfigError: a source has a weight, which only `prepare_rows` heeds.
    """
    for number, source in enumerate(data.train):
        if source.weight != 1:
            raise ConfigError(f"data.train.{number}.weight ({source.weight}) needs rows of whole documents")
    return _indexes(data, tokenizer, None, progress)


@dataclass(frozen=True)
class PreparedRows:
    """What a run reads.

    Attributes:
        train: reads ahead in threads where it has media.
        val: not shuffled, nothing changed at random.
        notes: sentences for the user: what was left out and why.
    """

    train: Dataset[Batch]
    val: Dataset[Batch]
    notes: tuple[str, ...] = ()


def prepare_rows(
    data: DataSpec, tokenizer: Tokenizer, config: OmniConfig, seed: int, progress: bool = True
) -> PreparedRows:
    """The rows to learn from and to validate on.

    They are a `PackedDataset` for a model of text alone whose sources are all read once, else a `MultimodalDataset`.

    Raises:
        DataError: a source cannot be read or is too small, holds media that the model has no encoder for, more than
            `data.max_unreadable_fraction` of the documents have media that cannot be read, or a cache cannot be
            written.
    """
    weights = tuple(source.weight for source in data.train)
    if config.vision is None and config.audio is None and all(weight == 1 for weight in weights):
        texts = prepare(data, tokenizer, progress)
        return PreparedRows(
            PackedDataset(texts.train, data.seq_len, seed, shuffle=data.shuffle),
            PackedDataset(texts.val, data.seq_len, seed, shuffle=False),
        )
    indexes = _indexes(data, tokenizer, config, progress)
    notes = [*_bad(indexes.train, data, "train"), *_bad(indexes.val, data, "val")]
    train_rows = MultimodalDataset(
        indexes.train, config, data.seq_len, seed, shuffle=data.shuffle, weights=weights, augment=data.augment
    )
    val_rows = MultimodalDataset(indexes.val, config, data.seq_len, seed, shuffle=False)
    for name, rows in (("train", train_rows), ("val", val_rows)):
        if rows.left_out:
            names = ", ".join(rows.left_out_names(3))
            notes.append(f"{name}: {rows.left_out} documents are longer than a row and left out, for example {names}")
    workers = data.num_workers
    return PreparedRows(PrefetchLoader(train_rows, workers) if workers else train_rows, val_rows, tuple(notes))


def _indexes(data: DataSpec, tokenizer: Tokenizer, config: OmniConfig | None, progress: bool) -> TokenIndexes:
    folder = user_path(data.cache_dir) if data.cache_dir is not None else None

    def build(sources: tuple[AnySource, ...], part: Part, fraction: float) -> TokenIndex:
        workers = data.num_workers
        return build_index(
            sources, tokenizer, config, folder, part=part, val_fraction=fraction, workers=workers, progress=progress
        )

    if data.val:
        return TokenIndexes(build(data.train, "train", 0.0), build(data.val, "train", 0.0))
    return TokenIndexes(build(data.train, "train", data.val_fraction), build(data.train, "val", data.val_fraction))


def _bad(index: TokenIndex, data: DataSpec, name: str) -> list[str]:
    """What to say about documents with unreadable media; an error where there are too many."""
    bad, total = index.counts.bad, index.num_documents + index.counts.bad
    if not bad:
        return []
    reasons = "; ".join(index.bad(3))
    if bad > data.max_unreadable_fraction * total:
        raise DataError(
            f"{name}: {bad} of {total} documents have media that cannot be read, more than "
            f"data.max_unreadable_fraction ({data.max_unreadable_fraction:g}) allows; for example {reasons}"
        )
    return [f"{name}: {bad} of {total} documents are left out because their media cannot be read: {reasons}"]
