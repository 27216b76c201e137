"""Computes every checkpoint of a recording again, and compares bytes with what was recorded and committed.

The same `process_checkpoint` as the live nodes; no second implementation. Called by `citrate replay`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from .errors import CitrateError
from .protocol.adapter import AdapterLimits, AdapterWeights, decode_adapter
from .protocol.checkpoint import CheckpointRecord, RecordedUpdate, decode_record
from .protocol.composition_request import CompositionRequest, MeasuredComposition
from .protocol.content_id import content_id
from .protocol.encoding import EncodingError
from .protocol.gossip_validation import open_message
from .protocol.identifiers import network_id
from .protocol.messages import MentorshipSignal, Message
from .protocol.preset import Preset
from .protocol.rejection import Rejection
from .protocol.state import NetworkState, genesis_state
from .protocol.state_transition import CheckpointInputs, Outcome, is_valid_delta, process_checkpoint
from .protocol.tensors import FormatError
from .recording import ChainRow, RecordedCheckpoint, Recording


class ReplayDifference(CitrateError):
    """The first thing that is not what was recorded or committed."""


@dataclass(frozen=True, slots=True)
class ReplayedCheckpoint:
    """A checkpoint that came out the same again."""

    number: int
    signals: int
    weights_hash: bytes
    record_hash: bytes
    accuracy_ppm: int
    promoted: bool
    on_chain: bool
    """Whether the recording also holds what the chain said, and it agrees."""


def replay(recording: Recording) -> Iterator[ReplayedCheckpoint]:
    """Recompute checkpoint after checkpoint. Raises ReplayDifference at the first difference, naming it."""
    state = recorded_genesis(recording)
    rows = {row.number: row for row in recording.chain_rows()}
    numbers = recording.checkpoint_numbers()
    if numbers != list(range(1, len(numbers) + 1)):
        missing = next(n for n in range(1, len(numbers) + 2) if n not in numbers)
        raise ReplayDifference(f"checkpoint {missing} is missing from the recording")
    for number in numbers:
        outcome = replay_checkpoint(recording, state, number)
        row = rows.get(number)
        if row is not None:
            _compare_with_chain(outcome, row)
        state = outcome.state
        yield ReplayedCheckpoint(
            number,
            len(outcome.record.signals),
            outcome.record.weights_hash,
            outcome.record.hash,
            outcome.record.accuracy_ppm,
            outcome.record.promoted,
            row is not None,
        )
    for number in rows:
        if number not in numbers:
            raise ReplayDifference(
                f"checkpoint {number} was committed on chain and is missing from the recording"
            )


def recorded_genesis(recording: Recording) -> NetworkState:
    """The state that a recorded network started from."""
    network = recording.network()
    data = recording.genesis_weights()
    if content_id(data).digest != network.genesis_weights_hash:
        raise ReplayDifference(
            f"genesis weights: recorded {network.genesis_weights_hash.hex()}, file gives {content_id(data)}"
        )
    preset = network.preset
    try:
        weights = decode_adapter(data, _limits(preset))
    except FormatError as error:
        raise ReplayDifference(f"genesis weights: {error}") from None
    identity = network_id(
        network.chain_id,
        network.genesis_block_hash,
        network.contract,
        network.genesis_record_hash,
        preset.digest(),
    )
    return genesis_state(
        preset, identity, network.nodes, network.adapter_id, weights, network.genesis_record_hash
    )


def replay_checkpoint(recording: Recording, state: NetworkState, number: int) -> Outcome:
    """One checkpoint again, from its recorded inputs. Raises ReplayDifference naming the first difference."""
    return replay_inputs(state, *recorded_inputs(recording, state, number))


def recorded_inputs(
    recording: Recording, state: NetworkState, number: int
) -> tuple[CheckpointRecord, CheckpointInputs]:
    """A recorded checkpoint's record, and what it was computed from, checked against the state before it.

    Raises ReplayDifference where a message or delta is missing or is not what was signed.
    """
    recorded = recording.checkpoint(number)
    try:
        record = decode_record(recorded.record)
    except EncodingError as error:
        raise ReplayDifference(f"checkpoint {number}: record: {error}") from None
    return record, _inputs(recording, state, number, record, recorded)


def replay_inputs(state: NetworkState, record: CheckpointRecord, inputs: CheckpointInputs) -> Outcome:
    """Compute a record again. Raises ReplayDifference naming the first field that differs."""
    number = state.next_number
    try:
        outcome = process_checkpoint(state, inputs)
    except Rejection as rejection:
        raise ReplayDifference(f"checkpoint {number}: {rejection}") from None
    for field in fields(CheckpointRecord):
        wanted, got = getattr(record, field.name), getattr(outcome.record, field.name)
        if wanted != got:
            raise ReplayDifference(
                f"checkpoint {number}: {field.name} was {_short(wanted)}, computed again {_short(got)}"
            )
    return outcome


def _inputs(
    recording: Recording,
    state: NetworkState,
    number: int,
    record: CheckpointRecord,
    recorded: RecordedCheckpoint,
) -> CheckpointInputs:
    by_id: dict[bytes, Message] = {}
    for place, envelope in enumerate(recorded.envelopes):
        try:
            message = open_message(envelope, state.network_id)
        except Rejection as rejection:
            raise ReplayDifference(f"checkpoint {number}: message {place}: {rejection}") from None
        by_id[message.id] = message

    def take(ids: tuple[bytes, ...], name: str) -> tuple[Message, ...]:
        for i in ids:
            if i not in by_id:
                raise ReplayDifference(f"checkpoint {number}: {name} {i.hex()} is missing from the recording")
        return tuple(by_id[i] for i in ids)

    signals = take(record.signals, "signal")
    deltas = {}
    for message in signals:
        body = message.body
        assert isinstance(body, MentorshipSignal)
        data = recording.delta(body.delta_hash)
        if not is_valid_delta(state, body, data):
            raise ReplayDifference(
                f"checkpoint {number}: the delta of mentor {body.author[:8].hex()} "
                f"was {body.delta_hash.hex()}, its file gives {content_id(data).digest.hex()}"
            )
        deltas[body.delta_hash] = data
    return CheckpointInputs(
        signals=signals,
        evaluations=take(record.evaluations, "evaluation"),
        measurements=take(record.measurements, "measurement"),
        withheld=take(record.withheld, "withheld signal"),
        equivocations=tuple(
            (take((pair.first,), "signal")[0], take((pair.second,), "signal")[0])
            for pair in record.equivocations
        ),
        deltas=deltas,
        compositions=tuple(
            MeasuredComposition(
                _request(recording, state, number, update),
                take(update.measurements, "measurement of a composition"),
            )
            for update in record.compositions
        ),
    )


def _request(
    recording: Recording, state: NetworkState, number: int, update: RecordedUpdate
) -> CompositionRequest:
    """A composition, computed again from its recorded parents."""
    where = f"checkpoint {number}: composition {update.adapter_id[:8].hex()}"

    def parent(digest: bytes) -> AdapterWeights:
        data = recording.parent(digest)
        if content_id(data).digest != digest:
            raise ReplayDifference(
                f"{where}: a parent was {digest.hex()}, its file gives {content_id(data).digest.hex()}"
            )
        try:
            return decode_adapter(data, _limits(state.preset))
        except FormatError as error:
            raise ReplayDifference(f"{where}: parent {digest.hex()}: {error}") from None

    request = CompositionRequest(
        update.adapter_id, parent(update.parent_a_hash), parent(update.parent_b_hash), update.weight_a
    )
    try:
        got = request.content.digest
    except FormatError as error:
        raise ReplayDifference(f"{where}: {error}") from None
    if got != update.weights_hash:
        why = " (recompressed: the bytes depend on the machine)" if request.result.recompressed else ""
        raise ReplayDifference(
            f"{where}: weights_hash was {update.weights_hash.hex()}, computed again {got.hex()}{why}"
        )
    return request


def _limits(preset: Preset) -> AdapterLimits:
    return AdapterLimits(preset.weights_size_bytes_max, preset.tensors_max, preset.rank_max)


def _compare_with_chain(outcome: Outcome, row: ChainRow) -> None:
    for name, got, wanted in (
        ("record hash", outcome.record.hash.hex(), row.record_hash.removeprefix("0x")),
        ("weights hash", outcome.record.weights_hash.hex(), row.weights_hash.removeprefix("0x")),
    ):
        if got != wanted:
            raise ReplayDifference(
                f"checkpoint {row.number}: {name} on chain is {wanted}, computed again {got}"
            )


def _short(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple):
        return f"{len(value)} entries"
    return str(value)
