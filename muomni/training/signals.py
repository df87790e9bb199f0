"""Ctrl-C, SIGTERM and a closed terminal end a training after the current step, so that it is saved first."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP go to a handler and do not end the process; other threads change nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    # nohup has it ignored, and so it stays; Windows has none.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopSignal:
    """Whether a training was asked to stop.

    Attributes:
        asked: True from the first signal on.
    """

    def __init__(self) -> None:
        self.asked = False
        # Of a process that torchrun started; one that is killed takes no worker with it.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def wanted(self, say: Callable[[str], None]) -> bool:
        """Whether to stop: a signal came, or torchrun is gone. A process whose launcher is gone tells the user so."""
        if not self.asked and self._launcher not in (None, os.getppid()):
            self.asked = True
            say("torchrun has ended; stopping after this step and saving")
        return self.asked

    @contextmanager
    def listen(self, say: Callable[[str], None]) -> Iterator[None]:
        """Inside, the first signal sets `asked`; the second raises KeyboardInterrupt, which saves nothing.

        Signals reach the main thread alone: in another one nothing changes, and Ctrl-C does what the program wants.

        Args:
            say: tells the user.
        """

        def stop(_number: int, _frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            say("stopping after this step and saving; Ctrl-C again stops at once without saving")

        with handled(stop):
            yield
