"""The memory of a training process besides its tensors: measured, since it cannot be derived.

A child process (`python -m muomni.training.process_overhead`) trains the smallest preset for three steps with the
precision and the optimizer in question, on enough text that reading it takes as much memory as it ever does. Its peak
less the forecast for so small a model is the interpreter, the libraries, their code and caches, and the data reader.
It is stored in the user's cache by versions, processor and threads, so it is measured once; that takes some seconds.
"""

import os
import platform
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from muomni.accel.measurements.hardware import signature
from muomni.accel.measurements.json_store import JsonStore
from muomni.accel.measurements.verdicts import IGNORE
from muomni.child_process import ChildEndedError, ChildProcess, serve
from muomni.config.recipe import Recipe
from muomni.errors import ForecastError

BASELINES = JsonStore("baseline.json", "baselines of processes")
_ROWS, _TOKENS = 2, 64
# A little more than the megabyte that is encoded at once (`data.index.writer`), whose memory the process
# keeps.
_LINES = 26_000


def process_baseline(precision: str, optimizer: str, compiled: bool = False) -> int:
    """Bytes of a training process on the CPU without its tensors.

    Args:
        precision: `fp32` or `bf16`.
        optimizer: its name in a recipe.
        compiled: with the compiler of blocks in it, which takes half a minute the first time.

    Raises:
        ForecastError: the child could not train; with the last of its standard error.
    """
    key = _key(precision, optimizer, compiled)
    known = BASELINES.read().get(key)
    if not isinstance(known, int):
        known = _measure(precision, optimizer, compiled)
        BASELINES.add({key: known})
    return known


def _measure(precision: str, optimizer: str, compiled: bool) -> int:
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, IGNORE: "1"}
    command = {"precision": precision, "optimizer": optimizer, "compiled": "blocks" if compiled else "off"}
    with ChildProcess([sys.executable, "-m", "muomni.training.process_overhead"], env=environment) as child:
        try:
            return int(child.ask(command)["overhead"])
        except ChildEndedError as error:
            raise ForecastError(f"the process's own memory could not be measured: it {error}") from None


def _train(precision: str, optimizer: str, compiled: str) -> int:
    """Trains in this process; bytes of its peak less the forecast."""
    from muomni.training.forecast.memory import forecast, setup_of
    from muomni.training.stage import train

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("\n".join(f"{n} is {n * n} less than {n * n + n}." for n in range(_LINES)), encoding="utf-8")
        recipe = Recipe.model_validate(
            {
                "model": {"preset": "nano"},
                "tokenizer": {"vocab_size": 512},
                "data": {"train": str(text), "seq_len": _TOKENS, "cache_dir": str(Path(folder, "tokens"))},
                "max_steps": 3,
                "batch_size": _ROWS,
                "schedule": {"warmup_steps": 0},
                "precision": precision,
                "optimizer": {"name": optimizer},
                "device": "cpu",
                "compile": compiled,
                "eval": {"every": 0, "max_rows": _ROWS},
            }
        )
        result = train(recipe, Path(folder, "run"))
        return result.memory.reading.peak - forecast(setup_of(recipe)).peak


def _key(precision: str, optimizer: str, compiled: bool) -> str:
    versions = (f"Python {platform.python_version()}", f"muomni {version('muomni')}")
    return " | ".join(
        (signature(torch.device("cpu")), *versions, precision, optimizer, *(["compiled"] if compiled else []))
    )


if __name__ == "__main__":
    serve(lambda command: {"overhead": _train(**command)})
