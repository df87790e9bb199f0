"""Replies that do not end as they should: the model fails, its thread dies, the server stops."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import APIError, InternalServerError, OpenAI

from tests.serve.conftest import Running
from tests.serve.test_leaving import all_free, until


@pytest.fixture
def failing(serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server whose model fails at token `at`."""

    def make(at: int) -> Any:
        context = serving(slots=1)
        server = context.__enter__()
        core, calls = server.engine.engine._core, iter(range(10_000))
        deliver = core._deliver

        def fails(*args: Any) -> None:
            if next(calls) == at:
                raise RuntimeError("a bug with a secret")
            deliver(*args)

        monkeypatch.setattr(core, "_deliver", fails)
        stack.append(context)
        return server

    stack: list[Any] = []
    yield make
    for context in stack:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_failure_in_a_stream_is_one_error_and_the_end(failing: Callable[[int], Running], at: int) -> None:
    server = failing(at)
    began = time.monotonic()
    lines = server.chat(stream=True, max_tokens=100, temperature=1.0, seed=3).text.split("\n\n")
    assert time.monotonic() - began < 5
    assert lines[-1] == ""
    kinds = ["error" in json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert kinds.count(True) == 1 and kinds[-1]
    assert "secret" not in "".join(lines)
    assert until(lambda: all_free(server))
    assert server.chat().status_code == 200


def test_the_official_client_raises_what_fails(failing: Callable[[int], Running]) -> None:
    server = failing(2)
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    request: dict[str, Any] = {"model": "nano", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 50}
    seen = 0
    with pytest.raises(APIError, match="failed at this request"):
        for _ in client.chat.completions.create(stream=True, **request):
            seen += 1
    assert seen >= 1
    server = failing(0)
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(InternalServerError, match="failed at this request"):
        client.chat.completions.create(**request)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_thread_that_dies_is_told_and_nobody_waits_for_it(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(slots=1, max_waiting=4) as server:
        engine = server.engine.engine
        dies = threading.Event()
        step = engine._core.step

        def dying() -> None:
            if dies.is_set():
                raise SystemExit  # ends a thread without a word
            time.sleep(0.01)
            step()

        monkeypatch.setattr(engine._core, "step", dying)
        with ThreadPoolExecutor(3) as pool:
            replies = [pool.submit(server.chat, max_tokens=200, temperature=1.0, stream=stream) for stream in (1, 0, 0)]
            assert until(lambda: server.engine.running == 3 and engine.steps > 3)
            dies.set()
            assert until(lambda: server.http.get("/health").status_code == 503)
            assert server.http.get("/health").json()["error"]["code"] == "dead"
            streamed, *others = [reply.result(timeout=10) for reply in replies]
        assert "error" in streamed.text and "[DONE]" not in streamed.text
        assert [reply.status_code for reply in others] == [503, 503]
        assert server.chat().status_code == 503
        assert server.engine.running == 0


def test_ctrl_c_ends_open_streams_within_the_timeout(nano_folder: Path) -> None:
    """Exit code 0, and clients are told; it hung for ever elsewhere."""
    options = ["--port", "0", "--runner", "eager", "--shutdown-timeout", "0.3"]
    slow = "import time, muomni.infer.engine.core as core; step = core.EngineCore.step\n"
    slow += "def slowly(self):\n    time.sleep(0.05); return step(self)\n"
    slow += "core.EngineCore.step = slowly\nfrom muomni.cli import main; import sys; main(sys.argv[1:])"
    command = [sys.executable, "-c", slow, "serve", str(nano_folder), *options]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            url = process.stdout.readline().split()[-1]
            body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "max_tokens": 200}
            with httpx2.stream("POST", f"{url}/chat/completions", json=body, timeout=30) as reply:
                lines = reply.iter_lines()
                next(lines)
                began = time.monotonic()
                process.send_signal(signal.SIGINT)
                seen = [line for line in lines if line]
            assert process.wait(20) == 0
            assert time.monotonic() - began < 10
            assert json.loads(seen[-1].removeprefix("data: "))["error"]["code"] == "server_overloaded"
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
