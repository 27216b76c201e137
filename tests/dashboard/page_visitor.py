"""A person at a Chromium with a wallet in it: opens the page, presses its buttons, reads what it says."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from page_world import BrowserWallet
from wallet_chain import adapter

CHROMIUM = os.environ.get("CITRATE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")


@dataclass
class Visitor:
    """A browser with one page, and what went wrong in it."""

    url: str
    page: playwright.Page
    wallet: BrowserWallet
    problems: list[str] = field(default_factory=list)

    def go(self, place: str) -> None:
        self.page.goto(self.url + f"#{place}")

    def main(self, selector: str = "") -> playwright.Locator:
        return self.page.locator(f"#main {selector}".strip())

    def sees(self, locator: playwright.Locator, text: str | re.Pattern[str]) -> None:
        playwright.expect(locator).to_contain_text(text)

    def picture(self, name: str) -> None:
        folder = os.environ.get("CITRATE_SCREENSHOTS")
        for scheme in ("light", "dark") if folder else ():
            self.page.emulate_media(color_scheme=scheme)
            self.page.screenshot(path=f"{folder}/{name}-{scheme}.png", full_page=True)

    def connect(self) -> None:
        """As a person would: connect, and let the wallet add the devnet's chain."""
        self.page.get_by_role("button", name=f"Connect {self.wallet.name}").click()
        self.page.get_by_role("button", name="Use chain 40298").click()
        self.sees(self.page.locator("#balance"), "coins")

    def fill(self, folder: Path, name: str, seed: int) -> None:
        """The form of a new adapter, with a file of 8 KiB."""
        path = folder / f"{seed}.safetensors"
        path.write_bytes(adapter(seed).encode())
        self.go("network")
        self.go("create")
        self.page.get_by_label("File", exact=True).set_input_files(path)
        self.sees(self.main("[aria-live]"), "q_proj")
        self.page.get_by_label("Name").fill(name)

    def create(self, folder: Path, name: str, seed: int) -> str:
        """Creates an adapter; returns its id."""
        self.fill(folder, name, seed)
        self.submit()
        self.sees(self.main(".result"), "Done.")
        return str(self.main(".result a.id").inner_text())

    def submit(self) -> None:
        self.page.get_by_role("button", name="Try it").click()
        self.page.get_by_role("button", name="Send with the wallet").click()


@contextmanager
def running_browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        # a root user, as in containers, gets no sandbox
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] * (os.geteuid() == 0)
        )
        yield browser
        browser.close()


@contextmanager
def visit(browser: playwright.Browser, url: str, wallet: BrowserWallet) -> Iterator[Visitor]:
    """A fresh profile at the page's first place. Any error of the page that was not looked for fails."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.expose_function("askWallet", wallet.ask)
    page.add_init_script(wallet.script())
    visitor = Visitor(url, page, wallet)
    page.on("pageerror", lambda error: visitor.problems.append(str(error)))
    page.on("console", lambda said: said.type == "error" and visitor.problems.append(said.text))
    page.on("requestfailed", lambda gone: visitor.problems.append(f"{gone.url}: {gone.failure}"))
    visitor.go("network")
    yield visitor
    context.close()
    # what was under way when a page was left is no failure
    assert [problem for problem in visitor.problems if "net::ERR_ABORTED" not in problem] == []
