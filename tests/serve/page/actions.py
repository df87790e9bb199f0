"""What people do on the page."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page


def write(page: "Page", text: str) -> None:
    """Writes a message and sends it."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def replies(page: "Page", count: int) -> list[str]:
    """The texts of that many replies, once they are all there."""
    from playwright.sync_api import expect

    expect(page.locator(".assistant .figures:not(:empty)")).to_have_count(count)
    return page.locator(".assistant .bubble").all_text_contents()


def wait_until_heard(page: "Page", seconds: float) -> None:
    """Until so much of a reply was played."""
    page.evaluate("import('/app.js').then(({ player }) => { window.player = player; })")
    page.wait_for_function("(seconds) => window.player.played > seconds", arg=seconds)


def set_up(page: "Page", *, aloud: bool = False, **fields: str) -> None:
    """Chooses greedy and short replies, or other `fields` by their labels, with _ for spaces."""
    page.get_by_role("button", name="Settings").click()
    for label, value in {"Temperature": "0", "Longest_reply": "20", **fields}.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("checkbox", name="Read replies aloud").set_checked(aloud)
    page.get_by_role("button", name="Done").click()
