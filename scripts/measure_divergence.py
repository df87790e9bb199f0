"""How often a reply computed beside others differs from the same reply computed alone, where rounding may tell.

    python scripts/measure_divergence.py runs/stories ../shared/data/text/tinystories/val.jsonl.gz \
        ../shared/data/text/instructions/val.jsonl.gz

Greedy replies without ends, in bf16 and int8, with torch's modules (the native runner's bits do not depend on the
batch, which is shown too). Stories and instructions are both continued as plain text from their first words, so that
any run will do. Prints the share of replies that differ and where they first do; with `batch_invariant=True` there must
be none.
"""

import argparse
import gzip
import itertools
import json
import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from muomni import MuOmni

_WORDS = (4, 40)  # of a story that is continued: from so many words up to so many, so that lengths differ


def texts_of(path: Path) -> Iterator[str]:
    """The texts of a JSONL file, plain or gzipped: "text", or "instruction" with its "input"."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            row: dict[str, Any] = json.loads(line)
            yield row["text"] if "text" in row else f"{row['instruction']}\n{row['input']}".strip()


def prompts_of(files: Sequence[Path], count: int) -> list[str]:
    """`count` beginnings of texts of different lengths, from all files alike."""
    low, high = _WORDS
    each = -(-count // len(files))
    prompts = []
    for file in files:
        for number, text in enumerate(itertools.islice(texts_of(file), each)):
            prompts.append(" ".join(text.split(" ")[: low + number * 7 % (high - low + 1)]))
    return prompts[:count]


def compare(model: MuOmni, prompts: Sequence[str], new: int, batch: int, batch_invariant: bool) -> dict[str, Any]:
    """Replies side by side against replies one at a time."""
    how: dict[str, Any] = {
        "temperature": 0,
        "max_new_tokens": new,
        "ignore_eos": True,
        "batch_invariant": batch_invariant,
    }
    single = [model.complete(prompt, **how).tokens for prompt in prompts]
    many = model.chat_batch(prompts, raw=True, batch_size=batch, progress=False, **how)
    firsts = [
        next(place for place, (a, b) in enumerate(zip(one, reply.tokens, strict=True)) if a != b)
        for one, reply in zip(single, many, strict=True)
        if one != reply.tokens
    ]
    return {
        "replies": len(prompts),
        "differ": len(firsts),
        "share": len(firsts) / len(prompts),
        "first_at": {"least": min(firsts), "median": statistics.median(firsts)} if firsts else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--replies", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--weights", nargs="+", choices=("fp32", "bf16", "int8"), default=["bf16", "int8"])
    parser.add_argument("--runners", nargs="+", choices=("eager", "native"), default=["eager", "native"])
    asked = parser.parse_args()
    prompts = prompts_of(asked.files, asked.replies)
    for weights in asked.weights:
        for runner in asked.runners:
            os.environ["MUOMNI_RUNNER"] = runner
            dtype = torch.bfloat16 if weights == "bf16" else None
            model = MuOmni.from_pretrained(asked.run, device="cpu", dtype=dtype, int8=weights == "int8")
            for batch_invariant in (False, True):
                found = compare(model, prompts, asked.new, asked.batch, batch_invariant)
                line = {"weights": weights, "runner": runner, "batch_invariant": batch_invariant, "batch": asked.batch}
                print(json.dumps(line | {"new": asked.new} | found), flush=True)


if __name__ == "__main__":
    main()
