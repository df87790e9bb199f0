"""Trains a model that reads, sees and hears, stage by stage, and measures it: about an hour on two cores.

    muomni train examples/recipes/stories.json --data DATA/text/tinystories/train.jsonl.gz
    python scripts/prepare_media.py DATA runs/media
    python scripts/train_media.py DATA

Each stage begins with the weights of the one before; see the recipes in examples/recipes. A stage whose run is there is
not trained again. For the figures in docs/LOG.md `align` was stopped by Ctrl-C after 462 of its steps.
"""

import argparse
import subprocess
import sys
from pathlib import Path

STAGES = ("align", "see", "align-audio", "hear", "omni", "omni-text")
RUNS, RECIPES = Path("runs"), Path("examples/recipes")


def main() -> None:
    """Trains the stages, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    for stage in STAGES:
        if not (RUNS / stage / "best").exists():
            run("-m", "muomni", "train", str(RECIPES / f"{stage}.json"), "--out", str(RUNS / stage))
    measure = ("scripts/measure_media.py",)
    for stage, what in (("see", ["see"]), ("hear", ["hear"]), ("omni", ["see", "hear", "text"])):
        against = ["--text-only", str(RUNS / "omni-text")] if stage == "omni" else []
        run(*measure, str(RUNS / stage), str(data), str(RUNS / "media"), "--what", *what, *against)


def run(*arguments: str) -> None:
    """Runs a command and stops where it fails."""
    done = subprocess.run([sys.executable, *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
