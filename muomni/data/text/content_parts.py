"""Parts of a message besides text: which forms a picture, sound or video may have, as one form.

Nothing is opened or decoded here except, where that is asked for, a video file for its frames; and nothing is ever
fetched from the network.
"""

import base64
import binascii
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muomni.data.media.media_ref import Kind, MediaRef
from muomni.data.media.parsing import shown
from muomni.data.media.signatures import HEAD_BYTES, kind_of_path, signature_of
from muomni.errors import UserError
from muomni.files import path_of_url

# Characters of base64 that are decoded in one call; a multiple of 4.
_SLICE = 1 << 22
# Names of a part's `type`, and of the key that holds what it is: OpenAI's, Hugging Face's and ours.
_KINDS = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
}
_NOTES = {"image": "caption", "audio": "transcript"}
# A text this long that is base64 of a known format is the medium itself.
_LEAST_BASE64 = 64


@dataclass(frozen=True)
class MediaPart:
    """One picture, one sound or one frame of a video of a conversation, for which its tokens have a place.

    Attributes:
        kind: what it is.
        source: where it comes from: a MediaRef, bytes, a PIL image, or (samples, rate).
        note: the caption or transcript that goes with it; never shown to the language model.
        frame: number in its video, from 0; a frame after the first stands directly behind the one before.
    """

    kind: Kind
    source: Any
    note: str | None = None
    frame: int = 0


def kind_of_value(value: object) -> str | None:
    """What kind of part a bare value is, by what it is made of; None for what is no part."""
    kind: str | None = None
    if isinstance(value, str):
        kind = "text"
    elif isinstance(value, MediaRef):
        kind = value.kind
    elif type(value).__module__.partition(".")[0] == "PIL":
        kind = "image"
    elif isinstance(value, bytes):
        signature = signature_of(value[:HEAD_BYTES])
        kind = "image" if signature is None or signature.kind == "other" else signature.kind
    elif isinstance(value, Path):
        kind = kind_of_path(value) or "image"
    elif isinstance(value, Mapping):  # a row of Hugging Face's data sets
        content, path = value.get("bytes"), value.get("path")
        if "array" in value and "sampling_rate" in value:
            kind = "audio"
        elif isinstance(content, bytes) or isinstance(path, str):
            kind = kind_of_value(content if isinstance(content, bytes) else Path(str(path)))
    elif isinstance(value, tuple) and len(value) == 2:
        kind = "audio"
    return kind


@dataclass(frozen=True)
class PartRules:
    """What parts may hold, and how a mistake is reported.

    Attributes:
        inputs: kinds that are understood besides text.
        root: what relative paths are relative to; None for the working directory.
        files: False refuses paths, for messages of people who must not read this machine's files.
        error: class of the errors.
        videos: whether video files are opened for their frames; False wants lists of pictures.
    """

    inputs: Collection[str] = ()
    root: Path | None = None
    files: bool = True
    error: type[UserError] = UserError
    videos: bool = False

    def part(self, part: object, where: str) -> dict[str, Any]:
        """A part in its one form: `type`, under that name a source, and `caption` or `transcript` if it has one.

        Raises:
            error: naming `where` and what is wrong.
            MediaError: a video file cannot be read.
        """
        if not isinstance(part, Mapping) or not isinstance(kind := part.get("type"), str):
            raise self.error(f'{where} must be {{"type": "text", "text": ...}}, not {name_of_type(part)}')
        if kind in {"text", "input_text"}:
            if not isinstance(text := part.get("text"), str):
                raise self.error(f"{where}: its text must be a string, not {name_of_type(text)}")
            return {"type": "text", "text": text}
        plain = _KINDS.get(kind, kind.removeprefix("input_").removesuffix("_url").removesuffix("_input"))
        if ("image" if plain == "video" else plain) not in self.inputs:
            only = ", only text" if not self.inputs else ""
            raise self.error(f"{where}: this model has no {plain} input{only}")
        keys = [key for key in (kind, plain, f"{plain}_url", "url", "path") if part.get(key) is not None]
        if not keys:
            raise self.error(f"{where}: names no {plain}: it needs the key {plain!r}")
        value, archive = part[keys[0]], part.get("archive")
        if plain == "video":
            if self.videos and not isinstance(value, list | tuple):
                from muomni.data.media.video import video_frames

                return {"type": "video", "video": video_frames(self._source(value, "video", archive, where))}
            if not isinstance(value, list | tuple):
                raise self.error(f"{where}: a video must be a list of its frames, not {name_of_type(value)}")
            if not value:
                raise self.error(f"{where}: the video has no frames")
            return {"type": "video", "video": [self._source(frame, "image", archive, where) for frame in value]}
        checked: dict[str, Any] = {"type": plain, plain: self._source(value, plain, archive, where)}
        if (note := part.get(_NOTES[plain])) is not None:
            if not isinstance(note, str) or not note.strip():
                raise self.error(f"{where}: its {_NOTES[plain]} must be a text")
            checked[_NOTES[plain]] = note
        return checked

    def _source(self, value: Any, kind: str, archive: Any, where: str) -> Any:
        """What a part holds as a MediaRef, bytes, a PIL image or (samples, rate)."""
        if isinstance(value, Mapping):
            if value.get("array") is not None and value.get("sampling_rate") is not None:  # Hugging Face's Audio
                value = (value["array"], value["sampling_rate"])
            elif value.get("bytes") is not None:
                value = value["bytes"]
            elif isinstance(data := value.get("data"), str):  # OpenAI's input_audio
                return self._base64(data.partition(",")[2] if data[:5].lower() == "data:" else data, where)
            else:
                archive = value.get("archive", archive)
                value = value.get("path") if value.get("url") is None else value["url"]
        if isinstance(value, MediaRef):
            return self._ref(value.kind, value.path, value.member, where)
        if isinstance(value, Path):
            value = str(value)
        if isinstance(value, str) and value:
            return self._from_text(value, kind, archive, where)
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if kind_of_value(value) == kind and not isinstance(value, str):
            return value
        given = name_of_type(value) if value else repr(value)
        raise self.error(f"{where}: its {kind} must be a path, bytes or {_forms(kind)}, not {given}")

    def _from_text(self, value: str, kind: str, archive: Any, where: str) -> Any:
        scheme = value[:8].partition(":")[0].lower()
        if scheme == "data":
            head, comma, content = value.partition(",")
            if not comma or not head.endswith(";base64"):
                raise self.error(f"{where}: a data: URL must hold base64, as data:image/png;base64,...")
            return self._base64(content, where)
        if scheme in ("http", "https", "ftp", "s3", "gs"):
            raise self.error(f"{where}: {shown(value[:80])} is not fetched; give a file, bytes or a data: URL")
        if scheme == "file":
            value = path_of_url(value)
        elif (medium := _plain_base64(value)) is not None:
            return medium
        if archive is None:
            return self._ref(kind, value, None, where)
        if not isinstance(archive, str | Path):
            raise self.error(f"{where}: its archive must be a path, not {name_of_type(archive)}")
        return self._ref(kind, str(archive), value, where)

    def _ref(self, kind: Any, path: str, member: str | None, where: str) -> MediaRef:
        if not self.files:
            raise self.error(f"{where}: files are not read here; give the content as a data: URL")
        return MediaRef(kind, path if self.root is None else str(self.root / path), member)

    def _base64(self, content: str, where: str) -> bytes:
        try:
            return _decoded(content)
        except (binascii.Error, ValueError):
            raise self.error(f"{where}: its content is not valid base64") from None


def _decoded(content: str) -> bytes:
    """What strict base64 holds, in slices: one call for all of it would stop every other thread meanwhile.

    Raises:
        ValueError: it is no base64.
    """
    padding = content.find("=")
    if 0 <= padding < len(content) - 2:
        raise ValueError("there is more behind the padding")
    if padding > 0 and padding % 4 == 0:  # padding of nothing, which is let through
        content = content[:padding]
    slices = range(0, len(content), _SLICE)
    return b"".join([base64.b64decode(content[start : start + _SLICE], validate=True) for start in slices])


def _plain_base64(text: str) -> bytes | None:
    """What a text holds that is base64 of a known picture, sound or video without `data:` before it."""
    if len(text) < _LEAST_BASE64:
        return None
    try:
        signature = signature_of(base64.b64decode(text[:_LEAST_BASE64], validate=True))
        if signature is None or signature.kind == "other":
            return None
        return _decoded("".join(text.split()))
    except (binascii.Error, ValueError):
        return None


def _forms(kind: str) -> str:
    return {"image": "a PIL image", "audio": "(samples, rate)"}.get(kind, "a list of pictures")


def name_of_type(value: object) -> str:
    """How errors call a value that has a wrong type."""
    return "null" if value is None else type(value).__name__
