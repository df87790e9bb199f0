"""Training and held-out speech for the talker, from a folder of the shared data sets.

python scripts/prepare_speech.py DATA OUT

writes OUT/train and OUT/heldout, each with the archives and manifest that `muomni data speech` makes, in one voice of
the synthesiser: 4,000 sentences of at most 15 words from the stories' training part, a tenth of them of one or two
words, and 100 of at least three from their val part that stand in no sentence of the training part, not as a piece of
one either. Prints hours and sizes. A run that was stopped
goes on with the same command.
"""

import argparse
import os
from pathlib import Path

from muomni.data.speech.espeak_client import Voice
from muomni.data.speech.sentences import SentenceLimits, draw_sentences, sentences_of, with_short, wording
from muomni.data.speech.synthesis import SpeechMade, SpeechSettings, make_speech


def main() -> None:
    """Reads the options and writes the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with text/tinystories")
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=4000, help="training sentences")
    parser.add_argument("--heldout", type=int, default=100, help="held-out sentences")
    parser.add_argument("--voice", type=Voice.parse, default=SpeechSettings().voices[0], help="as en-us+f3:150")
    parser.add_argument("--rate", type=int, default=16_000, help="sample rate in Hz")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args()
    stories = asked.data / "text" / "tinystories"
    training = list(sentences_of([stories / "train.jsonl.gz"]))
    limits = SentenceLimits(min_words=3)
    settings = SpeechSettings((asked.voice,), sample_rate=asked.rate)

    wordings = {wording(sentence) for sentence in training}
    candidates = draw_sentences(
        sentences_of([stories / "val.jsonl.gz"]), 4 * asked.heldout, limits=limits, excluded=wordings
    )
    everything = " | ".join(["", *wordings, ""])
    heldout = [sentence for sentence in candidates if f" {wording(sentence)} " not in everything][: asked.heldout]
    if len(heldout) < asked.heldout:
        raise SystemExit(f"the val part holds only {len(heldout)} such sentences")
    parts = {"train": with_short(draw_sentences(training, asked.train), 0.1), "heldout": heldout}
    for name, sentences in parts.items():
        made = make_speech(sentences, asked.out / name, settings, workers=asked.workers)
        print(summary(name, made), flush=True)


def summary(name: str, made: SpeechMade) -> str:
    """One line on what was made."""
    each = made.seconds / made.clips
    return (
        f"{name}: {made.clips:,} sentences, {made.seconds / 3600:.2f} h ({each:.1f} s each), {made.size / 1e6:.1f} MB: "
        f"{made.manifest}"
    )


if __name__ == "__main__":
    main()
