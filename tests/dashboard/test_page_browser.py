"""The page in a real Chromium, with a wallet announced by EIP-6963 whose key is the devnet's funded founder.

Skipped where there is no Chromium ($CITRATE_CHROMIUM, or `chromium` on the PATH). CITRATE_SCREENSHOTS names a
folder that gets pictures of the page, light and dark, for whoever changes it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from page_world import BrowserWallet, PageWorld, checkpoint_fact
from wallet_chain import adapter

from citrate_node.chain.adapter_factory import AdapterFactory, cid_argument
from citrate_node.protocol.content_id import ContentId, content_id

CHROMIUM = os.environ.get("CITRATE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")

HOSTILE = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"
COMPOSED_HASH = b"\x5a" * 32


@dataclass
class Visitor:
    """A browser with one page, and what went wrong in it."""

    world: PageWorld
    page: playwright.Page
    wallet: BrowserWallet
    problems: list[str] = field(default_factory=list)

    def go(self, place: str) -> None:
        self.page.goto(self.world.page.url + f"#{place}")

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


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        # a root user, as in containers, gets no sandbox
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] * (os.geteuid() == 0)
        )
        yield browser
        browser.close()


@pytest.fixture
def visitor(browser: playwright.Browser, world: PageWorld) -> Iterator[Visitor]:
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(15_000)
    wallet = BrowserWallet(world.chain.devnet.founder_key())
    page = context.new_page()
    page.expose_function("askWallet", wallet.ask)
    page.add_init_script(wallet.script())
    visitor = Visitor(world, page, wallet)
    page.on("pageerror", lambda error: visitor.problems.append(str(error)))
    page.on("console", lambda said: said.type == "error" and visitor.problems.append(said.text))
    page.on("requestfailed", lambda gone: visitor.problems.append(f"{gone.url}: {gone.failure}"))
    visitor.go("network")
    yield visitor
    context.close()
    # leaving a page ends its line to the devnet, which is no failure
    assert [problem for problem in visitor.problems if "/api/events" not in problem] == []


def on_chain(world: PageWorld, name: str, data: bytes) -> str:
    """An adapter that a stranger made by other means."""

    async def create() -> bytes:
        factory = await AdapterFactory.connect(world.rpc_url)
        try:
            base = adapter(1).config.base_model_id
            made = await factory.create_adapter(world.chain.devnet.founder_key(), base, name, data, 2)
            return made.adapter_id
        finally:
            await factory.close()

    return "0x" + world.run(create()).hex()


def test_two_adapters_are_created_and_composed_and_their_lineage_is_seen(
    visitor: Visitor, tmp_path: Path
) -> None:
    visitor.connect()
    assert visitor.wallet.networks == {40298: visitor.world.rpc_url}, "wallets get the gate, not the chain"
    first, second = visitor.create(tmp_path, "first", 1), visitor.create(tmp_path, "second", 2)
    result = visitor.main(".result")
    visitor.sees(result, content_id(adapter(2).encode()).cid)
    visitor.sees(result, re.compile(r"Version\s*1"))
    visitor.sees(result, re.compile(r"Transaction\s*0x[0-9a-f]{64}"))
    visitor.picture("created")

    visitor.go(f"compose/{first}")
    visitor.page.get_by_label("Second adapter").fill(second)
    slider = visitor.page.get_by_label("Share of the first")
    slider.focus()
    for _ in range(20):
        visitor.page.keyboard.press("ArrowRight")
    visitor.sees(visitor.main("output.shares"), "70 % of the first, 30 % of the second")
    visitor.page.get_by_role("button", name="Try it").click()
    visitor.sees(result, re.compile(r"Gas estimate\s*\d{3},\d{3}"))
    visitor.sees(result, re.compile(r"Costs at most\s*0\.\d+ coins"))
    visitor.picture("compose")
    visitor.page.get_by_role("button", name="Send with the wallet").click()
    visitor.sees(result, "none yet: version 1 comes with a checkpoint")
    parents = result.locator(".tree > li > ul > li")
    playwright.expect(parents).to_have_text([re.compile("^70 % first"), re.compile("^30 % second")])
    composed = result.locator("a.id").inner_text()

    visitor.go(f"adapter/{composed}")
    visitor.sees(visitor.main(), "None yet: the nodes compute it")
    content = ContentId(COMPOSED_HASH, 20_000)
    visitor.world.run(visitor.world.chain.certify(bytes.fromhex(composed[2:]), content, 18_000))
    visitor.page.reload()
    cells = visitor.main("tbody td")
    playwright.expect(cells).to_have_count(7)
    assert cells.all_inner_texts()[:4] == ["1", "+1.80 %", "1", "20 KiB"]
    assert cells.nth(4).locator("button").get_attribute("data-whole") == content.cid
    playwright.expect(visitor.main(".tree > li > ul > li")).to_have_count(2)
    visitor.picture("adapter")


def test_a_refusal_is_decoded_before_anything_is_sent(visitor: Visitor, tmp_path: Path) -> None:
    visitor.connect()
    made = visitor.create(tmp_path, "made once", 7)
    sent = visitor.wallet.requests.count("eth_sendTransaction")
    visitor.fill(tmp_path, "made once", 7)
    visitor.page.get_by_role("button", name="Try it").click()
    alert = visitor.main(".result [role=alert]")
    visitor.sees(alert, f"the contract refuses: AdapterExists(adapterId = {made}) — This account made")
    visitor.picture("refused")
    visitor.go(f"compose/{made}")
    visitor.page.get_by_label("Second adapter").fill(made)
    visitor.page.get_by_role("button", name="Try it").click()
    visitor.sees(alert, f"the contract refuses: SelfComposition(adapterId = {made})")
    assert visitor.wallet.requests.count("eth_sendTransaction") == sent


def test_what_the_wallet_declines_is_said_and_not_sent(visitor: Visitor, tmp_path: Path) -> None:
    visitor.connect()
    visitor.wallet.declines = True
    visitor.fill(tmp_path, "not wanted", 8)
    visitor.submit()
    visitor.sees(visitor.main(".result [role=alert]"), "You declined it in the wallet; nothing was sent.")
    visitor.page.evaluate("switchAccount(null)")
    visitor.page.get_by_role("button", name="Connect Test wallet").wait_for()


def test_a_hostile_name_is_text_everywhere(visitor: Visitor) -> None:
    hostile = on_chain(visitor.world, HOSTILE[:64], adapter(9).encode())
    visitor.go("adapters")
    link = visitor.main(f"a[href='#adapter/{hostile}']")
    playwright.expect(link).to_have_text(HOSTILE[:64])
    visitor.picture("adapters")
    link.click()
    playwright.expect(visitor.main("h1")).to_have_text(HOSTILE[:64])
    visitor.sees(visitor.main(".tree"), HOSTILE[:64])
    visitor.go(f"compose/{hostile}")
    playwright.expect(visitor.main("output.named").first).to_have_text(HOSTILE[:64])
    row = checkpoint_fact(1, reputations={HOSTILE: 1})
    visitor.world.take(row)
    visitor.world.take({"type": "node", "node": 1, "what": "rejected", "reason": HOSTILE, "detail": HOSTILE})
    visitor.go("network")
    visitor.sees(visitor.main(".log"), HOSTILE)
    assert visitor.page.evaluate(
        "[document.querySelectorAll('main img, main script').length, window.hit]"
    ) == [0, None]


def test_the_policy_stops_markup_made_from_text(visitor: Visitor) -> None:
    """Should a later change forget, the browser refuses: trusted types."""
    said = visitor.page.evaluate(
        """() => {
          try { document.body.innerHTML = "<b>x</b>"; return "made" } catch (error) { return error.name }
        }"""
    )
    assert said == "TypeError"
    assert visitor.problems
    visitor.problems.clear()


def test_the_network_is_shown_as_it_goes(visitor: Visitor) -> None:
    world = visitor.world
    for number in (1, 2):
        world.take({"type": "node", "node": number, "what": "voted", "checkpoint": 2})
    world.take(checkpoint_fact(41))
    visitor.sees(visitor.main(), "+65.19 %")
    world.take(checkpoint_fact(42, accuracy_ppm=None))
    visitor.sees(visitor.main("[aria-label='Latest checkpoint']"), re.compile("42.*not measured.*4.*176,902"))
    visitor.sees(visitor.main(), "+1.08 %  −0.05 %")
    nodes = visitor.main("table").first.locator("tbody tr")
    playwright.expect(nodes).to_have_text([re.compile("node 1voted2 20 %"), re.compile("node 2voted2 29 %")])
    world.take(
        {
            "type": "summary",
            "seconds": 9.0,
            "loss": {
                name: {"own": 1.5, "all": 1.25, "worst": 2.0, "general": 1.0}
                for name in ("base", "isolated", "mentored")
            },
        }
    )
    visitor.sees(visitor.main(), "What mentorship was worth")
    visitor.sees(visitor.main(), re.compile("training alone1.5001.2502.0001.000"))
    visitor.picture("network")


def test_a_large_file_is_named_by_its_cid_and_a_broken_one_refused(visitor: Visitor, tmp_path: Path) -> None:
    visitor.connect()
    visitor.go("create")
    path = tmp_path / "adapter_model.safetensors"
    path.write_bytes(b"not an adapter" * 10)
    visitor.page.get_by_label("File", exact=True).set_input_files(path)
    visitor.sees(visitor.main("[aria-live] [role=alert]"), "not in the form that nodes take")
    large = adapter(3, rank=16, targets=("gate_proj", "q_proj")).encode()
    assert len(large) > 96 * 1024
    larger = path.with_name("large.safetensors")
    larger.write_bytes(large)
    visitor.page.get_by_label("File", exact=True).set_input_files(larger)
    content = content_id(large)
    playwright.expect(visitor.page.get_by_label("CID", exact=True)).to_have_value(content.cid)
    visitor.page.get_by_label("Name").fill("large")
    visitor.submit()
    visitor.sees(visitor.main(".result"), content.cid)
    made = visitor.main(".result a.id").inner_text()

    async def latest() -> tuple[bytes, int]:
        factory = await AdapterFactory.connect(visitor.world.rpc_url)
        try:
            row = await factory.latest(bytes.fromhex(made[2:]))
            return row.weights_hash, row.size_bytes
        finally:
            await factory.close()

    assert visitor.world.run(latest()) == (content.digest, content.size_bytes)


def test_cids_are_read_and_written_as_in_python(visitor: Visitor) -> None:
    contents = [ContentId(bytes([n]) * 32, size) for n, size in [(0, 1), (7, 4096), (255, 5 << 20)]]
    read = visitor.page.evaluate(
        """async ([texts, bad]) => {
          const { cidArgument, cidBytes, cidText } = await import("/static/cid.js");
          const isRefused = (text) => { try { cidBytes(text); return false } catch { return true } };
          const given = texts.map(([text, size]) => [...cidArgument(text, size)]);
          return [given, texts.map(([text]) => cidText(cidBytes(text))), bad.filter(isRefused)];
        }""",
        [
            [[content.cid, content.size_bytes] for content in contents],
            bad := [
                "",
                "b",
                "Qm" + "a" * 44,
                contents[0].cid.upper(),
                contents[0].cid[:-1],
                contents[0].cid + "a",
            ],
        ],
    )
    arguments = [list(cid_argument(c.digest, c.codec, c.size_bytes)) for c in contents]
    assert read == [arguments, [content.cid for content in contents], bad]


def test_the_page_can_be_used_by_keyboard_and_every_control_has_a_name(visitor: Visitor) -> None:
    visitor.page.keyboard.press("Tab")
    assert visitor.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    for place in ("create", "compose", "adapters"):
        visitor.go(place)
        visitor.main("h1").wait_for()
        unnamed = visitor.page.evaluate(
            """[...document.querySelectorAll("main input, main select, main button")]
               .filter((c) => !(c.labels?.length || c.textContent.trim() || c.getAttribute("aria-label")))
               .map((c) => c.outerHTML)"""
        )
        assert unnamed == []
    visitor.page.set_viewport_size({"width": 380, "height": 700})
    for place in ("network", "create", "adapters"):
        visitor.go(place)
        visitor.main("h1").wait_for()
        wide = visitor.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        )
        assert not wide, f"{place} scrolls sideways on a telephone"
