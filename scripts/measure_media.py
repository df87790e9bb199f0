"""How well a run sees, hears and writes, through the public API.

python scripts/measure_media.py RUN DATA OUT [--what see hear text] [--limit N] [--text-only OTHER_RUN]

DATA is the folder of the shared data sets and OUT what `scripts/prepare_media.py` made of it. Answers are generated
greedily by `MuOmni.chat_batch`. Four choices are also decided by which of them is the likeliest reply; pictures are
also named by the contrastive head and clips spelled by the CTC head, where there are any. Word errors are those of
`muomni.eval.wer`. `--text-only` compares bits per byte of text with a run that learnt from text alone.

Prints a table and one JSON line.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from prepare_media import ASK_BOTH, ASK_DIGIT, ASK_NAME, ASK_TRUE, ASK_WORDS, choose, read_rows, said

from muomni import MuOmni
from muomni.config import SourceSpec
from muomni.data import PackedDataset, build_index, encode_chat, expand
from muomni.data.media.audio import load_audio
from muomni.data.media.features import mel_of
from muomni.data.media.image import load_image, to_patches
from muomni.data.media.media_ref import MediaRef
from muomni.eval.wer import word_errors
from muomni.model.inputs import AudioBatch, ImageBatch
from muomni.model.mrope import mrope_positions
from muomni.model.omni import Features
from muomni.train.evaluate import evaluate

Row = dict[str, Any]
SPEECH = {"fsdd": "fsdd", "voice_prompts": "voice_prompts", "librispeech": "librispeech_sample",
          "ljspeech": "ljspeech_sample"}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--what", nargs="+", choices=("see", "hear", "text"), help="what the model can do, if left out")
    parser.add_argument("--limit", type=int, default=10**9, help="at most this many items of each set")
    parser.add_argument("--batch", type=int, default=32, help="prompts side by side")
    parser.add_argument("--text-only", type=Path, help="a run on text alone to compare with")
    asked = parser.parse_args()
    measure = Measure(asked.run, asked.data.resolve(), asked.out.resolve(), asked.limit, asked.batch)
    config = measure.model.config
    able = {"see": config.vision is not None, "hear": config.audio is not None, "text": asked.text_only is not None}
    wanted = asked.what or [name for name, can in able.items() if can]
    if "see" in wanted:
        measure.see()
    if "hear" in wanted:
        measure.hear()
    if "see" in wanted and "hear" in wanted:
        measure.both()
    if "text" in wanted:
        measure.text(asked.text_only)
    print(json.dumps({"run": asked.run.name, "limit": asked.limit, **measure.figures}))


class Measure:
    """Measures one run; figures come to stand in `figures` and are printed as they come."""

    def __init__(self, run: Path, data: Path, out: Path, limit: int, batch: int) -> None:
        self.model = MuOmni.from_pretrained(run)
        self.model.eval()
        self.data = data
        self.out = out
        self.limit = limit
        self.batch = batch
        self.figures: dict[str, float | int | str] = {}

    def note(self, name: str, value: float, count: int, what: str) -> None:
        self.figures[name] = round(value, 4)
        self.figures[f"{name}_of"] = count
        print(f"{name:<32}{value:>10.2%}  of {count}: {what}", flush=True)

    def rows(self, path: Path) -> list[Row]:
        return list(read_rows(path))[: self.limit]

    def image(self, folder: str, row: Row) -> MediaRef:
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
        found = self.answers([seen(picture, ASK_DIGIT[0]) for picture in pictures], 8)
        self.note("mnist", share(a == str(row["label"]) for a, row in zip(found, rows, strict=True)), len(rows),
                  "exact answers")  # fmt: skip
        self.choices("eval/emoji_names", self.data / "eval" / "emoji_names" / "val.jsonl")
        self.names()
        rows = self.rows(self.data / "images" / "nlvr" / "val.jsonl")
        questions = [ASK_TRUE[0].format(row["caption"].strip()) for row in rows]
        pairs = zip(rows, questions, strict=True)
        found = self.answers([seen(self.image("images/nlvr", row), question) for row, question in pairs], 8)
        truth = ["true" if row["true"] else "false" for row in rows]
        self.note("nlvr", share(a == t for a, t in zip(found, truth, strict=True)), len(rows), "true or false")
        most = Counter(truth).most_common(1)[0]
        self.note("nlvr_majority", most[1] / len(rows), len(rows), f"always {most[0]!r}")

    def choices(self, folder: str, path: Path) -> None:
        """Four choices: generated with the choices in the question, and by likelihood with and without them."""
        rows = self.rows(path)
        pictures = [self.image(folder, row) for row in rows]
        listed = [choose(row["question"], row["choices"]) for row in rows]
        truth = [row["choices"][row["answer"]] for row in rows]
        found = self.answers([seen(p, q) for p, q in zip(pictures, listed, strict=True)], 32)
        self.note("emoji_names_generated", share(map(same, found, truth)), len(rows), "right choice is the reply")
        for name, questions in (("listed", listed), ("named", [row["question"] for row in rows])):
            right = 0
            for row, picture, question in zip(rows, pictures, questions, strict=True):
                scores = self.likelihoods(picture, question, row["choices"])
                right += int(scores.argmax()) == row["answer"]
            what = "likeliest reply to the question with its choices" if name == "listed" else "... without them"
            self.note(f"emoji_names_{name}", right / len(rows), len(rows), what)
        if self.model.vision_head is not None:
            right = sum(
                int(self.nearness([picture], row["choices"])[0].argmax()) == row["answer"]
                for row, picture in zip(rows, pictures, strict=True)
            )
            self.note("emoji_names_contrastive", right / len(rows), len(rows), "nearest name")

    def names(self) -> None:
        """Names of emoji: exact replies, and by the contrastive head among all names of training and val."""
        folder = self.data / "images" / "noto_emoji"
        rows = self.rows(folder / "val.jsonl")
        pictures = [self.image("images/noto_emoji", row) for row in rows]
        found = self.answers([seen(picture, ASK_NAME[0]) for picture in pictures], 32)
        right = list(map(same, found, (row["caption"] for row in rows)))
        known = [row["name_in_train"] for row in rows]
        self.note("emoji_exact", share(right), len(rows), "exact name")
        if any(known):
            of_known = [r for r, k in zip(right, known, strict=True) if k]
            self.note("emoji_exact_known", share(of_known), len(of_known), "of names that training has")
        if self.model.vision_head is None:
            return
        names = sorted({row["caption"] for part in ("train", "val") for row in read_rows(folder / f"{part}.jsonl")})
        scores = self.nearness(pictures, names)
        place = {name: number for number, name in enumerate(names)}
        best = scores.topk(5).indices.tolist()
        hits = [place[row["caption"]] in five for row, five in zip(rows, best, strict=True)]
        first = share(place[row["caption"]] == five[0] for row, five in zip(rows, best, strict=True))
        self.note("emoji_top1_contrastive", first, len(rows), f"nearest of {len(names)} names")
        self.note("emoji_top5_contrastive", share(hits), len(rows), f"among the five nearest of {len(names)} names")

    def hear(self) -> None:
        """Word errors of each set of speech, and what the CTC head alone makes of it."""
        for name, folder in SPEECH.items():
            rows = [row for row in self.rows(self.data / "speech" / folder / "val.jsonl") if said(row)]
            clips = [MediaRef("audio", str(self.data / "speech" / folder / row["archive"]), row["audio"])
                     for row in rows]  # fmt: skip
            found = self.answers([heard(clip, ASK_WORDS[0]) for clip in clips], 200)
            errors = word_errors(zip((row["text"] for row in rows), found, strict=True))
            self.note(f"{name}_wer", errors.rate, errors.words, "words wrong")
            self.note(f"{name}_exact", errors.exact / errors.clips, errors.clips, "clips without any error")
            if self.model.audio_head is not None:
                errors = word_errors(zip((row["text"] for row in rows), self.spelled(clips), strict=True))
                self.note(f"{name}_ctc_wer", errors.rate, errors.words, "words wrong by the CTC head alone")

    def both(self) -> None:
        """Prompts with a picture and a sound, and all kinds in one batch."""
        manifest = self.out / "pairs" / "val" / "digits.jsonl"
        rows = self.rows(manifest)
        prompts = [
            [self.part(part, manifest) for part in row["messages"][0]["content"] if part["type"] != "text"]
            + [{"type": "text", "text": ASK_BOTH}]
            for row in rows
        ]
        found = self.answers(prompts, 32)
        truth = [row["messages"][1]["content"] for row in rows]
        self.note("pairs_exact", share(map(same, found, truth)), len(rows), "written and spoken digit both right")
        mixed = [*prompts[:4], [{"type": "text", "text": "Write a word that rhymes with cat."}]]
        for prompt, answer in zip(mixed, self.answers(mixed, 32), strict=True):
            print(f"  {'+'.join(part['type'] for part in prompt)}: {answer!r}")

    def part(self, part: Row, manifest: Path) -> Row:
        kind = part["type"]
        return {"type": kind, kind: MediaRef(kind, str((manifest.parent / part["archive"]).resolve()), part[kind])}

    def text(self, text_only: Path) -> None:
        """Bits per byte of text, which compares across tokenizers, of this run and of one on text alone."""
        found = {}
        for name, model in (("text_bits_per_byte", self.model), ("text_only", MuOmni.from_pretrained(text_only))):
            sources = [SourceSpec(path=str(path)) for path in sorted((self.out / "text" / "val").glob("*.jsonl"))]
            rows = PackedDataset(build_index(sources, model.tokenizer), 512, shuffle=False)
            limit = min(self.limit, rows.num_rows)
            found[name] = evaluate(model, rows, limit, 8, model.tokenizer.byte_lengths()).bits_per_byte
            self.figures[name] = round(found[name], 4)
            print(f"{name:<32}{found[name]:>10.4f}  bits per byte")
        more = found["text_bits_per_byte"] / found["text_only"] - 1
        self.note("text_worse_by", more, limit, "more bits than the run on text alone")

    @torch.no_grad()
    def likelihoods(self, picture: MediaRef, question: str, replies: Sequence[str]) -> torch.Tensor:
        """(replies,) ln of the probability of each reply with its end, given the picture and the question."""
        vision, tokenizer = self.model.config.vision, self.model.tokenizer
        assert vision is not None
        patches, grid = to_patches(load_image(picture, vision), vision)
        features = self.model.embed_images(ImageBatch(torch.from_numpy(patches), (grid,)))
        rows, columns = (side // vision.pixel_shuffle_factor for side in grid)
        chats = []
        for reply in replies:
            messages = [
                *[{"role": "user", "content": seen(picture, question)}],
                {"role": "assistant", "content": reply},
            ]
            chats.append(expand(encode_chat(tokenizer, messages, inputs=("image",)), [rows * columns]))
        longest = max(len(chat.ids) for chat in chats)
        ids = torch.full((len(chats), longest), tokenizer.pad_id)
        answer = torch.zeros(len(chats), longest, dtype=torch.bool)
        for row, chat in enumerate(chats):
            ids[row, : len(chat.ids)] = torch.tensor(chat.ids)
            answer[row, : len(chat.ids)] = torch.tensor(chat.answer_mask)
        positions = [mrope_positions(longest, [(chat.places[0], rows, columns)]) for chat in chats]
        axes = torch.stack([torch.from_numpy(one) for one in positions], 1)
        copies = features.repeat(len(chats), 1)
        logits = self.model(ids, positions=axes, features=Features(image=copies)).logits
        scores = logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        return (scores * answer[:, 1:]).sum(1)

    @torch.no_grad()
    def spelled(self, clips: Sequence[MediaRef]) -> list[str]:
        """What the encoder alone hears, by its CTC head."""
        model, config = self.model, self.model.config.audio
        assert config is not None and model.audio is not None and model.audio_head is not None
        texts = []
        for clip in clips:
            mel = mel_of(load_audio(clip, config.max_seconds), config)
            sound = AudioBatch(torch.from_numpy(mel), (len(mel),))
            texts += model.audio_head.decode(model.audio(sound), model.audio.counts(sound))
        return texts

    @torch.no_grad()
    def nearness(self, pictures: Sequence[MediaRef], names: Sequence[str]) -> torch.Tensor:
        """(pictures, names) cosines of the contrastive head."""
        model, vision = self.model, self.model.config.vision
        assert vision is not None and model.vision is not None and model.vision_head is not None
        shown = []
        for first in range(0, len(pictures), self.batch):
            cut = [to_patches(load_image(p, vision), vision) for p in pictures[first : first + self.batch]]
            patches = torch.cat([torch.from_numpy(patches) for patches, _ in cut])
            images = ImageBatch(patches, tuple(grid for _, grid in cut))
            shown.append(model.vision_head.images(model.vision(images), model.vision.counts(images)))
        ids = [model.tokenizer.encode(name) for name in names]
        words = model.thinker.embed_tokens(torch.tensor([token for name in ids for token in name]))
        return torch.cat(shown) @ model.vision_head.texts(words, [len(name) for name in ids]).T


def seen(picture: MediaRef, question: str) -> list[Row]:
    return [{"type": "image", "image": picture}, {"type": "text", "text": question}]


def heard(clip: MediaRef, question: str) -> list[Row]:
    return [{"type": "audio", "audio": clip}, {"type": "text", "text": question}]


def same(answer: str, truth: str) -> bool:
    """Equal but for case and what stands around the words."""
    return answer.strip(" .").lower() == truth.strip(" .").lower()


def share(right: Any) -> float:
    values = list(right)
    return sum(map(bool, values)) / max(1, len(values))


if __name__ == "__main__":
    main()
