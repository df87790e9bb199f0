"""Speech side by side, in pieces and by the native decoder is what the slow loop makes, frame by frame."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from muomni import MuOmni
from muomni.config.talker import Pattern
from muomni.data.speech.spoken_text import spoken_words
from muomni.errors import ConfigError, SpeechError, UserError
from muomni.infer.runners.native import NativeBackbone, talker_why_not
from muomni.infer.runners.select import EagerBackbone, RunnerName, Runners, make_backbone
from muomni.infer.speech import (
    SpeakerPool,
    SpeechSettings,
    SpokenStream,
    TextSpeech,
    speak_all,
    speak_pieces,
)
from muomni.infer.speech.offline import fade_in
from muomni.infer.speech.speaker import Sentence, Speaker, capacity_for, sentence_seed
from muomni.infer.speech.text import SentenceText, encode_sentences
from muomni.infer.streaming import Chunk, Reply, Timing
from muomni.model import SlotCache
from muomni.ops.native import Unavailable, load
from tests.infer.speech.models import make_speaking
from tests.infer.speech.reference import speak

if TYPE_CHECKING:
    from muomni.data.text.tokenizer import Tokenizer

TEXTS = ["Hello there! The cat sat.", "The dog ate 2 bones.", "What is this? A mat, and then the dog slept. Oh!"]
HOW = [
    SpeechSettings(temperature=0, seed=1),
    SpeechSettings(temperature=0.9, top_k=5, seed=2, voice="ben"),
    SpeechSettings(temperature=1.1, top_k=0, seed=3, moves="expected", pause=0),
]


@pytest.fixture(scope="module")
def model(small_tokenizer: "Tokenizer") -> MuOmni:
    return make_speaking(small_tokenizer)


def backbones(model: MuOmni, slots: int, capacity: int, runner: RunnerName) -> Runners[Any]:
    assert model.talker is not None
    place = model.talker.norm.weight
    cache = SlotCache(model.talker.config.backbone, slots, capacity, place.dtype, place.device)
    return make_backbone(model, model.talker, cache, runner)


def codes_of(model: MuOmni, texts: Sequence[tuple[str, SpeechSettings]], slots: int, most: int) -> list[list[Tensor]]:
    """The codes of each sentence, spoken in so few slots that rows come and go."""
    talker, codec, tokenizer = model.talker, model.codec, model.tokenizer
    assert talker is not None and codec is not None and tokenizer is not None
    capacity = capacity_for(talker, codec.frame_rate)
    speaker = Speaker(talker, backbones(model, slots, capacity, "eager"), codec.frame_rate)
    spoken = [
        [
            Sentence(SentenceText(words), how, how.voice_number(talker.config.voices), sentence_seed(how.seed or 0, n))
            for n, words in enumerate(spoken_words(text))
        ]
        for text, how in texts
    ]
    waiting = [sentence for sentences in spoken for sentence in sentences]
    with torch.no_grad():
        encode_sentences(model, tokenizer, [sentence.text for sentence in waiting])
    while waiting or speaker.slots.free < slots:
        while waiting and speaker.slots.free:
            speaker.add(waiting.pop(0))
        speaker.run(most)
    flush = talker.config.flush
    return [[s.codes(0, s.frames or 0, flush) for s in sentences] for sentences in spoken]


@pytest.mark.parametrize("pattern", ["depth", "delay", "parallel"])
def test_rows_of_all_lengths_are_what_the_slow_loop_makes(small_tokenizer: "Tokenizer", pattern: Pattern) -> None:
    model = make_speaking(small_tokenizer, pattern).double()
    asked = list(zip(TEXTS, HOW, strict=True))
    expected = [speak(model, text, how)[0] for text, how in asked]
    assert len({len(codes) for sentences in expected for codes in sentences}) > 3
    for slots, most in ((2, 3), (6, 8)):
        found = codes_of(model, asked, slots, most)
        for ours, theirs in zip(found, expected, strict=True):
            assert [codes.tolist() for codes in ours] == [codes.tolist() for codes in theirs]


def test_whole_texts_sound_as_the_slow_loop_makes_them(model: MuOmni) -> None:
    asked = list(zip(TEXTS, HOW, strict=True))
    assert model.tokenizer is not None
    pool = SpeakerPool()
    for batch_size in (2, 32):
        made = speak_all(model, model.tokenizer, pool, asked, batch_size=batch_size)
        for (text, how), speech in zip(asked, made, strict=True):
            assert speech.error is None
            torch.testing.assert_close(speech.audio, speak(model, text, how)[1], atol=1e-5, rtol=1e-4)
            assert speech.timing.sentences == len(spoken_words(text))


@pytest.mark.parametrize("pattern", ["depth", "delay"])
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_text_in_any_pieces_sounds_the_same(small_tokenizer: "Tokenizer", pattern: Pattern, data: Any) -> None:
    model = make_speaking(small_tokenizer, pattern).double()
    text, how = TEXTS[0] + " " + TEXTS[2], data.draw(st.sampled_from(HOW))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert model.tokenizer is not None
    speech = TextSpeech(model, model.tokenizer, SpeakerPool(), how)
    sounds = [piece.audio for piece in speak_pieces(speech, pieces)]
    whole = speak_all(model, model.tokenizer, SpeakerPool(), [(text, how)])[0]
    assert whole.error is None
    torch.testing.assert_close(torch.cat([s for s in sounds if s is not None]), whole.audio, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cuts", [[], [1], [30, 31, 79], [80], [500]])
def test_the_first_sample_of_a_sentence_is_silent(cuts: list[int]) -> None:
    sound = torch.full((600,), 0.9)
    pieces = [fade_in(sound[a:b], a, 16_000) for a, b in zip([0, *cuts], [*cuts, 600], strict=True)]
    whole = torch.cat(pieces)
    assert whole[0] == 0 and torch.equal(whole[80:], sound[80:])
    assert (whole.diff() >= 0).all() and whole.diff().max() < 0.9 / 79


def test_it_speaks_before_the_sentence_is_known(model: MuOmni) -> None:
    assert model.tokenizer is not None
    speech = TextSpeech(model, model.tokenizer, SpeakerPool(), SpeechSettings(temperature=0))
    assert not speech.can_work
    for text in ("The ", "cat ", "sat on ", "the mat "):
        speech.push(text)
    sound = None
    while sound is None and speech.can_work:
        sound = speech.work()
    assert sound is not None and len(sound) > 0 and not speech.ended
    first = len(sound)
    assert first <= 4 * 640


class Written(Iterator[Chunk]):
    """Stands for a `TextStream`: a reply whose words come one by one."""

    def __init__(self, text: str) -> None:
        self.pieces = iter([Chunk(f"{word} ", (1,)) for word in text.split()])
        self.reply = Reply(text, (), "stop", Timing(0, 0, 0.0, 0.0))
        self.closed = False

    def __next__(self) -> Chunk:
        return next(self.pieces)

    def close(self) -> None:
        self.closed = True


def test_speech_begins_before_the_text_has_ended_and_never_holds_it_back(model: MuOmni) -> None:
    assert model.tokenizer is not None
    written: Any = Written("The cat sat on the mat and then the dog ate the bone. Hello there! What is this?")
    stream = SpokenStream(written, TextSpeech(model, model.tokenizer, SpeakerPool(), HOW[0]))
    kinds = "".join("a" if piece.audio is not None else "t" for piece in stream)
    assert "at" in kinds, "no sound came before the last text"
    assert "aa" not in kinds[: kinds.rindex("t")], "text waited for more than one turn of speech"
    expected = speak_all(model, model.tokenizer, SpeakerPool(), [(written.reply.text, HOW[0])])[0]
    assert expected.error is None
    torch.testing.assert_close(stream.reply.audio, expected.audio, atol=1e-5, rtol=1e-4)
    assert written.closed


@pytest.fixture(scope="module")
def library() -> Any:
    library = load()
    if isinstance(library, Unavailable):
        pytest.skip(f"no native decoder: {library.reason}")
    return library


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_native_backbone_computes_what_the_modules_do(
    model: MuOmni, small_tokenizer: "Tokenizer", library: Any, dtype: torch.dtype
) -> None:
    speaking = make_speaking(small_tokenizer).to(dtype)
    talker = speaking.talker
    assert talker is not None
    native, eager = (backbones(speaking, 40, 64, runner).now for runner in ("native", "eager"))
    assert isinstance(native, NativeBackbone) and isinstance(eager, EagerBackbone)
    slots = torch.tensor([5, 0, 39])
    generator = torch.Generator().manual_seed(0)
    for step in range(20):
        x = torch.randn(3, talker.config.hidden_size, generator=generator).to(dtype)
        with torch.no_grad():
            ours, theirs = (backbone.hidden(x, slots, torch.full((3,), step)) for backbone in (native, eager))
        tolerance = 1e-4 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


def test_the_native_backbone_says_what_it_cannot_do(small_tokenizer: "Tokenizer") -> None:
    speaking = make_speaking(small_tokenizer)
    talker = speaking.talker
    assert talker is not None
    cache = backbones(speaking, 1, 8, "eager").now.cache
    assert talker_why_not(talker, cache) is None
    layer: Any = talker.layers[1]
    layer.mlp.up_proj = nn.Sequential(layer.mlp.up_proj)
    assert "talker.layers.1.mlp.up_proj" in (talker_why_not(talker, cache) or "")
    with pytest.raises(ConfigError, match=r"the native runner cannot be had: talker\.layers\.1\.mlp\.up_proj"):
        backbones(speaking, 1, 8, "native")


class Always(nn.Module):
    """The same logits of moves for every row."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize(
    ("moves", "message"),
    [
        ([30.0, 0, 0, 0, 0], r"'The cat sat\.'.*stood still for 4 seconds after ''"),
        ([0, 30.0, 0, 0, -30.0], r"'The cat sat\.'.*stood still for 4 seconds at its end"),
        ([0, -3.4, -30.0, -30.0, -30.0], r"'The cat sat\.'.*not done after \d seconds"),
    ],
)
def test_speech_without_an_end_is_an_error(small_tokenizer: "Tokenizer", moves: list[float], message: str) -> None:
    model = make_speaking(small_tokenizer)
    good = speak_all(model, small_tokenizer, SpeakerPool(), [("Oh!", HOW[0])])[0]
    assert good.error is None
    assert model.talker is not None
    model.talker.moves = Always(moves)  # type: ignore[assignment]
    text, how = "The cat sat.", SpeechSettings(temperature=0)
    failed = speak_all(model, small_tokenizer, SpeakerPool(), [(text, how)])[0]
    assert failed.error is not None
    with pytest.raises(SpeechError, match=message):
        raise SpeechError(failed.error)
    speech = TextSpeech(model, small_tokenizer, SpeakerPool(), how)
    with pytest.raises(SpeechError, match=message):
        list(speak_pieces(speech, [text]))


def test_a_text_without_words_is_an_error_and_the_others_are_spoken(model: MuOmni) -> None:
    assert model.tokenizer is not None
    first, second = speak_all(
        model, model.tokenizer, SpeakerPool(), [("*** \N{GRINNING FACE}", HOW[0]), ("Oh!", HOW[0])]
    )
    assert first.error is not None and "nothing to say in '***" in first.error and not len(first.audio)
    assert second.error is None
    with pytest.raises(SpeechError, match="nothing to say"):
        list(speak_pieces(TextSpeech(model, model.tokenizer, SpeakerPool(), HOW[0]), ["*", "**"]))


def test_a_voice_speaks_its_language(small_tokenizer: "Tokenizer") -> None:
    model = make_speaking(small_tokenizer, voice_languages=("de", "xx"))
    text, plain = "Ich habe 3 Katzen.", "Ich habe drei Katzen."
    german, said, other, lost = speak_all(
        model,
        small_tokenizer,
        SpeakerPool(),
        [(text, HOW[0]), (plain, HOW[0]), (plain, replace(HOW[0], voice="ben")), (text, replace(HOW[0], voice="ben"))],
    )
    torch.testing.assert_close(german.audio, said.audio, atol=1e-5, rtol=1e-4)
    assert other.error is None and lost.error is not None
    assert lost.error.startswith("'3': numbers in \"xx\" cannot be put into words: write them in words")
    pieces = list(speak_pieces(TextSpeech(model, small_tokenizer, SpeakerPool(), HOW[0]), [text]))
    sound = torch.cat([piece.audio for piece in pieces if piece.audio is not None])
    torch.testing.assert_close(sound, said.audio, atol=1e-5, rtol=1e-4)
    with pytest.raises(SpeechError, match="cannot be put into words"):
        list(speak_pieces(TextSpeech(model, small_tokenizer, SpeakerPool(), replace(HOW[0], voice="ben")), [text]))


def test_a_pool_lends_what_was_given_back_until_the_weights_change(small_tokenizer: "Tokenizer") -> None:
    model, pool = make_speaking(small_tokenizer), SpeakerPool()
    assert model.talker is not None
    first = pool.take(model, 2)
    second = pool.take(model, 2)  # at the same time: another one
    assert first is not second
    sentence = Sentence(SentenceText(spoken_words("Oh!")[0]), HOW[0], 0, 1)
    with torch.no_grad():
        encode_sentences(model, small_tokenizer, [sentence.text])
    first.add(sentence)
    pool.give_back(first)
    assert first.slots.free == 2 and sentence.slot == -1  # it was not finished, and left the speaker
    pool.give_back(second)
    assert pool.take(model, 1) is first
    pool.give_back(pool.take(model, 4))
    third = pool.take(model, 2)
    assert third.slots.count == 4
    pool.give_back(third)
    with torch.no_grad():
        model.talker.layers[0].mlp.up_proj.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert pool.take(model, 2) is not third


def test_a_model_without_a_talker_says_how_to_train_one(nano_folder: Path, small_tokenizer: "Tokenizer") -> None:
    mute = MuOmni.from_pretrained(nano_folder, device="cpu")
    with pytest.raises(UserError, match="speak-tiny"):
        speak_all(mute, small_tokenizer, SpeakerPool(), [("Hello.", HOW[0])])
