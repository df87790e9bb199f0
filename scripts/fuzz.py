"""Breaks input of every kind and reports what is not told as a mistake of the user's: `make fuzz`.

Good files of every format, recipes, checkpoints, manifests, files of prompts and conversations are changed at random
(bytes flipped, cut, spliced; values of JSON replaced, by the schema where there is one) and read. Found are exceptions
other than the project's own, hangs, crashes, and memory beyond a limit. Case N of a seed is always the same one:

    make fuzz ARGS="--cases 2000 --only recipes"
    make fuzz ARGS="--seed 0 --case 1234"     shows the traceback of one case

Cases run in forked workers, so nothing is loaded twice.
"""

import argparse
import ctypes
import json
import os
import random
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

from fuzz_targets import Target, all_targets, interesting_bytes, odd_value

import muomni

# How often each kind of input is drawn.
WEIGHTS = {
    "pictures": 16,
    "sounds": 18,
    "videos": 8,
    "archives": 8,
    "recipes": 14,
    "checkpoints": 8,
    "manifests": 14,
    "batches": 6,
    "chats": 8,
}
# A worker is replaced after so many cases, so that what libraries keep is not taken for a leak.
_CASES_A_WORKER = 400
_MEMORY = 1 << 30

# ("bytes", place 0..1, removed, inserted) or ("json", line, keys, value); ("json", line, keys) removes a key.
Change = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One broken input: which seed of which target, and what is changed in it."""

    target: Target
    seed: bytes
    changes: tuple[Change, ...]

    @property
    def content(self) -> bytes:
        """The seed with the changes."""
        return reduce(_changed, self.changes, self.seed)


@dataclass
class Finding:
    """What went wrong, at the first of some cases that go wrong alike."""

    kind: str
    number: int
    detail: str
    count: int = 1
    numbers: list[int] = field(default_factory=list)


def draw_case(targets: Sequence[Target], seed: int, number: int) -> Case:
    """Case `number` of a seed."""
    draw = random.Random(f"{seed}:{number}")
    groups = sorted({target.group for target in targets})
    group = draw.choices(groups, [WEIGHTS[name] for name in groups])[0]
    target = draw.choice([target for target in targets if target.group == group])
    content = draw.choice(target.seeds)
    changes = []
    for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
        if target.text and draw.random() < 0.8:
            changes.append(_json_change(draw, target, content))
        else:
            changes.append(_byte_change(draw, target))
    return Case(target, content, tuple(changes))


def _byte_change(draw: random.Random, target: Target) -> Change:
    # Half of the changes lie near the beginning or the end, where headers and tables are.
    place = draw.choice([draw.random(), draw.random(), draw.random() ** 4, 1 - draw.random() ** 4])
    kind = draw.choice(["flip", "set", "set", "insert", "remove", "cut", "splice"])
    if kind == "flip":
        return "flip", place, 1 << draw.randrange(8)
    if kind == "cut":
        return "bytes", place, 1 << 40, b""
    if kind == "remove":
        return "bytes", place, draw.choice([1, 2, 4, 16, 300]), b""
    if kind == "insert":
        return "bytes", place, 0, interesting_bytes(draw)
    if kind == "splice":
        other = draw.choice(target.seeds)
        start = draw.randrange(len(other))
        return "bytes", place, draw.choice([0, 64, 1 << 40]), other[start : start + draw.choice([8, 256, 1 << 20])]
    new = interesting_bytes(draw)
    return "bytes", place, len(new), new


def _json_change(draw: random.Random, target: Target, content: bytes) -> Change:
    lines = content.split(b"\n")
    line = draw.choice([n for n, text in enumerate(lines) if text.strip()]) if target.suffix == ".jsonl" else None
    if target.fields and draw.random() < 0.7:
        keys, values = draw.choice(target.fields)
        value = draw.choice(values) if values and draw.random() < 0.6 else odd_value(draw)
        return "json", line, keys, value
    try:
        value = json.loads(content if line is None else lines[line])
    except ValueError:  # comments of a recipe
        return _byte_change(draw, target)
    paths = list(_paths(value, ()))
    keys = draw.choice(paths)
    if draw.random() < 0.2:
        return "json", line, keys
    if draw.random() < 0.2:
        keys = (*keys, draw.choice(["", "type", "extends", "x", "path", "archive", "messages"]))
    return "json", line, keys, odd_value(draw)


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The keys of a value and of all that is in it."""
    yield path
    inside: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inside:
        yield from _paths(below, (*path, key))


def _changed(content: bytes, change: Change) -> bytes:
    if change[0] == "flip":
        place = int(change[1] * len(content))
        return content[:place] + bytes(b ^ change[2] for b in content[place : place + 1]) + content[place + 1 :]
    if change[0] == "bytes":
        place = int(change[1] * len(content))
        return b"".join((content[:place], change[3], content[place + change[2] :]))
    _, line, keys, *new = change
    lines = [content] if line is None else content.split(b"\n")
    at = 0 if line is None else line
    try:
        value = json.loads(lines[at])
    except (ValueError, IndexError, RecursionError):
        return content
    lines[at] = json.dumps(_with(value, keys, new)).encode()
    return b"\n".join(lines)


def _with(value: Any, keys: Sequence[Any], new: Sequence[Any]) -> Any:
    """The value with something else, or nothing, under the keys."""
    if not keys:
        return new[0] if new else None
    key, *rest = keys
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        inside = [] if not new and not rest else [_with(value[key], rest, new)]
        return [*value[:key], *inside, *value[key + 1 :]]
    if not isinstance(key, str):
        return value
    value = dict(value) if isinstance(value, dict) else {}
    if not new and not rest:
        value.pop(key, None)
    else:
        value[key] = _with(value.get(key), rest, new)
    return value


def judge(case: Case, folder: Path) -> tuple[str, str] | None:
    """Reads a case in this process: what kind of finding it is, and its traceback; None where all is well."""
    from muomni.errors import CheckpointError, UserError

    path = folder / f"case{case.target.suffix}"
    path.write_bytes(case.content)
    try:
        case.target.read(path)
    except (UserError, CheckpointError):
        return None
    except MemoryError:
        return "memory", f"more than {_MEMORY >> 30} GiB\n{traceback.format_exc()}"
    except BaseException as error:  # noqa: BLE001 (whatever is raised is what is looked for)
        package = str(Path(muomni.__file__).parent)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(package)]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
        return f"{type(error).__name__} at {place}", traceback.format_exc()
    return None


def isolated(case: Case, seconds: float) -> tuple[str, str] | None:
    """The same in a child process, which may crash or hang."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        _be_worker()
        with tempfile.TemporaryDirectory(prefix="muomni-fuzz-") as folder:
            os.write(send, json.dumps(judge(case, Path(folder)))[: 1 << 15].encode())
        os._exit(0)
    os.close(send)
    end = time.monotonic() + seconds
    while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "hang", f"longer than {seconds:g} s"
        time.sleep(0.005)
    with os.fdopen(receive, "rb") as file:
        answer = file.read()
    if os.WIFSIGNALED(done[1]) or not answer:
        return "crash", f"ended by signal {os.WTERMSIG(done[1])}"
    try:
        result = json.loads(answer)
    except ValueError:  # a traceback that was cut
        return "?", answer.decode(errors="replace")
    return None if result is None else (result[0], result[1])


def _be_worker() -> None:
    """Quiet, with bounded memory."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    warnings.simplefilter("ignore")
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def smaller(case: Case, kind: str, seconds: float) -> Case:
    """The case with as few changes as still go wrong in the same way."""
    for change in case.changes:
        less = Case(case.target, case.seed, tuple(c for c in case.changes if c is not change))
        found = isolated(less, seconds) if less.changes else None
        if found is not None and found[0] == kind:
            case = less
    content = case.content
    step = len(content) // 2
    while step and not case.target.text:
        cut = Case(case.target, content[: len(content) - step], ())
        found = isolated(cut, seconds)
        if found is not None and found[0] == kind:
            case, content = cut, cut.seed
        else:
            step //= 2
    return case


@dataclass
class _Worker:
    """A forked process that judges some cases, and tells of each when it begins and ends."""

    numbers: list[int]
    process: int
    pipe: int
    current: int | None = None
    since: float = 0.0
    buffer: bytes = b""


def _start(targets: Sequence[Target], seed: int, numbers: list[int]) -> _Worker:
    receive, send = os.pipe()
    process = os.fork()
    if process:
        os.close(send)
        return _Worker(numbers, process, receive)
    _be_worker()
    with tempfile.TemporaryDirectory(prefix="muomni-fuzz-") as folder:
        for number in numbers[:_CASES_A_WORKER]:
            os.write(send, f"{number}\n".encode())
            result = judge(draw_case(targets, seed, number), Path(folder))
            if result is not None:
                kind, detail = result
                os.write(send, (json.dumps([number, kind, detail[-8000:]]) + "\n").encode())
    os.write(send, b"-1\n")
    os._exit(0)


class Run:
    """Judges many cases in several workers."""

    def __init__(self, targets: Sequence[Target], seed: int, seconds: float) -> None:
        self.targets, self.seed, self.seconds = targets, seed, seconds
        self.findings: dict[str, Finding] = {}
        self.done: Counter[str] = Counter()

    def run(self, cases: int, workers: int, until: float) -> None:
        """Judges cases 0 to `cases` - 1, or as many as there is time for."""
        running = [_start(self.targets, self.seed, list(range(n, cases, workers))) for n in range(workers)]
        with selectors.DefaultSelector() as selector:
            for worker in running:
                selector.register(worker.pipe, selectors.EVENT_READ, worker)
            while running:
                ended = [key.data for key, _ in selector.select(0.5) if not self._hear(key.data)]
                now = time.monotonic()
                for worker in running:
                    if worker.current is not None and now - worker.since > self.seconds:
                        os.kill(worker.process, signal.SIGKILL)
                        self._add(worker.current, "hang", f"longer than {self.seconds:g} s")
                        worker.current = None
                for worker in ended:
                    selector.unregister(worker.pipe)
                    running.remove(worker)
                    self._end(worker)
                    if worker.numbers and now < until:
                        successor = _start(self.targets, self.seed, worker.numbers)
                        running.append(successor)
                        selector.register(successor.pipe, selectors.EVENT_READ, successor)
                if now >= until:
                    for worker in running:
                        worker.current = None
                        worker.numbers = []
                        os.kill(worker.process, signal.SIGKILL)

    def _hear(self, worker: _Worker) -> bool:
        """Takes in what a worker says; False at its end."""
        content = os.read(worker.pipe, 1 << 16)
        *lines, worker.buffer = (worker.buffer + content).split(b"\n")
        for line in lines:
            value = json.loads(line)
            if isinstance(value, list):
                self._add(*value)
                continue
            worker.current, worker.since = (None if value < 0 else value), time.monotonic()
            if worker.numbers and value == worker.numbers[0]:
                worker.numbers = worker.numbers[1:]
                self.done[draw_case(self.targets, self.seed, value).target.group] += 1
        return bool(content)

    def _end(self, worker: _Worker) -> None:
        os.close(worker.pipe)
        _, status = os.waitpid(worker.process, 0)
        if worker.current is not None:
            self._add(worker.current, "crash", f"ended by signal {os.WTERMSIG(status)}")

    def _add(self, number: int, kind: str, detail: str) -> None:
        name = draw_case(self.targets, self.seed, number).target.name
        key = kind if kind not in ("hang", "crash", "memory") else f"{kind} in {name}"
        finding = self.findings.setdefault(key, Finding(kind, number, detail))
        finding.numbers.append(number)


def main() -> int:
    """Runs the command; 1 where something was found."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000, help="how many (10,000)")
    parser.add_argument("--minutes", type=float, default=30, help="stop after this time (30)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")
    parser.add_argument("--only", metavar="TEXT", help="targets whose group or name holds this")
    parser.add_argument("--case", type=int, metavar="N", help="run this case alone, and show its traceback")
    parser.add_argument("--seconds", type=float, default=10, help="longer than this is a hang (10)")
    parser.add_argument("--out", type=Path, default=Path("fuzz-findings"), help="folder of the smallest inputs")
    options = parser.parse_args()
    options.out = options.out.absolute()
    ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX: an arena a thread would count against the limit
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="muomni-fuzz-") as folder:
        # A user's caches decide nothing, and nothing is put into them.
        os.environ |= {"MUOMNI_CACHE": str(Path(folder) / "cache"), "HOME": folder}
        targets = [t for t in all_targets(Path(folder)) if (options.only or "") in f"{t.group} {t.name}"]
        if not targets:
            parser.error(f"--only {options.only}: there is no such target")
        os.chdir(folder)
        if options.case is not None:
            return _show(draw_case(targets, options.seed, options.case), Path(folder))
        started = time.monotonic()
        run = Run(targets, options.seed, options.seconds)
        run.run(options.cases, options.workers, started + 60 * options.minutes)
        groups = ", ".join(f"{group} {count:,}" for group, count in sorted(run.done.items()))
        print(f"{sum(run.done.values()):,} cases in {time.monotonic() - started:.0f} s: {groups}")
        only = f" --only {options.only!r}" if options.only else ""
        for finding in run.findings.values():
            _report(finding, run, options, only)
        print(f"{len(run.findings)} findings" if run.findings else "no finding")
        return 1 if run.findings else 0


def _show(case: Case, folder: Path) -> int:
    print(f"{case.target.group}, {case.target.name}: {case.changes!r}"[:2000])
    result = judge(case, folder)
    print("well" if result is None else "\n".join(result))
    return 0 if result is None else 1


def _report(finding: Finding, run: Run, options: Any, only: str) -> None:
    case = draw_case(run.targets, run.seed, finding.number)
    small = smaller(case, finding.kind, options.seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"case-{finding.number}{case.target.suffix}"
    file.write_bytes(small.content)
    print(f"\n{finding.kind}: {case.target.group}, {case.target.name}; {len(finding.numbers)} cases")
    print(f'  again: make fuzz ARGS="--seed {run.seed} --case {finding.number}{only}"')
    print(f"  smallest input: {file}, {len(small.content):,} bytes")
    for line in finding.detail.strip().split("\n")[-30:]:
        print(f"  {line[:160]}")


if __name__ == "__main__":
    sys.exit(main())
