"""The page's functions without its document, in a real browser."""

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

STREAM = 'data: {"a": "é漢"}\r\n\r\n: a comment\nevent: x\ndata: one\ndata:two\n\ndata: [DONE]\n\n'


def run(page: "Page", module: str, body: str, given: Any = None) -> Any:
    """What a function gives; in its `body` are the exports of the module, `m`, and `given`."""
    return page.evaluate(f"async (given) => {{ const m = await import('/{module}'); {body} }}", given)


def test_events_may_be_cut_anywhere(page: "Page") -> None:
    expected = ['{"a": "é漢"}', "one\ntwo", "[DONE]"]
    body = """return [...given].map((_, at) => {
      const parser = new m.EventParser();
      return [given.slice(0, at), given.slice(at)].flatMap((text) => parser.push(text));
    });"""
    assert run(page, "sse.js", body, STREAM) == [expected] * len(STREAM)
    each = "const parser = new m.EventParser(); return [...given].flatMap((letter) => parser.push(letter));"
    assert run(page, "sse.js", each, STREAM) == expected


def test_samples_are_those_of_the_wire(page: "Page", tmp_path: "Path") -> None:
    samples = np.random.default_rng(0).integers(-32768, 32767, 70_000, dtype=np.int16)
    text = base64.b64encode(samples.tobytes()).decode()
    body = "const samples = m.fromBase64(given); return [m.toBase64(samples), m.toBase64(m.wav(samples))];"
    again, wav = run(page, "sound/pcm.js", body, text)
    assert again == text
    (tmp_path / "some.wav").write_bytes(base64.b64decode(wav))
    read, rate = soundfile.read(tmp_path / "some.wav", dtype="int16")
    assert rate == 24_000
    assert np.array_equal(read, samples)
    assert run(page, "sound/pcm.js", "return [...m.toInt16([-2, -1, 0, 0.5, 1, 2])];") == [
        *(-32767, -32767, 0),
        *(16384, 32767, 32767),
    ]


def test_sound_is_resampled_in_pieces(page: "Page") -> None:
    body = """
      const { rate, hz, piece } = given;
      const input = Float32Array.from({ length: rate / 10 }, (_, i) => Math.sin(2 * Math.PI * hz * i / rate));
      const whole = new m.Resampler(rate, 24000), pieces = new m.Resampler(rate, 24000);
      const joined = [];
      for (let at = 0; at < input.length; at += piece) joined.push(...pieces.push(input.subarray(at, at + piece)));
      return [[...whole.push(input), ...whole.flush()], [...joined, ...pieces.flush()]];
    """
    for rate in (48_000, 44_100, 24_000, 16_000, 8000):
        given = {"rate": rate, "hz": 440, "piece": 128}
        whole, joined = (np.array(each) for each in run(page, "sound/resampler.js", body, given))
        assert np.array_equal(whole, joined)
        assert abs(len(whole) - 2400) <= 1
        inner = slice(200, 2200)  # sound begins and ends suddenly
        expected = np.sin(2 * np.pi * 440 * np.arange(len(whole)) / 24_000)
        assert np.abs(whole[inner] - expected[inner]).max() < 1e-3
    high = run(page, "sound/resampler.js", body, {"rate": 48_000, "hz": 15_000, "piece": 1000})[0]
    assert np.abs(high[200:2200]).max() < 1e-3


def test_replies_are_announced_in_sentences(page: "Page") -> None:
    body = """const sentences = new m.Sentences();
      const told = [...given].map((letter) => sentences.push(letter)).filter((words) => words);
      return [...told, sentences.rest()];"""
    text = 'It is 3.5 m. "Really?" Yes!\n漢字。And so'
    assert run(page, "chat/sentences.js", body, text) == ["It is 3.5 m.", '"Really?"', "Yes!", "漢字。", "And so"]


def test_the_player_counts_what_was_heard(page: "Page") -> None:
    body = """
      const changes = [];
      const player = new m.Player(() => changes.push(player.playing));
      await player.unlock();
      player.begin();
      const wait = (ms) => new Promise((done) => setTimeout(done, ms));
      for (let i = 0; i < 4; i += 1) player.push(new Int16Array(2400).fill(1000)); // 0.4 s
      const before = player.played;
      await wait(450); // 250 ms behind
      const middle = player.played;
      player.finish();
      while (player.playing) await wait(20);
      const all = player.played;
      player.begin();
      player.push(new Int16Array(24000 * 60));
      await wait(600);
      const heard = player.stop();
      await wait(100);
      player.push(new Int16Array(2400)); // late: nobody hears it
      return { before, middle, all, heard, after: player.played, playing: player.playing, changes };
    """
    seen = run(page, "sound/player.js", body)
    assert seen["before"] == 0
    assert 0.02 < seen["middle"] < 0.4
    assert abs(seen["all"] - 0.4) < 1e-6
    assert 0.02 < seen["heard"] < 2
    assert seen["after"] == seen["heard"]
    assert seen["playing"] is False
    assert seen["changes"] == [True, False, True, False]


def test_a_conversation_becomes_messages(page: "Page") -> None:
    body = """
      const conversation = new m.Conversation();
      const turn = (text, reply) => {
        const made = Object.assign(new m.Turn(text), {});
        made.reply.text = reply;
        conversation.turns.push(made);
        return made;
      };
      turn("one", "first");
      turn("failed", "").reply.error = "busy";
      turn("two", "second and third").reply.heard = "second";
      return conversation.messages("be kind", turn("three", ""));
    """
    roles_and_texts = [(message["role"], message["content"]) for message in run(page, "chat/conversation.js", body)]
    expected = [("system", "be kind"), ("user", "one"), ("assistant", "first")]
    expected += [("user", "two"), ("assistant", "second"), ("user", "three")]
    assert roles_and_texts == expected, json.dumps(roles_and_texts)
