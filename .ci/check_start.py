"""check_start.py COMMAND: `muomni --help` takes less than 0.3 s and `import muomni` loads nothing heavy."""

import statistics
import subprocess
import sys
import time

LIMIT = 0.3
RUNS = 9
HEAVY = ("torch", "transformers", "matplotlib", "datasets", "gradio")
HEAVY_IN_API = HEAVY[1:]


def seconds(command: str) -> float:
    began = time.perf_counter()
    subprocess.run([command, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def loaded(statement: str, names: tuple[str, ...]) -> list[str]:
    code = f"{statement}\nimport sys\nprint(*(n for n in {names} if n in sys.modules))"
    return subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def main() -> int:
    command = sys.argv[1]
    seconds(command)  # compiles the modules to bytecode, as every run but the first finds them
    times = [seconds(command) for _ in range(RUNS)]
    middle = statistics.median(times)
    print(f"muomni --help: median of {RUNS} runs {middle:.3f} s (limit {LIMIT} s), best {min(times):.3f} s")
    bad = loaded("import muomni", HEAVY)
    print(f"import muomni loads {', '.join(bad) or 'nothing heavy'}")
    bad_api = loaded("from muomni import MuOmni", HEAVY_IN_API)
    print(f"from muomni import MuOmni loads {', '.join(bad_api) or 'torch, nothing else heavy'}")
    return 0 if middle < LIMIT and not bad and not bad_api else 1


if __name__ == "__main__":
    sys.exit(main())
