"""A child process that is asked over pipes: a command is a JSON line, and so is its answer.

An answer with `"data": N` is followed by N raw bytes. The parent holds the child's standard input open until `close`,
so however the parent ends, the child reads the end of its input: `serve` then ends it at once, also in the middle of a
command. Neither side imports anything heavy.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from muomni.errors import MuOmniError

# Characters of a failed child's standard error that are shown.
_SHOWN = 4000


class ChildEndedError(MuOmniError):
    """The child ended before it answered.

    Attributes:
        code: its exit code; negative for a signal.
        timed_out: it was killed because no answer came in time.
        stderr: the last of its standard error, where that was kept.
    """

    def __init__(self, code: int, stderr: str, timed_out: bool = False) -> None:
        killed = " (killed by the system: most often memory ran out)" if code == -signal.SIGKILL else ""
        why = "gave no answer in time" if timed_out else f"ended with exit code {code}{killed}"
        super().__init__(f"{why}:\n{stderr}" if stderr else why)
        self.code = code
        self.timed_out = timed_out
        self.stderr = stderr


class ChildProcess:
    """A child process that answers commands; use it with `with`. Not for several threads at once.

    Args:
        command: program and arguments.
        env: its environment variables; None for this process's.
        stderr: `kept` for error messages, `shown` with this process's, or `dropped`.

    Attributes:
        pid: the process's number.

    Raises:
        OSError: the program does not start.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stderr: Literal["kept", "shown", "dropped"] = "kept",
    ) -> None:
        self._stderr = tempfile.TemporaryFile() if stderr == "kept" else None  # noqa: SIM115 - closed in `close`
        target = subprocess.DEVNULL if stderr == "dropped" else self._stderr
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=target, env=env
            )
        except OSError:
            if self._stderr is not None:
                self._stderr.close()
            raise
        self.pid = self._process.pid

    def ask(self, command: Mapping[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Sends a command and waits for its answer.

        Args:
            command: JSON values.
            timeout: seconds after which the child is killed; None waits for ever.

        Raises:
            ChildEndedError: the child ended, or gave no answer in time.
        """
        return self.ask_for_data(command, timeout)[0]

    def ask_for_data(self, command: Mapping[str, Any], timeout: float | None = None) -> tuple[dict[str, Any], bytes]:
        """As `ask`; also returns the bytes that follow the answer."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None
        timed_out = threading.Event()

        def give_up() -> None:
            timed_out.set()
            self._process.kill()  # ends the reading below

        timer = None if timeout is None else threading.Timer(timeout, give_up)
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            with suppress(BrokenPipeError):  # it ended before it read this: the missing answer tells
                requests.write(json.dumps(command).encode() + b"\n")
                requests.flush()
            line = answers.readline()
            answer: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
            size = answer.get("data", 0)
            data = answers.read(size)
        finally:
            if timer is not None:
                timer.cancel()
        if not line.endswith(b"\n") or len(data) < size:
            raise ChildEndedError(self._process.wait(), self._last_words(), timed_out.is_set())
        return answer, data

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdout.close()
        with suppress(BrokenPipeError):  # a command that was never read
            self._process.stdin.close()
        if self._stderr is not None:
            self._stderr.close()

    def _last_words(self) -> str:
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")[-_SHOWN:].strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The child's side: answers commands until the parent closes the pipe or ends, which ends this process.

    What libraries print to standard output goes to standard error, so that it does not get between the answers.

    Args:
        answer: takes a command; an exception ends the process.
    """
    answers, sys.stdout = sys.stdout, sys.stderr
    commands: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    while True:
        print(json.dumps(answer(json.loads(commands.get()))), file=answers, flush=True)


def _read(commands: "queue.SimpleQueue[bytes]") -> None:
    """Queues the lines of standard input, and ends the process with them."""
    for line in _lines():
        commands.put(line)
    os._exit(0)


def _lines() -> Iterator[bytes]:
    # `sys.stdin` would be locked by this thread while the interpreter ends.
    rest = b""
    while block := os.read(0, 1 << 16):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
