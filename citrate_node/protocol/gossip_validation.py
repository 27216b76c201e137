"""Is this message one that a node may send now? Checks in the order of what they cost.

`open_message` needs no state: size, canonical bytes, network, signature. It is what the gossip validator
runs, so its answer may be cached. `check_message` needs the state and is run by the node, and again by
process_checkpoint on every input of a record. Both raise Rejection.
"""

from __future__ import annotations

from collections.abc import Container

from .certificate import commitment_digest, recover_account
from .checkpoint import CheckpointRecord, commitment_of
from .encoding import EncodingError
from .messages import (
    ENVELOPE_SIZE_BYTES_MAX,
    Measurement,
    MentorshipSignal,
    Message,
    Proposal,
    Vote,
    open_envelope,
)
from .rejection import Reason, ignore, reject
from .state import NetworkState


def open_message(data: bytes, network_id: bytes) -> Message:
    """The message of an envelope that is well formed, of this network and signed by its author."""
    if len(data) > ENVELOPE_SIZE_BYTES_MAX:
        raise reject(Reason.TOO_LARGE, f"envelope has {len(data)} bytes, limit {ENVELOPE_SIZE_BYTES_MAX}")
    try:
        message = open_envelope(data)
    except EncodingError as error:
        raise reject(Reason.MALFORMED, str(error)) from None
    except PermissionError as error:
        raise reject(Reason.BAD_SIGNATURE, str(error)) from None
    if message.body.network_id != network_id:
        raise reject(Reason.OTHER_NETWORK, f"network {message.body.network_id[:8].hex()}")
    return message


def check_checkpoint(state: NetworkState, message: Message) -> None:
    """The message must be about the open checkpoint or one within the window after it."""
    number = message.checkpoint
    if message.author not in state.position:  # first: for a stranger there is no checkpoint to be early for
        raise reject(Reason.UNKNOWN_AUTHOR, message.author[:8].hex())
    if number < state.next_number:
        raise ignore(Reason.CLOSED_CHECKPOINT, f"checkpoint {number}, open is {state.next_number}")
    if number > state.next_number + state.preset.checkpoint_window:
        raise ignore(
            Reason.TOO_EARLY,
            f"checkpoint {number}, accepted are {state.next_number} to "
            f"{state.next_number + state.preset.checkpoint_window}",
        )


def check_message(state: NetworkState, message: Message, compositions: Container[bytes] = ()) -> None:
    """All that the state alone can say about a message for the open checkpoint.

    compositions: adapter ids of compositions that wait for version 1; the committee measures these too.
    """
    check_checkpoint(state, message)
    if message.checkpoint != state.next_number:
        raise ignore(Reason.TOO_EARLY, f"checkpoint {message.checkpoint}, open is {state.next_number}")
    body = message.body
    if isinstance(body, MentorshipSignal):
        _check_signal(state, body)
    elif isinstance(body, Measurement):
        _check_measurement(state, body, compositions)
    elif isinstance(body, (Proposal, Vote)) and body.author not in state.committee_keys:
        raise reject(Reason.NOT_DRAWN, "author is not in this checkpoint's committee")
    if isinstance(body, Proposal) and state.proposer(body.round) != body.author:
        raise reject(Reason.NOT_DRAWN, f"author is not the proposer of round {body.round}")


def _check_measurement(state: NetworkState, body: Measurement, compositions: Container[bytes]) -> None:
    if body.author not in state.committee_keys:
        raise reject(Reason.NOT_DRAWN, "only the committee measures results")
    if body.adapter_id != state.adapter_id and body.adapter_id not in compositions:
        # its author may have seen a block that we have not: catch-up brings the message again
        raise ignore(Reason.WRONG_ADAPTER, body.adapter_id[:8].hex())
    if body.adapter_id != state.adapter_id and body.parent_improvement_ppm:
        raise reject(Reason.MALFORMED, "a composition replaces nothing: parent_improvement_ppm must be 0")


def _check_signal(state: NetworkState, signal: MentorshipSignal) -> None:
    preset = state.preset
    if signal.adapter_id != state.adapter_id:
        raise reject(Reason.WRONG_ADAPTER, signal.adapter_id[:8].hex())
    if signal.base_model_id != state.base_model_id:
        raise reject(Reason.WRONG_BASE_MODEL, signal.base_model_id[:8].hex())
    if signal.codec != preset.codec:
        raise reject(Reason.WRONG_CODEC, f"{signal.codec!r}, the preset's is {preset.codec!r}")
    if signal.delta_size_bytes > preset.delta_size_bytes_max:
        raise reject(
            Reason.DELTA_TOO_LARGE, f"{signal.delta_size_bytes} bytes, limit {preset.delta_size_bytes_max}"
        )
    if signal.manifest_hash != state.moving_manifest.hash:
        raise reject(Reason.WRONG_MANIFEST, f"checkpoint {state.next_number} moves {state.factor}")
    if signal.parent_weights_hash not in state.recent_weights:
        raise ignore(Reason.WRONG_PARENT, signal.parent_weights_hash[:8].hex())
    if signal.author not in state.mentors:
        raise reject(Reason.NOT_DRAWN, "author is not a mentor of this checkpoint")


def check_evaluation(state: NetworkState, evaluation: Message, signal: Message) -> None:
    """An evaluation against the signal that it names.

    IGNORE, not REJECT: a peer that does not know the signal yet hands such an evaluation on in good faith.
    """
    if evaluation.author == signal.author:
        raise ignore(Reason.OWN_SIGNAL)
    if evaluation.author not in state.evaluators.get(signal.author, frozenset()):
        raise ignore(Reason.NOT_DRAWN, "author was not drawn to evaluate this signal")


def check_vote(
    state: NetworkState, chain_id: int, contract: bytes, vote: Message, record: CheckpointRecord
) -> None:
    """A vote against the record that it names: its second signature must be by the author's account.

    The record may be any that decodes: one that no contract could take (a size of 0) has no valid vote.
    """
    body = vote.body
    assert isinstance(body, Vote)
    account = state.nodes[state.position[body.author]].account
    try:
        commitment = commitment_of(record, body.round)
        signer = recover_account(commitment_digest(chain_id, contract, commitment), body.account_signature)
    except ValueError as error:
        raise reject(Reason.BAD_VOTE, str(error)) from None
    if signer != account:
        raise reject(
            Reason.BAD_VOTE, f"signed by 0x{signer.hex()}, the author's account is 0x{account.hex()}"
        )


def check_equivocation(first: Message, second: Message) -> None:
    """Two messages that prove equivocation: different signals by one mentor for one checkpoint."""
    a, b = first.body, second.body
    if not isinstance(a, MentorshipSignal) or not isinstance(b, MentorshipSignal):
        raise reject(Reason.BAD_RECORD, "evidence of equivocation must be two signals")
    if first.id == second.id or a.author != b.author or a.target_checkpoint != b.target_checkpoint:
        raise reject(Reason.BAD_RECORD, "two signals that do not contradict each other")
