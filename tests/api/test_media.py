"""Pictures and sounds through `MuOmni`: all ways to ask agree, each is encoded once, and what is broken says so."""

import base64
import copy
import io
import pickle
import threading
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from muomni import MuOmni
from muomni.config import preset
from muomni.data.media.processor import MediaProcessor
from muomni.errors import ConfigError, MediaError, PromptError
from muomni.infer import Reply, SamplingParams, generate
from muomni.infer.encoder_cache import EncoderCache
from muomni.infer.engine.engine import make_engine
from muomni.infer.preprocess import Reading, prepare

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 10, "ignore_eos": True}


def picture(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Coarse noise, so that resizing leaves much of it."""
    values = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


def sound(seed: int, seconds: float = 0.6) -> tuple[Any, int]:
    source = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16_000)) / 16_000
    return (0.3 * np.sin(2 * np.pi * source.uniform(200, 2000) * time)).astype(np.float32), 16_000


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


def wav(seed: int, seconds: float = 0.6) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(16_000)
        file.writeframes((sound(seed, seconds)[0] * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def test_a_picture_or_sound_by_itself_is_a_message(trained: MuOmni, tmp_path: Path) -> None:
    file = tmp_path / "x.png"
    file.write_bytes(png(1))
    media: list[Any] = [picture(1), png(1), file, sound(1), wav(1), {"array": sound(1)[0], "sampling_rate": 16_000}]
    for medium in media:
        assert trained.encode(medium) == trained.encode([medium])
        assert trained.chat(medium, **GREEDY).tokens == trained.chat([medium], **GREEDY).tokens
    assert trained.encode((picture(1), sound(1))) == trained.encode([picture(1), sound(1)])
    for wrong in (3.5, {"role": "user", "content": "Hello"}, None):
        with pytest.raises(PromptError, match="must be a list"):
            trained.chat(wrong)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(omni: MuOmni) -> MuOmni:
    return copy.deepcopy(omni)


@pytest.fixture
def model(trained: MuOmni) -> MuOmni:
    return copy.deepcopy(trained)  # with an engine and a memory of its own


PROMPTS: list[Any] = [
    "Hello there!",
    ["What is this?", picture(1)],
    [sound(1), "What is this?"],
    [picture(2), "The cat sat on", sound(2), picture(1, (30, 90)), "the mat.", sound(3, 1.3)],
    [
        {
            "role": "user",
            "content": [{"type": "video", "video": [picture(1), picture(2)]}, {"type": "text", "text": "?"}],
        }
    ],
    [picture(1)],
    ["What is this?", picture(2)],
]


def said(replies: list[Reply]) -> list[tuple[int, ...]]:
    return [reply.tokens for reply in replies]


def uncached(model: MuOmni, prompt: Any, **settings: Any) -> tuple[int, ...]:
    params = SamplingParams.of(**settings)
    asked = model.runtime.prepare(model, model.tokenizer, [(prompt, params)], [""])[0]
    out = generate(model, torch.tensor([list(asked.ids)]), params, end_ids=(), use_cache=False, media=asked.media)
    return tuple(out[0].tolist())


@pytest.mark.parametrize("settings", [GREEDY, {"max_new_tokens": 8, "seed": 3, "ignore_eos": True, "top_k": 0}])
@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_mixed_batch_is_one_at_a_time_is_uncached(model: MuOmni, settings: dict[str, Any], batch_size: int) -> None:
    together = said(model.chat_batch(PROMPTS, batch_size=batch_size, **settings))
    fresh = copy.deepcopy(model)
    assert said([fresh.chat(prompt, **settings) for prompt in PROMPTS]) == together
    assert [uncached(model, prompt, **settings) for prompt in PROMPTS] == together
    assert len(set(together)) > 4  # what is shown matters


def test_the_places_are_those_that_the_model_itself_splices(model: MuOmni) -> None:
    """`prepare` and the engine put embeddings by index; `OmniModel.forward` finds placeholders. They agree."""
    from muomni.data.media.audio import load_audio
    from muomni.data.media.image import to_patches
    from muomni.model.inputs import AudioBatch, ImageBatch, MediaBatch
    from muomni.model.mrope import mrope_positions
    from muomni.ops.log_mel import log_mel

    assert model.config.vision is not None
    prompt: list[Any] = [sound(4), "Hello", picture(3), "there!", picture(4, (100, 20)), sound(5)]
    asked = model.runtime.prepare(model, model.tokenizer, [(prompt, SamplingParams())], [""])[0]
    patches, grids = zip(*(to_patches(one, model.config.vision) for one in (prompt[2], prompt[4])), strict=True)
    mels = [log_mel(torch.from_numpy(load_audio(one))) for one in (prompt[0], prompt[5])]
    images = ImageBatch(torch.from_numpy(np.concatenate(patches)), tuple(grids))
    media = MediaBatch(images, AudioBatch(torch.cat(mels), tuple(len(mel) for mel in mels)))
    ids = torch.tensor([list(asked.ids)])
    starts, at = [], 0
    for rows, columns in grids:
        at = asked.ids.index(model.config.image_token_id, at)
        starts.append((at, rows // 2, columns // 2))
        at += rows * columns // 4
    positions = torch.from_numpy(mrope_positions(ids.shape[1], starts))[:, None]
    with torch.no_grad():
        likely = model(ids, positions=positions, media=media, logits_to_keep=1).logits.argmax().item()
    assert model.chat(prompt, temperature=0, max_new_tokens=1).tokens == (likely,)
    assert model.encode(prompt) == asked.ids


def test_each_content_is_encoded_once_and_all_of_a_call_together(model: MuOmni) -> None:
    memory = model.runtime.media
    model.chat_batch([[picture(1), "a"], [picture(2), picture(1)], [sound(1), picture(3)], [sound(2), "b"]], **GREEDY)
    assert (memory.encoded, memory.passes) == (5, 2)
    turns: list[Any] = [
        {"role": "user", "content": [{"type": "image", "image": png(1)}, {"type": "text", "text": "?"}]}
    ]
    reply = model.chat(turns, **GREEDY)
    assert memory.encoded == 6  # a PNG file is not known by its pixels, but by its bytes
    turns += [{"role": "assistant", "content": reply.text or "x"}, {"role": "user", "content": "And now?"}]
    model.chat(turns, **GREEDY)
    assert memory.encoded == 6
    model.chat([picture(3), sound(2)], batch_invariant=True, **GREEDY)  # alone, so not those of the batch
    assert memory.encoded == 8
    with torch.no_grad():
        assert model.vision is not None
        model.vision.patch_embed.weight.mul_(1.5)
    model.chat([picture(3), sound(2)], **GREEDY)
    assert memory.encoded == 9


@pytest.mark.parametrize("same", [False, True], ids=["two pictures", "one picture"])
def test_media_of_two_callers_are_decoded_side_by_side_and_encoded_once(
    model: MuOmni, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    prompts = [["What is this?", picture(1)], ["And this?", picture(1 if same else 2)]]
    expected = said([copy.deepcopy(model).chat(prompt, **GREEDY) for prompt in prompts])
    both_decode = threading.Barrier(2)
    features = MediaProcessor.features

    def slow(processor: MediaProcessor, kind: Any, source: Any) -> Any:
        both_decode.wait(20)  # broken unless the other one decodes, too
        return features(processor, kind, source)

    monkeypatch.setattr(MediaProcessor, "features", slow)
    params = SamplingParams.of(**GREEDY)
    with ThreadPoolExecutor(2) as pool, closing(make_engine(model, slots=2, capacity=256).start()) as engine:

        def prepared(prompt: Any) -> Any:
            assert model.tokenizer is not None
            reading = Reading()
            return prepare(model, model.tokenizer, model.runtime.media, [(prompt, params)], [""], reading, engine.run)[
                0
            ]

        inputs = list(pool.map(prepared, prompts))
    assert model.runtime.media.encoded == (1 if same else 2)
    assert said(list(model.runtime.answer(model, model.tokenizer, inputs, slots=2, capacity=256))) == expected


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_every_form_of_a_medium_is_the_same(model: MuOmni, tmp_path: Path, kind: str) -> None:
    content, name = (png(1), "a.png") if kind == "image" else (wav(1), "a.wav")
    path = tmp_path / name
    path.write_bytes(content)
    coded = base64.b64encode(content).decode()
    forms: list[Any] = [path, content, {"type": kind, kind: str(path)}, {"type": kind, kind: content}]
    if kind == "image":
        forms.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{coded}"}})
        forms.append({"type": "image_url", "image_url": {"url": path.as_uri()}})
    else:
        forms.append({"type": "input_audio", "input_audio": {"data": coded, "format": "wav"}})
    replies = [model.chat([form, "What is this?"], **GREEDY) for form in forms]
    assert len(set(said(replies))) == 1
    assert model.runtime.media.encoded == 1
    loose: Any = picture(1) if kind == "image" else (np.frombuffer(content[44:], "<i2"), 16_000)
    assert model.chat([loose, "What is this?"], **GREEDY).tokens == replies[0].tokens


def test_another_picture_is_another_prefix(model: MuOmni) -> None:
    asked = [["The dog ate the bone, and then the dog slept.", picture(seed), "What?"] for seed in (1, 2, 1)]
    expected = said([copy.deepcopy(model).chat(prompt, **GREEDY) for prompt in asked])
    assert said([model.chat(prompt, **GREEDY) for prompt in asked]) == expected
    assert expected[0] != expected[1] and expected[0] == expected[2]


def test_deterministic_replies_do_not_depend_on_the_batch(model: MuOmni) -> None:
    how: dict[str, Any] = {"batch_invariant": True, **GREEDY}
    alone = said([copy.deepcopy(model).chat(prompt, **how) for prompt in PROMPTS])
    assert said(model.chat_batch(PROMPTS, **how)) == alone


def test_an_int8_model_sees_and_hears(model: MuOmni) -> None:
    model.quantize("int8")
    together = said(model.chat_batch(PROMPTS, **GREEDY))
    # Products of other sizes take other int8 kernels, whose sums are rounded otherwise: a token may tip in the end.
    expected = [uncached(model, prompt, **GREEDY) for prompt in PROMPTS]
    assert [tokens[:3] for tokens in together] == [tokens[:3] for tokens in expected]
    assert np.mean(np.array(together) == np.array(expected)) > 0.8


def test_guessed_replies_are_the_same(model: MuOmni) -> None:
    plain = said(model.chat_batch(PROMPTS, temperature=0, max_new_tokens=40, ignore_eos=True))
    guessed = model.chat_batch(PROMPTS, temperature=0, max_new_tokens=40, ignore_eos=True, speculate=True)
    assert said(guessed) == plain


def test_the_memory_is_bounded_and_evicts_what_was_asked_for_longest_ago(model: MuOmni) -> None:
    one = model.runtime.prepare(model, model.tokenizer, [([picture(1)], SamplingParams())], [""])[0]
    assert one.media is not None
    size = one.media.features.nbytes
    model.runtime.media = memory = EncoderCache(limit=3 * size)
    for seed in (1, 2, 3, 1, 4, 1, 3):  # 2 goes when 4 comes
        model.runtime.prepare(model, model.tokenizer, [([picture(seed)], SamplingParams())], [""])
        assert memory.nbytes <= 3 * size
    assert memory.encoded == 4
    model.runtime.prepare(model, model.tokenizer, [([picture(2)], SamplingParams())], [""])
    assert memory.encoded == 5
    many = [([picture(seed)], SamplingParams()) for seed in range(10, 20)]
    assert len(model.runtime.prepare(model, model.tokenizer, many, [""] * 10)) == 10 and memory.nbytes == 3 * size
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert other.nbytes == 0 and other._limit == memory._limit


def broken(folder: Path) -> dict[str, tuple[Any, str]]:
    """Media that cannot be read, and what is said of them."""
    (folder / "cut.png").write_bytes(png(1)[:-40])
    (folder / "text.wav").write_text("This is no sound, but a text of some length.")
    long = wav(1)
    samples = 8 * 3600 * 16_000
    with (folder / "long.wav").open("wb") as file:
        head = bytearray(long[:44])
        head[4:8] = (36 + 2 * samples).to_bytes(4, "little")
        head[40:44] = (2 * samples).to_bytes(4, "little")
        file.write(head)
        file.truncate(44 + 2 * samples)
    frames = [picture(seed) for seed in (1, 2)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    bomb = Image.new("1", (20_000, 20_000))
    bomb.save(folder / "bomb.png")
    (folder / "empty.wav").write_bytes(b"")
    return {
        "cut": ({"type": "image", "image": str(folder / "cut.png")}, "cut.png.*broken or cut off"),
        "text": ({"type": "audio", "audio": str(folder / "text.wav")}, "text.wav.*looks like text"),
        "long": ({"type": "audio", "audio": str(folder / "long.wav")}, "long.wav.*8 h 00 min"),
        "animated": ({"type": "image", "image": str(folder / "moves.gif")}, "moves.gif.*animated"),
        "bomb": ({"type": "image", "image": str(folder / "bomb.png")}, "bomb.png.*more than 64 million"),
        "missing": ({"type": "image", "image": str(folder / "none.png")}, "none.png.*no such file"),
        "empty": ({"type": "audio", "audio": str(folder / "empty.wav")}, "empty.wav.*empty"),
        "samples": ((np.full(1000, np.nan, np.float32), 16_000), "NaN"),
    }


def test_what_is_broken_says_so_and_the_others_are_answered(model: MuOmni, tmp_path: Path) -> None:
    cases = broken(tmp_path)
    good = said(model.chat_batch(PROMPTS, **GREEDY))
    for part, message in cases.values():
        with pytest.raises(MediaError, match=message):
            model.chat(["What is this?", part])
    mixed: list[Any] = []
    for number, (part, _) in enumerate(cases.values()):
        mixed += [PROMPTS[number % len(PROMPTS)], [part, "What?"]]
    encoded = model.runtime.media.encoded
    with pytest.raises(MediaError, match=rf"prompt \d+ of {len(mixed)}: .*"):
        model.chat_batch(mixed, **GREEDY)
    replies = model.chat_batch(mixed, on_error="reply", **GREEDY)
    assert model.runtime.media.encoded == encoded
    for number, (_, message) in enumerate(cases.values()):
        fine, wrong = replies[2 * number : 2 * number + 2]
        assert fine.tokens == good[number % len(PROMPTS)] and fine.error is None
        assert (wrong.finish_reason, wrong.text, wrong.tokens) == ("error", "", ())
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(wrong.error)
    only = model.chat_batch([[part] for part, _ in cases.values()], on_error="reply")
    assert [reply.finish_reason for reply in only] == ["error"] * len(cases)
    with pytest.raises(PromptError, match="on_error = 'skip'"):
        model.chat_batch(["a"], on_error="skip")  # type: ignore[arg-type]


def test_a_prompt_that_media_make_too_long_says_what_takes_how_much(model: MuOmni, tmp_path: Path) -> None:
    (tmp_path / "talk.wav").write_bytes(wav(1, 30))
    context = model.config.thinker.max_position_embeddings
    part = {"type": "audio", "audio": str(tmp_path / "talk.wav")}
    with pytest.raises(
        PromptError, match=rf"tokens \(the sound .*talk.wav 375, .*\) and the model's context is {context}"
    ):
        model.chat([picture(1), part, "What is said?"])
    assert model.runtime.media.encoded == 0  # known before anything is decoded


def test_a_model_without_an_encoder_says_so(nano_folder: Path, small_tokenizer: "Tokenizer") -> None:
    text = MuOmni.from_pretrained(nano_folder, device="cpu")
    with pytest.raises(PromptError, match="no image input, only text"):
        text.chat(["What is this?", picture(1)])
    replies = text.chat_batch(["Hello", ["What?", sound(1)]], on_error="reply", **GREEDY)
    assert replies[0].tokens and "no audio input" in str(replies[1].error)
    sees = MuOmni.from_config("nano", vision=True, device="cpu")
    assert sees.config.audio is None and sees.config.image_token_id == small_tokenizer.id_of("<|image|>")
    sees.tokenizer = small_tokenizer
    assert sees.chat([picture(1)], max_new_tokens=2).tokens
    with pytest.raises(PromptError, match="no audio input"):
        sees.chat([sound(1)])
    with pytest.raises(ConfigError, match="go with a preset's name"):
        MuOmni.from_config(preset("nano"), vision=True)


def test_a_placeholder_in_the_text_is_text(model: MuOmni) -> None:
    """Whoever writes the placeholder's name gets no place for a picture, nor takes one's."""
    prompt = ["<|image|> <|vision_start|>", picture(1), "<|audio|>"]
    assert model.chat(prompt, **GREEDY).tokens == uncached(model, prompt, **GREEDY)
    ids = torch.tensor([[model.config.image_token_id, 5, model.config.audio_token_id]])
    assert torch.equal(model.generate(ids, **GREEDY), model.generate(ids, use_cache=False, **GREEDY))


def test_a_picture_is_opened_once_and_hashed_once(
    model: MuOmni, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muomni.data.media import media_ref

    opened: list[str] = []
    hashed: list[int] = []
    open_file, blake2b = media_ref._open_file, media_ref.blake2b  # type: ignore[attr-defined]

    def counted_open(path: str) -> Any:
        opened.append(Path(path).name)
        return open_file(path)

    def counted_hash(data: bytes, digest_size: int) -> Any:
        hashed.append(len(data))
        return blake2b(data, digest_size=digest_size)

    monkeypatch.setattr(media_ref, "_open_file", counted_open)
    monkeypatch.setattr(media_ref, "blake2b", counted_hash)
    content = {"a.png": png(1), "b.wav": wav(1)}
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    model.chat([tmp_path / "a.png", tmp_path / "b.wav", "What is this?"], **GREEDY)
    assert opened == list(content) and hashed == [len(data) for data in content.values()]
    model.encode([tmp_path / "a.png", "What is this?"])
    assert opened == [*content, "a.png"] and len(hashed) == 3


def test_what_is_done_to_the_encoder_later_is_seen(trained: MuOmni) -> None:
    """A hook, another one in its place, and its removal: embeddings that are kept are those of the encoder as it is."""
    model = copy.deepcopy(trained)
    assert model.vision is not None

    def features() -> torch.Tensor:
        asked = model.runtime.prepare(model, model.tokenizer, [([picture(1)], SamplingParams())], [""])[0]
        assert asked.media is not None
        return asked.media.features

    def reply() -> tuple[int, ...]:
        return model.chat(["What is this?", picture(1)], **GREEDY).tokens

    plain, first = features(), reply()
    assert features() is not None and model.runtime.media.encoded == 1
    handle = model.vision.register_forward_hook(lambda _, args, out: -out)
    hooked = features()
    assert not torch.equal(hooked, plain)
    handle.remove()
    handle = model.vision.register_forward_hook(lambda _, args, out: 3 * out)
    assert not torch.equal(features(), hooked)
    changed = reply()
    fresh = copy.deepcopy(model).chat(["What is this?", picture(1)], **GREEDY).tokens
    assert changed == fresh
    handle.remove()
    assert torch.equal(features(), plain) and reply() == first
