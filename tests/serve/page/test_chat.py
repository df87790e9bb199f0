"""Writing, pictures and spoken messages on the page."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.serve.conftest import Running
from tests.serve.page.actions import replies, set_up, write

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_a_conversation(page: "Page", server: Running) -> None:
    set_up(page)
    write(page, "Hello there!")
    [first] = replies(page, 1)
    assert first == server.chat("Hello there!", max_tokens=20).json()["choices"][0]["message"]["content"]
    page.get_by_label("Message", exact=True).fill("What is this?")
    page.get_by_role("button", name="Send").click()
    second = replies(page, 2)[1]
    figures = page.locator(".assistant .figures").last.text_content() or ""
    assert "tokens/s" in figures and "first word" in figures
    for button, ending in (("JSON", ".json"), ("Markdown", ".md")):
        page.get_by_role("button", name="Export").click()
        with page.expect_download() as download:
            page.get_by_role("button", name=button).click()
        assert download.value.suggested_filename == f"conversation{ending}"
        saved = Path(download.value.path()).read_text()
        if ending == ".json":
            messages = json.loads(saved)["messages"]
            assert [message["role"] for message in messages] == ["user", "assistant"] * 2
            assert messages[1]["content"] == first
        else:
            assert saved.index("**You**") < saved.index(first) < saved.index("What is this?") < saved.rindex(second)


def test_the_last_turn_is_changed(page: "Page") -> None:
    set_up(page)
    write(page, "Hello there!")
    [first] = replies(page, 1)
    page.get_by_role("button", name="Answer again").click()
    assert replies(page, 1) == [first]
    page.get_by_role("button", name="Copy").click()
    page.wait_for_function("() => navigator.clipboard.readText().then((text) => text.length > 0)")
    assert page.evaluate("navigator.clipboard.readText()") == first
    page.get_by_role("button", name="Edit").click()
    message = page.get_by_label("Message", exact=True)
    assert message.input_value() == "Hello there!"
    assert page.locator(".turn").count() == 0
    page.keyboard.press("Enter")
    replies(page, 1)
    write(page, "What is this?")
    replies(page, 2)
    page.get_by_role("button", name="Delete").last.click()
    assert page.locator(".turn").count() == 1
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".turn").count() == 0
    page.get_by_role("button", name="Bring the old one back").click()
    assert page.locator(".assistant .bubble").all_text_contents() == [first]


def test_a_picture_and_what_is_said(page: "Page", tmp_path: Path) -> None:
    set_up(page)
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "red.png")
    files = page.get_by_label("Pictures or sounds")
    files.set_input_files([tmp_path / "red.png", tmp_path / "red.png"])
    page.get_by_role("button", name="Remove red.png").first.click()
    picture = page.get_by_role("img", name="red.png")
    assert picture.count() == 1
    assert picture.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [1024, 512]
    write(page, "What is this?")
    replies(page, 1)
    page.route("**/v1/audio/transcriptions", lambda route: route.fulfill(json={"text": "the cat"}))
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Write down what I say").check()
    page.get_by_role("button", name="Done").click()
    microphone = page.get_by_role("button", name="Speak")
    microphone.click()
    page.get_by_text("Listening").wait_for()
    page.wait_for_timeout(400)
    microphone.click()
    assert len(replies(page, 2)) == 2
    assert page.locator(".user audio").count() == 1
    assert page.locator(".user figcaption").text_content() == "“the cat”"
    page.wait_for_function("() => document.querySelector('.user audio').duration > 0.3")
    microphone.focus()  # and by the key, held
    page.keyboard.down("Space")
    page.get_by_text("Listening").wait_for()
    page.wait_for_timeout(500)
    page.keyboard.up("Space")
    replies(page, 3)
    (tmp_path / "none.png").write_bytes(b"no picture")
    files.set_input_files(tmp_path / "none.png")
    page.get_by_text("none.png is no picture").wait_for()


def test_pictures_are_dropped_and_pasted(page: "Page") -> None:
    for event, target, transfer in (("drop", "document", "dataTransfer"), ("paste", "text", "clipboardData")):
        page.evaluate(
            """async ([event, target, transfer]) => {
              const canvas = new OffscreenCanvas(8, 8);
              canvas.getContext("2d").fillRect(0, 0, 8, 8);
              const data = new DataTransfer();
              data.items.add(new File([await canvas.convertToBlob()], `${event}.png`, { type: "image/png" }));
              const on = target === "document" ? document : document.getElementById(target);
              const init = { bubbles: true, cancelable: true, [transfer]: data };
              on.dispatchEvent(event === "drop" ? new DragEvent(event, init) : new ClipboardEvent(event, init));
            }""",
            [event, target, transfer],
        )
        page.get_by_role("img", name=f"{event}.png").wait_for()


def test_a_long_reply_is_stopped_and_text_is_never_markup(page: "Page", server: Running) -> None:
    set_up(page, Longest_reply="200")
    write(page, "<img src=x onerror=alert(1)> <b>bold</b>")
    page.locator(".assistant .bubble:not(:empty)").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Send").wait_for()
    assert page.locator(".bubble b, .bubble img").count() == 0
    assert page.locator(".user .bubble").text_content() == "<img src=x onerror=alert(1)> <b>bold</b>"
    assert replies(page, 1)[0]


def test_what_the_model_cannot_do_is_not_offered(page: "Page") -> None:
    def only_text(route: object) -> None:
        architecture = {"input_modalities": ["text"], "output_modalities": ["text"]}
        route.fulfill(json={"data": [{"id": "words", "architecture": architecture}]})  # type: ignore[attr-defined]

    assert "picture" in (page.locator("#abilities").text_content() or "")
    page.route("**/v1/models", only_text)
    page.reload()
    page.locator("#model", has_text="words").wait_for()
    for name in ("picture", "Speak", "aloud"):
        assert page.get_by_role("button", name=name).count() == 0
    assert page.locator("#abilities").text_content() == "You can write. It answers in writing."
    page.get_by_role("button", name="What can you do?").click()
    assert page.get_by_label("Message", exact=True).input_value() == "What can you do?"
