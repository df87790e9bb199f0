"""The page in a real browser: Chromium without a screen, with a file for a microphone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from tests.serve.conftest import Running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser(wav: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Browser"]:
    said = tmp_path_factory.mktemp("said") / "said.wav"
    said.write_bytes(wav)
    options = [
        "--no-sandbox",
        "--disable-background-networking",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={said}",
    ]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: "Browser", server: Running) -> Iterator["Page"]:
    context = browser.new_context(permissions=["microphone"])
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(server.url)
    playwright.expect(page.locator("#model")).to_have_text("nano")
    yield page
    context.close()
    assert not wrong


def replies(page: "Page", count: int) -> list[str]:
    """The texts of that many replies, once they are all there."""
    playwright.expect(page.locator(".assistant .figures")).to_have_count(count)
    return page.locator(".assistant .bubble").all_text_contents()


def set_greedy(page: "Page") -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Longest reply").fill("20")
    page.keyboard.press("Escape")


def test_a_conversation(page: "Page", server: Running) -> None:
    set_greedy(page)
    page.get_by_label("Message", exact=True).fill("Hello there!")
    page.keyboard.press("Enter")
    [first] = replies(page, 1)
    assert first == server.chat("Hello there!", max_tokens=20).json()["choices"][0]["message"]["content"]
    page.get_by_label("Message", exact=True).fill("What is this?")
    page.get_by_role("button", name="Send").click()
    assert len(replies(page, 2)) == 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"] * 2
    assert saved["messages"][1]["content"] == first


def test_a_picture_and_what_is_said(page: "Page", tmp_path: Path) -> None:
    set_greedy(page)
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    page.get_by_label("Pictures or sounds").set_input_files(tmp_path / "red.png")
    page.get_by_role("img", name="red.png").wait_for()
    page.get_by_label("Message", exact=True).fill("What is this?")
    page.keyboard.press("Enter")
    replies(page, 1)
    microphone = page.get_by_role("button", name="Speak")
    microphone.click()
    page.get_by_text("Listening").wait_for()
    page.wait_for_timeout(600)
    microphone.click()
    assert len(replies(page, 2)) == 2
    assert page.locator(".user audio").count() == 1
    assert page.evaluate("document.querySelector('.user audio').duration") > 0.3


def test_a_long_reply_is_stopped_and_text_is_never_markup(page: "Page") -> None:
    page.get_by_label("Message", exact=True).fill("<img src=x onerror=alert(1)> <b>bold</b>")
    page.keyboard.press("Enter")
    page.locator(".assistant .bubble:not(:empty)").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Send").wait_for()
    assert page.locator(".bubble b, .bubble img").count() == 0
    assert page.locator(".user .bubble").text_content() == "<img src=x onerror=alert(1)> <b>bold</b>"


def test_it_fits_a_telephone(page: "Page") -> None:
    page.set_viewport_size({"width": 360, "height": 640})
    page.get_by_label("Message", exact=True).fill("Hello there! " * 20)
    page.keyboard.press("Enter")
    replies(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
