"""What goes wrong is told on the page, with what to do."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from tests.serve.conftest import Running
from tests.serve.page.actions import replies, set_up, write

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect


def loading_failed(errors: list[str], status: int) -> None:
    """Forgets that the browser reports this status; nothing else may have happened."""
    assert errors
    assert all(f"status of {status}" in error for error in errors), errors
    errors.clear()


def test_a_key_is_asked_for_and_kept_with_the_tab(
    open_page: Callable[..., "Page"], serving: Callable[..., Any], errors: list[str]
) -> None:
    with serving(keys=("open sesame",)) as server:
        page = open_page(server.url)
        dialog = page.get_by_role("dialog", name="needs a key")
        for key in ("wrong", "open sesame"):
            dialog.get_by_label("Key").fill(key)
            dialog.get_by_label("Key").press("Enter")
        page.locator("#model", has_text="nano").wait_for()
        expect(dialog).to_be_hidden()
        loading_failed(errors, 401)
        set_up(page)
        write(page, "Hello there!")
        replies(page, 1)
        page.reload()
        page.locator("#model", has_text="nano").wait_for()
        assert "sesame" not in page.evaluate("JSON.stringify(localStorage)")
        assert page.evaluate("Object.values(sessionStorage)") == ["open sesame"]
        page.get_by_role("button", name="Settings").click()
        assert page.get_by_label("Longest reply").input_value() == "20"


def test_a_busy_server_is_tried_again(page: "Page", server: Running, errors: list[str]) -> None:
    set_up(page)
    with ExitStack() as places:
        for _ in range(8):
            places.enter_context(server.engine.place())
        write(page, "Hello there!")
        page.get_by_text("The server is busy. Trying again in 1 s").wait_for()
    replies(page, 1)
    loading_failed(errors, 503)


def test_a_mistake_is_shown_and_mended(page: "Page", errors: list[str]) -> None:
    set_up(page)
    write(page, "Hello there! " * 200)
    error = page.locator(".assistant .error")
    expect(error).to_contain_text("context")
    loading_failed(errors, 400)
    write(page, "Hello there!")
    replies(page, 1)


def test_a_server_that_is_gone_is_told(page: "Page", errors: list[str]) -> None:
    page.route("**/v1/chat/completions", lambda route: route.abort())
    write(page, "Hello there!")
    expect(page.locator(".assistant .error")).to_contain_text("The server cannot be reached")
    assert all("ERR_FAILED" in error for error in errors)
    errors.clear()


def test_a_microphone_that_cannot_be_used_is_told(open_page: Callable[..., "Page"], server: Running) -> None:
    insecure = "Object.defineProperty(navigator, 'mediaDevices', { value: undefined })"
    denied = "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    for script, told in ((insecure, "http://localhost only"), (denied, "Allow it beside the address")):
        page = open_page(server.url, script)
        page.get_by_role("button", name="Speak").click()
        expect(page.locator("#status")).to_contain_text(told)
        expect(page.locator("body")).to_have_attribute("data-state", "idle")
