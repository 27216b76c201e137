"""The page in a real Chromium, with a wallet announced by EIP-6963 whose key is the devnet's funded founder.

Skipped where there is no Chromium ($CITRATE_CHROMIUM, or `chromium` on the PATH). CITRATE_SCREENSHOTS names a
folder that gets pictures of the page, light and dark, for whoever changes it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from page_visitor import CHROMIUM, Visitor, playwright, running_browser, visit
from page_world import BrowserWallet, PageWorld, checkpoint_fact
from wallet_chain import adapter

from citrate_node.chain.adapter_factory import AdapterFactory, cid_argument
from citrate_node.protocol.content_id import ContentId, content_id

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")

HOSTILE = "<img src=x onerror=window.hit=1><script>window.hit=1</script>"
COMPOSED_HASH = b"\x5a" * 32


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def visitor(browser: playwright.Browser, world: PageWorld) -> Iterator[Visitor]:
    wallet = BrowserWallet(world.chain.devnet.founder_key())
    with visit(browser, world.page.url, wallet) as visitor:
        yield visitor


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
    visitor: Visitor, world: PageWorld, tmp_path: Path
) -> None:
    visitor.connect()
    assert visitor.wallet.networks == {40298: world.rpc_url}, "wallets get the gate, not the chain"
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
    world.run(world.chain.certify(bytes.fromhex(composed[2:]), content, 18_000))
    visitor.page.reload()
    cells = visitor.main("tbody td")
    playwright.expect(cells).to_have_count(7)
    assert cells.all_inner_texts()[:4] == ["1", "+1.80 %", "1", "20 KiB"]
    assert cells.nth(4).locator("button").get_attribute("data-whole") == content.cid
    playwright.expect(visitor.main(".tree > li > ul > li")).to_have_count(2)
    visitor.picture("adapter")


def test_a_refusal_is_decoded_before_anything_is_sent(
    visitor: Visitor, world: PageWorld, tmp_path: Path
) -> None:
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


def test_a_contract_that_changed_its_mind_meanwhile_is_asked_why(
    visitor: Visitor, world: PageWorld, tmp_path: Path
) -> None:
    visitor.connect()
    visitor.fill(tmp_path, "in a hurry", 11)
    visitor.page.get_by_role("button", name="Try it").click()
    visitor.page.get_by_role("button", name="Send with the wallet").wait_for()
    made = on_chain(world, "in a hurry", adapter(11).encode())
    visitor.page.get_by_role("button", name="Send with the wallet").click()
    visitor.sees(visitor.main(".result [role=alert]"), f"AdapterExists(adapterId = {made})")


def test_another_network_of_the_same_number_is_not_sent_to(
    browser: playwright.Browser, world: PageWorld, tmp_path: Path
) -> None:
    """Devnets share their chain id: a wallet that knows an older one would send to nowhere, or worse."""

    class OldNetwork(BrowserWallet):
        def _rpc(self, method: str, *params: Any) -> Any:
            return {"hash": "0x" + "ee" * 32} if params == ("0x0", False) else super()._rpc(method, *params)

    wallet = OldNetwork(world.chain.devnet.founder_key(), chain_id=40298, networks={40298: world.rpc_url})
    with visit(browser, world.page.url, wallet) as visitor:
        visitor.page.get_by_role("button", name="Connect Test wallet").click()
        visitor.fill(tmp_path, "nowhere", 12)
        visitor.page.get_by_role("button", name="Try it").click()
        visitor.sees(
            visitor.main(".result [role=alert]"), f"set the RPC URL of that network to {world.rpc_url}"
        )
    assert "eth_sendTransaction" not in wallet.requests


def test_a_wallet_that_does_not_announce_itself_is_found_too(
    browser: playwright.Browser, world: PageWorld
) -> None:
    wallet = BrowserWallet(world.chain.devnet.founder_key(), name="Browser wallet", announces=False)
    with visit(browser, world.page.url, wallet) as visitor:
        visitor.connect()


def test_an_account_without_coins_is_told_how_to_get_some(
    browser: playwright.Browser, world: PageWorld, tmp_path: Path
) -> None:
    wallet = BrowserWallet(b"\x77" * 32)
    with visit(browser, world.page.url, wallet) as visitor:
        visitor.connect()
        visitor.sees(visitor.page.locator("#wallet"), f"citrate wallet fund {wallet.address}")
        visitor.fill(tmp_path, "poor", 13)
        visitor.page.get_by_role("button", name="Try it").click()
        visitor.sees(visitor.main(".result [role=alert]"), f"citrate wallet fund {wallet.address}")


def test_what_the_wallet_declines_is_said_and_not_sent(
    visitor: Visitor, world: PageWorld, tmp_path: Path
) -> None:
    visitor.connect()
    visitor.wallet.declines = True
    visitor.fill(tmp_path, "not wanted", 8)
    visitor.submit()
    visitor.sees(visitor.main(".result [role=alert]"), "You declined it in the wallet; nothing was sent.")
    visitor.page.evaluate("switchAccount(null)")
    visitor.page.get_by_role("button", name="Connect Test wallet").wait_for()


def test_a_hostile_name_is_text_everywhere(visitor: Visitor, world: PageWorld) -> None:
    hostile = on_chain(world, HOSTILE[:64], adapter(9).encode())
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
    world.take(row)
    world.take({"type": "node", "node": 1, "what": "rejected", "reason": HOSTILE, "detail": HOSTILE})
    visitor.go("network")
    visitor.sees(visitor.main(".log"), HOSTILE)
    assert visitor.page.evaluate(
        "[document.querySelectorAll('main img, main script').length, window.hit]"
    ) == [0, None]


def test_the_policy_stops_markup_made_from_text(visitor: Visitor, world: PageWorld) -> None:
    """Should a later change forget, the browser refuses: trusted types."""
    said = visitor.page.evaluate(
        """() => {
          try { document.body.innerHTML = "<b>x</b>"; return "made" } catch (error) { return error.name }
        }"""
    )
    assert said == "TypeError"
    assert visitor.problems
    visitor.problems.clear()


def test_the_network_is_shown_as_it_goes(visitor: Visitor, world: PageWorld) -> None:
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


def test_a_large_file_is_named_by_its_cid_and_a_broken_one_refused(
    visitor: Visitor, world: PageWorld, tmp_path: Path
) -> None:
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
        factory = await AdapterFactory.connect(world.rpc_url)
        try:
            row = await factory.latest(bytes.fromhex(made[2:]))
            return row.weights_hash, row.size_bytes
        finally:
            await factory.close()

    assert world.run(latest()) == (content.digest, content.size_bytes)


def test_a_base_model_that_the_list_does_not_show_is_looked_up(visitor: Visitor, tmp_path: Path) -> None:
    visitor.go("create")
    visitor.main("select").wait_for()
    visitor.page.evaluate("document.querySelector('select').replaceChildren()")
    path = tmp_path / "one.safetensors"
    path.write_bytes(adapter(3).encode())
    visitor.page.get_by_label("File", exact=True).set_input_files(path)
    base = adapter(3).config.base_model_id.hex()
    playwright.expect(visitor.page.get_by_label("Base model")).to_have_value("0x" + base)
    path.with_name("two.safetensors").write_bytes(adapter(3).encode().replace(base.encode(), b"ab" * 32))
    visitor.page.get_by_label("File", exact=True).set_input_files(path.with_name("two.safetensors"))
    visitor.sees(visitor.main("[aria-live] [role=alert]"), f"base model 0x{'ab' * 32} is not registered")


def test_cids_are_read_and_written_as_in_python(visitor: Visitor, world: PageWorld) -> None:
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


def test_the_page_can_be_used_by_keyboard_and_every_control_has_a_name(
    visitor: Visitor, world: PageWorld
) -> None:
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
