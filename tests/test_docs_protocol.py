"""docs/protocol.md says the numbers that the code uses: its tables, read by a machine."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from citrate_node.config import load_preset
from citrate_node.network import gossip, hardening, ledger, peers, waste
from citrate_node.network.requests import BUSY_POINTS
from citrate_node.network.settings import (
    BLOB_PROTOCOL,
    PEERS_PROTOCOL,
    REQUEST_PROTOCOL,
    BlobStatus,
    NetworkConfig,
)
from citrate_node.node.pool import MEASUREMENTS_PER_NODE_MAX, ROUNDS_KEPT_MAX
from citrate_node.node.state_machine import EARLY_MESSAGES_PER_NODE_MAX
from citrate_node.protocol import catch_up, certificate, checkpoint, encoding, messages, metrics, rules
from citrate_node.protocol.codecs import CODECS, int4, int8, topk
from citrate_node.protocol.codecs.topk import TopK
from citrate_node.protocol.encoding import Between, Sized
from citrate_node.protocol.exact_products import FACTOR_BITS
from citrate_node.protocol.rules import MIXED, RULES
from citrate_node.protocol.state import StateFile
from citrate_node.protocol.topics import all_topics
from citrate_node.runtime import judging, opened

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
FLAT = re.sub(r"\s+", " ", TEXT)


def rows(first_header: str) -> list[list[str]]:
    """Cells of the rows of the table whose first row begins with this cell."""
    lines = iter(TEXT.splitlines())
    for line in lines:
        if line.startswith(f"| {first_header} |"):
            next(lines)
            return list(_cells(lines))
    raise AssertionError(f"docs/protocol.md has no table that begins with {first_header!r}")


def _cells(lines: Iterator[str]) -> Iterator[list[str]]:
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]


def limits_of(name: str) -> list[dict[str, str]]:
    """The table `| limit | value |` whose first limit has this name, as one mapping."""
    found, at = [], 0
    while (at := TEXT.find("| limit | value |", at)) >= 0:
        found.append({row[0]: row[1] for row in _cells(iter(TEXT[at:].splitlines()[2:]))})
        at += 1
    return [table for table in found if name in table]


NAMES = {
    messages.MentorshipSignal: "signal",
    messages.Evaluation: "evaluation",
    messages.Measurement: "measurement",
    messages.Proposal: "proposal",
    messages.Vote: "vote",
}
PLAIN = {bytes: "bytes", str: "text", int: "integer"}


def test_the_fields_of_the_messages_have_the_types_and_limits_that_the_document_says() -> None:
    said: set[tuple[str, str, str, int, int]] = set()
    for field, where, plain, least, most in rows("field"):
        kinds = {
            "all": list(NAMES.values()),
            "the other four": ["evaluation", "measurement", "proposal", "vote"],
        }.get(where, where.split(", "))
        said |= {(kind, field, plain, int(least), int(most)) for kind in kinds}
    used = set()
    for kind, name in NAMES.items():
        for field, hint in typing.get_type_hints(kind, include_extras=True).items():
            plain, (limit, *_) = typing.get_args(hint)[0], typing.get_args(hint)[1:]
            assert isinstance(limit, (Between, Sized))
            used.add((name, field, PLAIN[plain], limit.low, limit.high))
    assert said == used


def test_kinds_domains_and_topics_are_the_documented_ones() -> None:
    name = bytes(range(32))
    said = [
        (int(kind), domain, f"/citrate/{name[:8].hex()}/{suffix}/1")
        for kind, _, domain, suffix in rows("kind")
    ]
    used = [(kind, messages.DOMAINS[body]) for kind, body in messages.KINDS.items()]
    assert said == [
        (kind, domain, topic) for (kind, domain), topic in zip(used, all_topics(name), strict=True)
    ]
    domains = {row[0] for row in rows("domain")}
    sources = "".join(path.read_text() for path in (ROOT / "citrate_node" / "protocol").glob("*.py"))
    assert domains == set(re.findall(r'"(citrate/[a-z-]+/1)"', sources))


@pytest.mark.parametrize("column", [1, 2])
def test_the_presets_have_the_documented_numbers(column: int) -> None:
    preset = load_preset(("devnet", "minimal")[column - 1])
    table = next(
        list(_cells(iter(TEXT[at:].splitlines()[2:]))) for at in [TEXT.index("| field | devnet | minimal |")]
    )
    said = {row[0]: row[column] for row in table}
    assert said == {name: str(value) for name, value in dataclasses.asdict(preset).items()}


def test_the_limits_of_the_protocol_are_the_documented_ones() -> None:
    (said,) = limits_of("envelope, bytes")
    assert said == {
        "envelope, bytes": str(messages.ENVELOPE_SIZE_BYTES_MAX),
        "record, bytes": str(checkpoint.RECORD_SIZE_BYTES_MAX),
        "nesting of CBOR": str(encoding.DEPTH_MAX),
        "request payload, bytes": str(catch_up.REQUEST_SIZE_BYTES_MAX),
        "answer payload, bytes": str(catch_up.ANSWER_SIZE_BYTES_MAX),
        "ids in have": str(catch_up.HAVE_MAX),
        "envelopes in an answer": str(catch_up.MESSAGES_MAX),
        "list of peers, bytes": str(peers.LIST_SIZE_BYTES_MAX),
        "addresses in it": str(peers.ADDRESSES_TOLD_MAX),
        "length of an address": str(peers.ADDRESS_LENGTH_MAX),
        "gossip frame, bytes": str(gossip.FRAME_SIZE_BYTES_MAX),
        "messages in a frame": str(gossip.MESSAGES_PER_FRAME_MAX),
        "updates in a commitment": str(certificate.UPDATES_MAX),
        "validators in a set": str(certificate.VALIDATORS_MAX),
    }


def test_what_a_node_grants_one_peer_is_documented() -> None:
    c = NetworkConfig(identity_seed=bytes(32))
    (said,) = limits_of("connections")
    assert said == {
        "gossip messages a second, and at once": f"{c.messages_per_second}, {c.messages_burst}",
        "gossip bytes a second, and at once": f"{c.bytes_per_second}, {c.bytes_burst}",
        "gossip messages of one origin a second, and at once": (
            f"{c.origin_messages_per_second}, {c.origin_messages_burst}"
        ),
        "requests a second, and at once": f"{c.requests_per_second}, {c.requests_burst}",
        "requests under way": str(c.requests_at_once_per_peer),
        "blobs under way": str(c.blobs_at_once_per_peer),
        "connections": str(hardening.CONNECTIONS_PER_PEER_MAX),
        "streams": str(hardening.STREAMS_PER_PEER_MAX),
        "subscriptions": str(gossip.SUBSCRIPTIONS_PER_PEER_MAX),
    }


def test_points_statuses_and_stream_protocols_are_the_documented_ones() -> None:
    costs = [row[1] for row in rows("what a peer does")]
    assert costs == [
        f"{ledger.INVALID_MESSAGE:.0f} points",
        f"{judging.REJECTED_POINTS:.0f} points",
        f"{judging.CONTRADICTED_POINTS:.0f} points",
        f"{ledger.OVER_RATE} points",
        f"{ledger.MALFORMED_FRAME:.0f} points",
        f"{ledger.WRONG_BLOB:.0f} points",
        f"{ledger.HELD_BACK_PER_SECOND:.0f} points a second",
        f"{BUSY_POINTS} points",
        "nothing: it is dropped unread",
    ]
    c = NetworkConfig(identity_seed=bytes(32))
    assert (c.score_max, c.score_decay_per_second, c.block_ms) == (100, 1, 600_000)
    assert "fade by 1 a second; at 100 the peer is cut off for 10 minutes" in FLAT
    assert f"seen in the last {waste.SEEN_SECONDS:.0f} s" in TEXT
    assert f"At {c.useless_messages_max} the peer is cut off for 10 minutes" in FLAT
    assert f"counts 1/{1 / ledger.LATE_MESSAGE:.0f}, and" in FLAT
    assert f"(not for too much) {ledger.USELESS_PER_POINT}." in FLAT
    assert f"beyond {ledger.COPIES_PER_MESSAGE} for every message" in FLAT
    assert f"more than {opened.PASSED_ON_BEHIND} behind the open one" in FLAT
    assert f"more than {opened.EXCUSED_BEHIND} checkpoints behind" in FLAT
    assert f"heard more than {opened.EXCUSED_COPY_SECONDS:.0f} s ago" in FLAT
    assert [int(row[0]) for row in rows("status")] == [status.value for status in BlobStatus]
    for protocol in (BLOB_PROTOCOL, PEERS_PROTOCOL, REQUEST_PROTOCOL):
        assert f"`{protocol}`" in TEXT


def test_the_bounds_of_the_pool_are_documented() -> None:
    text = FLAT
    assert f"at most {EARLY_MESSAGES_PER_NODE_MAX} per author and checkpoint and no proposal" in text
    assert MEASUREMENTS_PER_NODE_MAX == 8
    assert "measurement: the ninth of one author" in text
    assert f"vote: more than {ROUNDS_KEPT_MAX} rounds of one author" in text


@pytest.mark.parametrize(
    "kind", [checkpoint.CheckpointRecord, checkpoint.RecordedUpdate, StateFile], ids=lambda k: k.__name__
)
def test_every_field_of_record_and_state_file_is_named(kind: type) -> None:
    section = TEXT[TEXT.index("## 8. Files") : TEXT.index("## 9. Finality")]
    missing = [field.name for field in dataclasses.fields(kind) if f"`{field.name}`" not in section]
    assert missing == []


def test_the_family_of_topk_codecs_is_the_documented_one() -> None:
    said = [(name, int(kept), int(low), int(levels)) for name, kept, low, levels in rows("codec")]
    family = [each for each in CODECS.values() if isinstance(each, TopK)]
    assert said == [(each.name, each.kept, each.low_bits, each.levels) for each in family]


def test_every_codec_and_every_aggregation_rule_is_documented() -> None:
    section = TEXT[TEXT.index("## 8. Files") : TEXT.index("## 9. Finality")]
    assert [name for name in CODECS if f"`{name}`" not in section] == []
    said = {row[0] for row in rows("rule")} - {f"{MIXED} + any rule"}
    assert said | {MIXED + name for name in said} == set(RULES)


def test_the_numbers_of_codecs_rules_and_inner_products_are_the_documented_ones() -> None:
    assert f"levels {', '.join(map(str, int4.LEVELS))}" in FLAT
    assert f"`int8`: blocks of {int8.BLOCK} values" in FLAT
    assert f"`int4`: blocks of {int4.BLOCK} values" in FLAT
    assert f"family**: blocks of {topk.BLOCK} values" in FLAT
    assert f"limit c = {rules.CLIP_PERCENT} · lower median" in FLAT
    assert f"at most {rules.WEISZFELD_STEPS_MAX} times" in FLAT
    assert f"to {metrics.ROOT_BITS} bits in place of {FACTOR_BITS}" in FLAT
    assert f"max(bits(b) − {metrics.TURNED_BITS}, 0)" in FLAT


def test_every_file_of_vectors_is_named_and_every_named_one_is_there() -> None:
    named = set(re.findall(r"`([a-z_]+\.json)`", TEXT[TEXT.index("## 12. Vectors") :]))
    assert named == {path.name for path in (ROOT / "tests" / "vectors").glob("*.json")}
