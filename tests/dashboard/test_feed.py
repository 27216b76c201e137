"""What the page keeps of a devnet's facts, and what it does with pages that do not keep up."""

import pytest
from page_world import checkpoint_fact

from citrate_node.dashboard.feed import EVENTS_MAX, PAGES_MAX, QUEUE_MAX, ROWS_MAX, Feed, TooManyPages

DEVNET = {
    "type": "devnet",
    "dir": "/d",
    "rpc_url": "http://127.0.0.1:2",
    "inner_rpc_url": "http://127.0.0.1:1",
    "page_url": None,
    "chain_id": 7,
    "contract": "0x01",
    "adapter_id": "0x02",
    "founder": "0x03",
    "founder_key_file": "/d/key",
    "abi_file": "/abi",
    "nodes": 2,
}
PUBLIC = {
    "chain_id": 7,
    "contract": "0x01",
    "rpc_url": "http://127.0.0.1:2",
    "adapter_id": "0x02",
    "founder": "0x03",
    "nodes": 2,
}


def node(number: int, what: str, **more: object) -> dict[str, object]:
    return {"type": "node", "node": number, "what": what, **more}


async def test_a_page_that_opens_late_gets_the_same_as_one_that_was_there() -> None:
    feed = Feed([checkpoint_fact(1)])
    facts = [
        {"type": "starting", "what": "chain"},
        DEVNET,
        node(1, "ready"),
        node(2, "died", code=-9, reason="killed", log="/d/node-2/node.log"),
        checkpoint_fact(2),
        {"type": "step", "text": "measuring"},
        {"type": "of a later version"},
    ]
    with feed.subscribed() as queue:
        for fact in facts:
            feed.take(fact)
        told = [queue.get_nowait() for _ in range(queue.qsize())]
    died = node(2, "died", code=-9, reason="killed")
    assert told == [
        {"type": "step", "text": "starting chain"},
        {"type": "devnet", **PUBLIC},
        node(1, "ready"),
        died,
        checkpoint_fact(2),
        {"type": "step", "text": "measuring"},
    ]
    assert feed.state() == {
        "type": "state",
        "devnet": PUBLIC,
        "step": "measuring",
        "nodes": {"1": node(1, "ready"), "2": died},
        "checkpoints": [checkpoint_fact(1), checkpoint_fact(2)],
        "events": [died],
        "summary": None,
    }


async def test_the_summary_is_kept_without_where_it_lies() -> None:
    feed = Feed()
    loss = {"base": {"own": 1.0}}
    feed.take({"type": "summary", "dir": "/d", "loss": loss, "seconds": 2.5, "checkpoints": []})
    assert feed.state()["summary"] == {"type": "summary", "loss": loss, "seconds": 2.5}
    assert feed.state()["step"] == "done"


async def test_a_page_that_takes_nothing_is_told_to_come_back_and_harms_no_other() -> None:
    feed = Feed()
    with feed.subscribed() as slow, feed.subscribed() as quick:
        taken = []
        for number in range(QUEUE_MAX + 3):
            feed.take(node(1, "voted", checkpoint=number))
            taken.append(quick.get_nowait())
        assert [fact["checkpoint"] for fact in taken if fact] == list(range(QUEUE_MAX + 3))
        waiting = [slow.get_nowait() for _ in range(slow.qsize())]
        assert waiting[-1] is None
        assert len(waiting) == QUEUE_MAX


async def test_everything_that_is_kept_has_a_bound() -> None:
    feed = Feed()
    for number in range(ROWS_MAX + 5):
        feed.take(checkpoint_fact(number))
        feed.take(node(1, "rejected", checkpoint=number))
    state = feed.state()
    assert [row["number"] for row in state["checkpoints"]] == list(range(5, ROWS_MAX + 5))
    assert len(state["events"]) == EVENTS_MAX
    pages = [feed.subscribed() for _ in range(PAGES_MAX)]
    for page in pages:
        page.__enter__()
    with pytest.raises(TooManyPages):
        feed.subscribed().__enter__()
    pages[0].__exit__(None, None, None)
    with feed.subscribed():
        pass
    for page in pages[1:]:
        page.__exit__(None, None, None)
