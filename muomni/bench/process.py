"""A case in a process of its own, asked over pipes: it works when asked and sleeps while others have their turn."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any, Literal, Self

from muomni.accel.measurements.verdicts import IGNORE
from muomni.errors import MuOmniError

Kind = Literal["train", "infer", "judge", "bandwidth", "write", "scaling", "speculation", "speech"]


class RefusedError(MuOmniError):
    """A case that cannot be measured here, for example because a library is not installed or memory ran out.

    Attributes:
        reason: why.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"case {name!r} cannot be measured here: {reason}")
        self.reason = reason


class CaseProcess:
    """Runs `muomni.bench.worker` on one case.

    Args:
        kind: what the case is; see `muomni.bench.worker`.
        name: the case's, for messages.
        case: its fields, JSON values.
        threads: of every library that it loads; None leaves them their own choice.

    Attributes:
        first: what setting the case up gave.

    Raises:
        RefusedError: the case cannot be set up, and why.
        MuOmniError: the process ended; with the last of what it said on standard error.
    """

    def __init__(self, kind: Kind, name: str, case: dict[str, Any], threads: int | None = None) -> None:
        self.name = name
        limits = {} if threads is None else {key: str(threads) for key in _THREADS}
        # Libraries chatter while they load; what they said is told when the case fails.
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "muomni.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **limits, IGNORE: "1"},
        )
        try:
            self.first = self.ask({"kind": kind, "case": case})
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Sends one command and waits for its answer.

        Raises:
            RefusedError: the case cannot be set up, or memory ran out.
            MuOmniError: the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            killed = " (killed by the system: most often memory ran out)" if code == -signal.SIGKILL else ""
            said = self._said.read()[-_SHOWN:].strip()
            raise MuOmniError(f"case {self.name!r} ended with exit code {code}{killed}:\n{said}")
        answer: dict[str, Any] = json.loads(line)
        if "refused" in answer:
            raise RefusedError(self.name, answer["refused"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdout.close()
        self._said.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:  # a command that was never read
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


# Characters of a failed case's messages that are shown.
_SHOWN = 4000
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
