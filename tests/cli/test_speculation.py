"""`--speculate` and `--draft-model` of `generate` and `chat`: what they change, which is nothing in the replies."""

import json
from pathlib import Path
from typing import Any

import pytest

from muomni import MuOmni
from muomni.cli.chat import Chat
from muomni.infer import runtime

GREEDY = ("--temperature", 0, "--max-new-tokens", 20, "--ignore-eos")


@pytest.fixture
def guessers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the engine's requests were given as `speculate`."""
    seen: list[Any] = []
    drafter = runtime._drafter

    def spy(model: Any, tokenizer: Any, speculate: Any, engine: Any) -> Any:
        seen.append(speculate)
        return drafter(model, tokenizer, speculate, engine)

    monkeypatch.setattr(runtime, "_drafter", spy)
    return seen


def test_generate_says_the_same(muomni: Any, nano_folder: Path, guessers: list[Any]) -> None:
    plain = muomni("generate", nano_folder, "The cat", *GREEDY)
    assert plain[0] == 0
    assert muomni("generate", nano_folder, "The cat", *GREEDY, "--speculate") == plain
    assert muomni("generate", nano_folder, "The cat", *GREEDY, "--draft-model", nano_folder) == plain
    assert guessers[:2] == [False, True]
    assert isinstance(guessers[2], MuOmni)


def test_chat_says_the_same(muomni: Any, nano_folder: Path, guessers: list[Any]) -> None:
    plain = muomni("chat", nano_folder, *GREEDY, stdin=b"Hello\nThe cat\n")
    assert plain[0] == 0
    assert muomni("chat", nano_folder, *GREEDY, "--speculate", stdin=b"Hello\nThe cat\n") == plain
    assert muomni("chat", nano_folder, *GREEDY, "--draft-model", nano_folder, stdin=b"Hello\nThe cat\n") == plain
    assert guessers[:4] == [False, False, True, True]
    assert isinstance(guessers[4], MuOmni) and guessers[4] is guessers[5]


def test_a_file_says_the_same(muomni: Any, nano_folder: Path, tmp_path: Path, guessers: list[Any]) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"Hello"\n{"prompt": "The cat", "temperature": 0.5, "seed": 1}\n"Hello there"\n')
    texts = []
    for number, options in enumerate([(), ("--speculate",), ("--draft-model", nano_folder)]):
        out = tmp_path / f"{number}.jsonl"
        code, _, err = muomni("generate", nano_folder, "--batch", prompts, "--out", out, *GREEDY, *options)
        assert code == 0
        assert ("1 of 3 prompts do not have --temperature 0" in err) == bool(options)
        texts.append([json.loads(line)["text"] for line in out.read_text().splitlines()])
    assert texts[0] == texts[1] == texts[2]
    assert guessers[:2] == [False, True]
    assert isinstance(guessers[2], MuOmni)


@pytest.mark.parametrize("command", [("generate", "Hello"), ("chat", "-m", "Hello")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--speculate",), "--speculate guesses the most likely tokens and needs --temperature 0"),
        (("--draft-model", "x"), "--draft-model guesses the most likely tokens and needs --temperature 0"),
        (("--speculate", "--temperature", 0, "--repetition-penalty", 1.1), "--repetition-penalty; these are 0.0 and"),
        (("--speculate", "--draft-model", "x", "--temperature", 0), "give one of them"),
        (("--draft-model", "/nowhere/none", "--temperature", 0), "no run or model '/nowhere/none'"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    muomni: Any, nano_folder: Path, command: tuple[str, ...], options: tuple[Any, ...], message: str
) -> None:
    code, out, err = muomni(command[0], nano_folder, *command[1:], *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_deterministic_and_a_file_without_greedy_prompts_are_refused(
    muomni: Any, nano_folder: Path, tmp_path: Path
) -> None:
    code, _, err = muomni("generate", nano_folder, "Hello", *GREEDY, "--batch-invariant", "--speculate")
    assert code == 2 and "--speculate does not go together with --batch-invariant" in " ".join(err.split())
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"Hello"\n')
    out = tmp_path / "out.jsonl"
    code, _, err = muomni("generate", nano_folder, "--batch", prompts, "--out", out, "--speculate")
    assert code == 2 and "none of the prompts has --temperature 0" in " ".join(err.split())
    assert not out.exists()


def test_a_draft_of_other_tokens_is_refused(muomni: Any, nano_folder: Path, tmp_path: Path) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    thinker = model.config.thinker
    other = MuOmni(model.config.replace(thinker=thinker.replace(vocab_size=thinker.vocab_size + 1)))
    other.save_pretrained(tmp_path / "other")
    code, _, err = muomni("chat", nano_folder, *GREEDY, "--draft-model", tmp_path / "other", "-m", "Hello")
    assert code == 2 and "the draft model cannot guess for this one: its vocabulary has" in " ".join(err.split())


def test_settings_that_end_guessing_are_told(nano_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = MuOmni.from_pretrained(nano_folder, device="cpu")
    for speculate in (True, False):
        chat = Chat(model, {"temperature": 0}, None, terminal=True, speculate=speculate)
        chat.take("/set temperature=0.5")
        told = "Tokens are guessed with temperature=0" in " ".join(capfd.readouterr().err.split())
        assert told == speculate


def test_the_cache_is_what_was_asked_for(
    muomni: Any, nano_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    engine = runtime.Runtime.engine

    def spy(self: runtime.Runtime, model: Any, slots: int, capacity: int) -> Any:
        found = engine(self, model, slots, capacity)
        made.append(str(found.cache.dtype))
        return found

    monkeypatch.setattr(runtime.Runtime, "engine", spy)
    prompts, replies = tmp_path / "prompts.jsonl", tmp_path / "replies.jsonl"
    prompts.write_text('"The cat"\n')
    for args in (
        ("generate", nano_folder, "The cat"),
        ("chat", nano_folder, "-m", "The cat"),
        ("generate", nano_folder, "--batch", prompts, "--out", replies),
    ):
        for cache in ("int8", "auto"):
            made.clear()
            replies.unlink(missing_ok=True)
            assert muomni(*args, *GREEDY, "--kv-cache-dtype", cache)[0] == 0
            assert set(made) == {"torch.int8" if cache == "int8" else "torch.float32"}
    code, _, said = muomni("chat", nano_folder, "-m", "Hi", "--kv-cache-dtype", "int4")
    assert code == 2
    assert "int4" in said
