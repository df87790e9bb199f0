"""`MuOmni.say` and its kin, and spoken replies."""

import copy
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from muomni import MuOmni
from muomni.errors import PromptError, SpeechError, UserError
from muomni.infer.speech import SpeechSettings
from tests.infer.speech.models import make_speaking

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

TEXT = "The cat sat on the mat. Hello there!"


@pytest.fixture(scope="module")
def model(small_tokenizer: "Tokenizer") -> MuOmni:
    return make_speaking(small_tokenizer)


def test_say_is_a_row_of_say_batch(model: MuOmni) -> None:
    texts = [TEXT, "What is this? The dog slept.", "Oh!"]
    settings: list[dict[str, Any]] = [{}, {"temperature": 0}, {"voice": "anna"}]
    replies = model.say_batch(texts, seed=5, voice="ben", settings=settings)
    for text, reply, own in zip(texts, replies, settings, strict=True):
        alone = model.say(text, **{"seed": 5, "voice": "ben", **own})
        torch.testing.assert_close(alone.audio, reply.audio, atol=1e-5, rtol=1e-4)
        assert (
            reply.error is None
            and reply.text == text
            and reply.sample_rate == 16_000
            and reply.audio.dtype == torch.float32
        )
        assert reply.timing.audio_s == len(reply.audio) / 16_000 and reply.timing.real_time > 0
    different = model.say(TEXT, seed=6, voice="ben").audio
    assert len(different) != len(replies[0].audio) or not torch.equal(different, replies[0].audio)


def test_a_text_that_cannot_be_spoken_has_a_reply_that_says_it(model: MuOmni) -> None:
    replies = model.say_batch(["Oh!", "...", ""], seed=1)
    assert [reply.error is None for reply in replies] == [True, False, False]
    assert len(replies[0].audio) and "nothing to say in '...'" in str(replies[1].error)
    with pytest.raises(SpeechError, match="text 2 of 3: there is nothing"):
        model.say_batch(["Oh!", "...", ""], on_error="raise")
    with pytest.raises(SpeechError, match="there is nothing"):
        model.say("...")


@pytest.mark.parametrize("text", [TEXT, ["The c", "at sat on", " the mat. ", "Hello there!"]])
def test_say_stream_is_say_in_pieces(model: MuOmni, text: Any) -> None:
    pieces = list(model.say_stream(text, seed=3))
    assert len(pieces) > 3 and all(piece.sample_rate == 16_000 and not piece.text for piece in pieces)
    sound = torch.cat([piece.audio for piece in pieces if piece.audio is not None])
    torch.testing.assert_close(sound, model.say(TEXT, seed=3).audio, atol=1e-5, rtol=1e-4)


CHAT: dict[str, Any] = {"seed": 4, "max_new_tokens": 25, "ignore_eos": True}


def test_a_spoken_stream_is_the_text_of_the_stream_and_the_speech_of_say(model: MuOmni) -> None:
    plain = model.chat("Hello there!", **CHAT)
    stream = model.stream("Hello there!", speak=True, **CHAT)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == stream.text == plain.text
    sound = torch.cat([piece.audio for piece in pieces if piece.audio is not None])
    assert stream.reply.audio is not None and torch.equal(sound, stream.reply.audio)
    assert stream.reply.tokens == plain.tokens
    said = model.say(plain.text, seed=4).audio
    torch.testing.assert_close(sound, said, atol=1e-5, rtol=1e-4)
    chat = model.chat("Hello there!", speak=True, **CHAT)
    assert chat.text == plain.text
    torch.testing.assert_close(chat.audio, said, atol=1e-5, rtol=1e-4)
    assert stream.reply.speech is not None and stream.reply.speech.first_s is not None


def test_chat_batch_speaks_as_chat_does(model: MuOmni) -> None:
    prompts = ["Hello there!", "What is this?", "The cat"]
    for speak in ({"voice": "ben", "seed": 9}, SpeechSettings(temperature=0)):
        together = model.chat_batch(prompts, speak=speak, **CHAT)
        for prompt, reply in zip(prompts, together, strict=True):
            alone = model.chat(prompt, speak=speak, **CHAT)
            assert reply.text == alone.text and reply.tokens == alone.tokens
            torch.testing.assert_close(reply.audio, alone.audio, atol=1e-5, rtol=1e-4)


def test_a_reply_that_cannot_be_spoken_keeps_its_text(model: MuOmni) -> None:
    silent: dict[str, Any] = {"temperature": 0, "max_new_tokens": 1, "stop": ["e", "a", "o", "t", "i", "n", " "]}
    prompts = ["Hello there!", "What is this?"]
    plain = model.chat_batch(prompts, **silent)
    replies = model.chat_batch(prompts, speak=True, on_error="reply", **silent)
    failed = [n for n, reply in enumerate(replies) if reply.finish_reason == "error"]
    assert failed, "all of these could be spoken"
    for n in failed:
        assert replies[n].text == plain[n].text and "nothing to say" in str(replies[n].error)
    stream = model.stream(prompts[failed[0]], speak=True, **silent)
    with pytest.raises(SpeechError, match="nothing to say"):
        stream.finish()
    assert stream.text == plain[failed[0]].text


def test_closing_early_stops_text_and_speech(model: MuOmni) -> None:
    stream = model.stream("Hello there!", speak=True, seed=1, max_new_tokens=400, ignore_eos=True)
    next(stream)
    while next(stream).audio is None:
        pass
    stream.close()
    assert list(stream) == []
    with pytest.raises(RuntimeError, match="not finished"):
        _ = stream.reply
    engine = model.runtime.engine(model, 1, 64)
    assert not engine.active
    pieces = model.say_stream(TEXT)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]


def test_two_streams_may_be_read_in_turn_and_threads_may_speak_at_once(model: MuOmni) -> None:
    expected = [model.say(text, seed=1).audio for text in (TEXT, "What is this?")]
    streams = [model.say_stream(text, seed=1) for text in (TEXT, "What is this?")]
    sounds: list[list[torch.Tensor]] = [[], []]
    for n in [0, 1] * 100:
        piece = next(streams[n], None)
        if piece is not None and piece.audio is not None:
            sounds[n].append(piece.audio)
    for mine, theirs in zip(sounds, expected, strict=True):
        torch.testing.assert_close(torch.cat(mine), theirs, atol=1e-5, rtol=1e-4)
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: model.say((TEXT, "What is this?")[n], seed=1).audio}))
        for n in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in (0, 1):
        torch.testing.assert_close(found[n], expected[n], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.say("Oh!", voice="carl"), "voice = 'carl': the model's voices are anna, ben"),
        (lambda m: m.say("Oh!", temprature=1), "did you mean temperature"),
        (lambda m: m.say("Oh!", temperature=-1), "temperature = -1: must be 0"),
        (lambda m: m.say("Oh!", moves="fast"), "moves = 'fast': must be one of auto, expected, drawn"),
        (lambda m: m.say(["Oh!"]), "must be texts"),
        (lambda m: m.say_batch("Oh!"), "must be texts"),
        (lambda m: m.say_batch(["Oh!"], settings=[]), "settings has 0 entries for 1 texts"),
        (lambda m: m.say_batch(["Oh!"], on_error="ignore"), "on_error = 'ignore'"),
        (lambda m: m.chat("Oh!", speak="ben"), "speak = 'ben': must be True, False"),
        (lambda m: m.stream("Oh!", speak={"voice": "carl"}), "voice = 'carl'"),
        (lambda m: m.chat_batch(["Oh!"], speak={"seeds": 1}), "did you mean seed"),
    ],
)
def test_what_is_asked_for_wrongly_is_told(model: MuOmni, call: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        call(model)


def test_a_model_without_a_talker_says_how_to_train_one(nano_folder: Path) -> None:
    mute = MuOmni.from_pretrained(nano_folder, device="cpu")
    for call in (mute.say, mute.say_stream, lambda text: mute.chat(text, speak=True)):
        with pytest.raises(UserError, match="speak-tiny"):
            call("Hello.")


def test_a_saved_and_a_copied_model_speak_as_the_first_one(model: MuOmni, tmp_path: Path) -> None:
    expected = model.say(TEXT, seed=1).audio
    model.save_pretrained(tmp_path / "speaks")
    loaded = MuOmni.from_pretrained(tmp_path / "speaks", device="cpu")
    for other in (loaded, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other.say(TEXT, seed=1).audio, expected, atol=1e-5, rtol=1e-4)


def test_an_int8_model_speaks(small_tokenizer: "Tokenizer") -> None:
    model = make_speaking(small_tokenizer)
    model.quantize()
    reply = model.say(TEXT, seed=1)
    assert reply.audio is not None and bool(reply.audio.isfinite().all()) and len(reply.audio) > 16_000 // 4
