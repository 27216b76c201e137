"""The network's state after a checkpoint, and the roles that follow from it.

One frozen value, made only by `genesis_state`, `state_transition.process_checkpoint` and `restore_state`
(for a node that comes late). Everything derived from it (roles, positions) is computed once per state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import numpy as np

from .adapter import AdapterWeights
from .certificate import Validator, validator_set_hash
from .checkpoint import CheckpointRecord
from .codecs import Codec, DeltaLimits, codec, decode_delta
from .content_id import ContentId, content_id
from .encoding import EncodingError, Hash32, Sized, SizedIds, decode_fields, encode_fields
from .methods import moving_factor
from .preset import Preset
from .reputation import Reputation
from .roles import draw_committee, draw_evaluators, draw_mentors, draw_proposer
from .tensors import Factor, Int64Array, Manifest

PROPOSERS_KEPT_MAX = 256
"""Proposers of a checkpoint that are remembered once drawn."""


@dataclass(frozen=True, slots=True)
class StateFile:
    """What a late node needs beside record, weights and the nodes on chain. Named by state_root."""

    network_id: Hash32
    number: int
    adapter_id: Hash32
    weights_hash: Hash32
    weights_size_bytes: int
    recent_weights: SizedIds
    """Content digests of the latest weights, newest first: the parents that a signal may name."""
    reputations: tuple[Reputation, ...]
    """Ascending by node key."""
    committee: tuple[int, ...]
    """Positions, in the node list, of the validators of the next checkpoint."""
    momentum: Annotated[bytes, Sized(0, 2**37)]
    """Of the outer step: int64 little-endian in units of 2**-32, one per value of the adapter in manifest
    order. Empty where the preset sets no momentum, and before the first average."""


@dataclass(frozen=True)
class NetworkState:
    """Where the network stands. Cached properties are pure functions of the fields."""

    preset: Preset
    network_id: bytes
    nodes: tuple[Validator, ...]
    """All registered nodes, ascending by node key; their positions name them in draws."""
    number: int
    """The last final checkpoint; 0 at genesis."""
    record_hash: bytes
    """Its record's hash: the seed of the next checkpoint's roles."""
    adapter_id: bytes
    weights: AdapterWeights
    weights_content: ContentId
    recent_weights: tuple[bytes, ...]
    reputations: tuple[Reputation, ...]
    committee_positions: tuple[int, ...]
    momentum: bytes = b""
    """As in StateFile."""

    @property
    def next_number(self) -> int:
        """The checkpoint that is open now."""
        return self.number + 1

    @property
    def base_model_id(self) -> bytes:
        return self.weights.config.base_model_id

    @cached_property
    def position(self) -> dict[bytes, int]:
        """Node key to its position in `nodes` and `reputations`."""
        return {node.node_key: i for i, node in enumerate(self.nodes)}

    @cached_property
    def committee(self) -> tuple[Validator, ...]:
        """Who proposes and votes at the open checkpoint."""
        return tuple(self.nodes[i] for i in self.committee_positions)

    @cached_property
    def committee_keys(self) -> frozenset[bytes]:
        return frozenset(node.node_key for node in self.committee)

    @cached_property
    def committee_stake(self) -> int:
        """Of the whole committee; a quorum has more than two thirds of it."""
        return sum(node.stake for node in self.committee)

    @cached_property
    def committee_hash(self) -> bytes:
        return validator_set_hash(self.committee)

    @cached_property
    def factor(self) -> Factor:
        """The factor that moves in the open checkpoint."""
        return moving_factor(self.preset.method, self.next_number)

    @cached_property
    def moving_manifest(self) -> Manifest:
        """Names and shapes of the tensors that a delta of the open checkpoint changes."""
        return self.weights.manifest.subset(self.factor)

    @property
    def codec(self) -> Codec:
        """How deltas are encoded on this network."""
        return codec(self.preset.codec)

    def decode_delta(self, data: bytes) -> Int64Array:
        """A delta file of the open checkpoint as integers on the delta grid. Raises FormatError."""
        limits = DeltaLimits(self.preset.delta_size_bytes_max)
        return decode_delta(data, self.codec, self.moving_manifest, limits)

    def momentum_values(self) -> Int64Array:
        """The outer momentum of every value of the adapter, int64 (manifest.count,); a copy."""
        if not self.momentum:
            return np.zeros(self.weights.manifest.count, dtype=np.int64)
        return np.frombuffer(self.momentum, dtype="<i8").astype(np.int64)

    @cached_property
    def mentors(self) -> frozenset[bytes]:
        """Node keys that may announce a signal for the open checkpoint."""
        drawn = draw_mentors(self.preset, self.record_hash, [row.reputation_ppm for row in self.reputations])
        return frozenset(self.nodes[i].node_key for i in drawn)

    @cached_property
    def evaluators(self) -> dict[bytes, frozenset[bytes]]:
        """Mentor's node key to the node keys that measure its signal."""
        mentors = [self.position[key] for key in self.mentors]
        drawn = draw_evaluators(self.preset, self.record_hash, mentors, len(self.nodes))
        return {
            self.nodes[mentor].node_key: frozenset(self.nodes[i].node_key for i in places)
            for mentor, places in drawn.items()
        }

    @cached_property
    def drawn_to_measure(self) -> dict[bytes, frozenset[bytes]]:
        """Evaluator's node key to the node keys of the mentors whose signals it measures."""
        drawn: dict[bytes, set[bytes]] = {}
        for mentor, evaluators in self.evaluators.items():
            for evaluator in evaluators:
                drawn.setdefault(evaluator, set()).add(mentor)
        return {evaluator: frozenset(mentors) for evaluator, mentors in drawn.items()}

    @cached_property
    def role_keys(self) -> frozenset[bytes]:
        """Node keys of all who have a part in the open checkpoint; everyone else follows its certificate."""
        return self.mentors.union(self.committee_keys, *self.evaluators.values())

    @cached_property
    def committee_rank(self) -> dict[bytes, int]:
        """Node key to its place in the committee."""
        return {node.node_key: rank for rank, node in enumerate(self.committee)}

    @cached_property
    def _proposers(self) -> dict[int, bytes]:
        return {}

    def proposer(self, round_number: int) -> bytes:
        """Node key of the proposer of a round of the open checkpoint."""
        known = self._proposers
        if round_number not in known:
            if len(known) >= PROPOSERS_KEPT_MAX:  # rounds that strangers name must not fill the memory
                known.clear()
            stakes = [validator.stake for validator in self.committee]
            place = draw_proposer(self.record_hash, round_number, stakes)
            known[round_number] = self.committee[place].node_key
        return known[round_number]

    def reputation_of(self, node_key: bytes) -> int:
        """In ppm; 0 for a stranger."""
        place = self.position.get(node_key)
        return 0 if place is None else self.reputations[place].reputation_ppm

    def voice_of(self, node_key: bytes) -> int:
        """Weight of a node's evaluations and measurements; 0 for a stranger."""
        place = self.position.get(node_key)
        return 0 if place is None else self.reputations[place].voice

    @cached_property
    def file(self) -> bytes:
        """Canonical bytes of the StateFile; their content digest is the state root."""
        return encode_fields(
            StateFile(
                self.network_id,
                self.number,
                self.adapter_id,
                self.weights_content.digest,
                self.weights_content.size_bytes,
                self.recent_weights,
                self.reputations,
                self.committee_positions,
                self.momentum,
            )
        )

    @cached_property
    def file_content(self) -> ContentId:
        return content_id(self.file)


@dataclass(frozen=True, slots=True)
class _ReputationTable:
    reputations: tuple[Reputation, ...]


def reputations_root(reputations: tuple[Reputation, ...]) -> bytes:
    """Content digest of the reputation table alone."""
    return content_id(encode_fields(_ReputationTable(reputations))).digest


def genesis_state(
    preset: Preset,
    network_id: bytes,
    nodes: tuple[Validator, ...],
    adapter_id: bytes,
    weights: AdapterWeights,
    genesis_record_hash: bytes,
) -> NetworkState:
    """The state before checkpoint 1.

    genesis_record_hash: what the contract holds as the parent of the first record.
    Raises ValueError where the weights' rank or size breaks the preset.
    """
    content = content_id(weights.encode())
    if content.size_bytes > preset.weights_size_bytes_max:
        raise ValueError(
            f"weights have {content.size_bytes} bytes, preset allows {preset.weights_size_bytes_max}"
        )
    if weights.config.rank > preset.rank_max:
        raise ValueError(f"rank is {weights.config.rank}, preset allows {preset.rank_max}")
    ordered = tuple(sorted(nodes, key=lambda node: node.node_key))
    return NetworkState(
        preset=preset,
        network_id=network_id,
        nodes=ordered,
        number=0,
        record_hash=genesis_record_hash,
        adapter_id=adapter_id,
        weights=weights,
        weights_content=content,
        recent_weights=(content.digest,),
        reputations=tuple(
            Reputation(node.node_key, preset.reputation_initial_ppm, 0, 0, preset.credibility_initial_ppm)
            for node in ordered
        ),
        committee_positions=draw_committee(preset, genesis_record_hash, [node.stake for node in ordered]),
    )


def restore_state(
    preset: Preset,
    network_id: bytes,
    nodes: tuple[Validator, ...],
    record: CheckpointRecord,
    state_file: bytes,
    weights: AdapterWeights,
) -> NetworkState:
    """The state after a record, from files that a late node fetched by hash.

    Raises ValueError where a file is not the one that the record names.
    """
    content = content_id(state_file)
    if content != ContentId(record.state_root, record.state_size_bytes):
        raise ValueError("the state file is not the one the record names")
    parsed = decode_fields(StateFile, state_file, size_bytes_max=record.state_size_bytes)
    weights_content = content_id(weights.encode())
    if weights_content != ContentId(record.weights_hash, record.weights_size_bytes):
        raise ValueError("the weights are not the ones the record names")
    ordered = tuple(sorted(nodes, key=lambda node: node.node_key))
    if [row.node_key for row in parsed.reputations] != [node.node_key for node in ordered]:
        raise EncodingError("the state file's reputations are of other nodes than the registered ones")
    if parsed.network_id != network_id or parsed.number != record.number:
        raise EncodingError("the state file is of another network or checkpoint")
    state = NetworkState(
        preset=preset,
        network_id=network_id,
        nodes=ordered,
        number=record.number,
        record_hash=record.hash,
        adapter_id=record.adapter_id,
        weights=weights,
        weights_content=weights_content,
        recent_weights=parsed.recent_weights,
        reputations=parsed.reputations,
        committee_positions=parsed.committee,
        momentum=parsed.momentum,
    )
    if len(parsed.momentum) not in (0, 8 * weights.manifest.count):
        raise EncodingError(f"field momentum has {len(parsed.momentum)} bytes, not 8 for each weight")
    if state.committee_hash != record.next_validator_set_hash:
        raise EncodingError("the state file's committee is not the one the record names")
    return state
