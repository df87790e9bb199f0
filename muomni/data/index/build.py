"""Builds a token index, or opens one that fits."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from muomni.config import AnySource, OmniConfig, SyntheticSpec
from muomni.data.cache_folder import default_cache_dir, describe_file, file_stamp, fingerprint, open_or_build
from muomni.data.index.token_index import TokenIndex
from muomni.data.index.writer import IndexWriter, Part, Split
from muomni.data.sources.sources import source_files
from muomni.data.synthetic.world import rules_digest
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import DataError
from muomni.files import user_path


def build_index(
    sources: Sequence[AnySource],
    tokenizer: Tokenizer,
    config: OmniConfig | None = None,
    cache_dir: Path | None = None,
    *,
    part: Part = "train",
    val_fraction: float = 0.0,
    workers: int = 2,
    progress: bool = True,
) -> TokenIndex:
    """The token index of `sources`, built when there is none that fits. Memory does not grow with the sources.

    With `val_fraction`, both parts come from one pass; a document goes by a hash of its text and of the names of its
    media, so equal documents share a part. Of plain text without separators, pieces of about 4,000 characters are
    shared out instead of whole files. Where so little data is there that a part would stay empty, the document with
    the smallest hash is held out.

    A data set from the Hugging Face Hub is taken as unchanged as long as its name, subset and split are; delete the
    index to read it anew.

    Args:
        sources: what is read.
        tokenizer: makes tokens of it.
        config: the model, whose encoders decide how many tokens a medium takes; None for text alone.
        cache_dir: None takes `default_cache_dir()`.
        part: which part to open.
        val_fraction: share of the documents held out; 0 puts all into `train`.
        workers: threads that read the headers of media.
        progress: show a bar when standard error is a terminal.

    Raises:
        DataError: a source cannot be read, holds nothing to learn from or media that the model has no encoder
            for, there is too little to divide, or the index cannot be written.
    """
    root = default_cache_dir() if cache_dir is None else Path(cache_dir)
    name = index_fingerprint(sources, tokenizer, config, val_fraction)

    def write(folder: Path) -> dict[str, Any]:
        meta = _write(folder, IndexWriter(sources, tokenizer, config, max(1, workers), progress), val_fraction)
        if index_fingerprint(sources, tokenizer, config, val_fraction) != name:
            raise DataError("the training data changed while it was read; start again when it is complete")
        return meta

    open_or_build(root, name, write, is_current=_same_archives)
    return TokenIndex(root / name / part)


def index_fingerprint(
    sources: Sequence[AnySource], tokenizer: Tokenizer, config: OmniConfig | None, val_fraction: float
) -> str:
    """A hash of all that decides an index's bytes: files, options, tokenizer, encoders, and the form of the index."""
    encoders = () if config is None else (config.vision, config.audio)
    described: list[Any] = [encoder.model_dump(mode="json") for encoder in encoders if encoder is not None]
    for spec in sources:
        if isinstance(spec, SyntheticSpec):
            described.append([spec.model_dump(mode="json", exclude={"weight"}), rules_digest()])
            continue
        files = [file.path for file in source_files(spec) or ()]
        folder = user_path(spec.path)
        if not files and folder.is_dir():  # a folder of the `datasets` library
            files = sorted(path for path in folder.rglob("*") if path.is_file())
        described.append([spec.model_dump(mode="json", exclude={"weight"}), [describe_file(path) for path in files]])
    return fingerprint(tokenizer.fingerprint, val_fraction, described)


def _write(folder: Path, writer: IndexWriter, val_fraction: float) -> dict[str, Any]:
    """Writes the parts; returns the meta data."""
    parts: tuple[Part, ...] = ("train", "val") if val_fraction else ("train",)
    split = Split(val_fraction)
    counts = writer.write(folder, parts, split)
    if val_fraction and not all(part.target_tokens for part in counts.values()) and split.least < split.second:
        # So few documents that chance left a part empty.
        counts = writer.write(folder, parts, Split(0.0, held_out=split.least))
    names = ", ".join(spec.path for spec in writer.sources)
    if not any(part.target_tokens for part in counts.values()):
        bad = sum(part.bad for part in counts.values())
        why = f"; {bad} documents were left out because of media that cannot be read" if bad else ""
        raise DataError(f"{names}: holds no text to learn from{why}")
    if not all(part.target_tokens for part in counts.values()):
        raise DataError(f"{names}: is too little text to hold some out for validation; name other files in data.val")
    return {
        "dtype": writer.dtype.name,
        "eos_id": writer.tokenizer.eos_id,
        "pad_id": writer.tokenizer.pad_id,
        "archives": writer.archives,
        "parts": {name: asdict(part) for name, part in counts.items()},
    }


def _same_archives(meta: Mapping[str, Any]) -> bool:
    """Archives are known only once the manifests are read, so they are no part of the fingerprint."""
    return all(file_stamp(path) == stamp for path, stamp in meta["archives"].items())
