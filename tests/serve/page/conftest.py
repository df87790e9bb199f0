"""Chromium without a screen, with a file for a microphone, and a server whose model sees, hears and speaks."""

import io
import shutil
import wave
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from muomni import MuOmni
from tests.infer.speech.models import make_speaking
from tests.serve.conftest import Running, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from muomni.data.text.tokenizer import Tokenizer

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_OPTIONS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


# Of a module: while playwright is there, an event loop counts as running in this thread, and others cannot run theirs.
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    """Hears a question of 0.8 s, a pause of 1.7 s, and so on."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    said = tmp_path_factory.mktemp("said") / "said.wav"
    said.write_bytes(_question())
    playwright.expect.set_options(timeout=15_000)
    with playwright.sync_playwright() as driver:
        options = [*_OPTIONS, f"--use-file-for-fake-audio-capture={said}"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


def _question() -> bytes:
    times = np.arange(48_000 * 5 // 2) / 48_000
    voiced = np.sin(2 * np.pi * 150 * times) * (1 + np.sin(2 * np.pi * 4 * times)) * 8000
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes((voiced * (times < 0.8)).astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def speaking(small_tokenizer: "Tokenizer") -> MuOmni:
    """Sees, hears and speaks."""
    return make_speaking(small_tokenizer, senses=True)


@pytest.fixture(scope="session")
def server(speaking: MuOmni) -> Iterator[Running]:
    """The server behind the page. What is loud is speech: Silero's network takes the microphone's file for a hum."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("muomni.serve.realtime.endpoint.load_silero", lambda: None)
        with running(speaking, slots=4, max_waiting=4, max_speaking=2) as server:
            yield server


@pytest.fixture
def serving(speaking: MuOmni) -> Callable[..., Any]:
    """A server with settings of its own: `with serving(keys=("k",)) as server`."""
    return lambda **settings: running(speaking, **{"slots": 2, **settings})


@pytest.fixture
def errors() -> list[str]:
    """What the browser's console called an error; none may be left at the end."""
    return []


@pytest.fixture
def open_page(browser: "Browser", errors: list[str]) -> Iterator[Callable[..., "Page"]]:
    """Opens a page of a server: `open_page(url, **options)` with options of the browser's context."""
    contexts = []

    def opened(url: str, script: str = "", **options: Any) -> "Page":
        context = browser.new_context(**{"permissions": ["microphone", "clipboard-read", "clipboard-write"], **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        if script:
            page.add_init_script(script)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not errors


@pytest.fixture
def page(open_page: Callable[..., "Page"], server: Running) -> "Page":
    """A new one of the shared server, once it knows its model."""
    page = open_page(server.url)
    page.locator("#model", has_text="nano").wait_for()
    return page
