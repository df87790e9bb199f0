"""Memory that was forecast beside memory that was measured: short trainings on the CPU, each in its own process.

    python scripts/measure_forecast.py            # the full table
    python scripts/measure_forecast.py --quick    # a few cases
    python scripts/measure_forecast.py --cases '[{"preset": "tiny", "batch_size": 4, "seq_len": 512}]'

A case is a recipe: preset, batch_size, accumulation, seq_len, checkpointing, precision, optimizer. Prints a line for
each, and last the largest error. The baseline of the process is the one that `muomni plan` measures.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DEFAULTS = {
    "preset": "nano",
    "batch_size": 4,
    "accumulation": 1,
    "seq_len": 128,
    "checkpointing": "off",
    "precision": "fp32",
    "optimizer": "adamw",
    "compile": "off",
    "vocab_size": 8192,
    "max_steps": 3,
}


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cases", type=json.loads)
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(train_one(options.one)))
        return
    largest = 0.0
    for case in options.cases or (quick() if options.quick else full()):
        largest = max(largest, abs(compare(case)["error"]))
    print(f"largest error {largest:.1%}")


def full() -> list[dict[str, Any]]:
    """All cases."""
    variants: list[dict[str, Any]] = [
        *({"checkpointing": c, "precision": p} for c in ("off", "selective", "full") for p in ("fp32", "bf16")),
        {"precision": "bf16", "optimizer": "muon"},
        {"precision": "bf16", "accumulation": 2},
    ]
    shapes: list[dict[str, Any]] = [
        {"preset": "nano", "batch_size": 4, "seq_len": 128},
        {"preset": "nano", "batch_size": 32, "seq_len": 256},
        {"preset": "tiny", "batch_size": 2, "seq_len": 256},
        {"preset": "tiny", "batch_size": 4, "seq_len": 512},
        {"preset": "tiny", "batch_size": 4, "seq_len": 1024},
    ]
    return [{**shape, **variant} for shape, variant in itertools.product(shapes, variants)]


def quick() -> list[dict[str, Any]]:
    """A few cases."""
    return [
        {"preset": "nano", "batch_size": 16, "seq_len": 256},
        {"preset": "tiny", "batch_size": 2, "seq_len": 256, "precision": "bf16", "checkpointing": "full"},
        {"preset": "tiny", "batch_size": 2, "seq_len": 512, "optimizer": "muon"},
    ]


def compare(case: dict[str, Any]) -> dict[str, Any]:
    """Runs a case and prints its line."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", json.dumps(case)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    words = " ".join(f"{value}" for value in {**DEFAULTS, **case}.values())
    parts = " ".join(f"{k.removesuffix('_mib')} {v:.0f}" for k, v in found["forecast"].items())
    print(f"{words}: {found['measured']:.0f} MiB measured, {found['error']:+.1%}; forecast {parts}", flush=True)
    return found


def train_one(case: dict[str, Any]) -> dict[str, Any]:
    """Trains in this process; figures in MiB."""
    from muomni.config.recipe import Recipe
    from muomni.training.forecast.memory import forecast, setup_of
    from muomni.training.process_overhead import process_baseline
    from muomni.training.stage import train

    case = {**DEFAULTS, **case}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        words = (f"{n} times {n + 1} is {n * (n + 1)}, and the next is {(n + 1) * (n + 2)}." for n in range(20_000))
        text.write_text("\n".join(words), encoding="utf-8")
        recipe = Recipe.model_validate(
            {
                "model": {
                    "preset": case["preset"],
                    "thinker": {"max_position_embeddings": 4096, "vocab_size": case["vocab_size"]},
                },
                "tokenizer": {"vocab_size": 512},
                "data": {"train": str(text), "seq_len": case["seq_len"], "cache_dir": str(Path(folder, "tokens"))},
                "max_steps": case["max_steps"],
                "batch_size": case["batch_size"],
                "gradient_accumulation_steps": case["accumulation"],
                "schedule": {"warmup_steps": 0},
                "precision": case["precision"],
                "optimizer": {"name": case["optimizer"]},
                "gradient_checkpointing": case["checkpointing"],
                "device": "cpu",
                "compile": case["compile"],
                "eval": {"every": 0, "max_rows": case["batch_size"]},
            }
        )
        result = train(recipe, Path(folder, "run"))
        measured = result.memory.reading.peak
        baseline = process_baseline(case["precision"], case["optimizer"], case["compile"] != "off")
        expected = forecast(setup_of(recipe)).with_baseline(baseline)
    return {
        "measured": measured / 2**20,
        "forecast": expected.as_dict(),
        "error": (expected.peak - measured) / measured,
        "categories": result.memory.categories.as_dict(),
    }


if __name__ == "__main__":
    main()
