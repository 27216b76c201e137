"""Going on to a checkpoint by its certificate: from the files that its record hash names.

What a node does that had no role in a checkpoint, or missed it. Pure; called by node/state_machine.
"""

from __future__ import annotations

from .adapter import AdapterLimits, decode_adapter
from .checkpoint import CheckpointRecord, decode_record
from .state import NetworkState, restore_state


def follow(
    state: NetworkState, record_hash: bytes, record: bytes, state_file: bytes, weights: bytes
) -> tuple[CheckpointRecord, NetworkState]:
    """The record that the chain names, and the state after it.

    state: any earlier one of the same network; its preset, network id and nodes are used.
    Raises ValueError (EncodingError, FormatError) where a file is not the one that the hash leads to.
    """
    decoded = decode_record(record)
    if decoded.hash != record_hash:
        raise ValueError("the record is not the one that the chain names")
    preset = state.preset
    limits = AdapterLimits(preset.weights_size_bytes_max, preset.tensors_max, preset.rank_max)
    adapter = decode_adapter(weights, limits)
    return decoded, restore_state(preset, state.network_id, state.nodes, decoded, state_file, adapter)
