"""Manifests for the runs that see, hear and do both, from a folder of the shared data sets.

python scripts/prepare_media.py DATA OUT

writes OUT/{see,hear,text,pairs}/{train,val}/SET.jsonl, one conversation a line whose parts name files in the
archives of DATA, and OUT/mnist-{train,val}.zip with the digits as PNG. With runs/media as OUT they are what
examples/recipes/omni-tiny.json reads; its val parts are test data of `muomni eval`.

Questions come in several wordings and, for emoji, also with four choices; choices are names of training pictures,
so `eval/emoji_names` is asked in a form that training has. Everything is drawn from fixed seeds.
"""

import argparse
import gzip
import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from muomni.eval.wer import spoken_words
from muomni.files import text_lines
from muomni.infer.transcription import QUESTION

Row = dict[str, Any]
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ASK_DIGIT = ("What digit is this?", "Which digit is in the picture?", "Read the digit.", "What number is written here?")
ASK_NAME = ("What is in the picture?", "What is this?", "Name the picture.", "What does this picture show?")
ASK_FLAG = ("Whose flag is this?", "What flag is this?", "What is in the picture?")
ASK_TRUE = ("True or false: {}", "Is this true of the picture? {} Answer true or false.")
ASK_WORDS = (QUESTION, "Write down what you hear.", "Transcribe the recording.", "Which words are spoken?")
ASK_BOTH = "Which digit is shown, and which one is said?"
# Of 100 questions about a picture so many stand before it; the others come after it.
QUESTION_FIRST = 20


def main() -> None:
    """Reads the options and writes the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with images/, speech/ and text/")
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    data, out = asked.data.resolve(), asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    sets: dict[tuple[str, str], Callable[[Path, Path, str], Iterable[Row]]] = {
        ("see", "mnist"): mnist,
        ("see", "emoji"): emoji,
        ("see", "emoji_choices"): emoji_choices,
        ("see", "clipart"): clipart,
        ("see", "flags"): flags,
        ("see", "nlvr"): nlvr,
        ("see", "nlvr_contents"): nlvr_contents,
        ("hear", "fsdd"): lambda *place: speech("fsdd", *place),
        ("hear", "voice_prompts"): lambda *place: speech("voice_prompts", *place),
        ("hear", "librispeech"): lambda *place: speech("librispeech_sample", *place),
        ("hear", "many_speakers"): lambda *place: speech("librispeech_many_speakers", *place),
        ("hear", "ljspeech"): lambda *place: speech("ljspeech_sample", *place),
        ("hear", "ljspeech_more"): lambda *place: speech("ljspeech_more", *place),
        ("pairs", "digits"): digit_pairs,
        ("text", "tinystories"): stories,
        ("text", "instructions"): instructions,
        ("text", "trivia"): trivia,
        ("text", "storybooks"): storybooks,
        ("text", "fairytales"): fairytales,
        ("text", "dialogue"): dialogue,
        ("text", "small_talk"): small_talk,
    }
    for part in ("train", "val"):
        pack_mnist(data, out, part)
        for (kind, name), make in sets.items():
            target = out / kind / part / f"{name}.jsonl"
            target.parent.mkdir(parents=True, exist_ok=True)
            count = 0
            with target.open("w", encoding="utf-8") as file:
                for row in make(data, out, part):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    count += 1
            print(f"{target.relative_to(out)}: {count} rows")


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a jsonl file, plain or `.gz`, whichever is there."""
    packed = path.with_name(path.name + ".gz")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    for line in text_lines(content.decode()):
        yield json.loads(line)


def chat(question: str, medium: Row, answer: str, draw: random.Random) -> Row:
    """One question about one picture or clip."""
    parts = [medium, {"type": "text", "text": question}]
    if draw.randrange(100) < QUESTION_FIRST:
        parts.reverse()
    return {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}


def picture(data: Path, out: Path, folder: str, row: Row, caption: str | None) -> Row:
    """The part for a picture of a set in DATA, below a manifest two folders down in OUT."""
    part = {"type": "image", "image": row["image"], "archive": beside(data / "images" / folder / row["archive"], out)}
    return part if caption is None else part | {"caption": caption}


def beside(path: Path, out: Path) -> str:
    """A path as a manifest in OUT/kind/part names it."""
    return os.path.relpath(path, out / "kind" / "part")


def pack_mnist(data: Path, out: Path, part: str) -> None:
    """The digits as PNG in a zip file; nothing is done where it is there already."""
    from PIL import Image

    target = out / f"mnist-{part}.zip"
    if target.exists():
        return
    with gzip.open(data / "images" / "mnist" / f"{part}-images-idx3-ubyte.gz") as file:
        magic, count, height, width = struct.unpack(">IIII", file.read(16))
        if magic != 2051:
            raise SystemExit(f"{file.name}: not IDX pictures (magic number {magic})")
        pixels = file.read()
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w") as archive:
        for number in range(count):
            content = pixels[number * height * width : (number + 1) * height * width]
            png = io.BytesIO()
            Image.frombytes("L", (width, height), content).save(png, "PNG")
            archive.writestr(zipfile.ZipInfo(f"{number:05d}.png"), png.getvalue())
    partial.replace(target)


def mnist_part(out: Path, part: str, row: Row) -> Row:
    """A picture of a digit as a part of a message."""
    archive = beside(out / f"mnist-{part}.zip", out)
    return {"type": "image", "image": f"{row['index']:05d}.png", "archive": archive, "caption": row["caption"]}


def mnist(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Each digit once, in one of the wordings."""
    draw = random.Random(f"mnist {part}")
    for row in read_rows(data / "images" / "mnist" / f"{part}.jsonl"):
        yield chat(draw.choice(ASK_DIGIT), mnist_part(out, part, row), str(row["label"]), draw)


def drawings(data: Path, out: Path, part: str) -> Iterator[tuple[Row, Row]]:
    """The rows of all emoji, in seven styles, each with its part of a message."""
    for folder in ("noto_emoji", "emoji_styles"):
        for row in read_rows(data / "images" / folder / f"{part}.jsonl"):
            yield row, picture(data, out, folder, row, row["caption"])


def emoji(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Each picture once with its name."""
    draw = random.Random(f"emoji {part}")
    for row, part_of_it in drawings(data, out, part):
        yield chat(draw.choice(ASK_NAME), part_of_it, row["caption"], draw)


def clipart(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Each picture once with its title."""
    draw = random.Random(f"clipart {part}")
    for row in read_rows(data / "images" / "clipart" / f"{part}.jsonl"):
        yield chat(draw.choice(ASK_NAME), picture(data, out, "clipart", row, row["caption"]), row["caption"], draw)


def choose(question: str, choices: Iterable[str]) -> str:
    """A question with its choices, as `muomni eval` asks it too."""
    return f"{question} Choose one: {'; '.join(choices)}."


def emoji_choices(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Each picture once among four names of training pictures; half the wrong ones are of its own group."""
    draw = random.Random(f"emoji choices {part}")
    names: dict[str, list[str]] = {}
    for row in read_rows(data / "images" / "noto_emoji" / "train.jsonl"):
        names.setdefault(row["group"], []).append(row["caption"])
    groups = {group: sorted(set(of_it)) for group, of_it in names.items()}
    every = sorted({name for of_it in groups.values() for name in of_it})
    for row, part_of_it in drawings(data, out, part):
        pool = groups.get(row["group"], every) if draw.random() < 0.5 else every
        pool = pool if len(pool) > 4 else every
        wrong = draw.sample([name for name in pool if name != row["caption"]], 3)
        choices = draw.sample([row["caption"], *wrong], 4)
        yield chat(choose(draw.choice(ASK_NAME), choices), part_of_it, row["caption"], draw)


def flags(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Each flag once with the name of its country."""
    draw = random.Random(f"flags {part}")
    for row in read_rows(data / "images" / "flags" / f"{part}.jsonl"):
        yield chat(draw.choice(ASK_FLAG), picture(data, out, "flags", row, row["caption"]), row["caption"], draw)


def nlvr(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Each sentence once: true or false. No captions: a sentence that is true of one picture often is of others."""
    draw = random.Random(f"nlvr {part}")
    for row in read_rows(data / "images" / "nlvr" / f"{part}.jsonl"):
        question = draw.choice(ASK_TRUE).format(row["caption"].strip())
        yield chat(question, picture(data, out, "nlvr", row, None), "true" if row["true"] else "false", draw)


def nlvr_contents(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Two questions about each picture that its exact contents answer: counts, and whether something is there."""
    draw = random.Random(f"nlvr contents {part}")
    colours, shapes = ("black", "blue", "yellow"), ("circle", "square", "triangle")
    for row in read_rows(data / "images" / "nlvr" / f"{part}.jsonl"):
        things = [(thing[0], thing[1]) for box in row["boxes"] for thing in box]
        for _ in range(2):
            colour, shape, kind = draw.choice(colours), draw.choice(shapes), draw.randrange(4)
            if kind == 0:
                question, answer = f"How many {colour} objects are there?", str(sum(c == colour for c, _ in things))
            elif kind == 1:
                question, answer = f"How many {shape}s are there?", str(sum(s == shape for _, s in things))
            elif kind == 2:
                question, answer = "How many objects are there?", str(len(things))
            else:
                question = f"True or false: There is a {colour} {shape}."
                answer = "true" if (colour, shape) in things else "false"
            yield chat(question, picture(data, out, "nlvr", row, None), answer, draw)


def clip(data: Path, out: Path, folder: str, row: Row) -> Row:
    """The part for a clip; its transcript, like the reply, is what is said in lower case without punctuation."""
    archive = beside(data / "speech" / folder / row["archive"], out)
    return {"type": "audio", "audio": row["audio"], "archive": archive, "transcript": said(row)}


def said(row: Row) -> str:
    """The words of a row as they are said."""
    return " ".join(spoken_words(row["text"]))


def speech(folder: str, data: Path, out: Path, part: str) -> Iterator[Row]:
    """Each clip once with its words."""
    draw = random.Random(f"{folder} {part}")
    for row in read_rows(data / "speech" / folder / f"{part}.jsonl"):
        if said(row):
            yield chat(draw.choice(ASK_WORDS), clip(data, out, folder, row), said(row), draw)


def digit_pairs(data: Path, out: Path, part: str) -> Iterator[Row]:
    """A written digit and a spoken one in one message, as many as there are spoken ones."""
    draw = random.Random(f"pairs {part}")
    pictures = list(read_rows(data / "images" / "mnist" / f"{part}.jsonl"))
    for row in read_rows(data / "speech" / "fsdd" / f"{part}.jsonl"):
        shown = draw.choice(pictures)
        parts = [mnist_part(out, part, shown), clip(data, out, "fsdd", row)]
        draw.shuffle(parts)
        question = {"type": "text", "text": ASK_BOTH}
        answer = f"{DIGITS[shown['label']]} is shown and {said(row)} is said."
        yield {"messages": [{"role": "user", "content": [*parts, question]}, {"role": "assistant", "content": answer}]}


def stories(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Stories as plain text."""
    for row in read_rows(data / "text" / "tinystories" / f"{part}.jsonl"):
        yield {"text": row["text"]}


def text_chat(question: str, answer: str) -> Row:
    """A question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def instructions(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Instructions with their input below them."""
    for row in read_rows(data / "text" / "instructions" / f"{part}.jsonl"):
        yield text_chat(row["instruction"] + (f"\n{row['input']}" if row["input"] else ""), row["output"])


def trivia(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Questions with their choices; the reply is the right one."""
    for row in read_rows(data / "text" / "trivia" / f"{part}.jsonl"):
        yield text_chat(choose(row["question"], row["choices"]), row["choices"][row["answer"]])


def storybooks(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Picture books without their pictures, a page a paragraph."""
    for row in read_rows(data / "text" / "storybooks" / f"{part}.jsonl"):
        yield {"text": "\n".join(row["pages"])}


def fairytales(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Fairy tales, a section a paragraph."""
    for row in read_rows(data / "text" / "fairytaleqa" / f"stories_{part}.jsonl"):
        yield {"text": "\n".join(row["sections"])}


def as_chat(turns: Iterable[str]) -> Row:
    """Turns that begin with who speaks, from the first of the user on, up to the last of the assistant."""
    messages = [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]
    while messages and messages[0]["role"] != "user":
        messages.pop(0)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    return {"messages": messages}


def dialogue(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Conversations about everyday tasks."""
    for row in read_rows(data / "text" / "schema_guided_dialogue" / f"{part}.jsonl"):
        if (chat_of_it := as_chat(row["turns"]))["messages"]:
            yield chat_of_it


def small_talk(data: Path, out: Path, part: str) -> Iterator[Row]:
    """Greetings and manners; of several characters the friendly one, since they disagree."""
    for row in read_rows(data / "text" / "small_talk" / f"{part}.jsonl"):
        if row.get("persona", "friendly") == "friendly" and row["topic"] != "botprofile":
            yield as_chat(row["turns"])


if __name__ == "__main__":
    main()
