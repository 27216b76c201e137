"""What the calls cost, against gas_snapshot.json: a rise above 2 % fails, and so does breaking a promise.

After a deliberate change write the figures anew with CITRATE_WRITE_GAS=1 and say in the commit why.
"""

import json
import os
from pathlib import Path

from factory_evm import (
    BASE,
    Evm,
    commit,
    commitment,
    create,
    digest_of,
    seat_of,
    update,
    validator,
    vote_argument,
    weights_cid,
)

SNAPSHOT = Path(__file__).with_name("gas_snapshot.json")
PROMISES = {
    "createAdapter by CID, first of its account": 230_000,
    "composeAdapters": 170_000,
    "commitCheckpoint, 3 of 4 votes, one update": 160_000,
    "commitCheckpoint, each further update": 80_000,
    "commitCheckpoint, 67 of 100 votes, no update": 500_000,
}
"""Upper limits for Cancun, agreed before the contract was written."""


def measured(evm: Evm) -> dict[str, int]:
    """Gas of whole transactions. The hashes are fixed, so the figures are the same on every run and EVM."""
    gas = {}
    first = evm.send("createAdapter", BASE.base_model_id, "my adapter", weights_cid("a"), 8)
    gas["createAdapter by CID, first of its account"] = first.gas_used
    second = evm.send("createAdapter", BASE.base_model_id, "my adapter", weights_cid("b"), 8)
    gas["createAdapter by CID"] = second.gas_used
    gas["createAdapter by CID, name of 64 bytes"] = evm.send(
        "createAdapter", BASE.base_model_id, "n" * 64, weights_cid("c"), 8
    ).gas_used
    gas["createAdapter with 16 KiB in calldata"] = evm.send(
        "createAdapter", BASE.base_model_id, "my adapter", b"\xa5" * 16_384, 8
    ).gas_used
    gas["publishVersion by CID"] = evm.send("publishVersion", second.result, weights_cid("d")).gas_used
    gas["composeAdapters"] = evm.send("composeAdapters", first.result, second.result, 30, 70).gas_used
    opened = evm.send("openToMentorship", first.result)
    gas["openToMentorship"] = opened.gas_used
    ids = [first.result, *(create(evm, f"more {i}") for i in range(8))]
    for adapter in ids[1:]:
        evm.send("openToMentorship", adapter)
    gas["commitCheckpoint, the first ever, no update"] = commit(evm, commitment(1)).gas_used
    gas["commitCheckpoint, 3 of 4 votes, no update"] = commit(
        evm, commitment(2, digest_of("record 1"))
    ).gas_used
    one = commit(evm, commitment(3, digest_of("record 2"), [update(ids[0], "x")])).gas_used
    nine = commit(
        evm, commitment(4, digest_of("record 3"), [update(adapter, f"y{i}") for i, adapter in enumerate(ids)])
    ).gas_used
    gas["commitCheckpoint, 3 of 4 votes, one update"] = one
    gas["commitCheckpoint, each further update"] = (nine - one) // 8
    votes = [vote_argument(evm.chain_id, commitment(1, record=digest_of(text)), "v1") for text in ("l", "r")]
    gas["reportEquivocation"] = evm.send("reportEquivocation", seat_of("v1"), *votes).gas_used

    names = [f"w{i}" for i in range(100)]
    hundred = [validator(name) for name in names]
    evm.reset(hundred)
    commit(evm, commitment(1, validators=hundred), names[:67], hundred)
    many = commitment(2, digest_of("record 1"), validators=hundred)
    gas["commitCheckpoint, 67 of 100 votes, no update"] = commit(evm, many, names[33:], hundred).gas_used
    return gas


def test_gas_stays_within_two_per_cent_of_the_snapshot_and_within_what_was_promised(evm: Evm) -> None:
    now = measured(evm)
    if os.environ.get("CITRATE_WRITE_GAS"):
        SNAPSHOT.write_text(json.dumps(now, indent=1) + "\n")
    before = json.loads(SNAPSHOT.read_text())
    risen = {name: (before.get(name), gas) for name, gas in now.items() if gas > 1.02 * before.get(name, 0)}
    broken = {name: (limit, now[name]) for name, limit in PROMISES.items() if now[name] > limit}
    assert (risen, broken, sorted(before)) == ({}, {}, sorted(now))
