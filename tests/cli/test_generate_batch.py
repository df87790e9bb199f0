"""`muomni generate --batch`: files of prompts, interruptions, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from muomni import MuOmni

LINES = [
    '"Hello there!"',
    '{"prompt": "The cat", "id": "a", "temperature": 0, "max_new_tokens": 5}',
    "",
    '{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}], "seed": 7}',
    '{"prompt": ["What ", {"type": "text", "text": "is this?"}], "id": 3}',
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(LINES) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


SETTINGS = ("--max-new-tokens", 9, "--seed", 1)


def test_a_file_of_prompts_gives_the_replies_of_chat_in_order(
    muomni: Any, nano_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "replies.jsonl"
    code, printed, err = muomni("generate", nano_folder, "--batch", prompts, "--out", out, *SETTINGS, "--json")
    assert (code, err) == (0, "")
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    settings: dict[str, Any] = {"max_new_tokens": 9, "seed": 1}
    messages = json.loads(LINES[3])["messages"]
    expected = [
        model.chat("Hello there!", **settings),
        model.chat("The cat", temperature=0, max_new_tokens=5, seed=1),
        model.chat(messages, max_new_tokens=9, seed=7),
        model.chat("What is this?", **settings),
    ]
    replies = read(out)
    assert [reply["text"] for reply in replies] == [reply.text for reply in expected]
    assert [reply["line"] for reply in replies] == [1, 2, 4, 5]
    assert [reply.get("id") for reply in replies] == [None, "a", None, 3]
    for got, reply in zip(replies, expected, strict=True):
        assert got["finish_reason"] == reply.finish_reason
        assert (got["prompt_tokens"], got["new_tokens"]) == (reply.timing.prompt_tokens, len(reply.tokens))
    figures = json.loads(printed)
    assert (figures["replies"], figures["kept"], figures["out"]) == (4, 0, str(out))
    assert figures["new_tokens"] == sum(len(reply.tokens) for reply in expected)


def test_a_line_names_biases_penalties_and_logprobs(muomni: Any, nano_folder: Path, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "replies.jsonl"
    chosen: dict[str, Any] = {
        "temperature": 0,
        "max_new_tokens": 4,
        "logit_bias": {"40": 3.5, "41": -100},
        "frequency_penalty": 0.5,
    }
    prompts.write_text(json.dumps({"prompt": "The cat", "logprobs": 2, **chosen}) + '\n"Hello"\n')
    assert muomni("generate", nano_folder, "--batch", prompts, "--out", out, *SETTINGS).code == 0
    reply = MuOmni.from_pretrained(nano_folder, device="cpu").chat("The cat", logprobs=2, **chosen)
    first, second = read(out)
    assert first["text"] == reply.text and "logprobs" not in second
    assert [each["token"] for each in first["logprobs"]] == list(reply.tokens)
    assert [len(each["top"]) for each in first["logprobs"]] == [2] * len(reply.tokens)
    prompts.write_text('"Hello"\n{"prompt": "x", "logit_bias": {"99999": 1}}\n')
    result = muomni("generate", nano_folder, "--batch", prompts, "--out", tmp_path / "other.jsonl", *SETTINGS)
    assert result.code == 2 and "line 2: logit_bias: there is no token 99999" in result.err


@pytest.mark.parametrize("cut", [0, 1, 5, 9, 100, -1, None])
def test_what_is_there_is_kept_and_a_torn_line_is_done_again(
    muomni: Any, nano_folder: Path, prompts: Path, tmp_path: Path, cut: int | None
) -> None:
    out = tmp_path / "replies.jsonl"
    command = ("generate", nano_folder, "--batch", prompts, "--out", out, *SETTINGS, "--json")
    assert muomni(*command)[0] == 0
    whole = out.read_bytes()
    first = whole.index(b"\n") + 1
    kept = whole[:first].replace(b'"text": "', b'"text": "KEPT')
    rest = whole[first:]
    third = rest.index(b"\n") + 1
    out.write_bytes(kept + (rest if cut is None else rest[:third][: cut or 0]))
    code, printed, _ = muomni(*command)
    assert code == 0
    assert out.read_bytes() == kept + rest
    assert json.loads(printed)["kept"] == (4 if cut is None else 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 6: is not JSON"),
        ("3", "line 6: must be a text or an object"),
        ("{}", 'line 6: must hold either "prompt" or "messages"'),
        ('{"prompt": "x", "messages": []}', 'line 6: must hold either "prompt" or "messages"'),
        ('{"messages": "x"}', 'line 6: "messages" must be a list'),
        ('{"prompt": "x", "temprature": 1}', "line 6: unknown sampling setting 'temprature'; did you mean temperature"),
        ('{"prompt": "x", "temperature": -1}', "line 6: temperature = -1: must be 0 (greedy)"),
        ('{"prompt": ""}', "line 6: the prompt is empty"),
        ('{"prompt": null}', "line 6: messages: must be a list"),
        (json.dumps({"prompt": "word " * 300}), "line 6: the prompt has"),
        ('{"prompt": [{"type": "image"}]}', "line 6: messages: message 1: part 1: this model has no image input"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "line 6: messages: message 1"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_answered(
    muomni: Any, nano_folder: Path, prompts: Path, tmp_path: Path, line: str, message: str
) -> None:
    prompts.write_text("\n".join([*LINES, line]) + "\n")
    out = tmp_path / "replies.jsonl"
    code, printed, err = muomni("generate", nano_folder, "--batch", prompts, "--out", out, *SETTINGS)
    assert (code, printed) == (2, "")
    assert message in err and err.startswith("muomni: ") and err.count("\n") == 1
    assert not out.exists()


def test_bytes_that_are_no_text_are_named(muomni: Any, nano_folder: Path, prompts: Path, tmp_path: Path) -> None:
    prompts.write_bytes(b'"fine"\n"\xff"\n')
    code, _, err = muomni("generate", nano_folder, "--batch", prompts, "--out", tmp_path / "out.jsonl")
    assert code == 2 and "line 2: is not UTF-8 text (byte 1)" in err


def test_files_that_cannot_be_meant_are_refused(muomni: Any, nano_folder: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "replies.jsonl"
    base = ("generate", nano_folder)
    other = tmp_path / "other.txt"
    other.write_text("years of work, without a last line end")
    cases: list[tuple[tuple[object, ...], str]] = [
        (("--batch", tmp_path / "none.jsonl", "--out", out), "there is no such file of prompts"),
        (("--batch", prompts, "--out", prompts), "replies cannot go there"),
        (("--batch", prompts, "--out", tmp_path), "replies cannot go there"),
        (("--batch", prompts, "--out", tmp_path / "no" / "out.jsonl"), "its folder does not exist"),
        (("--batch", prompts, "--out", other), "line 1: is not a reply to"),
        (("--batch", prompts), "--batch and --out go together"),
        (("hi", "--out", out), "--batch and --out go together"),
        (("hi", "--batch", prompts, "--out", out), "give one PROMPT, or a file"),
        ((), "give one PROMPT, or a file"),
    ]
    for args, message in cases:
        code, _, err = muomni(*base, *args)
        assert code == 2 and message in err, args
    assert other.read_text() == "years of work, without a last line end"
    assert muomni(*base, "--batch", prompts, "--out", out, *SETTINGS)[0] == 0
    before = out.read_bytes()
    for changed, message in (
        (['"Something else"', *LINES[1:]], "line 1: is not a reply to"),
        (LINES[:2], "which has fewer lines"),
    ):
        prompts.write_text("\n".join(changed) + "\n")
        code, _, err = muomni(*base, "--batch", prompts, "--out", out, *SETTINGS)
        assert code == 2 and message in err
        assert out.read_bytes() == before


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a POSIX system")
def test_a_kill_loses_nothing_that_was_written(muomni: Any, nano_folder: Path, tmp_path: Path) -> None:
    prompts, out, expected = (tmp_path / name for name in ("prompts.jsonl", "out.jsonl", "expected.jsonl"))
    prompts.write_text("".join(f'"Hello number {i}"\n' for i in range(400)))
    flags = ["--max-new-tokens", "40", "--seed", "1", "--ignore-eos", "--batch-size", "4", "--device", "cpu"]
    command = ["generate", str(nano_folder), "--batch", str(prompts), *flags, "--out"]
    process = subprocess.Popen([sys.executable, "-m", "muomni", *command, str(out)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size > 2000):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = out.read_bytes()
    prompts.write_text("".join(f'"Hello number {i}"\n' for i in range(before.count(b"\n") + 3)))
    assert muomni(*command, out)[0] == 0 and muomni(*command, expected)[0] == 0
    assert out.read_bytes().startswith(before[: before.rindex(b"\n")])
    assert out.read_bytes() == expected.read_bytes()


def test_one_process_writes_a_file_and_it_knows_what_made_it(
    muomni: Any, nano_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "replies.jsonl"
    command = ("generate", nano_folder, "--batch", prompts, "--out", out)
    assert muomni(*command, *SETTINGS)[0] == 0
    before = out.read_bytes()
    out.write_bytes(before[: before.index(b"\n") + 1])
    for other in (("--max-new-tokens", 9, "--seed", 2), (*SETTINGS, "--system", "Be kind."), (*SETTINGS, "--raw")):
        code, _, err = muomni(*command, *other)
        assert code == 2 and ("of another model, or made with other settings" in err or "line 4" in err), err
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    model.thinker.norm.weight.data[0] += 1
    model.save_pretrained(tmp_path / "other")
    assert "of another model" in muomni("generate", tmp_path / "other", *command[2:], *SETTINGS)[2]
    with FileLock(f"{out}.lock"):
        code, _, err = muomni(*command, *SETTINGS)
        assert code == 2 and err == f"muomni: {out}: another process is writing replies there\n"
    assert muomni(*command, *SETTINGS)[0] == 0 and out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "replies.jsonl", "other"}


def test_an_id_may_be_any_json_string(muomni: Any, nano_folder: Path, tmp_path: Path) -> None:
    """Half of a surrogate pair, which UTF-8 cannot hold, comes back as it was written."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "replies.jsonl"
    prompts.write_text('{"prompt": "Hello", "id": "\\ud800"}\n{"prompt": "Hello", "id": "\u2028é"}\n', encoding="utf-8")
    command = ("generate", nano_folder, "--batch", prompts, "--out", out, *SETTINGS)
    assert muomni(*command)[0] == 0
    replies = out.read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(reply)["id"] for reply in replies] == ["\ud800", "\u2028é"]
    out.write_text(replies[0] + "\n", encoding="utf-8")
    assert muomni(*command)[0] == 0 and out.read_text(encoding="utf-8").split("\n")[:-1] == replies
