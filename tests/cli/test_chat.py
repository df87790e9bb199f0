"""`muomni chat`, `generate` and `export` as their users meet them."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from muomni import MuOmni
from muomni.cli.chat import Chat
from muomni.cli.common.options import SAMPLING
from muomni.errors import PromptError
from muomni.infer import SamplingParams

SHORT = ("--max-new-tokens", 8, "--seed", 1)


def test_generate_prints_the_reply(muomni: Any, nano_folder: Path) -> None:
    expected = MuOmni.from_pretrained(nano_folder, device="cpu").chat("Hello!", max_new_tokens=8, seed=1)
    result = muomni("generate", nano_folder, "Hello!", *SHORT, "--device", "cpu")
    assert (result.code, result.out, result.err) == (0, expected.text + "\n", "")
    piped = muomni("generate", nano_folder, "-", *SHORT, stdin=b"Hello!\n")
    assert piped.out == result.out


def test_generate_json_is_one_object(muomni: Any, nano_folder: Path) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    result = muomni("generate", nano_folder, "The cat", "--raw", "--json", "--temperature", 0, "--max-new-tokens", 5)
    reply = model.complete("The cat", temperature=0, max_new_tokens=5)
    values = json.loads(result.out)
    assert values.keys() == {"text", "tokens", "finish_reason", "timing"}
    assert (values["text"], values["tokens"]) == (reply.text, list(reply.tokens))
    assert values["finish_reason"] == reply.finish_reason
    timing = {"prompt_tokens", "new_tokens", "prefill_s", "decode_s", "tokens_per_s"}
    assert values["timing"].keys() == timing
    assert values["timing"]["new_tokens"] == len(reply.tokens)


def test_every_sampling_flag_arrives(muomni: Any, nano_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    stream = MuOmni.stream

    def spy(self: MuOmni, prompt: Any, **options: Any) -> Any:
        given.update(options)
        return stream(self, prompt, **options)

    monkeypatch.setattr(MuOmni, "stream", spy)
    flags = ["--max-new-tokens", 3, "--temperature", 0.5, "--top-k", 7, "--top-p", 0.8, "--min-p", 0.1]
    flags += [
        "--repetition-penalty",
        1.1,
        "--frequency-penalty",
        0.2,
        "--presence-penalty",
        -0.3,
        "--stop",
        "x",
        "--stop",
        "yz",
        "--seed",
        9,
        "--ignore-eos",
    ]
    expected = {
        "max_new_tokens": 3,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.8,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.2,
        "presence_penalty": -0.3,
        "stop": ["x", "yz"],
        "seed": 9,
        "ignore_eos": True,
    }
    assert expected.keys() == vars(SamplingParams()).keys() - {"logit_bias", "logprobs", "grammar"}  # lines of a file
    for arguments in (("generate", nano_folder, "Hello"), ("chat", nano_folder, "-m", "Hello")):
        given.clear()
        assert muomni(*arguments, *flags).code == 0
        assert {key: given[key] for key in expected} == expected
        given.clear()
        assert muomni(*arguments, "--max-new-tokens", 2).code == 0
        assert given.keys() - {"raw", "batch_invariant", "speculate", "speak"} == {"max_new_tokens"}


def test_the_help_states_the_defaults(muomni: Any) -> None:
    for name in ("generate", "chat", "export"):
        text = muomni(name, "--help").out
        assert f"Example: muomni {name}" in text
    defaults = vars(SamplingParams())
    for key in ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty"):
        assert f"(default {defaults[key]})" in SAMPLING[key].__metadata__[0].help, key


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "no/such/run", "hi"], "no run or model 'no/such/run'"),
        (["chat", "no/such/run", "-m", "hi"], "no run or model 'no/such/run'"),
        (["export", "no/such/run", "--out", "x"], "no run or model 'no/such/run'"),
        (["generate", "RUN", ""], "the prompt is empty"),
        (["generate", "RUN", "", "--raw"], "the prompt is empty"),
        (["chat", "RUN", "--message", ""], "the prompt is empty"),
        (["generate", "RUN", "word " * 300], "tokens and the model's context is 256"),
        (["chat", "RUN", "-m", "word " * 300], "tokens and the model's context is 256"),
        (["generate", "no/such/run", "hi", "--temperature", "-1"], "temperature = -1.0: must be 0 (greedy)"),
        (["chat", "RUN", "-m", "hi", "--top-p", "1.5"], "top_p = 1.5: must be a number from 0 to 1"),
        (["generate", "RUN", "hi", "--stop", ""], "stop = ['']"),
        (["generate", "RUN", "hi", "--raw", "--system", "x"], "give one of them"),
        (["generate", "RUN", "hi", "--device", "toaster"], "device = 'toaster'"),
    ],
)
def test_mistakes_end_with_one_clear_line(muomni: Any, nano_folder: Path, args: list[str], message: str) -> None:
    result = muomni(*[nano_folder if arg == "RUN" else arg for arg in args])
    assert result.code == 2
    assert message in result.err and result.err.startswith("muomni: ")
    assert result.err.count("\n") == 1 and result.out == ""


def test_a_prompt_that_is_no_text_is_refused(muomni: Any, nano_folder: Path) -> None:
    result = muomni("generate", nano_folder, "-", stdin=b"ab\xff")
    assert (result.code, result.err) == (2, "muomni: the prompt on standard input is not UTF-8 text (byte 2)\n")


def test_chat_answers_one_message(muomni: Any, nano_folder: Path) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]
    result = muomni("chat", nano_folder, "--message", "Hello!", "--system", "Be kind.", *SHORT)
    assert (result.code, result.out, result.err) == (
        0,
        model.chat(messages, max_new_tokens=8, seed=1).text + "\n",
        "",
    )


def test_a_piped_chat_is_a_conversation(muomni: Any, nano_folder: Path) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    settings: dict[str, Any] = {"max_new_tokens": 8, "seed": 1}
    turns = [{"role": "user", "content": "Hello!"}]
    first = model.chat(turns, **settings).text
    turns += [{"role": "assistant", "content": first}, {"role": "user", "content": "What is this?"}]
    second = model.chat(turns, **settings).text
    result = muomni("chat", nano_folder, *SHORT, stdin=b"Hello!\n\nWhat is this?\n/quit\nnever said\n")
    assert (result.code, result.out, result.err) == (0, f"{first}\n{second}\n", "")


@pytest.fixture
def chat(nano_folder: Path) -> Chat:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    return Chat(model, {"max_new_tokens": 6, "seed": 1}, None, terminal=True)


def test_commands(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    def said(line: str) -> str:
        assert chat.take(line)
        return " ".join(capsys.readouterr().err.split())

    assert "/reset" in said("/help") and "Ctrl-C" in said("/help")
    assert "temperature=0.8" in said("/set")
    assert "temperature=0.5" in said("/set temperature=0.5") and chat.sampling["temperature"] == 0.5
    assert "must be 0 (greedy)" in said("/set temperature=-1") and chat.sampling["temperature"] == 0.5
    assert "did you mean temperature" in said("/set temprature=1")
    assert 'stop=["x"]' in said("/set stop=x")
    assert 'stop=["x", "y"]' in said('/set stop=["x", "y"]')
    assert "KEY=VALUE" in said("/set temperature")
    assert "no command /foo" in said("/foo")
    assert "Be brief." in said("/system Be brief.") and chat.system == "Be brief."
    said("Hello")
    assert len(chat.turns) == 2
    said("/reset")
    assert chat.turns == [] and chat.system == "Be brief."
    assert "none" in said("/system") and chat.system is None
    assert not chat.take("/quit")


def test_each_reply_is_followed_by_its_speed(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.take("/set ignore_eos=true")
    capsys.readouterr()
    chat.take("Hello")
    assert "[6 tokens, " in (err := capsys.readouterr().err) and "tokens/s" in err and "cut at" in err


def test_a_long_conversation_loses_its_oldest_turns_and_says_so_once(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.system = "Be brief."
    for turn in range(14):
        chat.take(f"What is this number {turn}?")
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("outgrown the context of 256 tokens") == 1
    assert chat.turns[0]["content"] != "What is this number 0?" and chat.turns[0]["role"] == "user"
    asked = chat._prompt("and now?")
    assert asked[0] == {"role": "system", "content": "Be brief."} and asked[-1]["content"] == "and now?"
    assert len(chat.model.encode(asked)) + 6 <= 256


def test_a_message_that_cannot_be_answered_is_not_remembered(chat: Chat) -> None:
    chat.take("Hello")
    with pytest.raises(PromptError, match="context is 256"):
        chat.take("word " * 300)
    assert [turn["content"] for turn in chat.turns if turn["role"] == "user"] == ["Hello"]


def test_ctrl_c_stops_the_reply_but_not_the_chat(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from muomni.infer import TextStream

    step, count = TextStream.__next__, iter(range(100))

    def interrupt(self: TextStream) -> Any:
        if next(count) == 2:
            raise KeyboardInterrupt
        return step(self)

    chat.sampling["ignore_eos"] = True
    monkeypatch.setattr(TextStream, "__next__", interrupt)
    assert chat.take("Hello")
    monkeypatch.undo()
    partial = chat.turns[1]["content"]
    whole = chat.model.chat("Hello", **chat.sampling).text
    assert partial and whole.startswith(partial) and len(partial) < len(whole)
    assert chat.take("Go on.") and len(chat.turns) == 4


def test_export_writes_a_qwen3_folder(muomni: Any, nano_folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    out = tmp_path / "hf"
    result = muomni("export", nano_folder, "--format", "hf", "--out", out)
    assert result.code == 0 and str(out) in result.out
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out)(ids).logits
        torch.testing.assert_close(theirs, MuOmni.from_pretrained(nano_folder, device="cpu")(ids).logits)
    again = muomni("export", nano_folder, "--out", out)
    assert again.code == 2 and "is not empty" in again.err
    result = muomni("export", nano_folder, "--out", out, "--force", "--dtype", "bfloat16", "--json")
    values = json.loads(result.out)
    assert values["dtype"] == "bfloat16" and values["bytes"] == sum(p.stat().st_size for p in out.iterdir())
    assert MuOmni.from_pretrained(out, device="cpu").dtype == torch.bfloat16
    (out / "precious.txt").write_text("x")
    result = muomni("export", nano_folder, "--out", out, "--force")
    assert result.code == 2 and "precious.txt" in result.err and (out / "precious.txt").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a pseudo-terminal needs a POSIX system")
def test_a_chat_in_a_terminal(nano_folder: Path) -> None:
    import pty

    master, slave = pty.openpty()
    command = [sys.executable, "-m", "muomni", "chat", str(nano_folder), "--seed", "1", "--ignore-eos"]
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        # As a terminal starts it: tests that run in the background ignore this signal, and it would be inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    os.close(slave)
    screen = ""

    def wait_for(text: str, since: int = 0) -> int:
        nonlocal screen
        deadline = time.monotonic() + 60
        while text not in screen[since:]:
            assert time.monotonic() < deadline, f"no {text!r} in {screen!r}"
            if select.select([master], [], [], 1)[0]:
                screen += os.read(master, 4096).decode(errors="replace")
        return screen.index(text, since) + len(text)

    try:
        at = wait_for("> ", wait_for("Ctrl-D ends"))
        os.write(master, b"Hello\n")
        at = wait_for("tokens/s", at)
        at = wait_for("> ", at)
        os.write(master, b"/set max_new_tokens=3\n")
        at = wait_for("> ", wait_for("max_new_tokens=3", at))
        # At the prompt it only says how to end. The prompt is on the screen a moment before anybody
        # waits behind it, and a signal in that moment is not seen before the next key.
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
        at = wait_for("> ", wait_for("/quit ends", at))
        os.write(master, b"\x04")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        os.close(master)
