"""The chat page in headless Chromium: what it shows, by keyboard alone, in both themes, with nothing asked of anybody else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serve_process import ServeProcess

from nemodiff_trt.checkpoint.packaged import resolve_checkpoint
from support.bundles import build_bundle

pytestmark = pytest.mark.slow
QUESTION = "Count down from 60 to 20 in steps of 4."
ANSWER = "60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    folder = tmp_path_factory.mktemp("bundle") / "tiny.bundle"
    build_bundle(resolve_checkpoint("nemodiff-tiny"), folder, max_seq_len=512, block_length=16, prefill_chunk=128)
    with ServeProcess(folder, "--num-threads", "1") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


class Page:
    """An open page that notes what it says on its console and whom it asks."""

    def __init__(self, browser: Any, url: str, scheme: str = "light") -> None:
        self.page = browser.new_page(viewport={"width": 1280, "height": 860}, color_scheme=scheme)
        self.told: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.told.append(message.text))
        self.page.on("pageerror", lambda error: self.told.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("#model:not(:empty)")

    def texts(self, selector: str) -> list[str]:
        return list(self.page.locator(selector).all_text_contents())

    def finish(self) -> None:
        self.page.wait_for_selector(".verdict:not([hidden])", timeout=30_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_two_modes_side_by_side(server: ServeProcess, browser: Any, scheme: str, tmp_path: Path) -> None:
    shown = Page(browser, server.url, scheme)
    shown.page.select_option("#pace", "0")
    # By keyboard alone: the prompt has the focus.
    shown.page.keyboard.type(QUESTION)
    shown.page.keyboard.press("Enter")
    shown.finish()
    assert shown.texts(".answer") == [ANSWER, ANSWER]
    assert shown.texts(".lane h3") == ["self_speculation · 16", "ar"]
    speculative, ar = (float(text) for text in shown.texts(".ratio output"))
    assert ar == 1.0
    assert speculative > 2.0
    assert shown.page.locator(".lane:first-child .token.accepted").count() > 20
    assert shown.page.locator(".answer .drafted, .answer .rejected, .answer .mask").count() == 0
    assert shown.texts(".verdict")[0].startswith("Same text: ")
    assert ANSWER in shown.texts("#announce")[0]
    assert shown.told == []
    assert all(url.startswith(server.url) for url in shown.asked)
    paper = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in paper[4:-1].split(",")) < 200) == (scheme == "dark")
    shown.page.screenshot(path=tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_drafts_and_masks_show_while_they_last_and_escape_stops(server: ServeProcess, browser: Any) -> None:
    shown = Page(browser, server.url)
    shown.page.select_option("[data-side='1'] select", "diffusion")
    shown.page.select_option("#pace", "700")
    shown.page.locator("#examples button").nth(1).click()
    shown.page.wait_for_selector(".answer .drafted", timeout=20_000)
    shown.page.wait_for_selector(".answer .mask", timeout=20_000)
    shown.page.keyboard.press("Escape")
    shown.page.wait_for_selector(".facts.error", timeout=5_000)
    assert shown.texts(".facts") == ["stopped", "stopped"]
    assert shown.page.locator("#send").is_visible()
    assert shown.told == []


def test_every_control_has_a_name_and_is_reached_by_tab(server: ServeProcess, browser: Any) -> None:
    shown = Page(browser, server.url)
    names = shown.page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea")].filter((one) => one.checkVisibility())
        .map((one) => (one.tagName === "BUTTON" ? one.textContent : one.labels?.[0]?.textContent ?? ""))"""
    )
    assert all(name.strip() for name in names)
    reached = set()
    for _ in range(30):
        shown.page.keyboard.press("Tab")
        reached.add(shown.page.evaluate("document.activeElement.id || document.activeElement.name"))
    assert {"theme", "prompt", "send", "mode", "block", "pace", "max-tokens", "remember", "clear"} <= reached
    shown.page.click("#theme")
    assert shown.page.evaluate("document.documentElement.dataset.theme") == "light"


def test_errors_are_shown(server: ServeProcess, browser: Any) -> None:
    shown = Page(browser, server.url)
    shown.page.fill("#prompt", "far too long " * 2000)
    shown.page.keyboard.press("Enter")
    shown.page.wait_for_selector(".facts.error")
    assert "messages: got" in shown.texts(".facts.error")[0]
