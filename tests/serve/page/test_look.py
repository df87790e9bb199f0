"""The page on a telephone, without a mouse, in both colour schemes."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.serve.conftest import Running
from tests.serve.page.actions import replies, set_up, write

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

# Contrast of each text that is seen with what is behind it, where it is below 4.5.
TOO_FAINT = """() => {
  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const luminance = ({ rgb }) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = parse(getComputedStyle(each).backgroundColor);
      if (color.a === 1) return color;
    }
    throw new Error("nothing behind");
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest("script")) continue;
    const lights = [parse(getComputedStyle(element).color), behind(element)].map(luminance);
    const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    if (contrast < 4.5) faint.push([walker.currentNode.data.trim(), contrast]);
  }
  return faint;
}"""
WITHOUT_NAME = """() => [...document.querySelectorAll("button, input, textarea, select, img, audio, dialog")]
  .filter((each) => each.checkVisibility())
  .filter((each) => !each.ariaLabel && !each.labels?.length && !each.textContent.trim() && !each.hasAttribute("alt"))
  .map((each) => each.outerHTML)"""


def test_it_fits_a_telephone(page: "Page") -> None:
    page.set_viewport_size({"width": 360, "height": 640})

    def fits() -> bool:
        composer = page.locator("#composer").bounding_box()
        widths = page.evaluate("[document.documentElement, document.querySelector('#log')].map((e) => e.scrollWidth)")
        return composer is not None and composer["y"] + composer["height"] <= 640 and max(widths) <= 360

    assert fits()
    set_up(page)
    write(page, "Hello there! " * 10)
    replies(page, 1)
    assert fits()
    page.get_by_label("Message", exact=True).fill("one line\n" * 60)
    assert fits()
    write(page, "m" * 60)
    replies(page, 2)
    assert fits()
    page.get_by_role("button", name="Settings").click()
    dialog = page.get_by_role("dialog", name="Settings").bounding_box()
    assert dialog is not None
    assert dialog["x"] >= 0
    assert dialog["x"] + dialog["width"] <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(open_page: Callable[..., "Page"], server: Running, scheme: str) -> None:
    page = open_page(server.url, color_scheme=scheme, reduced_motion="reduce")
    page.locator("#model", has_text="nano").wait_for()
    assert page.evaluate(TOO_FAINT) == []
    set_up(page)
    write(page, "Hello there!")
    replies(page, 1)
    page.get_by_role("button", name="Speak").click()
    page.get_by_text("Listening").wait_for()
    assert page.evaluate(TOO_FAINT) == []
    assert page.evaluate("document.getAnimations().length") == 0
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Talk hands-free").click()
    expect(page.locator("#live-state")).to_have_text("Listening")
    assert page.evaluate(TOO_FAINT) == []
    page.get_by_role("button", name="End").click()
    page.get_by_role("button", name="Settings").click()
    assert page.evaluate(TOO_FAINT) == []


def test_all_is_reached_by_keyboard_and_has_a_name(page: "Page") -> None:
    set_up(page)
    write(page, "Hello there!")
    replies(page, 1)
    message = page.get_by_label("Message", exact=True)
    message.focus()
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    assert message.input_value() == "one\ntwo"
    reached: set[str] = set()
    focused = "((e) => (e.ariaLabel || e.textContent || e.id).trim())(document.activeElement)"
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate(focused))
    wanted = {"New chat", "Export", "Settings", "Conversation", "Edit this message", "Delete this turn", "Copy"}
    wanted |= {"Listen", "Answer again", "Add a picture", "Read replies aloud", "Speak", "Send", "text"}
    assert wanted <= reached
    assert page.evaluate(WITHOUT_NAME) == []
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_replies_are_told_to_screen_readers(page: "Page") -> None:
    set_up(page)
    write(page, "Hello there!")
    [reply] = replies(page, 1)
    told = page.locator("#announcer[aria-live=polite]").text_content() or ""
    assert "".join(told.split()) == "".join(reply.split())
