"""A child process answers over pipes, says why it ended, and ends with its parent."""

import os
import subprocess
import sys
import time

import pytest

from muomni.child_process import ChildEndedError, ChildProcess

ECHO = """
import sys
from muomni.child_process import serve

def answer(command):
    print("libraries print what they like")
    if "crash" in command:
        raise ValueError("it crashed")
    if "sleep" in command:
        import time
        time.sleep(command["sleep"])
    return command

serve(answer)
"""
# Uses the standard library alone, so that it runs isolated (-I), and sends raw bytes after its answer.
RAW = """
import sys
for line in sys.stdin.buffer:
    sys.stdout.buffer.write(b'{"data": 4}\\n' + b"\\0\\1\\2\\3")
    sys.stdout.buffer.flush()
"""


def child(program: str = ECHO, *options: str, **more: object) -> ChildProcess:
    return ChildProcess([sys.executable, *options, "-c", program], **more)  # type: ignore[arg-type]


def test_commands_are_answered_in_order_whatever_is_printed() -> None:
    with child() as process:
        assert [process.ask({"n": n, "text": "μ\n"}) for n in range(3)] == [{"n": n, "text": "μ\n"} for n in range(3)]


def test_bytes_may_follow_an_answer_of_an_isolated_program() -> None:
    with child(RAW, "-I", stderr="dropped") as process:
        assert [process.ask_for_data({})[1] for _ in range(2)] == [b"\0\1\2\3"] * 2


def test_a_child_that_fails_is_told_with_its_standard_error() -> None:
    with child() as process, pytest.raises(ChildEndedError, match="(?s)ended with exit code 1:.*it crashed") as failed:
        process.ask({"crash": True})
    assert failed.value.code == 1 and not failed.value.timed_out


def test_a_child_that_hangs_is_killed() -> None:
    with child() as process, pytest.raises(ChildEndedError, match="no answer in time") as late:
        process.ask({"sleep": 60}, timeout=0.5)
    assert late.value.timed_out


def test_a_child_ends_with_its_parent_also_while_it_works() -> None:
    parent = f"""
import sys
from muomni.child_process import ChildProcess
process = ChildProcess([sys.executable, "-c", {ECHO!r}], stderr="dropped")
print(process.pid, flush=True)
process.ask({{"sleep": 60}})
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        pid = int(running.stdout.readline())
        time.sleep(0.5)
        running.kill()
    end = time.monotonic() + 20
    while _runs(pid):
        assert time.monotonic() < end, "the child outlived its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
    except OSError:
        os.kill(pid, 0)
        return True
