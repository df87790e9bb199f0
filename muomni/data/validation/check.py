"""Validates data sets: reads each row, picture and sound that manifests name once and reports problems.

Each picture and sound is decoded whole, in threads; only counts, sizes, hashes and a few small pictures
for the contact sheet are kept.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from muomni.config.model import PresetName, encoder_configs
from muomni.config.recipe_data import source_of
from muomni.data.media.archives import open_archive
from muomni.data.media.audio import audio_seconds
from muomni.data.media.media_ref import MediaRef, read_media
from muomni.data.media.processor import MediaProcessor, content_hash
from muomni.data.sources.readers import jsonl_rows, parquet_rows, row_documents
from muomni.data.sources.sources import source_files
from muomni.data.text.content_parts import MediaPart, PartRules
from muomni.data.text.special_tokens import PLACEHOLDERS
from muomni.errors import DataError, MediaError
from muomni.files import exists
from muomni.ops.audio_frames import CTC_STEPS, SAMPLE_RATE, ctc_steps, num_frames, num_tokens

Kind = Literal[
    "row", "missing", "broken", "too long", "silent", "too fast", "blank", "unpaired", "duplicate", "unnamed"
]
# A run skips or refuses the first four; the others are worth a look.
FATAL: tuple[Kind, ...] = ("row", "missing", "broken", "too long")
KINDS: tuple[Kind, ...] = (*FATAL, "silent", "too fast", "blank", "unpaired", "duplicate", "unnamed")
SAMPLES = 48
THUMBNAIL = 96

# Below 1/10,000 of full scale (−80 dB) throughout a recording holds nothing, not even a room's noise.
_SILENCE = 1e-4


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong: its kind, the row or file that has it, and the reason."""

    kind: Kind
    where: str
    reason: str


@dataclass
class Findings:
    """What a check found.

    Attributes:
        rows, pictures, sounds: how many; a medium that several rows name counts once.
        problems: in the order of the manifests.
        seconds: of each readable sound.
        sizes: width and height of each readable picture.
        tokens: of the media of each row, as the encoder of the given preset makes them.
        samples: some pictures (height, width, 3) uint8 and sounds' waveforms (2, 96: lowest and highest),
            evenly drawn, with their names.
    """

    rows: int = 0
    pictures: int = 0
    sounds: int = 0
    problems: list[Problem] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    samples: list[tuple[str, NDArray[Any]]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a run would skip or refuse something."""
        return any(problem.kind in FATAL for problem in self.problems)

    def count(self, kind: Kind) -> int:
        """Problems of a kind."""
        return sum(problem.kind == kind for problem in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "rows": self.rows,
            "pictures": self.pictures,
            "sounds": self.sounds,
            "seconds": round(sum(self.seconds), 2),
            "tokens": sum(self.tokens),
            "counts": {kind: self.count(kind) for kind in KINDS},
            "problems": [{"kind": p.kind, "where": p.where, "reason": p.reason} for p in self.problems],
        }


@dataclass(frozen=True, slots=True)
class _Medium:
    """What reading a medium gave."""

    tokens: int = 0
    seconds: float | None = None
    size: tuple[int, int] | None = None
    digest: bytes = b""
    sample: NDArray[Any] | None = None
    problem: tuple[Kind, str] | None = None


def check_manifests(
    paths: Sequence[Path],
    *,
    max_seconds: float = 300.0,
    workers: int = 2,
    preset: PresetName = "tiny",
    report: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Reads all rows and all that they name.

    Args:
        paths: JSON lines (also .gz) or Parquet. A row holds `messages`, or `image` or `audio` with a `caption`
            or `text`.
        max_seconds: sounds beyond this are too long.
        workers: threads.
        preset: whose encoders' tokens are counted.
        report: called with the number of rows done since the last call.

    Raises:
        DataError: a manifest is missing, unreadable as a whole, or of another format.
    """
    vision, audio = encoder_configs(preset)
    processor = MediaProcessor(vision, audio.replace(max_seconds=max_seconds))
    return _Check(max_seconds, workers, processor, report).run(paths)


class _Check:
    def __init__(
        self, max_seconds: float, workers: int, processor: MediaProcessor, report: Callable[[int], None]
    ) -> None:
        self.processor = processor
        self.max_seconds = max_seconds
        self.workers = workers
        self.report = report
        self.found = Findings()
        self._media: dict[MediaRef, tuple[int, bool]] = {}  # tokens, and whether it was good
        self._first_with: dict[bytes, str] = {}
        self._draw = random.Random(0)
        self._drawn = 0

    def run(self, paths: Sequence[Path]) -> Findings:
        waiting: deque[tuple[str, list[tuple[MediaPart, Future[_Medium] | None]]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            pending: set[MediaRef] = set()
            for where, parts in self._documents(paths):
                jobs: list[tuple[MediaPart, Future[_Medium] | None]] = []
                for part in parts:
                    known = isinstance(part.source, MediaRef) and part.source in pending
                    if isinstance(part.source, MediaRef):
                        pending.add(part.source)
                    jobs.append((part, None if known else pool.submit(self._read, part)))
                waiting.append((where, jobs))
                # A bounded number of rows ahead, so that memory does not grow with the manifest.
                while len(waiting) > 4 * self.workers:
                    self._take(*waiting.popleft())
            while waiting:
                self._take(*waiting.popleft())
        self._unnamed(pending)
        return self.found

    def _read(self, part: MediaPart) -> _Medium:
        """Reads and decodes one medium; what is wrong is in the result."""
        try:
            source = read_media(part.source)
            digest = content_hash(source) if isinstance(part.source, MediaRef | bytes) else b""
            if part.kind == "image":
                return _picture(source, digest, self.processor)
            return _sound(source, digest, self.processor, self.max_seconds)
        except MediaError as error:
            return _Medium(problem=("missing" if _is_missing(part.source) else "broken", str(error)))

    def _documents(self, paths: Sequence[Path]) -> Iterator[tuple[str, list[MediaPart]]]:
        """Each row's name and media; what is wrong with the row itself is noted."""
        for path in paths:
            for where, row in _rows(path):
                self.found.rows += 1
                parts: list[MediaPart] = []
                try:
                    if isinstance(row, DataError):
                        raise row
                    parts, texts, paired = _parts(row, where, path.parent)
                except DataError as error:
                    self._problem("row", where, str(error).removeprefix(f"{where}: "))
                else:
                    if parts and not paired:
                        self._problem("unpaired", where, "has a picture or sound, but no text to learn from it")
                    for name in PLACEHOLDERS:
                        if any(name in text for text in texts):
                            self._problem("unpaired", where, f"its text holds {name}, which no medium belongs to")
                yield where, parts

    def _take(self, where: str, jobs: Iterable[tuple[MediaPart, "Future[_Medium] | None"]]) -> None:
        tokens = 0
        for part, job in jobs:
            name = str(part.source) if isinstance(part.source, MediaRef) else f"{where}: its {part.kind}"
            if job is None:
                count = self._media.get(part.source, (0, False))[0]
                self._check_transcript(where, name, part, count)
                tokens += count
                continue
            medium = job.result()
            tokens += medium.tokens
            self._check_transcript(where, name, part, medium.tokens)
            if isinstance(part.source, MediaRef):
                self._media[part.source] = medium.tokens, medium.problem is None
            self.found.pictures += part.kind == "image"
            self.found.sounds += part.kind == "audio"
            self._note(where, name, medium)
        if tokens:
            self.found.tokens.append(tokens)
        self.report(1)

    def _check_transcript(self, where: str, name: str, part: MediaPart, tokens: int) -> None:
        """Notes a transcript that no alignment (CTC) fits into its sound: it is left out of that loss."""
        if part.kind == "audio" and part.note and tokens:
            steps, most = ctc_steps(part.note.encode(errors="replace")), tokens * CTC_STEPS
            if steps > most:
                reason = f"its transcript cannot be what is said in it: it needs {steps} steps of CTC, {most} are there"
                self._problem("too fast", f"{where}: {name}", reason)

    def _note(self, where: str, name: str, medium: _Medium) -> None:
        if medium.problem is not None:
            kind, reason = medium.problem
            place = name if name.startswith(where) else f"{where}: {name}"
            self._problem(kind, place, reason.removeprefix(f"{name}: "))
        if medium.seconds is not None:
            self.found.seconds.append(medium.seconds)
        if medium.size is not None:
            self.found.sizes.append(medium.size)
        if medium.digest:
            first = self._first_with.setdefault(medium.digest, name)
            if first != name:
                self._problem("duplicate", f"{where}: {name}", f"has the same content as {first}")
        if medium.sample is not None:
            self._drawn += 1
            if len(self.found.samples) < SAMPLES:
                self.found.samples.append((name, medium.sample))
            elif (place_drawn := self._draw.randrange(self._drawn)) < SAMPLES:
                self.found.samples[place_drawn] = (name, medium.sample)

    def _problem(self, kind: Kind, where: str, reason: str) -> None:
        self.found.problems.append(Problem(kind, where, reason))

    def _unnamed(self, refs: Iterable[MediaRef]) -> None:
        """Files of the archives that no row names."""
        named: dict[str, set[str]] = {}
        for ref in refs:
            if ref.member is not None:
                named.setdefault(ref.path, set()).add(ref.member.removeprefix("./"))
        for path, members in named.items():
            try:
                names = open_archive(path).names
            except MediaError:  # reported with each row already
                continue
            for name in names:
                if name.removeprefix("./") not in members:
                    self._problem("unnamed", f"{path}: {name}", "no row names this file of the archive")


def _picture(source: Any, digest: bytes, processor: MediaProcessor) -> _Medium:
    from PIL import Image

    image = processor.picture(source, full=True)
    tokens, size = processor.size("image", image).tokens, image.size
    problem: tuple[Kind, str] | None = None
    if all(low == high for low, high in image.getextrema()):  # type: ignore[misc]
        problem = "blank", "every pixel has the same colour"
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    return _Medium(tokens, None, size, digest, np.asarray(image).copy(), problem)


def _sound(source: Any, digest: bytes, processor: MediaProcessor, max_seconds: float) -> _Medium:
    seconds = audio_seconds(source)
    if seconds > max_seconds:
        reason = f"lasts {seconds:.1f} s, longer than the {max_seconds:g} s allowed"
        return _Medium(seconds=seconds, digest=digest, problem=("too long", reason))
    samples = processor.samples(source)
    problem: tuple[Kind, str] | None = None
    if np.abs(samples).max() < _SILENCE:
        problem = "silent", "nothing is louder than 1/10,000 of full scale"
    pieces = np.array_split(samples, min(THUMBNAIL, len(samples)))
    wave = np.array([[piece.min() for piece in pieces], [piece.max() for piece in pieces]])
    return _Medium(num_tokens(num_frames(len(samples))), len(samples) / SAMPLE_RATE, None, digest, wave, problem)


def _is_missing(source: object) -> bool:
    if not isinstance(source, MediaRef):
        return False
    if not exists(source.path):
        return True
    try:
        return source.member is not None and source.member not in open_archive(source.path).names
    except MediaError:
        return False


def _parts(row: Mapping[str, Any], where: str, root: Path) -> tuple[list[MediaPart], list[str], bool]:
    """A row's media, its texts, and whether there is text to learn."""
    spec = source_of(where)
    both: tuple[Literal["image"], Literal["audio"]] = ("image", "audio")
    kinds = [kind for kind in both if row.get(kind) is not None]
    if row.get(spec.messages_field) is None and kinds:
        rules = PartRules(("image", "audio"), root, error=DataError)
        texts = [text for key in ("caption", "text", "transcript", "question") if isinstance(text := row.get(key), str)]
        named: list[MediaPart] = []
        for kind in kinds:
            part = rules.part({"type": kind, kind: row[kind], "archive": row.get("archive")}, where)
            spoken = [text for key in ("transcript", "text") if isinstance(text := row.get(key), str)]
            named.append(MediaPart(kind, part[kind], spoken[0] if spoken and kind == "audio" else None))
        return named, texts, any(text.strip() for text in texts)
    media: list[MediaPart] = []
    texts, answers = [], []
    for document in row_documents(row, spec, where, root):
        texts += [] if document.text is None else [document.text]
        for message in document.messages or ():
            content: Any = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            spoken = [part["text"] for part in parts if part["type"] == "text"]
            texts += spoken
            answers += spoken if message["role"] == "assistant" else []
            for part in parts:
                if part["type"] in ("image", "audio"):
                    note = part.get("caption") or part.get("transcript")
                    kind = both[part["type"] == "audio"]
                    media.append(MediaPart(kind, part[kind], note))
                elif part["type"] == "video":
                    media += [MediaPart("image", frame, None, n) for n, frame in enumerate(part["video"])]
    return media, texts, any(answer.strip() for answer in answers) or any(part.note for part in media)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any] | DataError]]:
    """Each row's name, and the row or what is wrong with it."""
    files = source_files(source_of(path)) if not exists(path) or path.is_file() else None
    if files is None or files[0].format == "text":
        raise DataError(f"{path}: is no manifest; a manifest is JSON lines (.jsonl, .jsonl.gz) or Parquet (.parquet)")
    yield from parquet_rows(path) if files[0].format == "parquet" else jsonl_rows(path)
