"""Ctrl-C and SIGTERM end a training after the step in hand, so that it is saved first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from muomni.progress import ProgressLine


class StopSignal:
    """Whether a training was asked to stop.

    Attributes:
        asked: True from the first signal on.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listen(self, line: ProgressLine) -> Iterator[None]:
        """Inside, the first signal sets `asked`; the second raises KeyboardInterrupt, which saves nothing."""

        def stop(_number: int, _frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt
            self.asked = True
            line.say("stopping after this step and saving; Ctrl-C again stops at once without saving")

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
