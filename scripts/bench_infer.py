"""Measures decoding for the targets of inference, a minute or so at a time.

python scripts/bench_infer.py prepare 100m            writes the models of a shape into runs/bench/
python scripts/bench_infer.py decode 100m --batch 16  int8 beside llama.cpp's Q8_0: steps and whole calls
python scripts/bench_infer.py float 100m              fp32 and bf16 beside llama.cpp's
python scripts/bench_infer.py cache tiny              the KV cache off against on, 512 + 100 tokens
python scripts/bench_infer.py cold tiny               `muomni generate` from an empty process to its first text

Each prints a table and appends one JSON line to runs/bench/results.jsonl.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from muomni.bench.decoding import comparisons
from muomni.bench.decoding.cold_start import first_text_s
from muomni.bench.decoding.compare import Group, compare_decoding
from muomni.bench.decoding.models import Files, Form, Weights, make_model_folder
from muomni.cli.bench.decoding import print_comparison
from muomni.config import preset

ROOT = Path(__file__).parent.parent / "runs" / "bench"
PROMPT, NEW, THREADS = 64, 128, 2


def make_plan(shape: str) -> comparisons.Plan:
    """The plan of a shape, its random weights drawn once."""
    name = {"0.6b": "base"}.get(shape, shape)
    config = preset(name)  # type: ignore[arg-type]
    work = ROOT / name
    work.mkdir(parents=True, exist_ok=True)
    make_model_folder(config, work / "model")
    return comparisons.Plan(config.thinker, Files(work / "model", work), work, PROMPT, NEW, THREADS)


def main() -> None:
    """Reads the options and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "decode", "float", "cache", "cold"))
    parser.add_argument("shape", choices=("nano", "tiny", "small", "12m", "100m", "0.6b"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runner", choices=("auto", "eager", "native", "compiled"), default="auto")
    options = parser.parse_args()
    plan = make_plan(options.shape)
    if options.what == "prepare":
        forms: tuple[Form, ...] = ("int8", "gguf-q8_0", "gguf-f32", "gguf-bf16")
        for form in forms:
            print(plan.files.form(form))
        for rows in (1, 16):
            plan.task(rows)
        return
    if options.what == "cold":
        keep(options, first_text_s(plan.files.folder, THREADS, options.rounds))
        return
    kinds: tuple[Weights, ...] = ("fp32", "bf16") if options.what == "float" else ("int8",)
    if options.what == "cache":
        group = comparisons.kv_cache(plan, options.rounds, required=True)
        assert group is not None
        show(options, plan, group)
        return
    for weights in kinds:
        full = comparisons.peers(plan, weights, options.batch, print, ["llama.cpp"])
        few = [case.replace(runner=options.runner) if case.implementation == "muomni" else case for case in full.cases]
        show(options, plan, Group(f"{full.name}, {options.runner} runner", tuple(few), full.unmeasured))


def show(options: argparse.Namespace, plan: comparisons.Plan, group: Group) -> None:
    """Measures and prints one comparison."""
    comparison = compare_decoding(group, plan.thinker, plan.reference(), options.rounds)
    print_comparison(f"{options.shape}, {comparison.name}", comparison)
    keep(options, comparison.as_dict())


def keep(options: argparse.Namespace, values: dict[str, Any]) -> None:
    """Adds a line to the results."""
    line = json.dumps({"at": time.strftime("%Y-%m-%d %H:%M"), **vars(options), **values})
    with (ROOT / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
