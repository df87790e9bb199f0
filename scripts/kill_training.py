"""Interrupts `muomni train` at random moments, resumes it each time, and checks what is left in the run folder.

    python scripts/kill_training.py                     # 200 interruptions
    python scripts/kill_training.py --count 20 --seed 1 --kinds kill term

The smallest recipe is trained once without a break. Then runs of it are interrupted, resumed and interrupted again
until they are complete, each time in one way, in turn: see `KINDS`. With a `--work-dir` on a file system with less than
256 MiB free (a small tmpfs), `disk` fills it up; without one, `file-size` limits the size of files instead.

After each interruption every checkpoint must load with its checksums right, no process may show a traceback or end by
itself for a fault that a training survives, and after SIGTERM, SIGHUP or SIGINT no step may be lost. A run that is
complete must have the weights of the unbroken one, bit by bit, and the same loss in every step.

Prints a table; exits with 1, and keeps the work folder, where something was wrong. Children are forked from this
process, which has imported torch already, so that most of the time is spent on training.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import torch

from muomni.cli import main as muomni
from muomni.errors import CheckpointError
from muomni.training.checkpoint import read_checkpoint
from muomni.training.reporting.metrics_log import METRICS, read_lines

WORDS = ("the", "a", "small", "big", "red", "old", "cat", "dog", "tree", "house", "sees", "finds", "under", "near")
STEPS, EVERY = 60, 2
RECIPE = {
    "extends": "text-nano",
    "model": {"preset": "nano", "thinker": {"dropout": 0.1, "hidden_size": 32, "intermediate_size": 64}},
    "tokenizer": {"vocab_size": 320},
    "data": {"train": "stories.jsonl", "seq_len": 64, "cache_dir": "cache"},
    "batch_size": 2,
    "max_steps": STEPS,
    "schedule": {"warmup_steps": 5},
    "eval": {"every": 10, "max_rows": 4, "sample_every": 20, "prompts": ["the small cat"], "sample_tokens": 8},
    "checkpoint": {"every": EVERY, "keep": 3},
    "log_every": 1,
    "device": "cpu",
    "compile": "off",
}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "hup": signal.SIGHUP, "int": signal.SIGINT}
# A signal; the reader of an output goes away, as `| head` does; a training that begins without them; no room for files.
KINDS = (*SIGNALS, "stderr-reader", "stdout-reader", "no-outputs", "file-size", "disk")
# Faults after which a training goes on, so that it is killed some time later.
SURVIVED = ("stderr-reader", "stdout-reader", "no-outputs")
SMALL_DISK = 256 * 2**20
PATIENCE_S = 120.0
# What a training imports; the children of this process need not.
IMPORTED = ("muomni.cli.train", "muomni.api.training", "muomni.training.stage", "matplotlib.backends.backend_agg")
# The share of moments that count from the first line of metrics on; the others from the start of the process.
LATE = 0.8


@dataclass
class Child:
    """A training in a process of its own.

    Attributes:
        pid: its number.
        log: the file that holds what it wrote; empty where a pipe took it.
        readers: descriptors of the pipes that take its output, for the kinds that close them.
    """

    pid: int
    log: Path
    readers: list[int] = field(default_factory=list)
    code: int | None = None

    def wait(self, seconds: float) -> bool:
        """Waits for its end; false where it still runs. `code` is the exit code, negative for a signal."""
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                return False
            else:
                time.sleep(0.002)
        return True

    def signal(self, number: int) -> None:
        """Sends a signal to it."""
        os.kill(self.pid, number)

    def close_readers(self) -> None:
        """Ends the reading of its output."""
        while self.readers:
            os.close(self.readers.pop())

    def words(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(errors="replace")[-1000:] if self.log.exists() else ""


def start(arguments: list[str], work: Path, kind: str = "", limit: int | None = None) -> Child:
    """Forks a child that does `muomni train` with arguments.

    Args:
        arguments: of the command line.
        work: its working folder.
        kind: of `KINDS`; says where its output goes.
        limit: bytes that a file may have.
    """
    log = work / "log.txt"
    pipes = {number: os.pipe() for number, name in ((1, "stdout-reader"), (2, "stderr-reader")) if name == kind}
    pid = os.fork()
    if pid:
        for _, write in pipes.values():
            os.close(write)
        return Child(pid, log, [read for read, _ in pipes.values()])
    code = 70
    try:
        log.unlink(missing_ok=True)
        for number in SIGNALS.values():
            if number != signal.SIGKILL:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        os.chdir(work)
        _redirect(log, kind, pipes)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        muomni(["train", *arguments])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does, also where it has no standard error
        with log.open("a") as file:
            traceback.print_exc(file=file)
    finally:
        os._exit(code)


def _redirect(log: Path, kind: str, pipes: dict[int, tuple[int, int]]) -> None:
    """Lets the outputs of this process, a child, go where its kind says."""
    if kind == "no-outputs":
        os.close(1)
        os.close(2)
        sys.stdout = sys.stderr = None  # as Python begins where they are closed
        return
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        read, write = pipes.get(number, (None, file))
        os.dup2(write, number)
        if read is not None:
            os.close(read)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115


class Trial:
    """Interrupts runs of one recipe.

    Args:
        work: a folder for everything.
        draw: gives moments, limits and the order of kinds.
        count: of interruptions.
        kinds: of them.

    Attributes:
        codes: by kind, how processes ended.
        findings: by kind, what was wrong.
        complete: runs that came to their end.
    """

    def __init__(self, work: Path, draw: random.Random, count: int, kinds: list[str]) -> None:
        self.work, self.draw, self.count, self.kinds = work, draw, count, kinds
        self.codes: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
        self.findings: dict[str, list[str]] = {kind: [] for kind in kinds}
        self.complete = 0
        self._ballast = work / "ballast"

    def run(self) -> None:
        """Does all of it."""
        self._prepare()
        done, number = 0, 0
        while done < self.count:
            number += 1
            done += self._interrupt_run(self.work / f"run-{number}", self.count - done)

    def _prepare(self) -> None:
        """Writes the data and trains without a break."""
        with (self.work / "stories.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(100):
                text = " ".join(self.draw.choices(WORDS, k=self.draw.randint(5, 60)))
                file.write(json.dumps({"text": text}) + "\n")
        (self.work / "recipe.json").write_text(json.dumps(RECIPE))
        self._whole = self.work / "unbroken"
        child = start(["recipe.json", "--out", str(self._whole)], self.work)
        _wait_for_steps(child, self._whole)
        began = time.monotonic()
        if not child.wait(PATIENCE_S) or child.code != 0:
            sys.exit(f"the unbroken run failed:\n{child.words()}")
        self._seconds = time.monotonic() - began
        self._losses = losses(self._whole)
        self._weights = read_checkpoint(self._whole / "last")[2]
        print(f"unbroken: {STEPS} steps, a checkpoint every {EVERY}, {self._seconds:.1f} s", flush=True)

    def _interrupt_run(self, run: Path, count: int) -> int:
        """Interrupts one run until it is complete, broken, or `count` interruptions are done; returns their number."""
        done = 0
        while done < count:
            kind = self.draw.choice(self.kinds)
            resumes = (run / "last").exists() or any(run.glob("step-*"))
            child = self._start(run, kind, resumes)
            hit = self._interrupt(run, child, kind)
            child.close_readers()
            self._ballast.unlink(missing_ok=True)
            done += hit
            if hit:
                self.codes[kind][name_of(child.code)] += 1
            faults = self._faults(run, child, kind, hit)
            for fault in faults:
                self.findings[kind].append(fault)
                print(f"FOUND {run.name}, {kind}: {fault}", flush=True)
            if any(fault.startswith("unreadable") for fault in faults):
                return done
            if not hit:
                if not faults:  # complete
                    self._compare(run, kind)
                return done
        return done

    def _start(self, run: Path, kind: str, resumes: bool) -> Child:
        limit = None
        if kind == "file-size":
            largest = max(file.stat().st_size for file in (self._whole / "last").rglob("*"))
            limit = int(10 ** self.draw.uniform(2, 1 + len(str(largest))))
        if kind == "disk":
            free = shutil.disk_usage(self.work).free
            left = int(10 ** self.draw.uniform(3, 6.5))
            with self._ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free - left))
        arguments = ["recipe.json", "--out", str(run), *(["--resume"] if resumes else [])]
        return start(arguments, self.work, kind, limit)

    def _interrupt(self, run: Path, child: Child, kind: str) -> bool:
        """Lets a process run for some time, then does what its kind says; false where it ended before that."""
        if self.draw.random() < LATE:
            _wait_for_steps(child, run)
        if child.wait(self.draw.uniform(0, self._seconds / 3)):
            return kind in ("file-size", "disk") and child.code != 0
        if kind in SURVIVED:
            child.close_readers()
            if child.wait(self.draw.uniform(0, self._seconds / 3)):
                return child.code != 0
        child.signal(SIGNALS.get(kind, signal.SIGKILL))
        if not child.wait(PATIENCE_S):
            child.signal(signal.SIGKILL)
            child.wait(PATIENCE_S)
            self.findings[kind].append(f"it did not end within {PATIENCE_S:.0f} s")
        return True

    def _faults(self, run: Path, child: Child, kind: str, hit: bool) -> list[str]:
        """What is wrong after a process ended."""
        faults = []
        words, code = child.words(), child.code or 0
        if "Traceback" in words or code == 70:
            faults.append(f"a traceback, exit code {code}:\n{words}")
        steps = {}
        for folder in sorted(run.glob("step-*")):
            try:
                steps[folder.name] = read_checkpoint(folder)[0].applied
            except CheckpointError as error:
                faults.append(f"unreadable: {error}")
        for link in ("last", "best"):
            path = run / link
            if path.is_symlink() and path.resolve().name not in steps:
                faults.append(f"unreadable: {link} leads to {path.readlink()}, which is not there")
        saved = steps.get((run / "last").resolve().name, 0)
        # A run that was killed after its last checkpoint is complete, which resuming it answers with an error.
        if not faults and code > 0 and (not hit or kind in SURVIVED) and saved < STEPS:
            faults.append(f"ended with exit code {code}:\n{words}")
        if hit and kind in SIGNALS and code > 0 and saved < (taken := max(losses(run), default=0)):
            faults.append(f"lost: {taken} steps were taken, {saved} saved, exit code {code}:\n{words}")
        return faults

    def _compare(self, run: Path, kind: str) -> None:
        """Sets a complete run against the unbroken one."""
        self.complete += 1
        weights = read_checkpoint(run / "last")[2]
        differing = [name for name, tensor in self._weights.items() if not torch.equal(tensor, weights[name])]
        if differing or weights.keys() != self._weights.keys():
            self.findings[kind].append(f"{run.name}: other weights than the unbroken run: {differing}")
        if losses(run) != self._losses:
            self.findings[kind].append(f"{run.name}: other losses than the unbroken run")
        if not self.findings[kind]:
            shutil.rmtree(run)

    def table(self) -> str:
        """The result, one kind a line."""
        lines = [f"{'kind':<15}{'times':>6}{'findings':>10}  ended with"]
        for kind in self.kinds:
            ends = ", ".join(f"{code}: {times}" for code, times in self.codes[kind].most_common())
            lines.append(f"{kind:<15}{self.codes[kind].total():>6}{len(self.findings[kind]):>10}  {ends}")
        total = sum(codes.total() for codes in self.codes.values())
        return "\n".join([*lines, f"{total} interruptions; {self.complete} complete runs, equal to the unbroken one"])


def losses(run: Path) -> dict[int, float]:
    """The training loss of each step."""
    return {line["step"]: line["loss"] for line in read_lines(run / METRICS) if line["kind"] == "train"}


def _wait_for_steps(child: Child, run: Path) -> None:
    """Until a process has written metrics, or ended."""

    def size() -> int:
        return (run / METRICS).stat().st_size if (run / METRICS).exists() else 0

    before = size()
    while not child.wait(0.01) and size() == before:
        pass


def name_of(code: int | None) -> str:
    """An exit code as a table has it."""
    return signal.Signals(-code).name if code is not None and code < 0 else str(code)


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="interruptions (200)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and moments (0)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, help="all that are possible here if none")
    parser.add_argument("--work-dir", type=Path, help="an empty folder; a temporary one if none")
    options = parser.parse_args()
    for name in IMPORTED:
        import_module(name)
    torch.set_num_threads(1)  # no threads here: they would not be in the children
    work = options.work_dir or Path(tempfile.mkdtemp(prefix="muomni-kill-"))
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    small = shutil.disk_usage(work).free < SMALL_DISK
    kinds = options.kinds or [kind for kind in KINDS if small or kind != "disk"]
    if "disk" in kinds and not small:
        parser.error(f"--kinds disk: {work} has more than 256 MiB free; name a folder of a small tmpfs as --work-dir")
    began = time.monotonic()
    trial = Trial(work, random.Random(options.seed), options.count, kinds)
    trial.run()
    print(f"{trial.table()}; {(time.monotonic() - began) / 60:.1f} min")
    if any(trial.findings.values()):
        sys.exit(f"{sum(map(len, trial.findings.values()))} findings; the runs are in {work}")
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
