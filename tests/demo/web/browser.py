"""A browser, and the page in it as a user handles it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 30.0  # seconds


class Page:
    """A tab with the demo; what it does not have is playwright's ``Page``.

    Attributes:
        errors: what went wrong in the tab: scripts, answers of the server, requests to other machines.
    """

    def __init__(self, tab: Any, url: str) -> None:
        self.tab, self.errors = tab, []
        tab.set_default_timeout(TIMEOUT * 1000)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("response", lambda found: found.status >= 400 and self.errors.append(f"{found.status} {found.url}"))
        tab.on("request", lambda request: request.url.startswith(("data:", "blob:", url)) or self.errors.append(request.url))
        tab.goto(url)
        self.wait_for("the page", lambda: "Add an image" in self.text("#history"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tab, name)

    def wait_for(self, what: str, holds: Callable[[], Any], seconds: float = TIMEOUT) -> None:
        """Until it holds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what} did not come; the page says {self.text('#talk')!r}"
            (self.tab.wait_for_timeout if not self.tab.is_closed() else lambda ms: time.sleep(ms / 1000))(50)

    def text(self, selector: str) -> str:
        found = self.tab.locator(selector)
        return " ".join(found.all_inner_texts())

    def upload(self, path: Path) -> None:
        count = self.tab.locator("#pictures img").count()
        self.tab.set_input_files("#adder input", path)
        self.wait_for("the image", lambda: self.tab.locator("#pictures img").count() == count + 1)

    def ask(self, question: str | None, wait: bool = True) -> None:
        """Ask what is in the box, or this."""
        turns = self.tab.locator("#history .turn").count()
        if question is not None:
            self.tab.fill("#question textarea", question)
        self.click_button("Ask")
        if wait:
            self.wait_for("the answer", lambda: self.tab.locator("#history .turn").count() == turns + 1)

    def answers(self) -> list[str]:
        """The finished ones."""
        return self.tab.locator("#history .words").all_inner_texts()

    def click_button(self, name: str) -> None:
        self.tab.get_by_role("button", name=name, exact=True).click()

    def set(self, accordion: str, label: str, value: float) -> None:
        box = self.tab.get_by_label(f"number input for {label}")
        if not box.is_visible():
            self.tab.get_by_role("button", name=accordion).click()
        slider = self.tab.get_by_label(f"range slider for {label}")
        for _ in range(20):  # until the page takes it, which it does once its scripts are there
            box.fill(str(value))
            box.press("Tab")
            self.tab.wait_for_timeout(200)
            if slider.input_value() == str(value):
                return
        raise AssertionError(f"{label} cannot be set")

    def map(self) -> str:
        """The first image of the map."""
        return self.tab.locator("#maps img").first.get_attribute("src")

    def choose_word(self, index: int) -> str:
        """Click a word of the first answer; gives the map."""
        word = self.tab.locator(".word").nth(index)
        word.click()
        text = word.inner_text()
        self.wait_for("the map", lambda: f"“{text}”" in self.text("#maps") and self.tab.locator("#maps img").count())
        return self.map()

    def tab_to(self, name: str | None, selector: str = "button") -> None:
        """Press the tab key until an element has the focus."""
        reached = """([name, selector]) => { const it = document.activeElement;
            const named = it.textContent.trim() === name || it.labels?.[0]?.textContent.includes(name);
            return it.matches(selector) && (name === null || Boolean(named)); }"""
        for _ in range(80):
            self.tab.keyboard.press("Tab")
            if self.tab.evaluate(reached, [name, selector]):
                return
        raise AssertionError(f"the tab key does not reach {name or selector}")

    def check_unharmed(self) -> None:
        """Nothing that was sent ran, and no traceback is shown."""
        assert self.tab.evaluate("window.evil") is None and self.errors == []
        assert "Traceback" not in self.tab.content()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's, or playwright's own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as player:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        try:
            chromium = player.chromium.launch(executable_path=path, args=flags)
        except playwright.Error as error:
            pytest.skip(f"there is no Chromium (apt-get install chromium): {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def pages(browser: Any) -> Iterator[Callable[[str], Page]]:
    """Opens the page of a URL, for a user of its own each time."""
    contexts = []

    def visit(url: str) -> Page:
        contexts.append(browser.new_context(permissions=["camera"]))
        return Page(contexts[-1].new_page(), url)

    yield visit
    for context in contexts:
        context.close()
