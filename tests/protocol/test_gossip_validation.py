"""Each way in which a message can be wrong has a name, and blames the sender only where it could know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from small_network import (
    CHAIN,
    MINIMAL,
    delta,
    evaluation,
    identity,
    inputs,
    measurement,
    network,
    signal,
    signed,
)

from citrate_node.protocol.certificate import commitment_digest, sign_digest
from citrate_node.protocol.checkpoint import CheckpointRecord, commitment_of
from citrate_node.protocol.encoding import UINT64_MAX, EncodingError, decode, encode
from citrate_node.protocol.gossip_validation import (
    check_checkpoint,
    check_equivocation,
    check_evaluation,
    check_message,
    check_vote,
    open_message,
)
from citrate_node.protocol.messages import (
    ENVELOPE_SIZE_BYTES_MAX,
    Evaluation,
    Message,
    Proposal,
    Vote,
)
from citrate_node.protocol.rejection import Reason, Rejection, Verdict
from citrate_node.protocol.signing import sign
from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import process_checkpoint

STATE = network(4)
DATA = delta(STATE, 1)


def verdict_of(check: Callable[[], object]) -> tuple[Verdict, Reason]:
    with pytest.raises(Rejection) as caught:
        check()
    return caught.value.verdict, caught.value.reason


def reject(reason: Reason) -> tuple[Verdict, Reason]:
    return Verdict.REJECT, reason


def ignore(reason: Reason) -> tuple[Verdict, Reason]:
    return Verdict.IGNORE, reason


def opened(envelope: bytes) -> tuple[Verdict, Reason]:
    return verdict_of(lambda: open_message(envelope, STATE.network_id))


def checked(message: Message, state: NetworkState = STATE) -> tuple[Verdict, Reason]:
    return verdict_of(lambda: check_message(state, message))


def signal_with(**changes: object) -> Message:
    return signal(STATE, 1, DATA, **changes)


# ---------------------------------------------------------------- before any state is looked at


def with_body(change: Callable[[dict[str, object]], None]) -> bytes:
    """The envelope of a signal whose body map was changed and signed again by its author."""
    raw = decode(decode(signal_with().envelope, size_bytes_max=9999)[1], size_bytes_max=9999)
    change(raw)
    body = encode(raw)
    return encode([1, body, sign(identity(1).seed, "citrate/mentorship-signal/1", body)])


def test_a_valid_signal_is_opened_and_taken() -> None:
    message = open_message(signal_with().envelope, STATE.network_id)
    check_message(STATE, message)


@pytest.mark.parametrize(
    ("envelope", "reason"),
    [
        (b"\0" * (ENVELOPE_SIZE_BYTES_MAX + 1), Reason.TOO_LARGE),
        (b"", Reason.MALFORMED),
        (signal_with().envelope + b"\0", Reason.MALFORMED),
        (encode({"kind": 1}), Reason.MALFORMED),
        (encode([1, b"", bytes(64), 4]), Reason.MALFORMED),
        (encode([6, b"", bytes(64)]), Reason.MALFORMED),
        (encode([True, b"", bytes(64)]), Reason.MALFORMED),
        (encode([1, "", bytes(64)]), Reason.MALFORMED),
        (encode([1, b"", bytes(63)]), Reason.MALFORMED),
        (with_body(lambda raw: raw.update(surprise=1)), Reason.MALFORMED),
        (with_body(lambda raw: raw.pop("examples")), Reason.MALFORMED),
        (with_body(lambda raw: raw.update(examples=-1)), Reason.MALFORMED),
        (with_body(lambda raw: raw.update(examples=True)), Reason.MALFORMED),
        (with_body(lambda raw: raw.update(delta_size_bytes=0)), Reason.MALFORMED),
        (with_body(lambda raw: raw.update(codec="")), Reason.MALFORMED),
        (with_body(lambda raw: raw.update(author=bytes(31))), Reason.MALFORMED),
        (Message(signal_with().body, bytes(64)).envelope, Reason.BAD_SIGNATURE),
        (signed(2, signal_with().body).envelope, Reason.BAD_SIGNATURE),
        (signal_with(network_id=bytes(32)).envelope, Reason.OTHER_NETWORK),
    ],
)
def test_what_never_can_be_right_is_rejected(envelope: bytes, reason: Reason) -> None:
    assert opened(envelope) == reject(reason)


def test_an_envelope_in_another_spelling_is_rejected() -> None:
    """A length in two bytes where one is enough: one message, one byte string."""
    envelope = signal_with().envelope
    assert envelope[-66:-64] == b"\x58\x40"
    assert opened(envelope[:-66] + b"\x59\x00\x40" + envelope[-64:]) == reject(Reason.MALFORMED)


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_checkpoint": 0}, ignore(Reason.CLOSED_CHECKPOINT)),
        ({"target_checkpoint": 2}, ignore(Reason.TOO_EARLY)),
        ({"target_checkpoint": UINT64_MAX}, ignore(Reason.TOO_EARLY)),
        ({"adapter_id": bytes(32)}, reject(Reason.WRONG_ADAPTER)),
        ({"base_model_id": bytes(32)}, reject(Reason.WRONG_BASE_MODEL)),
        ({"codec": "int4"}, reject(Reason.WRONG_CODEC)),
        ({"manifest_hash": bytes(32)}, reject(Reason.WRONG_MANIFEST)),
        ({"delta_size_bytes": MINIMAL.delta_size_bytes_max + 1}, reject(Reason.DELTA_TOO_LARGE)),
        ({"parent_weights_hash": bytes(32)}, ignore(Reason.WRONG_PARENT)),
    ],
)
def test_a_signal_that_cannot_join_says_why(
    changes: dict[str, object], expected: tuple[Verdict, Reason]
) -> None:
    assert checked(signal_with(**changes)) == expected


def test_a_signal_may_be_as_large_as_the_preset_allows_and_start_from_recent_weights() -> None:
    check_message(STATE, signal_with(delta_size_bytes=MINIMAL.delta_size_bytes_max))
    after = process_checkpoint(STATE, inputs(STATE)).state
    assert len(after.recent_weights) == 2
    for parent in after.recent_weights:
        check_message(after, signal(after, 1, DATA, parent_weights_hash=parent))


def test_only_registered_nodes_speak() -> None:
    for message in (signal(STATE, 9, DATA), evaluation(STATE, 9, signal_with())):
        assert checked(message) == reject(Reason.UNKNOWN_AUTHOR)


def test_checkpoints_of_the_window_may_be_kept_and_no_others() -> None:
    newest = STATE.next_number + MINIMAL.checkpoint_window
    check_checkpoint(STATE, signal_with(target_checkpoint=newest))
    too_new = signal_with(target_checkpoint=newest + 1)
    assert verdict_of(lambda: check_checkpoint(STATE, too_new)) == ignore(Reason.TOO_EARLY)


# ---------------------------------------------------------------- roles


def numbers(state: NetworkState, keys: frozenset[bytes]) -> set[int]:
    return {i for i in range(len(state.nodes)) if identity(i).node_key in keys}


def test_whoever_was_not_drawn_has_no_say() -> None:
    state = network(20, mentors_per_checkpoint=2, committee_size=4, evaluators_per_signal=2)
    everybody = set(range(20))
    mentors, committee = numbers(state, state.mentors), numbers(state, state.committee_keys)
    assert (len(mentors), len(committee)) == (2, 4)
    mentor, no_mentor = min(mentors), min(everybody - mentors)
    assert checked(signal(state, no_mentor, DATA), state) == reject(Reason.NOT_DRAWN)

    stranger = min(everybody - committee)
    key = identity(stranger).node_key
    assert checked(measurement(state, stranger, bytes(32)), state) == reject(Reason.NOT_DRAWN)
    vote = Vote(state.network_id, key, 1, 0, bytes(32), bytes(65))
    assert checked(signed(stranger, vote), state) == reject(Reason.NOT_DRAWN)
    proposal = Proposal(state.network_id, key, 1, 0, b"record")
    assert checked(signed(stranger, proposal), state) == reject(Reason.NOT_DRAWN)

    other = next(i for i in committee if identity(i).node_key != state.proposer(0))
    out_of_turn = Proposal(state.network_id, identity(other).node_key, 1, 0, b"record")
    assert checked(signed(other, out_of_turn), state) == reject(Reason.NOT_DRAWN)

    announced = signal(state, mentor, DATA)
    drawn = numbers(state, state.evaluators[identity(mentor).node_key])
    check_evaluation(state, evaluation(state, min(drawn), announced), announced)
    bystander = evaluation(state, min(everybody - drawn - {mentor}), announced)
    assert verdict_of(lambda: check_evaluation(state, bystander, announced)) == ignore(Reason.NOT_DRAWN)


def test_nobody_evaluates_himself() -> None:
    own = evaluation(STATE, 1, signal_with())
    assert verdict_of(lambda: check_evaluation(STATE, own, signal_with())) == ignore(Reason.OWN_SIGNAL)


def test_a_measurement_of_another_adapter_waits_for_the_chain() -> None:
    """The sender may have seen a block that we have not: no blame; a composition that is known is taken."""
    other = replace(measurement(STATE, 1, bytes(32)).body, adapter_id=bytes(32))
    assert checked(signed(1, other)) == ignore(Reason.WRONG_ADAPTER)
    check_message(STATE, signed(1, other), compositions={bytes(32)})


# ---------------------------------------------------------------- votes and proofs


RECORD = process_checkpoint(STATE, inputs(STATE)).record


def vote(
    number: int,
    record: CheckpointRecord = RECORD,
    *,
    round_number: int = 0,
    key_of: int | None = None,
    chain_id: int = CHAIN.chain_id,
) -> Message:
    digest = commitment_digest(chain_id, CHAIN.contract, commitment_of(record, 0))
    signature = sign_digest(identity(number if key_of is None else key_of).account_key, digest)
    body = Vote(STATE.network_id, identity(number).node_key, 1, round_number, record.hash, signature)
    return signed(number, body)


def voted(message: Message, record: CheckpointRecord = RECORD) -> tuple[Verdict, Reason]:
    return verdict_of(lambda: check_vote(STATE, CHAIN.chain_id, CHAIN.contract, message, record))


def test_a_vote_counts_for_its_account_chain_round_and_record_alone() -> None:
    check_vote(STATE, CHAIN.chain_id, CHAIN.contract, vote(1), RECORD)
    other = replace(RECORD, accuracy_ppm=RECORD.accuracy_ppm + 1)
    assert voted(vote(1, key_of=2)) == reject(Reason.BAD_VOTE)
    assert voted(vote(1, round_number=1)) == reject(Reason.BAD_VOTE)
    assert voted(vote(1, chain_id=1)) == reject(Reason.BAD_VOTE)
    assert voted(vote(1), other) == reject(Reason.BAD_VOTE)


@pytest.mark.parametrize("signature", [bytes(65), b"\xff" * 65, b"\x01" * 64 + b"\x1b"])
def test_a_vote_with_no_signature_at_all_is_refused(signature: bytes) -> None:
    body = replace(vote(1).body, account_signature=signature)
    assert voted(signed(1, body)) == reject(Reason.BAD_VOTE)


def test_nobody_can_vote_for_a_record_that_no_contract_could_take() -> None:
    """Its commitment cannot be written down; that must be the vote's fault, not the receiver's end."""
    impossible = replace(RECORD, weights_size_bytes=0)
    body = Vote(STATE.network_id, identity(1).node_key, 1, 0, impossible.hash, bytes(65))
    assert voted(signed(1, body), impossible) == reject(Reason.BAD_VOTE)


def test_only_two_different_signals_of_one_mentor_for_one_checkpoint_prove_equivocation() -> None:
    first, second = signal_with(), signal_with(examples=65)
    check_equivocation(first, second)
    for other in (
        first,
        signal(STATE, 2, DATA),
        signal_with(target_checkpoint=2),
        evaluation(STATE, 1, signal(STATE, 2, DATA)),
    ):
        assert verdict_of(lambda other=other: check_equivocation(first, other)) == reject(Reason.BAD_RECORD)


def test_the_least_int64_and_rounds_beyond_the_contract_cannot_be_said() -> None:
    """On chain the least int64 means that nobody measured, and a round is a uint32."""
    with pytest.raises(EncodingError, match="improvement_ppm"):
        evaluation(STATE, 2, signal_with(), -(2**63))
    assert isinstance(evaluation(STATE, 2, signal_with(), -(2**63) + 1).body, Evaluation)
    with pytest.raises(EncodingError, match="round is 4294967296"):
        signed(1, Vote(STATE.network_id, identity(1).node_key, 1, 2**32, bytes(32), bytes(65)))
