"""Peer ids and node keys are two spellings of one thing."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from citrate_node.errors import ConfigError
from citrate_node.network.identity import node_key_of, peer_id_of
from citrate_node.network.peers import split_address
from citrate_node.network.settings import NetworkConfig


@given(st.binary(min_size=32, max_size=32))
def test_a_peer_id_is_the_one_libp2p_derives_and_gives_the_key_back(seed: bytes) -> None:
    key = create_new_key_pair(seed).public_key
    peer_id = peer_id_of(key.to_bytes())
    assert peer_id == str(ID.from_pubkey(key))
    assert node_key_of(peer_id) == key.to_bytes()


@given(st.one_of(st.text(max_size=60), st.text(alphabet="123456789ABCDEFGHJKLMN", min_size=52, max_size=52)))
def test_any_other_text_is_no_peer_id(text: str) -> None:
    with pytest.raises(ValueError, match="is not the peer id of an Ed25519 key"):
        node_key_of(text)


def test_a_key_of_another_length_has_no_peer_id() -> None:
    with pytest.raises(ValueError, match="has 32 bytes, not 31"):
        peer_id_of(bytes(31))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/127.0.0.1/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/ip4/127.0.0.1/udp/4001/quic-v1/p2p/" + peer_id_of(bytes(32)),
        "/ip4/127.0.0.1/tcp/4001/ws/p2p/" + peer_id_of(bytes(32)),
        "/ip4/1.2.3/tcp/4001/p2p/" + peer_id_of(bytes(32)),
        "/unix/tmp/socket/p2p/" + peer_id_of(bytes(32)),
    ],
)
def test_an_address_that_is_none_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match="write it as /ip4/"):
        split_address(text)


@given(st.text(max_size=80))
def test_no_text_breaks_the_address_parser(text: str) -> None:
    with pytest.raises(ConfigError):
        split_address(text + "/p2p/" + text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"identity_seed": bytes(31)}, "has 31 bytes, it needs 32"),
        ({"message_size_bytes_max": 1 << 20}, "send anything larger as a blob"),
        ({"redial_ms": 40_000}, "redial_ms must lie between"),
        ({"blobs_at_once": 0}, "blobs_at_once must be above 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NetworkConfig(**({"identity_seed": bytes(32)} | settings))  # type: ignore[arg-type]


def test_naming_peers_and_building_settings_does_not_load_libp2p() -> None:
    """Which takes 0.6 s, and the command line names peers."""
    program = (
        "import sys, citrate_node.network.identity, citrate_node.network.settings;"
        "print(sorted({'libp2p', 'trio', 'multiaddr'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
