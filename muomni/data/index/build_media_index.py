"""Builds a media index, or opens one that fits."""

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from muomni.config import OmniConfig, SourceSpec
from muomni.data.index.media_format import FORMAT, describe_archive, read_meta
from muomni.data.index.media_index import MediaIndex
from muomni.data.index.token_cache import default_cache_dir, partial_folder, publish, source_fingerprint
from muomni.data.index.token_cache_writer import Part
from muomni.data.text.tokenizer import Tokenizer
from muomni.errors import DataError


def build_media_index(
    sources: Sequence[SourceSpec],
    tokenizer: Tokenizer,
    config: OmniConfig,
    cache_dir: Path | None = None,
    *,
    part: Part = "train",
    val_fraction: float = 0.0,
    workers: int = 2,
    progress: bool = True,
) -> MediaIndex:
    """The media index of `sources`, built when there is none that fits. Memory does not grow with the sources.

    A document goes to a part by a hash of its text and of the names of its media, as in the token cache.

    Args:
        config: the model; its encoders decide how many tokens a medium takes.
        cache_dir: None takes `default_cache_dir()`.
        part: which part to open.
        val_fraction: share of the documents held out; 0 puts all into `train`.
        workers: threads that read headers.
        progress: show a bar when standard error is a terminal.

    Raises:
        DataError: a source cannot be read, holds nothing to learn from or media that the model has no encoder
            for, there is too little to divide, or the index cannot be written.
    """
    from muomni.data.index.media_index_writer import Probe, write_index

    root = default_cache_dir() if cache_dir is None else Path(cache_dir)
    fingerprint = _fingerprint(sources, tokenizer, config, val_fraction)
    target = root / fingerprint
    found = read_meta(target)
    if found is None or not _unchanged(found["archives"]):
        with partial_folder(root) as partial:
            meta = write_index(partial, sources, tokenizer, Probe(config), val_fraction, max(1, workers), progress)
            if _fingerprint(sources, tokenizer, config, val_fraction) != fingerprint:
                raise DataError("the training data changed while it was read; start again when it is complete")
            whole = {"format": FORMAT, "fingerprint": fingerprint, **meta}
            (partial / "meta.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
            if found is not None:  # an archive that it names has changed: move it out of the way
                target.rename(partial / "outdated")
            publish(partial, target, root, lambda folder: read_meta(folder) is not None)
    return MediaIndex(target / part)


def _fingerprint(sources: Sequence[SourceSpec], tokenizer: Tokenizer, config: OmniConfig, val_fraction: float) -> str:
    encoders = [None if part is None else part.model_dump(mode="json") for part in (config.vision, config.audio)]
    described = ["media", FORMAT, source_fingerprint(sources, tokenizer, val_fraction), encoders]
    return sha256(json.dumps(described).encode()).hexdigest()[:32]


def _unchanged(archives: Mapping[str, list[int]]) -> bool:
    return all(describe_archive(path) == state for path, state in archives.items())
