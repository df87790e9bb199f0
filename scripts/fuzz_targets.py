"""What `scripts/fuzz.py` gives broken input to: small good files, and the code that reads them."""

import gzip
import hashlib
import io
import json
import os
import random
import shutil
import struct
import tarfile
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

# Path of keys in a recipe, and values to try there.
Field = tuple[tuple[str, ...], list[Any]]
_ODD_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", " ",
    "a", "~", "~nobody/x", "/dev/null", "./.", "\0", "\ud800", "<|im_end|>", "x" * 5000, "9" * 5000, [], [[]], {},
    [None], ["a"], [0] * 1000, {"a": 1}, {"": {}}, {"type": "image", "image": "none.png"},
]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        group, name: of the input.
        suffix: of the file's name.
        seeds: good contents.
        read: given a file with such content; what it raises is judged.
        text: it is JSON, or a line of JSON each: its values are changed too.
        fields: of its schema, if it has one.
    """

    group: str
    name: str
    suffix: str
    seeds: Sequence[bytes]
    read: Callable[[Path], object]
    text: bool = False
    fields: Sequence[Field] = ()


def all_targets(folder: Path) -> list[Target]:
    """Makes the seeds and a small run in an empty folder."""
    _isolated(lambda: _train(folder / "run"))
    return [
        *_media(),
        *_archives(),
        *_recipes(),
        *_checkpoints(folder),
        *_manifests(folder),
        *_batches(folder),
        *_chats(folder),
    ]


def _isolated(call: Callable[[], object]) -> None:
    """Calls in a child, so that nothing of torch's threads is in this process when it forks."""
    child = os.fork()
    if not child:
        errors, silent = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        try:
            call()
        except BaseException:  # noqa: BLE001 (the child ends here)
            os.dup2(errors, 2)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("fuzz: the seeds could not be made")


_NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
_WAVE = (np.sin(np.arange(4000) / 5) / 2).astype(np.float32)


def _picture(form: str, image: Image.Image | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    (image or Image.fromarray(_NOISE)).save(out, form, **options)
    return out.getvalue()


def _sound(form: str, subtype: str | None = None) -> bytes:
    import soundfile

    out = io.BytesIO()
    soundfile.write(out, _WAVE, 16_000, format=form, subtype=subtype)
    return out.getvalue()


def _video(form: str) -> bytes:
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=form) as file:
        file.metadata["title"] = "A title"
        stream: Any = file.add_stream({"flv": "flv1", "webm": "libvpx", "gif": "gif"}.get(form, "mpeg4"), rate=5)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "rgb8" if form == "gif" else "yuv420p"
        for _ in range(6):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(_NOISE, format="rgb24")))
        file.mux(stream.encode())
    return out.getvalue()


def _media() -> Iterator[Target]:
    from muomni.config.model import encoder_configs
    from muomni.data.media.processor import MediaProcessor, content_hash
    from muomni.data.media.video import video_frames

    vision, audio = encoder_configs("nano")
    processor = MediaProcessor(vision, audio.replace(max_seconds=10.0))

    def picture(path: Path) -> None:
        content_hash(path)
        processor.size("image", path)
        processor.features("image", path)

    def sound(path: Path) -> None:
        processor.size("audio", path)
        processor.features("audio", path.read_bytes())
        processor.features("audio", path)

    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = Image.fromarray(_NOISE).convert("RGBA")
    pictures = {
        "PNG": [_picture("PNG"), _picture("PNG", image=rgba), _picture("PNG", exif=exif)],
        "JPEG": [_picture("JPEG"), _picture("JPEG", exif=exif, progressive=True)],
        "WEBP": [_picture("WEBP"), _picture("WEBP", lossless=True, exif=exif)],
        "GIF": [_picture("GIF"), _picture("GIF", save_all=True, append_images=[rgba])],
        "BMP": [_picture("BMP"), _picture("BMP", image=rgba.convert("P"))],
        "TIFF": [_picture("TIFF"), *(_picture("TIFF", compression=c, exif=exif) for c in ("tiff_lzw", "jpeg"))],
    }
    for form, seeds in pictures.items():
        yield Target("pictures", form, f".{form.lower()}", seeds, picture)
    sounds = {
        "WAV": [_sound("WAV"), _sound("WAV", "FLOAT"), _sound("WAV", "MS_ADPCM"), _sound("WAVEX")],
        "FLAC": [_sound("FLAC")],
        "OGG": [_sound("OGG"), _sound("OGG", "OPUS"), _sound("OGG") * 2],
        "MP3": [_sound("MP3"), _sound("MP3") * 2],
        "AIFF": [_sound("AIFF")],
        "AU": [_sound("AU")],
        "CAF": [_sound("CAF"), _sound("CAF", "ALAC_16")],
        "W64": [_sound("W64")],
        "RF64": [_sound("RF64")],
    }
    for form, seeds in sounds.items():
        yield Target("sounds", form, f".{form.lower()}", seeds, sound)
    try:
        videos = {form: _video(form) for form in ("matroska", "avi", "mpegts", "flv", "webm", "gif")}
    except ImportError:
        return
    for form, seed in videos.items():
        yield Target("videos", form, f".{form}", [seed], video_frames)


def _zip(compression: int, names: Sequence[str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        for name in names:
            file.writestr(name, _picture("PNG"))
    return out.getvalue()


def _tar(form: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name in ("a.png", "long/" * 30 + "ü.png"):
            info = tarfile.TarInfo(name)
            content = _picture("PNG")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    return out.getvalue()


def _archives() -> Iterator[Target]:
    from muomni.data.media.archives import open_archive
    from muomni.data.media.image import load_image
    from muomni.data.media.media_ref import MediaRef
    from muomni.errors import MediaError

    def read(path: Path) -> None:
        for name in list(open_archive(str(path)).names)[:20]:
            try:
                load_image(MediaRef("image", str(path), name))
            except MediaError as error:
                if str(path) not in str(error):
                    raise AssertionError("the archive is not named") from error

    names = ("a.png", "b/ü.png")
    yield Target("archives", "zip", ".zip", [_zip(0, names), _zip(zipfile.ZIP_DEFLATED, names)], read)
    yield Target("archives", "tar", ".tar", [_tar(f) for f in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)], read)


def _recipes() -> Iterator[Target]:
    from muomni.config.loader import RECIPES, bundled_recipes, load_recipe
    from muomni.data.documents import total_bytes
    from muomni.training.resolve import resolve

    def read(path: Path) -> None:
        recipe = load_recipe(str(path))
        total_bytes(recipe.data.train)
        if recipe.codec is None:
            resolve(recipe)

    schema = json.loads((RECIPES / "recipe.schema.json").read_text(encoding="utf-8"))
    seeds = [
        json.dumps({"extends": str(path), "name": name, "data": {"train": [{"path": "texts.jsonl"}]}}).encode()
        for name, path in bundled_recipes().items()
    ]
    seeds += [path.read_bytes() for path in bundled_recipes().values() if b'"extends"' not in path.read_bytes()]
    yield Target("recipes", "recipe", ".json", seeds, read, text=True, fields=list(_fields(schema, schema, ())))


def _fields(schema: Any, root: Any, path: tuple[str, ...]) -> Iterator[Field]:
    """Each key of a JSON Schema, with the ends of what is allowed there and what lies beyond."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    options = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    values = [schema[key] for key in ("const", "default") if key in schema] + list(schema.get("enum", ()))
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(limit := schema.get(key), int | float):
            values += [limit, limit + 1, limit - 1, limit * 1.0001]
    if path:
        yield path, values
    if len(path) < 5:
        for name, inside in schema.get("properties", {}).items():
            yield from _fields(inside, root, (*path, name))
        for option in options:
            yield from _fields(option, root, path)


def _train(run: Path) -> None:
    from muomni import train

    run.parent.mkdir(parents=True, exist_ok=True)
    texts = run.parent / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"The cat number {n} sat on a mat. " * 9}) + "\n" for n in range(60)))
    train(
        "text-nano",
        str(run),
        data={"train": [{"path": str(texts)}], "seq_len": 32, "cache_dir": str(run.parent / "cache")},
        tokenizer={"vocab_size": 320},
        max_steps=2,
        schedule={"warmup_steps": 0},
        batch_size=2,
        device="cpu",
        checkpoint={"every": 1},
        eval={"every": 2, "sample_every": 0},
    )


def _checkpoints(folder: Path) -> Iterator[Target]:
    """A target for each file of a run."""
    import torch

    from muomni import MuOmni
    from muomni.config.loader import find_run
    from muomni.errors import UserError
    from muomni.training.checkpoint import load_checkpoint
    from muomni.training.reporting.metrics_log import read_lines

    run = folder / "run"
    checkpoint = (run / "last").resolve()

    def reader(name: str) -> Callable[[Path], None]:
        place = f"{checkpoint.name}/{name}" if (checkpoint / name).exists() else name

        def read(path: Path) -> None:
            copy = path.parent / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(run, copy, symlinks=True)
            shutil.copyfile(path, copy / place)
            if place != name and name != "training/state.json":
                # A checksum that fits, so that what is behind it is reached.
                state = copy / checkpoint.name / "training/state.json"
                value = json.loads(state.read_text(encoding="utf-8"))
                value["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
                state.write_text(json.dumps(value), encoding="utf-8")
            model = MuOmni.from_pretrained(copy, device="cpu")
            model(torch.zeros((1, 2), dtype=torch.long))
            find_run(str(copy), (), None)
            read_lines(copy / "metrics.jsonl")
            optimizer = torch.optim.AdamW(model.parameters())
            load_checkpoint(copy / checkpoint.name, model, [optimizer])
            if not all(torch.isfinite(p).all() for p in model.parameters()):
                raise UserError("weights are not finite")

        return read

    names = [str(file.relative_to(checkpoint)) for file in sorted(checkpoint.rglob("*")) if file.is_file()]
    for name in [*names, "recipe.json", "metrics.jsonl"]:
        file = checkpoint / name if (checkpoint / name).exists() else run / name
        text = file.suffix in (".json", ".jsonl")
        yield Target("checkpoints", name, file.suffix, [file.read_bytes()], reader(name), text=text)


def _rows() -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": "a.png", "caption": "noise"}, {"type": "text", "text": "What is it?"}]
    return [
        {"text": "A text."},
        {"image": "a.png", "caption": "noise"},
        {"audio": "a.wav", "text": "a tone"},
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "Noise."}]},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
        {"audio": "b.wav", "archive": "a.zip", "text": "in an archive", "language": "en", "duration": 0.25},
    ]


def _manifests(folder: Path) -> Iterator[Target]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from muomni.config import SourceSpec
    from muomni.data.documents import iter_documents
    from muomni.data.speech.manifest import read_manifest
    from muomni.data.validation.check import check_manifests

    def documents(path: Path) -> None:
        for _ in iter_documents([SourceSpec(path=str(path))]):
            pass

    def check(path: Path) -> None:
        (path.parent / "a.png").write_bytes(_picture("PNG"))
        (path.parent / "a.wav").write_bytes(_sound("WAV"))
        (path.parent / "a.zip").write_bytes(_zip(0, ["b.wav"]))
        json.dumps(check_manifests([path], workers=1).to_dict())

    def speech(path: Path) -> None:
        for _ in read_manifest(path, "text"):
            pass

    lines = "".join(json.dumps(row) + "\n" for row in _rows()).encode()
    tables = []
    pictures = [{"image": {"bytes": _picture("PNG"), "path": None}, "caption": "noise"}]
    for rows in ([{"text": f"Row {n}."} for n in range(50)], _rows()[4:5], pictures):
        pq.write_table(pa.Table.from_pylist(rows), buffer := io.BytesIO())
        tables.append(buffer.getvalue())
    for name, read in (("documents", documents), ("check", check)):
        yield Target("manifests", f"{name} jsonl", ".jsonl", [lines], read, text=True)
        yield Target("manifests", f"{name} gz", ".jsonl.gz", [gzip.compress(lines, mtime=0)], read)
        yield Target("manifests", f"{name} parquet", ".parquet", tables, read)
    text = "Ein Text.\n\n<|endoftext|>\nNoch einer: äöü.\n".encode() * 9
    yield Target("manifests", "text", ".txt", [text], documents)
    yield Target("manifests", "speech", ".jsonl", [lines.splitlines(keepends=True)[2]], speech, text=True)


def _batches(folder: Path) -> Iterator[Target]:
    from muomni import MuOmni
    from muomni.cli.common.batch_file import Job, answer_file

    model = MuOmni.from_pretrained(folder / "run", device="cpu", runner="eager")
    decoding: Any = SimpleNamespace(load=lambda run: model, drafts=lambda model: False, drafting_option=None)
    lines = [
        "Hello",
        {"prompt": "Hi", "id": 7, "max_new_tokens": 1, "temperature": 0.5, "stop": ["."]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]},
        {"prompt": [{"type": "text", "text": "Hi"}], "seed": 1},
    ]
    prompts = "".join(json.dumps(line) + "\n" for line in lines).encode()

    def answer(prompts: Path, replies: Path) -> None:
        answer_file("run", Job(prompts, replies, {"max_new_tokens": 1, "seed": 0}, None, 2, decoding))

    def read(path: Path) -> None:
        replies = path.parent / "replies.jsonl"
        replies.unlink(missing_ok=True)
        answer(path, replies)

    good, replies = folder / "prompts.jsonl", folder / "replies.jsonl"
    good.write_bytes(prompts)
    _isolated(lambda: answer(good, replies))
    yield Target("batches", "prompts", ".jsonl", [prompts], read, text=True)
    yield Target("batches", "replies", ".jsonl", [replies.read_bytes()], lambda path: answer(good, path), text=True)


def _chats(folder: Path) -> Iterator[Target]:
    from muomni import MuOmni
    from muomni.cli.chat import Chat
    from muomni.data.text.chat import as_messages, encode_chat
    from muomni.data.text.tokenizer import Tokenizer
    from muomni.errors import UserError

    model = MuOmni.from_pretrained(folder / "run", device="cpu", runner="eager")
    tokenizer = Tokenizer.load((folder / "run/last").resolve())

    def conversation(path: Path) -> None:
        try:
            value = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return
        messages = as_messages(value)
        encode_chat(tokenizer, messages, inputs=("image", "audio"))

    def typed(path: Path) -> None:
        chat = Chat(model, {"max_new_tokens": 1}, None, terminal=True)
        for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:8]:
            try:
                if not chat.take(line):
                    return
            except UserError:
                pass

    data = "data:image/png;base64,iVBORw0KGgo="
    contents: list[Any] = [
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "?"},
        ],
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": "?"}],
            }
        ],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}]}],
        [{"role": "user", "content": [{"type": "video", "video": ["a.png", {"path": "b.png", "bytes": None}]}]}],
        [{"type": "audio", "audio": {"array": [0.0, 0.5], "sampling_rate": 16000}, "transcript": "a"}, "What?"],
    ]
    seeds = [json.dumps(value).encode() for value in contents]
    yield Target("chats", "conversation", ".json", seeds, conversation, text=True)
    lines = b"/set temperature=0.5\n/system Be brief.\nHello\n/image none.png\n/audio 'x y.wav\n/set\n/reset\nBye\n"
    yield Target("chats", "typed", ".txt", [lines], typed)


def odd_value(draw: random.Random) -> Any:
    """A value that nobody expects."""
    return draw.choice(_ODD_VALUES)


def interesting_bytes(draw: random.Random) -> bytes:
    """Lengths and counts at the ends of their range, in both orders of bytes, and characters that have a meaning."""
    value = draw.choice([0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 20])
    form = draw.choice(["B", "<H", ">H", "<I", ">I", "<Q", ">Q"])
    number = struct.pack(form, value & ((1 << 8 * struct.calcsize(form)) - 1))
    return draw.choice([number, draw.randbytes(draw.randint(1, 8)), b"\n", b'"', b"\0", b"\xff"])
