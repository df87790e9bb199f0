"""Embeddings of the pictures and sounds of prompts, cached by a hash of their content.

All new media of a call go through their encoder together.

Legend: N tokens of a medium, D hidden_size of the Thinker, T tokens of a prompt.
"""

import hashlib
import operator
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from muomni.config import OmniConfig
from muomni.data.media.media_ref import Kind, MediaContent, MediaRef, read_media
from muomni.data.media.processor import MediaFeatures, MediaProcessor, content_hash
from muomni.data.text.chat import EncodedChat, expand
from muomni.data.text.content_parts import MediaPart
from muomni.errors import MediaError, UserError
from muomni.infer.prompt_media import PromptMedia
from muomni.model import OmniModel
from muomni.model.inputs import AudioBatch, ImageBatch
from muomni.model.module_modes import eval_mode, fingerprint
from muomni.model.mrope import mrope_positions

# Bytes of embeddings that are cached, and how much is encoded in one pass: 64 pictures of 256 patches, five minutes.
_KEPT_BYTES = 256 << 20
_MOST_PATCHES = 16_384
_MOST_FRAMES = 30_000


# Kind, content and whether it went through its encoder alone.
_Key = tuple[Kind, bytes, bool]


@dataclass(frozen=True, eq=False)
class Encoded:
    """What an encoder made of a picture or sound.

    Attributes:
        features: (N, D) on the model's device.
        grid: rows and columns of a picture, in tokens; None for a sound.
        identity: of the content and of the weights that encoded it.
    """

    features: Tensor
    grid: tuple[int, int] | None
    identity: bytes


class EncoderCache:
    """Encodes media and caches the embeddings; evicts the least recently used.

    Copies and pickles are new ones: they belong to another model.

    Args:
        limit: bytes of embeddings that are cached.

    Attributes:
        encoded_kinds: how many media of each kind went through an encoder so far.
        passes: in how many passes.
    """

    def __init__(self, limit: int = _KEPT_BYTES) -> None:
        self.encoded_kinds: Counter[Kind] = Counter()
        self.passes = 0
        self._limit = limit
        self._kept: OrderedDict[_Key, Encoded] = OrderedDict()
        # Of each kind the fingerprint of its encoder, and how many there have been.
        self._weights: dict[str, tuple[tuple[object, ...] | None, int]] = {}
        self._processor: tuple[tuple[object, object], MediaProcessor] | None = None
        # Held to look something up and while a pass is computed; not while media are read and decoded.
        self._lock = threading.RLock()

    def __deepcopy__(self, _: dict[int, Any]) -> "EncoderCache":
        return EncoderCache(self._limit)

    def __reduce__(self) -> tuple[type["EncoderCache"], tuple[int]]:
        return EncoderCache, (self._limit,)

    @property
    def encoded(self) -> int:
        """How many media went through an encoder so far."""
        return self.encoded_kinds.total()

    @property
    def nbytes(self) -> int:
        """Bytes of the cached embeddings."""
        return sum(encoded.features.nbytes for encoded in self._kept.values())

    def encode(
        self,
        model: OmniModel,
        parts: Sequence[MediaPart],
        *,
        alone: bool = False,
        run: Callable[[Callable[[], Any]], Any] = operator.call,
    ) -> list[Encoded | MediaError]:
        """The embeddings of each part, or what is wrong with it.

        Args:
            model: has the encoders that the parts need.
            parts: of any prompts; what occurs twice is encoded once.
            alone: encode each by itself, so that not one bit depends on the others.
            run: calls what computes with the model; an engine's `run` does so on its model thread. Media are decoded
                on the caller's thread, those of several callers side by side.
        """
        results: list[Encoded | MediaError | None] = [None] * len(parts)
        places: dict[_Key, list[int]] = {}
        for place, part in enumerate(parts):
            try:
                places.setdefault((part.kind, content_hash(part.source), alone), []).append(place)
            except MediaError as error:
                results[place] = error
        with self._lock:
            for kind in {part.kind for part in parts}:
                self._check_weights(model, kind)
            made: dict[_Key, Encoded | MediaError] = dict(self._kept_of(places))
        kinds: tuple[Kind, ...] = ("image", "audio")
        for kind in kinds:
            new = {key: parts[at[0]] for key, at in places.items() if key[0] == kind and key not in made}
            made.update(self._encode_new(model, kind, new, run))
        for key, at in places.items():
            for place in at:
                results[place] = made[key]
        return [result for result in results if result is not None]

    def counts(self, model: OmniModel, parts: Sequence[MediaPart]) -> list[int]:
        """How many tokens each part takes; cached ones are not decoded again.

        Raises:
            MediaError: a part cannot be read.
        """
        processor = self._processor_of(model.config)
        counts = []
        for part in parts:
            source = read_media(part.source)
            key = part.kind, content_hash(source), False
            with self._lock:
                kept = self._kept_of([key]).get(key)
            if kept is None:
                counts.append(processor.size(part.kind, source, exact=True).tokens)
            else:
                counts.append(len(kept.features))
        return counts

    def _processor_of(self, config: OmniConfig) -> MediaProcessor:
        """One for all calls: of large pictures its threads decode one at a time."""
        with self._lock:
            sizes = config.vision, config.audio
            if self._processor is None or self._processor[0] != sizes:
                self._processor = sizes, processor_of(config)
            return self._processor[1]

    def _kept_of(self, keys: Iterable[_Key]) -> dict[_Key, Encoded]:
        """Those that are cached; the caller holds the lock."""
        kept = {key: self._kept[key] for key in keys if key in self._kept}
        for key in kept:
            self._kept.move_to_end(key)
        return kept

    def _encode_new(
        self,
        model: OmniModel,
        kind: Kind,
        parts: dict[_Key, MediaPart],
        run: Callable[[Callable[[], Any]], Any],
    ) -> Iterable[tuple[_Key, Encoded | MediaError]]:
        """Decodes and encodes media of one kind, as many in one pass as memory should hold."""
        most = _MOST_PATCHES if kind == "image" else _MOST_FRAMES
        waiting: list[tuple[_Key, MediaFeatures]] = []
        processor = self._processor_of(model.config)
        for key, part in parts.items():
            try:
                decoded = processor.features(part.kind, part.source)
            except MediaError as error:
                yield key, error
                continue
            if waiting and (key[2] or sum(len(one.values) for _, one in waiting) + len(decoded.values) > most):
                yield from self._encode_decoded(model, kind, waiting, run)
                waiting = []
            waiting.append((key, decoded))
        if waiting:
            yield from self._encode_decoded(model, kind, waiting, run)

    def _encode_decoded(
        self,
        model: OmniModel,
        kind: Kind,
        decoded: Sequence[tuple[_Key, MediaFeatures]],
        run: Callable[[Callable[[], Any]], Any],
    ) -> Iterable[tuple[_Key, Encoded]]:
        """One pass over those that no other thread has encoded while they were decoded."""
        with self._lock:
            kept = self._kept_of(key for key, _ in decoded)
            new = [each for each in decoded if each[0] not in kept]
            made = run(partial(self._pass, model, kind, new)) if new else []
        return [*kept.items(), *made]

    @torch.inference_mode()
    def _pass(
        self, model: OmniModel, kind: Kind, waiting: Sequence[tuple[_Key, MediaFeatures]]
    ) -> list[tuple[_Key, Encoded]]:
        values = torch.cat([torch.from_numpy(decoded.values) for _, decoded in waiting])
        grids = [decoded.grid for _, decoded in waiting if decoded.grid is not None]
        with ExitStack() as stack:
            for module in _encoder(model, kind):
                stack.enter_context(eval_mode(module))
            if kind == "image":
                images = ImageBatch(values, tuple(grids))
                features = model.project_images(model.encode_images(images.to(model.device)))
            else:
                clips = AudioBatch(values, tuple(len(decoded.values) for _, decoded in waiting))
                features = model.project_clips(model.encode_clips(clips.to(model.device)))
        sizes = [processor_of(model.config).size_of(decoded) for _, decoded in waiting]
        self.encoded_kinds[kind] += len(waiting)
        self.passes += 1
        made = []
        for (key, _), size, part in zip(waiting, sizes, torch.split(features, [s.tokens for s in sizes]), strict=True):
            # A copy: a part of the pass would keep all of it in memory.
            grid = (size.rows, size.columns) if kind == "image" else None
            encoded = Encoded(part.clone(), grid, key[1] + self._weights[kind][1].to_bytes(8, "big"))
            self._keep(key, encoded)
            made.append((key, encoded))
        return made

    def _keep(self, key: _Key, encoded: Encoded) -> None:
        self._kept[key] = encoded
        size = self.nbytes
        while size > self._limit:
            _, gone = self._kept.popitem(last=False)
            size -= gone.features.nbytes

    def _check_weights(self, model: OmniModel, kind: Kind) -> None:
        """Drops embeddings that another encoder, or another state of it, has made."""
        mark = fingerprint(_encoder(model, kind))
        old, count = self._weights.get(kind, (None, 0))
        if mark is None or mark != old:
            for key in [key for key in self._kept if key[0] == kind]:
                del self._kept[key]
            self._weights[kind] = mark, count + 1


def prompt_media(encoded: EncodedChat, media: Sequence[Encoded]) -> tuple[list[int], PromptMedia]:
    """A conversation with its media in their places.

    Args:
        encoded: with one placeholder for each.
        media: in the same order, at least one.

    Returns:
        the ids, placeholders repeated, and what the engine needs beside them.
    """
    chat = expand(encoded, [len(medium.features) for medium in media])
    videos: list[list[tuple[int, int, int]]] = []  # a picture is a video of one frame
    for part, medium, start in zip(chat.media, media, chat.places, strict=True):
        if medium.grid is not None:
            if not part.frame:
                videos.append([])
            videos[-1].append((start, *medium.grid))
    positions = torch.from_numpy(mrope_positions(len(chat.ids), (), videos))
    keys = list(chat.ids)
    places = []
    for medium, start in zip(media, chat.places, strict=True):
        end = start + len(medium.features)
        # Where the tokens are is known by their index; how their axes differ from it is part of what they are.
        axes = (positions[:, start:end] - start).contiguous().numpy().tobytes()
        mark = hashlib.blake2b(medium.identity + axes, digest_size=16).digest()
        keys[start:end] = [-1 - int.from_bytes(mark)] * (end - start)
        places.append(torch.arange(start, end))
    features = torch.cat([medium.features for medium in media])
    return chat.ids, PromptMedia(features, torch.cat(places), positions, keys)


def processor_of(config: OmniConfig) -> MediaProcessor:
    """The processor of a model's encoders."""
    return MediaProcessor(config.vision, config.audio)


def takes(parts: Sequence[MediaPart], counts: Sequence[int]) -> str:
    """Which media take how many tokens, the largest first, for errors about room."""
    largest = sorted(zip(parts, counts, strict=True), key=lambda pair: -pair[1])
    shown = [f"{name_of(part)} {count}" for part, count in largest[:3]]
    rest = sum(count for _, count in largest[3:])
    return ", ".join(shown) + (f", {len(largest) - 3} more {rest}" if rest else "")


def name_of(part: MediaPart) -> str:
    """What a part is called in errors."""
    word = "picture" if part.kind == "image" else "sound"
    source = part.source.origin if isinstance(part.source, MediaContent) else part.source
    return f"the {word} {source}" if isinstance(source, MediaRef) else f"the {word} given"


def _encoder(model: OmniModel, kind: Kind) -> list[nn.Module]:
    """The modules that a picture or sound goes through."""
    modules = (model.vision, model.vision_projector) if kind == "image" else (model.audio, model.audio_projector)
    present: list[nn.Module] = [module for module in modules if module is not None]
    if not present:
        raise UserError(f"this model has no encoder for {kind} input")
    return present
