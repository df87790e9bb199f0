"""Cold start: from an empty process to the first text of `muomni generate`."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from muomni.errors import MuOmniError

_TOKENS = 8


def first_text_s(folder: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Starts the command several times and waits for its first byte.

    Args:
        folder: a model with its tokenizer.
        threads: of its computation.
        rounds: starts that count; one more before them brings the files into memory.

    Returns:
        Seconds: `median`, `low`, `high`, and `import_torch`, the median of starting Python and importing torch
        alone, taken in turns with the others.

    Raises:
        MuOmniError: the command failed.
    """
    settings = ["--max-new-tokens", str(_TOKENS), "--temperature", "0", "--ignore-eos", "--device", "cpu"]
    ours = [sys.executable, "-m", "muomni", "generate", str(folder), "Hello", *settings]
    torch = [sys.executable, "-c", "import torch; print(1)"]
    _first_byte(ours, threads)
    times, imports = [], []
    for _ in range(rounds):
        times.append(_first_byte(ours, threads))
        imports.append(_first_byte(torch, threads))
    return {
        "median": statistics.median(times),
        "low": min(times),
        "high": max(times),
        "import_torch": statistics.median(imports),
    }


def _first_byte(command: list[str], threads: int) -> float:
    began = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        seconds = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        raise MuOmniError(f"{' '.join(command)} ended with exit code {process.returncode}; see its message above")
    return seconds
