"""Progress on standard error."""

import io
import sys

import pytest

from muomni.progress import ProgressLine, progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_writes_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("encoding", 3) as bar:
        bar.advance()
        bar.add("listening").advance()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("unit", "amount"), [("items", "2/4"), ("percent", "50%"), ("bytes", "2/4 bytes")])
def test_a_bar_on_a_terminal_shows_what_is_done(monkeypatch: pytest.MonkeyPatch, unit: str, amount: str) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("encoding", 4, unit=unit) as bar:  # type: ignore[arg-type]
        bar.advance(2, note="a note")
    written = terminal.getvalue()
    assert "encoding" in written and amount in written and "a note" in written


def test_a_bar_that_is_not_shown_or_not_visible_yet_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("encoding", 4, shown=False) as bar:
        bar.advance()
    assert terminal.getvalue() == ""
    with progress_bar("encoding", 4, visible=False) as bar:
        bar.advance()
        assert "encoding" not in terminal.getvalue()
        bar.show()
    assert "encoding" in terminal.getvalue()


def test_a_training_writes_a_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLine(10, 2) as line:
        line.update(3)
        line.update(4, "loss 1.0", 90)
        line.say("saved")
    assert capsys.readouterr().err == "step 4/10  loss 1.0  left 1.5 min\nsaved\n"
    with ProgressLine(10, 2, silent=True) as line:
        line.update(4, "loss 1.0")
    assert capsys.readouterr().err == ""
