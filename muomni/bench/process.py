"""A case in a process of its own: it works when asked and sleeps while others have their turn."""

import os
from typing import Any

from muomni.accel.measurements.verdicts import IGNORE
from muomni.accel.measurements.worker import COMMAND
from muomni.child_process import ChildEndedError, ChildProcess
from muomni.errors import MuOmniError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class RefusedError(MuOmniError):
    """A case that cannot be measured here, for example because a library is not installed or memory ran out.

    Attributes:
        reason: why.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"case {name!r} cannot be measured here: {reason}")
        self.reason = reason


class CaseProcess(ChildProcess):
    """Runs `accel.measurements.worker` on one case.

    Args:
        subject: what is set up with the case: `MODULE:NAME` below `muomni.bench`.
        name: the case's, for messages.
        case: its fields, JSON values.
        threads: of every library that it loads; None leaves them their own choice.

    Attributes:
        first: the answer to setting the case up.

    Raises:
        RefusedError: the case cannot be set up, and why.
        MuOmniError: the process ended; with the last of its standard error.
    """

    def __init__(self, subject: str, name: str, case: dict[str, Any], threads: int | None = None) -> None:
        self.name = name
        limits = {} if threads is None else {key: str(threads) for key in _THREADS}
        # Libraries print while they load; that is shown when the case fails.
        super().__init__(COMMAND, env={**os.environ, **limits, IGNORE: "1"})
        try:
            self.first = self.ask({"subject": f"muomni.bench.{subject}", **case})
        except BaseException:
            self.close()
            raise

    def ask(self, command: Any, timeout: float | None = None) -> dict[str, Any]:
        """Sends one command and waits for its answer.

        Raises:
            RefusedError: the case cannot be set up, or memory ran out.
            MuOmniError: the process ended.
        """
        try:
            answer = super().ask(command, timeout)
        except ChildEndedError as error:
            raise MuOmniError(f"case {self.name!r} {error}") from None
        if "refused" in answer:
            raise RefusedError(self.name, answer["refused"])
        return answer
