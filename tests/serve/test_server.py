"""The command, as a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from muomni.cli import main
from muomni.serve.server import bind
from muomni.serve.settings import ServerSettings
from tests.serve.conftest import Running


@pytest.fixture
def process(nano_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`muomni serve` and its URL."""
    command = [sys.executable, "-m", "muomni", "serve", str(nano_folder), "--port", "0", "--runner", "eager"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, env={**os.environ, "MUOMNI_API_KEY": "secret"}, **pipes)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(f"{nano_folder.name} at http://127.0.0.1:"), process.communicate()
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate()


def test_it_serves_and_lets_open_replies_end(process: tuple[subprocess.Popen[str], str]) -> None:
    server, url = process
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 200, "stream": True, "temperature": 1.0}
    http = httpx2.Client(timeout=30, headers={"authorization": "Bearer secret"})
    with http, http.stream("POST", f"{url}/chat/completions", json=body) as reply:
        assert reply.status_code == 200
        lines = reply.iter_lines()
        next(lines)
        server.send_signal(signal.SIGTERM)
        seen = [line for line in lines if line]
    assert seen[-1] == "data: [DONE]"
    assert json.loads(seen[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("stop", "length")
    assert server.wait(20) == 0


def test_mistakes_are_one_line(
    nano_folder: Path,
    server: Running,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MUOMNI_API_KEY", raising=False)
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text("# no key\n")
    binary.write_bytes(b"\xff\xfe")
    port = server.url.rpartition(":")[2]
    threads = threading.active_count()
    for options, words in {
        ("--host", "0.0.0.0"): "--no-key",
        ("--port", port): "cannot listen",
        ("--host", "203.0.113.7", "--no-key"): "cannot listen",
        ("--host", "no.such.host.invalid", "--no-key"): "cannot listen",
        ("--host", "\udcff", "--no-key"): "cannot listen",
        ("--host", "", "--no-key", "--port", port): "cannot listen",
        ("--api-key-file", str(tmp_path / "missing")): "cannot be read",
        ("--api-key-file", str(empty)): "holds no key",
        ("--api-key-file", str(binary)): "not UTF-8",
    }.items():
        with pytest.raises(SystemExit) as stop:
            main(["serve", str(nano_folder), *options])
        error = capsys.readouterr().err
        assert (stop.value.code, error.count("\n")) == (2, 1), error
        assert words in error
    assert threading.active_count() <= threads


def test_without_the_extra_it_says_what_to_install(
    nano_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a plain `pip install muomni`."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("starlette", "uvicorn")]:
        monkeypatch.delitem(sys.modules, name)
    # The package is imported anew, which changes the attribute, too: put back with the modules.
    monkeypatch.setattr("muomni.serve", sys.modules["muomni.serve"])
    for name in [name for name in sys.modules if name.startswith("muomni.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(nano_folder)])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1), error
    assert "pip install 'muomni[serve]'" in error


def test_small_writes_do_not_wait_for_each_other() -> None:
    """Asyncio sets TCP_NODELAY where a socket names its protocol."""
    with bind(ServerSettings(port=0)) as listening:
        assert listening.proto == socket.IPPROTO_TCP
