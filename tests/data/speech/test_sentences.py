"""Sentences for speech: where they are cut, how they are said, and which are drawn."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muomni.data.speech.normalizer.english import cardinal
from muomni.data.speech.sentences import (
    SentenceLimits,
    cut_sentences,
    draw_sentences,
    sentences_of,
    spoken_form,
    with_short,
    wording,
)
from muomni.errors import DataError


def test_sentences_are_cut_where_they_end() -> None:
    text = 'Mr. Fox ran. "Stop!" he said. J. Smith came.\nThen he asked, "Why... me? Go!" And left\n\nThe end'
    assert list(cut_sentences(text)) == [
        *("Mr. Fox ran.", '"Stop!" he said.', "J. Smith came.", 'Then he asked, "Why... me?', 'Go!"', "And left"),
        "The end",
    ]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("I paid $3.50 and £1.", "I paid three dollars and fifty cents and one pound."),
        ("In 1984, 2,005 men", "In nineteen eighty-four, two thousand and five men."),
        ("the 3rd of 21st", "The third of twenty-first."),
        ("It is 7:30 or 7:05 or 9:00.", "It is seven thirty or seven oh five or nine o'clock."),
        ("3.5% of 50%", "Three point five percent of fifty percent."),
        ("A 5-year-old boy", "A five-year-old boy."),
        ("Dr. No and Mrs. Yes", "Doctor No and Missus Yes."),
        ("“Yes”—he said…", '"Yes" - he said.'),
        ('"Well, he said.', "Well, he said."),
        ("What?!", "What?"),
        ("Naïve café", "Naïve café."),
    ],
)
def test_numbers_and_marks_are_said(written: str, said: str) -> None:
    assert spoken_form(written) == said


@pytest.mark.parametrize("unclear", ["see www.x.com/a", "call 555-1234", "10/12/2020", "v1.2.3", "🙂", "...", "Привет"])
def test_what_has_no_clear_reading_is_left_out(unclear: str) -> None:
    assert spoken_form(unclear) is None


def test_other_languages_keep_their_letters_but_no_digits() -> None:
    assert spoken_form("Привет, мир", "ru") == "Привет, мир."
    assert spoken_form("Er hat 3 Hunde.", "xx") is None  # of a language whose numbers nothing knows
    assert spoken_form("Er hat 3 Hunde.", "de") == "Er hat drei Hunde."
    assert spoken_form("वह घर गया।", "hi") == "वह घर गया।"


@given(st.text(max_size=80))
def test_what_is_said_stays_as_it_is(text: str) -> None:
    said = spoken_form(text)
    if said is not None:
        assert spoken_form(said) == said
        assert not any(c.isdigit() for c in said)
        assert "\n" not in said


@given(st.lists(st.sampled_from("abcdefgh"), max_size=12), st.integers(1, 6), st.randoms())
def test_the_draw_depends_on_the_wordings_alone(words: list[str], count: int, shuffler: random.Random) -> None:
    sentences = [f"It was {word} again." for word in words]
    drawn = draw_sentences(sentences, count)
    shuffled = [sentence.upper() for sentence in sentences]
    shuffler.shuffle(shuffled)
    assert [wording(s) for s in draw_sentences(shuffled, count)] == [wording(s) for s in drawn]
    assert len(drawn) == min(count, len(set(words)))
    assert draw_sentences(sentences, None)[:count] == drawn


def test_no_is_a_sentence_unless_a_number_follows() -> None:
    assert list(cut_sentences("No. I will not. It is No. 5 here.")) == ["No.", "I will not.", "It is No. 5 here."]


def test_limits_and_exclusion() -> None:
    sentences = [
        "Too short.",
        "This one is good.",
        "this one is good",
        "This is far too long to take.",
        "Not this one.",
    ]
    limits = SentenceLimits(3, 5)
    assert draw_sentences(sentences, None, limits=limits, excluded={wording("NOT this one!")}) == ["This one is good."]
    assert draw_sentences([f"Number {cardinal(n)} is here." for n in range(50)], 5, seed=1) != draw_sentences(
        [f"Number {cardinal(n)} is here." for n in range(50)], 5, seed=2
    )
    with pytest.raises(DataError, match="5 to 3"):
        SentenceLimits(5, 3)


def test_texts_and_conversations_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("He has 2 dogs. They bark!\n")
    chat = [{"role": "user", "content": "Who is it?"}, {"role": "assistant", "content": "It is me. Hello there."}]
    (tmp_path / "b.jsonl").write_text(json.dumps({"messages": chat}) + "\n")
    assert list(sentences_of([tmp_path])) == ["He has two dogs.", "They bark!", "It is me.", "Hello there."]
    with pytest.raises(DataError, match="no such file"):
        list(sentences_of([tmp_path / "none.txt"]))


def words_of(sentence: str) -> int:
    return len(wording(sentence).split())


def test_a_share_of_short_sentences_is_added_or_takes_the_place_of_long_ones() -> None:
    letters = "abcdefghij"
    names = ["ka" + letters[n // 10] + letters[n % 10] for n in range(100)]
    long = [f"Now {name} and {name}a ran, {name}o slept." for name in names[:90]]
    mixed = with_short(long, 0.1)
    assert len(mixed) == 90 and sum(words_of(text) <= 2 for text in mixed) == 9
    assert len({wording(text) for text in mixed}) == 90
    assert [text for text in mixed if text in long] == [text for text in with_short(long, 0) if text in mixed]
    more = with_short(long, 0.5, "de", grow=True, limits=SentenceLimits(2, 15), excluded={"guten morgen"})
    short = set(more) - set(long)
    assert set(long) < set(more) and len(more) == 180 and {words_of(text) for text in short} == {2}
    assert {"Gute Nacht.", "Vielen Dank."} < short and "Guten Morgen." not in short
    everything = with_short(long, 0.5, grow=True)
    assert {"Zero.", "Nine.", "Yes.", "Oh no!"} < set(everything)
    assert with_short(["Oh no!", "It is me."], 0.5) == with_short(["It is me.", "Oh no!"], 0.5)
