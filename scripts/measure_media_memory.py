"""Memory of training with pictures and sounds over time: every step has another layout, and nothing may pile up.

    python scripts/measure_media_memory.py                      # tiny in bf16, 4 × 512 tokens, 300 steps
    python scripts/measure_media_memory.py --shape nano --batch-size 4 --seq-len 128 --steps 600

Prints a JSON line every 25 steps (resident memory now and its peak since the line before, in MiB), and last by how
much the median peak of the last quarter is above that of the second: the first quarter fills caches, of matrix
kernels for each shape among others, whose number is limited.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import cast

from muomni.bench.training.case import TrainCase, build
from muomni.bench.worker import reset_peak
from muomni.config import PRESET_NAMES, encoder_configs, preset
from muomni.config.model import PresetName

EVERY = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=PRESET_NAMES, default="tiny")
    parser.add_argument("--media", choices=("text", "pictures", "clips", "mixed"), default="mixed")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    if options.steps < 4 * EVERY:
        parser.error(f"--steps {options.steps}: a quarter needs {EVERY}, so give at least {4 * EVERY}")
    name = cast("PresetName", options.shape)
    vision, audio = encoder_configs(name)
    case = TrainCase(
        name="memory",
        thinker=preset(name).thinker,
        batch_size=options.batch_size,
        seq_len=options.seq_len,
        media=options.media,
        precision=options.precision,
        vision=vision.replace(projection_dim=64),
        audio=audio.replace(ctc=True),
    )
    built = build(case)
    peaks = []
    began = time.perf_counter()
    reset_peak()
    for step in range(1, options.steps + 1):
        built.renew()
        built.step()
        if step % EVERY == 0:
            peaks.append(memory("VmHWM"))
            line = {"step": step, "rss_MiB": memory("VmRSS"), "peak_MiB": peaks[-1]}
            print(json.dumps(line | {"seconds": round(time.perf_counter() - began, 1)}), flush=True)
            reset_peak()
    quarter = len(peaks) // 4
    second, last = (statistics.median(part) for part in (peaks[quarter : 2 * quarter], peaks[-quarter:]))
    print(json.dumps({"second_quarter_MiB": second, "last_quarter_MiB": last, "grown_MiB": round(last - second, 1)}))


def memory(field: str) -> float:
    """A line of /proc/self/status in MiB (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise SystemExit("this measurement reads /proc/self/status, which only Linux has")


if __name__ == "__main__":
    main()
