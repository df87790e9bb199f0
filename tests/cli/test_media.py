"""`muomni chat` and `generate` with pictures and sounds."""

import json
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from muomni import MuOmni
from muomni.cli.chat import Chat, _talk
from muomni.config import encoder_configs, preset
from muomni.errors import MediaError

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

SETTINGS: dict[str, Any] = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
OPTIONS = ("--temperature", 0, "--max-new-tokens", 6, "--ignore-eos", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(small_tokenizer: "Tokenizer", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees and hears, in `run`, with media beside it."""
    config = preset("nano")
    thinker = config.thinker.replace(vocab_size=small_tokenizer.vocab_size, initializer_range=0.3)
    tokens: dict[str, Any] = {
        "image_token_id": small_tokenizer.id_of("<|image|>"),
        "audio_token_id": small_tokenizer.id_of("<|audio|>"),
    }
    config = config.replace(thinker=thinker).with_encoders(*encoder_configs("nano"), **tokens)
    place = tmp_path_factory.mktemp("media")
    MuOmni.from_config(config, tokenizer=small_tokenizer, device="cpu", seed=0).save_pretrained(place / "run")
    source = np.random.default_rng(0)
    for name in ("cat.png", "dog.png"):
        Image.fromarray(source.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(place / name)
    (place / "cut.png").write_bytes((place / "cat.png").read_bytes()[:-200])
    with wave.open(str(place / "question.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes(source.integers(-9000, 9000, 8000).astype("<i2").tobytes())
    (place / "text.wav").write_text("no sound at all, but some text")
    return place


@pytest.fixture(scope="module")
def model(folder: Path) -> MuOmni:
    return MuOmni.from_pretrained(folder / "run", device="cpu")


def test_one_message_with_media(muomni: Any, folder: Path, model: MuOmni) -> None:
    shown = [folder / "cat.png", folder / "dog.png", folder / "question.wav"]
    expected = model.chat([*shown, "What is this?"], **SETTINGS).text + "\n"
    media = ("--image", shown[0], "--audio", shown[2], "--image", shown[1])
    assert muomni("chat", folder / "run", *media, "-m", "What is this?", *OPTIONS) == (0, expected, "")
    assert muomni("generate", folder / "run", "What is this?", *media, *OPTIONS) == (0, expected, "")
    alone = model.chat([folder / "question.wav"], **SETTINGS).text + "\n"
    assert muomni("generate", folder / "run", "--audio", shown[2], *OPTIONS) == (0, alone, "")
    assert muomni("chat", folder / "run", "--audio", shown[2], *OPTIONS) == (0, alone, "")


def test_media_in_a_conversation(muomni: Any, folder: Path, model: MuOmni) -> None:
    cat, question = folder / "cat.png", folder / "question.wav"
    lines = f"Hello\n/image {cat}\nWhat is this?\n/audio {question}\n\nAnd now?\n"
    code, out, err = muomni("chat", folder / "run", *OPTIONS, stdin=lines.encode())
    turns: list[Any] = []
    said = ""
    for content in ("Hello", [cat, "What is this?"], [question], "And now?"):
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        parts = [
            {"type": "image" if part == cat else "audio", "path": str(part)} if isinstance(part, Path) else part
            for part in parts
        ]
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
        turns.append({"role": "user", "content": parts})
        reply = model.chat(turns, **SETTINGS)
        turns.append({"role": "assistant", "content": reply.text})
        said += reply.text + "\n"
    assert (code, out, err) == (0, said, "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image", "cut.png"), "cut.png.*broken or cut off"),
        (("--audio", "text.wav"), "text.wav.*looks like text"),
        (("--image", "none.png"), "none.png: no such file"),
        (("--image", "question.wav"), "question.wav.*looks like a sound"),
    ],
)
@pytest.mark.parametrize("command", [("chat", "-m"), ("generate",)])
def test_what_is_broken_says_so_and_ends_with_2(
    muomni: Any, folder: Path, options: tuple[str, str], message: str, command: tuple[str, ...]
) -> None:
    name, *flag = command
    code, out, err = muomni(name, folder / "run", *flag, "What?", options[0], folder / options[1], *OPTIONS)
    assert (code, out) == (2, "")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err.replace("\n", " "))


def test_a_text_model_says_that_it_takes_text_only(muomni: Any, folder: Path, nano_folder: Path) -> None:
    code, _, err = muomni("chat", nano_folder, "--image", folder / "cat.png", "-m", "What?", "--device", "cpu")
    assert code == 2 and "this model has no image input, only text" in err


def test_options_that_do_not_go_together(muomni: Any, folder: Path, tmp_path: Path) -> None:
    cat = ("--image", folder / "cat.png")
    assert "--raw continues a plain text" in muomni("generate", folder / "run", "a", "--raw", *cat)[2]
    code, _, err = muomni("generate", folder / "run", "--batch", tmp_path / "a", "--out", tmp_path / "b", *cat)
    assert code == 2 and "prompts of a --batch file hold theirs themselves" in err.replace("\n", " ")


def test_an_error_keeps_the_chat_alive(model: MuOmni, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = Chat(model, dict(SETTINGS), None, terminal=True)
    notes: list[str] = []
    monkeypatch.setattr(chat, "note", notes.append)
    (folder / "gone.png").write_bytes((folder / "dog.png").read_bytes())
    lines = iter(
        [
            f"/image {folder / 'cut.png'}",
            "/audio",
            f"/image {folder / 'gone.png'}",
            "What is this?",
            f"/audio {folder / 'text.wav'}",
            "And now?",
        ]
    )

    def line(_: str) -> str:
        found = next(lines, None)
        if found is None:
            raise EOFError
        if found == "And now?":
            (folder / "gone.png").unlink()  # it was read when it was attached
        return found

    monkeypatch.setattr("builtins.input", line)
    _talk(chat)
    assert "cut off" in notes[0] and notes[1] == "Write it as /audio FILE." and "goes with the next message" in notes[2]
    assert "looks like text" in notes[4] and len(chat.turns) == 4 and not chat.attached
    assert [part["type"] for part in chat.turns[0]["content"]] == ["image", "text"]
    with pytest.raises(MediaError):
        chat.take(f"/image {folder / 'none.png'}")


def test_files_dropped_on_the_terminal_and_broken_ones(
    model: MuOmni, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terminals quote and escape names, or give a URL; what cannot be read ends nothing."""
    chat = Chat(model, dict(SETTINGS), None, terminal=True)
    notes: list[str] = []
    monkeypatch.setattr(chat, "note", notes.append)
    picture = tmp_path / "a b'c.png"
    picture.write_bytes((folder / "dog.png").read_bytes())
    (tmp_path / "bad.avi").write_bytes(b"RIFF\0\0\0\0AVI LIST")
    given = str(picture)
    typed = [given, f'"{given}"', given.replace(" ", "\\ ").replace("'", "\\'"), picture.as_uri()]
    lines = iter([*(f"/image {text}" for text in typed), f"/video {tmp_path / 'bad.avi'}", "/image ~$a.png", "/quit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    _talk(chat)
    assert len(chat.attached) == len(typed) and all("goes with the next message" in note for note in notes[:4])
    assert "bad.avi: is no whole video" in notes[4] and "~$a.png: no such file" in notes[5]


def test_a_file_of_prompts_with_media(muomni: Any, folder: Path, model: MuOmni) -> None:
    prompts, replies = folder / "prompts.jsonl", folder / "replies.jsonl"
    replies.unlink(missing_ok=True)
    asked: list[Any] = [
        {"prompt": ["What is this?", {"type": "image", "image": "cat.png"}], "id": "a"},
        {"prompt": [{"type": "image", "image": "cut.png"}, "?"]},
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "audio": "question.wav"}]}]},
        "Hello there!",
        {"prompt": [{"type": "audio", "audio": "none.wav"}]},
        {"prompt": [{"type": "image", "image": "dog.png"}, {"type": "audio", "audio": "question.wav"}, "and?"]},
    ]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in asked))
    code, out, err = muomni(
        "generate", folder / "run", "--batch", prompts, "--out", replies, "--batch-size", 2, "--json", *OPTIONS
    )
    rows = [json.loads(line) for line in replies.read_text().splitlines()]
    assert code == 2 and "2 of the prompts could not be answered" in err.replace("\n", " ")
    assert json.loads(out)["errors"] == 2 and json.loads(out)["replies"] == 6
    expected = [
        model.chat(prompt, **SETTINGS).text
        for prompt in (
            ["What is this?", folder / "cat.png"],
            [folder / "question.wav"],
            "Hello there!",
            [folder / "dog.png", folder / "question.wav", "and?"],
        )
    ]
    assert [rows[n]["text"] for n in (0, 2, 3, 5)] == expected
    assert [rows[n]["finish_reason"] for n in (1, 4)] == ["error"] * 2
    assert "cut.png" in rows[1]["error"] and "none.wav: no such file" in rows[4]["error"]
    assert "error" not in rows[0]
    again = muomni("generate", folder / "run", "--batch", prompts, "--out", replies, *OPTIONS)
    assert again[0] == 2 and "0 replies written, 6 were there, 2 are errors" in again[1]
    assert replies.read_text().count("\n") == 6


def test_a_video_is_shown_as_a_picture_is(muomni: Any, folder: Path, model: MuOmni) -> None:
    """A GIF is read as a video too; in a conversation it is encoded once, and a broken one is told in its reply."""
    pytest.importorskip("av")
    frames = [Image.open(folder / name) for name in ("cat.png", "dog.png")]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:], duration=1000)
    (folder / "text.mp4").write_text("no video at all, but some text")
    part = {"type": "video", "video": str(folder / "moves.gif")}
    expected = model.chat([part, "What is this?"], **SETTINGS).text
    for command in (("chat", "-m"), ("generate",)):
        name, *flag = command
        asked = (name, folder / "run", *flag, "What is this?", "--video", folder / "moves.gif")
        assert muomni(*asked, *OPTIONS) == (0, expected + "\n", "")
        code, _, err = muomni(*asked[:-1], folder / "text.mp4", *OPTIONS)
        assert code == 2 and "text.mp4: is no whole video; it looks like text" in err.replace("\n", " ")
    lines = f"/video {folder / 'moves.gif'}\nWhat is this?\n"
    assert muomni("chat", folder / "run", *OPTIONS, stdin=lines.encode()) == (0, expected + "\n", "")
    prompts, replies = folder / "videos.jsonl", folder / "video_replies.jsonl"
    asked_of = [{"prompt": [{"type": "video", "video": name}, "What is this?"]} for name in ("text.mp4", "moves.gif")]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in asked_of))
    assert muomni("generate", folder / "run", "--batch", prompts, "--out", replies, *OPTIONS)[0] == 2
    rows = [json.loads(line) for line in replies.read_text().splitlines()]
    assert "looks like text" in rows[0]["error"] and rows[1]["text"] == expected
