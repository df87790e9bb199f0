"""Replies that are spoken while they are written, heard on the page."""

from typing import TYPE_CHECKING

import pytest

from tests.serve.conftest import Running
from tests.serve.page.actions import replies, set_up, wait_until_heard, write
from tests.serve.test_leaving import until

if TYPE_CHECKING:
    from playwright.sync_api import Page

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

# Loudest sample that has left the player in 3 s, once there is one.
LOUDEST = """async () => {
  const { player } = await import("/app.js");
  const analyser = new AnalyserNode(player.output.context);
  player.output.connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  for (let tries = 0, loudest = 0; ; tries += 1) {
    analyser.getFloatTimeDomainData(samples);
    loudest = Math.max(loudest, ...samples.map(Math.abs));
    if (loudest || tries === 150) return loudest;
    await new Promise((done) => setTimeout(done, 20));
  }
}"""
PLAYED = "import('/app.js').then(({ player }) => player.played)"


def test_a_reply_is_heard_and_interrupted(page: "Page", server: Running) -> None:
    set_up(page, aloud=True, Longest_reply="60", Temperature="1", Seed="5")
    write(page, "Hello there!")
    expect(page.locator("body")).to_have_attribute("data-state", "speaking")
    assert page.evaluate(LOUDEST) > 0
    wait_until_heard(page, 0.1)
    page.keyboard.press("Escape")
    expect(page.locator("body")).to_have_attribute("data-state", "idle")
    heard = page.evaluate(PLAYED)
    assert heard > 0.1
    page.wait_for_timeout(300)
    assert page.evaluate(PLAYED) == heard
    assert until(lambda: server.engine.speaking == server.engine.running == 0)
    text = page.locator(".assistant .bubble").text_content()
    page.get_by_role("button", name="Listen").click()  # what came is heard again
    expect(page.locator("body")).to_have_attribute("data-state", "speaking")
    page.get_by_role("button", name="Speak", exact=True).click()  # who begins to speak interrupts
    expect(page.locator("body")).to_have_attribute("data-state", "listening")
    assert page.evaluate("import('/app.js').then(({ player }) => player.playing)") is False
    page.keyboard.press("Escape")
    assert page.locator(".assistant .bubble").all_text_contents() == [text]


def test_a_written_reply_is_read_aloud_later(page: "Page", server: Running) -> None:
    set_up(page, Temperature="1", Seed="5")
    write(page, "Hello there!")
    replies(page, 1)
    assert "first sound" not in (page.locator(".assistant .figures").text_content() or "")
    page.get_by_role("button", name="Listen").click()
    expect(page.locator("body")).to_have_attribute("data-state", "speaking")
    page.get_by_role("button", name="Stop").click()
    assert until(lambda: server.engine.speaking == server.engine.running == 0)
    page.get_by_role("button", name="Read replies aloud").click()
    page.get_by_role("button", name="Answer again").click()
    expect(page.locator("body")).to_have_attribute("data-state", "speaking")
    replies(page, 1)
    assert "first sound" in (page.locator(".assistant .figures").text_content() or "")
