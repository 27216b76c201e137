"""Network identity: what makes one network's messages worthless on any other.

Called by whoever joins a network (runtime/wiring, simulation/cluster, replay).
"""

from __future__ import annotations

from .encoding import Hash32, digest, encode

ZERO32 = bytes(32)
ADAPTER_FACTORY_ADDRESS = bytes.fromhex("0000000000000000000000000000000000000103")
"""Where the contract sits in the genesis state. A number, so its EIP-55 form has no letters."""


def network_id(
    chain_id: int,
    genesis_block_hash: Hash32,
    contract: bytes,
    genesis_record_hash: Hash32,
    preset_digest: Hash32,
) -> Hash32:
    """sha256 of the canonical list of the five things that make a network.

    Every message carries it, so a message cannot be replayed to another network, nor to a new devnet that
    uses the same chain id, nor across a change of preset. The genesis record hash stands in the contract's
    storage: there are chains whose first block's hash does not depend on what the genesis state holds.
    """
    parts = [chain_id, genesis_block_hash, contract, genesis_record_hash, preset_digest]
    return digest("citrate/network-id/1", encode(parts))
