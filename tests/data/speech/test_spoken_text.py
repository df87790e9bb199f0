"""What of a text is spoken, as it comes."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.data import Tokenizer
from muomni.data.speech.sentences import spoken_form
from muomni.data.speech.spoken_text import (
    MAX_UNITS,
    SpokenText,
    Word,
    clip_words,
    said_words,
    spoken_words,
    tokens_of,
    units_of,
)

MIXED = st.text(
    st.one_of(
        st.sampled_from(
            "  \n\n.,!?\"'()-*_`#[]|$%19aBcé\N{EM DASH}\N{HORIZONTAL ELLIPSIS}你。🙂\N{COMBINING ACUTE ACCENT}"
        ),
        st.characters(),
    ),
    max_size=120,
)
PHRASES = st.lists(
    st.sampled_from(
        ["Hello", "the", "dog.", "Mr.", "1984", "```", "- ", "\n", "\n\n", "**bold**", "[a](http://b.c)", "3.5%", "ok,"]
    ),
    max_size=60,
).map(" ".join)


def said(text: str) -> list[str]:
    return [" ".join(word.spoken for word in words) for words in spoken_words(text)]


@settings(deadline=None, max_examples=150)
@given(st.one_of(MIXED, PHRASES), st.data())
def test_any_cutting_gives_the_same_words(text: str, data: st.DataObject) -> None:
    whole = [word for words in spoken_words(text) for word in words]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    stream = SpokenText()
    found: list[Word] = []
    for begin, end in pairwise([0, *cuts, len(text)]):
        found += stream.push(text[begin:end])
    assert found + stream.finish() == whole


@settings(deadline=None, max_examples=200)
@given(st.one_of(MIXED, PHRASES, st.integers(1, 40).map(lambda n: "wörter, und " * n), st.text("a1", max_size=500)))
def test_sentences_are_whole_and_short_enough(text: str) -> None:
    ends = [0]
    for words in spoken_words(text):
        assert [word.first for word in words] == [True] + [False] * (len(words) - 1)
        assert [word.last for word in words] == [False] * (len(words) - 1) + [True]
        assert words[-1].spoken.rstrip("\"')")[-1] in ".!?。"
        units, numbers = units_of(words)
        assert len(units) == len(numbers) <= MAX_UNITS
        for word in words:
            assert not any(c.isspace() for c in word.spoken) and any(c.isalnum() for c in word.spoken)
            assert text[: word.end].endswith(word.text)
            ends.append(word.end)
    assert ends == sorted(ends)


def test_a_word_leaves_with_the_next_one() -> None:
    stream = SpokenText()
    assert stream.push("Hello wor") == []
    assert [word.spoken for word in stream.push("ld! ")] == ["Hello"]
    assert stream.push("🙂 ") == []
    (word,) = stream.push("Then ")
    assert word == Word("world!", "world!", False, True, 12)
    (word,) = stream.finish()
    assert word == Word("Then", "Then.", True, True, 19)
    assert stream.push("again") == [] and stream.finish()[0].end == 25


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It was 1984. Mr. Fox paid $3!", ["It was nineteen eighty-four.", "Mister Fox paid three dollars!"]),
        ('"Stop!" he said. J. Smith has no. 5.', ['"Stop!" he said.', "J. Smith has no. five."]),
        ("A dash — here... And\u2026 there.", ["A dash, here.", "And, there."]),
        ("# Head\n\n- one\n* **two**\n1. Wash\n2. Dry it", ["Head.", "One.", "Two.", "One, Wash.", "Two, Dry it."]),
        ("Look:\n```py\nx = 1\n```\nDone `now`", ["Look.", "Done now."]),
        ("See [this page](http://a.b/c) at example.com.", ["See this page at example dot com."]),
        ("A line\nthat goes on\nAnd another", ["A line that goes on.", "And another."]),
        ("It is, e.g. 5 %", ["It is, for example five percent."]),
        ("No!!! Really?! __Yes__ 🙂", ["No!", "Really?", "Yes."]),
        ("2+2=4, A1 at -5°C", ["Two plus two equals four, A one at minus five degrees C."]),
        ("\ud800 hi", ["Hi."]),
        ("\N{DIAERESIS} so \N{VICTORY HAND}\N{VARIATION SELECTOR-16} it is", ["So it is."]),
        ("🙂 ... --", []),
        ("```\nonly code", []),
    ],
)  # fmt: skip
def test_what_is_said(text: str, sentences: list[str]) -> None:
    assert said(text) == sentences


@pytest.mark.parametrize(
    "text",
    [
        "The dog ate 12 bones, and then it ran home.",
        "Lily said, \"I don't know what's in the box.\"",
        "On the 3rd of May 2021 it cost $1,250.75 (too much)!",
        "Dr. Smith was late: the train left at 7:05 sharp; he ran.",
    ],
)
def test_texts_of_recordings_are_said_as_they_were_prepared(text: str) -> None:
    prepared = spoken_form(text)
    assert prepared is not None
    assert " ".join(word.spoken for word in clip_words(prepared)) == prepared
    assert [" ".join(word.spoken for word in clip_words(text))] == [prepared]


def test_what_is_said_is_taken_as_it_is() -> None:
    said = "It's 3 o'clock - (now)"
    words = said_words(said)
    assert [word.spoken for word in words] == said.split(" ") and [said[: word.end] for word in words][1] == "It's 3"
    assert bytes(units_of(words)[0][1:-1]).decode() == said
    prepared = clip_words("Lily ate 2 bones.")
    assert said_words("Lily ate two bones.") == [
        Word(word.spoken, word.spoken, word.first, word.last, len(" ".join(w.spoken for w in prepared[: n + 1])))
        for n, word in enumerate(prepared)
    ]


def test_digits_stay_in_other_languages() -> None:
    assert [word.spoken for word in clip_words("Es sind 12 Äpfel + 3", "xx")] == ["Es", "sind", "12", "Äpfel", "3."]


@pytest.mark.parametrize(
    ("text", "language", "sentences"),
    [
        ("It cost $1.5 million, or 5 €.", "en", ["It cost one point five million dollars, or five euros."]),
        (
            "See p. 12 on Jan. 3 at 7:30 p.m. sharp.",
            "en",
            ["See page twelve on January third at seven thirty p m sharp."],
        ),
        ("I ran 5 km. Then 1 000 000 people came.", "en", ["I ran five kilometers.", "Then one million people came."]),
        (
            "Henry VIII of No. 5 Sunset Blvd. is 5'10\".",
            "en",
            ["Henry the eighth of number five Sunset Boulevard is five feet ten inches."],
        ),
        (
            "Call +44 20 7946 0958 now",
            "en",
            ["Call plus four four, two zero, seven nine four six, zero nine five eight now."],
        ),
        (
            "Chapter IV is 3½ pages, 1️⃣ &amp; https://a.b/c",
            "en",
            ["Chapter four is three and a half pages, one and a dot b slash c."],
        ),
        ("## Title\nThe cat sat.", "en", ["Title.", "The cat sat."]),
        ("We have 5\n\nThen 6", "en", ["We have five.", "Then six."]),
        (
            "Ich habe 3 Katzen seit dem 3. Mai 2020. Gut.",
            "de",
            ["Ich habe drei Katzen seit dem dritten Mai zweitausendzwanzig.", "Gut."],
        ),
        ("Das kostet 1,5 Mio. € im Jahr.", "de", ["Das kostet eins Komma fünf Millionen Euro im Jahr."]),
        ("J'ai 1 000 €.", "fr", ["J'ai mille euros."]),
        ("वह घर गया। मैं भी।", "hi", ["वह घर गया।", "मैं भी।"]),
    ],
)  # fmt: skip
def test_what_is_said_together_is_read_together(text: str, language: str, sentences: list[str]) -> None:
    assert [" ".join(word.spoken for word in words) for words in spoken_words(text, language)] == sentences


def test_a_clip_is_one_sentence_of_any_length() -> None:
    text = "He ran. She sat down, too. " * 30
    words = clip_words(text)
    assert len(words) == 180 and [n for n, word in enumerate(words) if word.first or word.last] == [0, 179]
    assert " ".join(word.spoken for word in words) == text.strip()


def test_long_sentences_are_cut_behind_commas() -> None:
    sentences = said(("word " * 34 + "comma, ") * 3)
    assert len(sentences) == 3 and all(text.endswith("comma.") for text in sentences)


def test_units_are_bytes_with_their_words() -> None:
    units, numbers = units_of(clip_words("Oh né"))
    assert units == [256, *"Oh né.".encode(), 257]
    assert numbers == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="at least one word"):
        units_of([])


def test_tokens_of_a_word_do_not_depend_on_the_next(tokenizer: Tokenizer) -> None:
    words = clip_words("The dog ate 12 bones, and Lily smiled.")
    ids, places = tokens_of(words, tokenizer)
    assert tokenizer.decode(ids) == "The dog ate twelve bones, and Lily smiled."
    assert places[-1] == len(ids) - 1
    for n in range(1, len(words)):
        assert tokens_of(words[:n], tokenizer) == (ids[: places[n - 1] + 1], places[:n])


def test_room_for_a_word_is_asked_for() -> None:
    with pytest.raises(ValueError, match="max_units"):
        SpokenText(max_units=30)


def test_a_rank_behind_an_article_ends_no_sentence() -> None:
    sentences = spoken_words("Der 2. Weltkrieg war lang. Es waren 3. Dann ging er.", "de")
    said = [" ".join(word.spoken for word in words) for words in sentences]
    assert said == ["Der zweite Weltkrieg war lang.", "Es waren drei.", "Dann ging er."]
