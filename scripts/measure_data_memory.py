"""Peak memory of building a token cache from a large text file and reading an epoch of it.

    python scripts/measure_data_memory.py            # 2 GB in a temporary folder
    python scripts/measure_data_memory.py 0.1 0.5 1  # several sizes: the peak must not grow with them

Each size runs in a process of its own, which prints one line: the resident memory before it began, the
peak after building and the peak after an epoch, all in MB (file pages that are mapped count too).
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from muomni.config import SourceSpec
from muomni.data import PackedDataset, Tokenizer, build_index

SEQ_LEN = 512
BATCH = 16


def main() -> None:
    """Reads the options and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gigabytes", nargs="*", type=float, default=[2.0])
    parser.add_argument("--one-line", action="store_true", help="a file without a single newline")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(Path(options.child))
        return
    for size in options.gigabytes:
        with tempfile.TemporaryDirectory() as name:
            write_text(Path(name) / "corpus.txt", round(size * 1e9), "" if options.one_line else "\n\n")
            subprocess.run([sys.executable, __file__, "--child", name], check=True)


def write_text(path: Path, size: int, between: str) -> None:
    """`size` bytes of made-up words with a natural spread of frequencies; no two parts are alike."""
    generator = random.Random(0)
    syllables = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ing", "ow")]
    words = ["".join(generator.choices(syllables, k=generator.randint(1, 4))) for _ in range(20_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    with path.open("w") as file:
        while file.tell() < size:
            text = " ".join(generator.choices(words, weights, k=20_000))
            file.write(between.join(text[n : n + 1000] for n in range(0, len(text), 1000)) + (between or " "))


def measure(folder: Path) -> None:
    """Prints what reading a folder of data takes."""
    corpus = folder / "corpus.txt"
    with corpus.open() as file:
        tokenizer = Tokenizer.train([file.read(2_000_000)], 8192)
    before = memory("VmRSS")
    started = time.perf_counter()
    cache = build_index([SourceSpec(path=str(corpus))], tokenizer, cache_dir=folder / "cache")
    built, seconds = memory("VmHWM"), time.perf_counter() - started
    rows = PackedDataset(cache, SEQ_LEN, seed=0)
    for first in range(0, rows.num_rows, BATCH):
        rows.batch(first, min(BATCH, rows.num_rows - first))
    result = {
        "text_GB": round(corpus.stat().st_size / 1e9, 3),
        "tokens_M": round(cache.num_tokens / 1e6, 1),
        "before_MB": before,
        "peak_after_build_MB": built,
        "peak_after_epoch_MB": memory("VmHWM"),
        "build_s": round(seconds, 1),
    }
    print(json.dumps(result), flush=True)


def memory(field: str) -> int:
    """A line of /proc/self/status in MB; VmHWM is the peak of the resident memory (Linux)."""
    for line in Path("/proc/self/status").read_text().split("\n"):
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) // 1024
    raise SystemExit("this measurement reads /proc/self/status, which only Linux has")


if __name__ == "__main__":
    main()
