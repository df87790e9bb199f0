"""How well a run sees, hears and writes, through the public API.

python scripts/measure_media.py RUN DATA OUT [--what see hear text] [--limit N] [--text-only OTHER_RUN]

DATA is the folder of the shared data sets and OUT what `scripts/prepare_media.py` made of it. Answers are generated
greedily by `MuOmni.chat_batch`. Word errors are those of `muomni.eval.wer`. `--text-only` compares bits per byte of
text with a run that learnt from text alone.

Prints a table and one JSON line.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prepare_media import ASK_BOTH, ASK_DIGIT, ASK_NAME, ASK_TRUE, choose, read_rows, said

from muomni import MuOmni
from muomni.config import SourceSpec
from muomni.data import PackedDataset, build_index
from muomni.data.media.media_ref import MediaRef
from muomni.eval.wer import word_errors
from muomni.train.evaluate import evaluate
from muomni.train.objectives.module import LossModule

Row = dict[str, Any]
SPEECH = {"fsdd": "fsdd", "voice_prompts": "voice_prompts", "librispeech": "librispeech_sample",
          "ljspeech": "ljspeech_sample"}  # fmt: skip


def main() -> None:
    """Reads the options and prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--what", nargs="+", choices=("see", "hear", "text"), help="what the model can do, if left out")
    parser.add_argument("--limit", type=int, default=10**9, help="at most this many items of each set")
    parser.add_argument("--batch", type=int, default=32, help="prompts side by side")
    parser.add_argument("--text-only", type=Path, help="a run on text alone to compare with")
    options = parser.parse_args()
    measure = Measure(options.run, options.data.resolve(), options.out.resolve(), options.limit, options.batch)
    config = measure.model.config
    able = {"see": config.vision is not None, "hear": config.audio is not None, "text": options.text_only is not None}
    wanted = options.what or [name for name, can in able.items() if can]
    if "see" in wanted:
        measure.see()
    if "hear" in wanted:
        measure.hear()
    if "see" in wanted and "hear" in wanted:
        measure.both()
    if "text" in wanted:
        measure.text(options.text_only)
    print(json.dumps({"run": options.run.name, "limit": options.limit, **measure.figures}))


class Measure:
    """Measures one run; results are collected in `figures` and printed as they come."""

    def __init__(self, run: Path, data: Path, out: Path, limit: int, batch: int) -> None:
        self.model = MuOmni.from_pretrained(run)
        self.model.eval()
        self.data = data
        self.out = out
        self.limit = limit
        self.batch = batch
        self.figures: dict[str, float | int | str] = {}

    def note(self, name: str, value: float, count: int, what: str) -> None:
        """Adds a measurement."""
        self.figures[name] = round(value, 4)
        self.figures[f"{name}_of"] = count
        print(f"{name:<32}{value:>10.2%}  of {count}: {what}", flush=True)

    def rows(self, path: Path) -> list[Row]:
        """The rows of a manifest that are measured."""
        return list(read_rows(path))[: self.limit]

    def image(self, folder: str, row: Row) -> MediaRef:
        """The picture of a row."""
        return MediaRef("image", str((self.data / folder / row["archive"]).resolve()), row["image"])

    def answers(self, prompts: Sequence[list[Row]], tokens: int) -> list[str]:
        """Greedy replies to messages of one user turn each."""
        chats = [[{"role": "user", "content": parts}] for parts in prompts]
        replies = self.model.chat_batch(chats, temperature=0.0, max_new_tokens=tokens, batch_size=self.batch)
        return [reply.text.strip() for reply in replies]

    def see(self) -> None:
        """Digits, names of pictures, choices, true or false."""
        rows = self.rows(self.data / "images" / "mnist" / "val.jsonl")
        pictures = [MediaRef("image", str(self.out / "mnist-val.zip"), f"{row['index']:05d}.png") for row in rows]
        answers = self.answers([seen(picture, ASK_DIGIT[0]) for picture in pictures], 8)
        self.note("mnist", share(a == str(row["label"]) for a, row in zip(answers, rows, strict=True)), len(rows),
                  "exact answers")  # fmt: skip
        self.choices("eval/emoji_names", self.data / "eval" / "emoji_names" / "val.jsonl")
        self.names()
        rows = self.rows(self.data / "images" / "nlvr" / "val.jsonl")
        questions = [ASK_TRUE[0].format(row["caption"].strip()) for row in rows]
        pairs = zip(rows, questions, strict=True)
        answers = self.answers([seen(self.image("images/nlvr", row), question) for row, question in pairs], 8)
        truth = ["true" if row["true"] else "false" for row in rows]
        self.note("nlvr", share(a == t for a, t in zip(answers, truth, strict=True)), len(rows), "true or false")
        most = Counter(truth).most_common(1)[0]
        self.note("nlvr_majority", most[1] / len(rows), len(rows), f"always {most[0]!r}")

    def choices(self, folder: str, path: Path) -> None:
        """Four choices, in the question."""
        rows = self.rows(path)
        pictures = [self.image(folder, row) for row in rows]
        listed = [choose(row["question"], row["choices"]) for row in rows]
        truth = [row["choices"][row["answer"]] for row in rows]
        answers = self.answers([seen(p, q) for p, q in zip(pictures, listed, strict=True)], 32)
        self.note("emoji_names_generated", share(map(same, answers, truth)), len(rows), "right choice is the reply")

    def names(self) -> None:
        """Names of emoji: exact replies."""
        folder = self.data / "images" / "noto_emoji"
        rows = self.rows(folder / "val.jsonl")
        pictures = [self.image("images/noto_emoji", row) for row in rows]
        answers = self.answers([seen(picture, ASK_NAME[0]) for picture in pictures], 32)
        right = list(map(same, answers, (row["caption"] for row in rows)))
        known = [row["name_in_train"] for row in rows]
        self.note("emoji_exact", share(right), len(rows), "exact name")
        if any(known):
            of_known = [r for r, k in zip(right, known, strict=True) if k]
            self.note("emoji_exact_known", share(of_known), len(of_known), "of names that training has")

    def hear(self) -> None:
        """Word errors of each set of speech."""
        for name, folder in SPEECH.items():
            rows = [row for row in self.rows(self.data / "speech" / folder / "val.jsonl") if said(row)]
            clips = [MediaRef("audio", str(self.data / "speech" / folder / row["archive"]), row["audio"])
                     for row in rows]  # fmt: skip
            heard = [each.text for each in self.model.transcribe(clips, batch_size=self.batch)]
            errors = word_errors(zip((row["text"] for row in rows), heard, strict=True))
            self.note(f"{name}_wer", errors.rate, errors.words, "words wrong")
            self.note(f"{name}_exact", errors.exact / errors.clips, errors.clips, "clips without any error")

    def both(self) -> None:
        """Prompts with a picture and a sound, and all kinds in one batch."""
        manifest = self.out / "pairs" / "val" / "digits.jsonl"
        rows = self.rows(manifest)
        prompts = [
            [self.part(part, manifest) for part in row["messages"][0]["content"] if part["type"] != "text"]
            + [{"type": "text", "text": ASK_BOTH}]
            for row in rows
        ]
        answers = self.answers(prompts, 32)
        truth = [row["messages"][1]["content"] for row in rows]
        self.note("pairs_exact", share(map(same, answers, truth)), len(rows), "written and spoken digit both right")
        mixed = [*prompts[:4], [{"type": "text", "text": "Write a word that rhymes with cat."}]]
        for prompt, answer in zip(mixed, self.answers(mixed, 32), strict=True):
            print(f"  {'+'.join(part['type'] for part in prompt)}: {answer!r}")

    def part(self, part: Row, manifest: Path) -> Row:
        """A part of a message with its path."""
        kind = part["type"]
        return {"type": kind, kind: MediaRef(kind, str((manifest.parent / part["archive"]).resolve()), part[kind])}

    def text(self, text_only: Path) -> None:
        """Bits per byte of text, which compares across tokenizers, of this run and of one on text alone."""
        bits = {}
        for name, model in (("text_bits_per_byte", self.model), ("text_only", MuOmni.from_pretrained(text_only))):
            assert model.tokenizer is not None
            sources = [SourceSpec(path=str(path)) for path in sorted((self.out / "text" / "val").glob("*.jsonl"))]
            rows = PackedDataset(build_index(sources, model.tokenizer), 512, shuffle=False)
            limit = min(self.limit, rows.num_rows)
            bits[name] = evaluate(LossModule(model), rows, limit, 8, model.tokenizer.byte_lengths()).bits_per_byte
            self.figures[name] = round(bits[name], 4)
            print(f"{name:<32}{bits[name]:>10.4f}  bits per byte")
        more = bits["text_bits_per_byte"] / bits["text_only"] - 1
        self.note("text_worse_by", more, limit, "more bits than the run on text alone")


def seen(picture: MediaRef, question: str) -> list[Row]:
    """A message that asks about a picture."""
    return [{"type": "image", "image": picture}, {"type": "text", "text": question}]


def same(answer: str, truth: str) -> bool:
    """Equal but for case and what stands around the words."""
    return answer.strip(" .").lower() == truth.strip(" .").lower()


def share(right: Any) -> float:
    """The share of true values."""
    values = list(right)
    return sum(map(bool, values)) / max(1, len(values))


if __name__ == "__main__":
    main()
