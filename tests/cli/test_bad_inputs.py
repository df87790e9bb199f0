"""Whatever a command is given, a mistake ends with exit code 2 and one line, never with a traceback."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from muomni.cli import COMMANDS, main

DEEP = 200_000
FILES = {
    "folder.jsonl/x": None,
    "binary.jsonl": bytes(range(256)) * 20,
    "empty.jsonl": b"",
    "deep.jsonl": b"[" * DEEP + b"]" * DEEP + b"\n",
    "deeper.jsonl": b'{"a":' * DEEP + b"1" + b"}" * DEEP + b"\n",
    "digits.jsonl": b"1" * 5000 + b"\n",
    "number.jsonl": b'{"max_steps": 1e999, "data": {"train": "text.txt"}}\n',
    "surrogate.jsonl": b'{"prompt": "a\\ud800", "text": "a\\ud800", "audio": "a\\ud800"}\n',
    "list.jsonl": b"[1, 2]\n",
}
NOT_UTF_8 = os.fsdecode(b"\xff.jsonl")
FILES |= {NOT_UTF_8: b"\xff\xfe{}\n"} if sys.platform == "linux" else {}
MISSING = ["missing.jsonl", "empty.jsonl/x", "n" * 300]
CONTENT = [*MISSING, *(name.removesuffix("/x") for name in FILES)]
UNREADABLE = ["/proc/self/mem"] if sys.platform == "linux" else []  # also for root, whom no mode of a file stops
MODEL = [*MISSING, "a--b", "folder.jsonl", "binary.jsonl", *([NOT_UTF_8] if sys.platform == "linux" else [])]
PLACES = ["binary.jsonl/x", "n" * 300 + "/x", *(f"{name}/x" for name in UNREADABLE)]
# Where BAD is put, and what is put there. RUN is a model that is there.
SURFACE: dict[str, list[tuple[str, list[str]]]] = {
    "demo": [("demo --data BAD --steps 20", MISSING), ("demo --data text.txt --out BAD --steps 20", PLACES)],
    "plan": [("plan BAD", CONTENT + UNREADABLE), ("plan text-nano --set @BAD", CONTENT + UNREADABLE)],
    "train": [
        ("train BAD --data text.txt", CONTENT + UNREADABLE),
        ("train text-nano --data BAD", [*MISSING, "empty.jsonl", "deep.jsonl", "list.jsonl", NOT_UTF_8]),
        ("train text-nano --set @BAD", CONTENT + UNREADABLE),
        ("train BAD --resume", CONTENT),
        ("train text-nano --data text.txt --resume-from BAD", MODEL),
        ("train text-nano --data text.txt --out BAD", PLACES),
    ],
    "chat": [
        ("chat BAD -m hi", MODEL),
        ("chat RUN -m hi --image BAD", MODEL),
        ("chat RUN -m hi --temperature 0 --draft-model BAD", MODEL),
        ("chat RUN -m hi --speak BAD.wav", PLACES),
        ("chat RUN -m BAD", ["hi \udcff", "", "word " * 300]),
        ("chat RUN -m hi --BAD", ["top-p 2", "temperature nan", "seed 9" + "9" * 30, "min-p -1", "device toaster"]),
    ],
    "generate": [
        ("generate BAD hi", MODEL),
        (
            "generate RUN --batch BAD --out out.jsonl",
            [name for name in CONTENT + UNREADABLE if name != "empty.jsonl"],
        ),
        ("generate RUN --batch prompts.jsonl --out BAD", PLACES + UNREADABLE),
        ("generate RUN BAD", ["hi \udcff", "", "word " * 300]),
        ("generate RUN hi --BAD", ["top-k -1", "temperature 1e-9", "seed -1", "max-new-tokens 0", "system \udcff"]),
    ],
    "say": [
        ("say BAD hi --out a.wav", MODEL),
        ("say RUN --file BAD --out a.wav", ["missing.jsonl", "folder.jsonl", "binary.jsonl", "empty.jsonl"]),
        ("say RUN hi --out BAD.wav", PLACES),
        ("say RUN hi --BAD", ["top-k -1 --out a.wav", "temperature nan --out a.wav", "format wav"]),
    ],
    "transcribe": [
        ("transcribe BAD a.wav", MODEL),
        ("transcribe RUN BAD", MISSING),
        ("transcribe RUN a.wav --BAD", ["format srt", "device toaster", "hint \udcff"]),
    ],
    "serve": [("serve BAD", MODEL), ("serve RUN --api-key-file BAD", [*MISSING, "folder.jsonl", "binary.jsonl"])],
    "bench": [
        ("bench BAD", MODEL),
        ("bench infer --model BAD", MODEL),
        ("bench infer --batch BAD", ["0", "x", "9" * 5000]),
        ("bench claims BAD", CONTENT + UNREADABLE),
        ("bench speech BAD", MODEL),
        ("bench speech RUN --file BAD", ["missing.jsonl", "folder.jsonl", "binary.jsonl", "empty.jsonl"]),
    ],
    "data": [
        ("data check BAD", MISSING),
        ("data check good.jsonl --out BAD", PLACES),
        ("data recordings BAD --out rows.jsonl", CONTENT),
        ("data speech BAD --out spoken", CONTENT),
    ],
    "eval": [
        ("eval BAD", MODEL),
        ("eval RUN speak --data BAD", CONTENT + UNREADABLE),
        ("eval RUN text --data BAD", CONTENT + UNREADABLE),
        ("eval RUN text --count 2 --out BAD", PLACES),
    ],
    "quantize": [
        ("quantize BAD --out q", MODEL),
        ("quantize RUN --data BAD --out q", [*MISSING, "binary.jsonl", "empty.jsonl", "deep.jsonl"]),
        ("quantize RUN --no-compare --out BAD", PLACES),
    ],
    "export": [
        ("export BAD --out e", MODEL),
        ("export RUN --out BAD", PLACES),
        ("export RUN --format gguf --out BAD", PLACES),
    ],
    "config": [
        ("config show BAD", CONTENT + UNREADABLE),
        ("config show text-nano --set data.train=x --set BAD", ["max_steps=9" + "9" * 5000, "seed=" + "[" * DEEP, "x"]),
        ("config schema --out BAD", PLACES),
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, nano_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, content in FILES.items():
        if content is None:
            (folder / name).mkdir(parents=True)
        else:
            (folder / name).write_bytes(content)
    (folder / "text.txt").write_text("The cat sat on the mat. " * 200)
    (folder / "prompts.jsonl").write_text('"Hello"\n')
    (folder / "good.jsonl").write_text('{"text": "Hello there."}\n')
    (folder / "runs").mkdir()
    (folder / "RUN").symlink_to(nano_folder)
    return folder


def test_the_surface_is_whole() -> None:
    assert SURFACE.keys() == COMMANDS.keys()


@pytest.mark.parametrize(("command", "bad"), [case for cases in SURFACE.values() for case in cases])
def test_it_ends_with_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, bad: list[str]
) -> None:
    monkeypatch.chdir(place)
    before = {path.name for path in place.iterdir()}
    for value in bad:
        words = [word.replace("BAD", value) for word in command.split(" ")]
        if words[-1].startswith("--"):  # options and their values
            words[-1:] = words[-1].split(" ")
        with pytest.raises(SystemExit) as stop:
            main(words)
        err = capsys.readouterr().err
        assert stop.value.code == 2, (words, err)
        assert err.startswith("muomni: ") and err.count("\n") == 1 and "Traceback" not in err, (words, err)
    assert {path.name for path in place.iterdir()} == before


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_output_never_fails_for_its_encoding(nano_folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    prompt = ["hi", "--max-new-tokens", "30", "--seed", "2", "--temperature", "3", "--ignore-eos", "--device", "cpu"]
    texts = []
    for command in (
        ["generate", str(nano_folder), *prompt],
        ["generate", str(nano_folder), *prompt, "--json"],
        ["chat", str(nano_folder), "-m", *prompt],
        ["config", "presets"],
    ):
        written = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
            with pytest.raises(SystemExit) as stop:
                main(command)
            sys.stdout.flush()
            texts.append(written.getvalue().decode(encoding))
        assert not stop.value.code
    assert "\\u" in texts[0] and len(json.loads(texts[1])["tokens"]) == 30
