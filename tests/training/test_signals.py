"""A training that is asked to stop: once politely, twice at once, and not at all afterwards."""

import os
import signal
import threading

import pytest

from muomni.progress import ProgressLine
from muomni.training.signals import StopSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    stop = StopSignal()
    with ProgressLine(10, 0) as line, pytest.raises(KeyboardInterrupt), stop.listen(line.say):
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked and capsys.readouterr().err.count("stopping after this step and saving") == 1
        signal.raise_signal(number)
    assert signal.getsignal(number) == before and stop.asked


def test_in_another_thread_signals_stay_as_they_are() -> None:
    before, stop, inside = signal.getsignal(signal.SIGINT), StopSignal(), []

    def listen() -> None:
        with stop.listen(pytest.fail):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert inside == [before] and not stop.asked


def test_a_worker_whose_torchrun_is_killed_stops_and_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(os, "getppid", lambda: 77)
    alone = StopSignal()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stop = StopSignal()
    assert not stop.wanted(said.append)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert stop.wanted(said.append) and stop.wanted(said.append)
    assert said == ["torchrun has ended; stopping after this step and saving"]
    # Without torchrun the process that started a run may end.
    assert not alone.wanted(said.append)
