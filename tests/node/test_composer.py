"""A composition at one node: taken, measured, said in every checkpoint, certified by a quorum, forgotten."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from small_network import CHAIN, identity, network, signed

from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.node.composer import FAILURES_MAX, PATIENCE_CHECKPOINTS
from citrate_node.node.state_machine import Node
from citrate_node.protocol.adapter import AdapterConfig, AdapterLimits, AdapterWeights, decode_adapter
from citrate_node.protocol.checkpoint import RecordedUpdate, commitment_of, decode_record
from citrate_node.protocol.composition import compose
from citrate_node.protocol.composition_request import (
    COMPOSITION_MEASUREMENTS_MAX,
    COMPOSITIONS_MAX,
    CompositionRequest,
    MeasuredComposition,
    certified_compositions,
)
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.encoding import EncodingError
from citrate_node.protocol.gossip_validation import open_message
from citrate_node.protocol.messages import Measurement, Message, Proposal, Vote
from citrate_node.protocol.rejection import Reason, Rejection, Verdict
from citrate_node.protocol.state import NetworkState
from citrate_node.protocol.state_transition import CheckpointInputs, process_checkpoint

STATE = network(4)
VECTORS = Path(__file__).resolve().parent.parent / "vectors"
A = TypeVar("A", bound=act.Action)


def other_weights(step: int = 2**20) -> AdapterWeights:
    weights = STATE.weights
    manifest = weights.manifest.subset("lora_B")
    return weights.with_values(manifest, np.arange(manifest.count, dtype=np.int64) * step)


def request(number: int = 1, weight_a: int = 30, step: int = 2**20) -> CompositionRequest:
    return CompositionRequest(bytes([number]) * 32, STATE.weights, other_weights(step), weight_a)


def node(number: int = 0, state: NetworkState = STATE, **options: object) -> Node:
    """Node `number`, checkpoint 1 opened in block 100, its measurement phase begun (block 106)."""
    machine = Node(identity(number), CHAIN, state, opened_block=100, mentors=False, **options)  # type: ignore[arg-type]
    machine.handle(ev.HeadAdvanced(106))
    return machine


def of(kind: type[A], actions: list[act.Action]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


def said(
    number: int, of_request: CompositionRequest, improvement_ppm: int = 500, **changes: object
) -> Message:
    body = Measurement(
        STATE.network_id,
        identity(number).node_key,
        1,
        of_request.adapter_id,
        of_request.content.digest,
        improvement_ppm,
        32,
    )
    return signed(number, replace(body, **changes))  # type: ignore[arg-type]


def proposer_number(state: NetworkState = STATE, round_number: int = 0) -> int:
    keys = [identity(i).node_key for i in range(4)]
    return keys.index(state.proposer(round_number))


# ------------------------------------------------------------------------------------ the rule of the record


def measured(numbers: range, of_request: CompositionRequest | None = None) -> MeasuredComposition:
    of_request = of_request or request()
    return MeasuredComposition(of_request, tuple(said(i, of_request, 500 + i) for i in numbers))


def test_the_record_names_parents_weights_and_measurements() -> None:
    composition = measured(range(3))
    record = process_checkpoint(STATE, CheckpointInputs((), compositions=(composition,))).record
    exact = compose(STATE.weights, other_weights(), 30, 70).weights.encode()
    assert record.compositions == (
        RecordedUpdate(
            adapter_id=b"\1" * 32,
            parent_a_hash=STATE.weights_content.digest,
            parent_b_hash=content_id(other_weights().encode()).digest,
            weight_a=30,
            weights_hash=content_id(exact).digest,
            size_bytes=len(exact),
            accuracy_ppm=501,
            measurements=tuple(sorted(message.id for message in composition.measurements)),
        ),
    )
    assert decode_record(record.encode()) == record
    (update,) = commitment_of(record, 0).updates
    assert (update.adapter_id, update.weights_hash) == (b"\1" * 32, content_id(exact).digest)
    assert (update.size_bytes, update.accuracy_ppm) == (len(exact), 501)


def test_the_bytes_are_those_that_others_have() -> None:
    """For a second implementation: parents, measurements and the record that they give."""
    vector = json.loads((VECTORS / "composition_record.json").read_text())
    assert vector["network_id"] == STATE.network_id.hex()
    limits = AdapterLimits(STATE.preset.weights_size_bytes_max)
    first, second = (decode_adapter(bytes.fromhex(vector[f"parent_{name}"]), limits) for name in "ab")
    wanted = CompositionRequest(bytes.fromhex(vector["adapter_id"]), first, second, vector["weight_a"])
    assert wanted.result.weights.encode().hex() == vector["weights"]
    messages = tuple(open_message(bytes.fromhex(m), STATE.network_id) for m in vector["measurements"])
    inputs = CheckpointInputs((), compositions=(MeasuredComposition(wanted, messages),))
    assert process_checkpoint(STATE, inputs).record.encode().hex() == vector["record"]


@pytest.mark.parametrize(
    ("stakes", "authors", "enough"),
    [((1, 1, 1, 1), range(2), False), ((1, 1, 1, 1), range(3), True), ((1, 1, 1, 6), range(3), False)],
)
def test_it_takes_more_than_two_thirds_of_the_stake(
    stakes: tuple[int, ...], authors: range, enough: bool
) -> None:
    nodes = {identity(i).node_key: stake for i, stake in enumerate(stakes)}
    validators = tuple(replace(v, stake=nodes[v.node_key]) for v in STATE.nodes)
    state = replace(STATE, nodes=validators)
    if enough:
        assert len(certified_compositions(state, [measured(authors)])) == 1
        return
    with pytest.raises(Rejection, match="are no quorum of the committee"):
        certified_compositions(state, [measured(authors)])


def refused(composition: MeasuredComposition) -> Reason:
    with pytest.raises(Rejection) as caught:
        certified_compositions(STATE, [composition])
    return caught.value.reason


def test_measurements_of_other_bytes_are_refused() -> None:
    forged = replace(measured(range(3)), request=request(step=2**19))
    assert refused(forged) is Reason.BAD_RECORD


def test_two_measurements_of_one_node_are_refused() -> None:
    wanted = request()
    messages = (*measured(range(3)).measurements, said(0, wanted, 9))
    assert refused(MeasuredComposition(wanted, messages)) is Reason.EQUIVOCATION


def test_a_composition_of_another_base_model_is_refused() -> None:
    weights = other_weights()
    config = AdapterConfig(bytes(32), weights.config.rank, weights.config.alpha, weights.config.targets)
    foreign = replace(weights, config=config)
    wanted = CompositionRequest(b"\1" * 32, foreign, foreign, 50)
    assert refused(MeasuredComposition(wanted, ())) is Reason.WRONG_BASE_MODEL


def test_a_composition_larger_than_the_preset_allows_is_refused() -> None:
    size = request().content.size_bytes
    state = replace(STATE, preset=replace(STATE.preset, weights_size_bytes_max=size - 1))
    with pytest.raises(Rejection, match=f"the composition has {size} bytes, limit {size - 1}"):
        certified_compositions(state, [measured(range(4))])


def test_one_composition_twice_and_too_many_are_refused() -> None:
    with pytest.raises(Rejection, match="one composition twice"):
        certified_compositions(STATE, [measured(range(3)), measured(range(4))])
    many = [measured(range(3), request(1 + i)) for i in range(COMPOSITIONS_MAX + 1)]
    assert len(certified_compositions(STATE, many[1:])) == COMPOSITIONS_MAX
    with pytest.raises(Rejection, match="17 compositions, limit 16"):
        certified_compositions(STATE, many)


def test_a_record_with_as_many_compositions_as_may_be_fits_its_proposal() -> None:
    composition = process_checkpoint(STATE, CheckpointInputs((), compositions=(measured(range(3)),)))
    (update,) = composition.record.compositions
    ids = tuple(i.to_bytes(32, "big") for i in range(COMPOSITION_MEASUREMENTS_MAX // COMPOSITIONS_MAX))
    full = tuple(
        replace(update, adapter_id=bytes([i]) * 32, measurements=ids) for i in range(COMPOSITIONS_MAX)
    )
    assert len(replace(composition.record, compositions=full).encode()) < 40_000


@pytest.mark.parametrize(
    "changes",
    [
        {"measurements": (b"\2" * 32, b"\1" * 32)},
        {"adapter_id": STATE.adapter_id},
        {"weight_a": 100},
        {"weight_a": 0},
    ],
)
def test_a_composition_of_the_wrong_form_is_refused(changes: dict[str, object]) -> None:
    record = process_checkpoint(STATE, CheckpointInputs((), compositions=(measured(range(3)),))).record
    (update,) = record.compositions
    with pytest.raises(EncodingError):
        decode_record(replace(record, compositions=(replace(update, **changes),)).encode())  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ one node


def test_a_composition_is_measured_and_the_figure_is_published() -> None:
    machine = node()
    wanted = request()
    actions = machine.handle(ev.AdapterComposed(wanted))
    (measure,) = of(act.MeasureComposition, actions)
    assert measure.weights_hash == wanted.content.digest
    assert measure.weights == wanted.result.weights
    actions = machine.handle(ev.CompositionMeasured(wanted.content.digest, 700, 32))
    assert [type(action) for action in actions] == [act.Journal, act.StoreMessage, act.Publish]
    (published,) = of(act.Publish, actions)
    assert published.message.body == said(0, wanted, 700).body


def test_an_own_measurement_is_repeated_every_second_block_until_proposals_begin() -> None:
    machine = node()
    machine.handle(ev.AdapterComposed(request()))
    machine.handle(ev.CompositionMeasured(request().content.digest, 700, 32))
    published = {block: of(act.Publish, machine.handle(ev.HeadAdvanced(block))) for block in range(107, 112)}
    measurements = {
        block: [action.message.id for action in actions if isinstance(action.message.body, Measurement)]
        for block, actions in published.items()
    }
    once = [said(0, request(), 700).id]
    assert measurements == {107: [], 108: once, 109: [], 110: [], 111: []}


def test_nothing_is_measured_while_nodes_train_and_evaluate() -> None:
    machine = Node(identity(0), CHAIN, STATE, opened_block=100, mentors=False)
    machine.handle(ev.HeadAdvanced(101))
    asked = [machine.handle(ev.AdapterComposed(request()))]
    asked += [machine.handle(ev.HeadAdvanced(block)) for block in (103, 105, 106)]
    assert [len(of(act.MeasureComposition, actions)) for actions in asked] == [0, 0, 0, 1]


def test_a_node_without_held_out_data_measures_nothing_and_knows_the_composition() -> None:
    machine = node(evaluates=False)
    assert of(act.MeasureComposition, machine.handle(ev.AdapterComposed(request()))) == []
    assert list(machine.core.pending) == [b"\1" * 32]


def test_a_measurement_that_keeps_failing_is_given_up() -> None:
    machine = node()
    wanted = request()
    asked = len(of(act.MeasureComposition, machine.handle(ev.AdapterComposed(wanted))))
    for _ in range(FAILURES_MAX + 2):
        actions = machine.handle(ev.CompositionMeasured(wanted.content.digest, None, 0))
        asked += len(of(act.MeasureComposition, actions))
    assert asked == FAILURES_MAX


def test_a_composition_that_cannot_be_is_refused_with_the_reason() -> None:
    wanted = replace(request(), adapter_id=STATE.adapter_id)
    (notice,) = node().handle(ev.AdapterComposed(wanted))
    assert notice == act.Notice(
        "composition",
        {
            "adapter": STATE.adapter_id[:8].hex(),
            "refused": "other adapter: the network's own adapter is no composition",
        },
    )


def test_a_measurement_of_a_composition_that_is_not_known_blames_nobody() -> None:
    machine = node()
    message = said(1, request())
    (verdict,) = machine.handle(ev.MessageReceived(message, "peer"))
    assert isinstance(verdict, act.ReportVerdict)
    assert (verdict.verdict, verdict.reason) == (Verdict.IGNORE, Reason.WRONG_ADAPTER)
    machine.handle(ev.AdapterComposed(request()))
    assert of(act.ReportVerdict, machine.handle(ev.MessageReceived(message, "peer"))) == [
        act.ReportVerdict(Verdict.ACCEPT, peer="peer")
    ]
    again = said(1, request(), 501)
    (verdict,) = of(act.ReportVerdict, machine.handle(ev.MessageReceived(again, "peer")))
    assert (verdict.verdict, verdict.reason) == (Verdict.IGNORE, Reason.EQUIVOCATION)


def test_only_the_committee_measures_compositions() -> None:
    state = network(4, committee_size=2)
    outsider = next(i for i in range(4) if identity(i).node_key not in state.committee_keys)
    machine = node(state=state)
    machine.handle(ev.AdapterComposed(request()))
    message = said(outsider, request(), network_id=state.network_id)
    (verdict,) = of(act.ReportVerdict, machine.handle(ev.MessageReceived(message, "peer")))
    assert (verdict.verdict, verdict.reason) == (Verdict.REJECT, Reason.NOT_DRAWN)


def proposal_of(machine: Node, block: int = 109) -> Message:
    (message,) = [
        action.message
        for action in of(act.Publish, machine.handle(ev.HeadAdvanced(block)))
        if isinstance(action.message.body, Proposal)
    ]
    return message


def ready_node(number: int, authors: range) -> Node:
    machine = node(number)
    machine.handle(ev.AdapterComposed(request()))
    for author in authors:
        if author != number:
            machine.handle(ev.MessageReceived(said(author, request(), 500 + author), "peer"))
    return machine


def compositions_of(message: Message) -> list[bytes]:
    assert isinstance(message.body, Proposal)
    return [update.adapter_id for update in decode_record(message.body.record).compositions]


def test_a_proposer_certifies_what_a_quorum_measured_and_nothing_else() -> None:
    number = proposer_number()
    others = [i for i in range(4) if i != number]
    few = node(number)
    few.handle(ev.AdapterComposed(request()))
    for author in others[:2]:
        few.handle(ev.MessageReceived(said(author, request()), "peer"))
    assert compositions_of(proposal_of(few)) == []
    assert compositions_of(proposal_of(ready_node(number, range(4)))) == [b"\1" * 32]


def test_after_some_rounds_a_proposal_leaves_compositions_out() -> None:
    """They can wait for the next checkpoint; this one cannot."""
    preset = STATE.preset
    late = preset.omission_rounds
    number = proposer_number(round_number=late)
    machine = ready_node(number, range(4))
    block = 100 + preset.measurement_deadline_blocks + late * preset.proposal_rotation_blocks
    assert compositions_of(proposal_of(machine, block)) == []


def test_a_voter_waits_for_the_composition_and_then_votes() -> None:
    number = proposer_number()
    proposal = proposal_of(ready_node(number, range(4)))
    voter = node((number + 1) % 4)
    voter.handle(ev.HeadAdvanced(109))
    for i in range(4):
        voter.handle(ev.MessageReceived(said(i, request(), 500 + i), "peer"))
    actions = voter.handle(ev.MessageReceived(proposal, "peer"))
    assert len(of(act.CatchUp, actions)) == 1, "the measurements are of an adapter it does not know"
    assert of(act.Publish, actions) == []
    voter.handle(ev.AdapterComposed(request()))
    published = [
        action
        for i in range(4)
        for action in of(act.Publish, voter.handle(ev.MessageReceived(said(i, request(), 500 + i), "peer")))
    ]
    published += of(act.Publish, voter.handle(ev.HeadAdvanced(110)))
    assert [type(action.message.body) for action in published] == [Vote]


def test_a_voter_that_knows_another_composition_refuses() -> None:
    number = proposer_number()
    proposal = proposal_of(ready_node(number, range(4)))
    voter = node((number + 1) % 4)
    voter.handle(ev.HeadAdvanced(109))
    voter.handle(ev.AdapterComposed(request(weight_a=31)))
    for i in range(4):
        voter.handle(ev.MessageReceived(said(i, request(), 500 + i), "peer"))
    (verdict,) = [
        verdict
        for verdict in of(act.ReportVerdict, voter.handle(ev.MessageReceived(proposal, "peer")))
        if verdict.verdict is Verdict.REJECT
    ]
    assert verdict.reason is Reason.BAD_RECORD
    assert "a measurement of something else than the composition" in verdict.detail


def committed(machine: Node, proposal: Message) -> list[act.Action]:
    assert isinstance(proposal.body, Proposal)
    record_hash = content_id(proposal.body.record).digest
    return machine.handle(ev.CheckpointCommitted(1, record_hash, 111))


def test_what_is_certified_is_handed_out_and_forgotten() -> None:
    """The chain's own event may come before the checkpoint is final here: the request is still at hand."""
    number = proposer_number()
    machine = ready_node(number, range(4))
    proposal = proposal_of(machine)
    assert machine.handle(ev.CompositionSettled(b"\1" * 32)) == []
    (finalize,) = of(act.Finalize, committed(machine, proposal))
    assert [r.content for r in finalize.compositions] == [request().content]
    named = {message.id for message in finalize.inputs}
    assert {said(i, request(), 500 + i).id for i in range(4) if i != number} <= named
    assert machine.core.pending == {}
    assert machine.handle(ev.AdapterComposed(request())) == [], "a late offer is no new composition"


def test_what_the_chain_settled_first_is_still_computed_by_a_voter() -> None:
    number = proposer_number()
    proposal = proposal_of(ready_node(number, range(4)))
    voter = ready_node((number + 1) % 4, range(4))
    voter.handle(ev.MessageReceived(said(voter_number := (number + 1) % 4, request(), 500 + voter_number)))
    voter.handle(ev.HeadAdvanced(109))
    voter.handle(ev.CompositionSettled(b"\1" * 32))
    voter.handle(ev.MessageReceived(proposal, "peer"))
    (finalize,) = of(act.Finalize, committed(voter, proposal))
    assert finalize.outcome is not None
    assert [r.content for r in finalize.compositions] == [request().content]


def test_a_composition_that_found_no_quorum_is_said_again_in_the_next_checkpoint() -> None:
    number = proposer_number()
    machine = node(number)
    machine.handle(ev.AdapterComposed(request()))
    machine.handle(ev.CompositionMeasured(request().content.digest, 700, 32))
    proposal = proposal_of(machine)
    committed(machine, proposal)
    assert machine.state.number == 1
    actions = machine.handle(ev.HeadAdvanced(115))
    (message,) = [action.message for action in of(act.Publish, actions)]
    assert isinstance(message.body, Measurement)
    assert (message.body.checkpoint, message.body.improvement_ppm) == (2, 700)
    assert of(act.MeasureComposition, actions) == [], "the figure is known"


def test_what_waits_too_long_makes_room_where_room_is_short() -> None:
    machine = node()
    empty = process_checkpoint(STATE, CheckpointInputs(())).record
    for i in range(COMPOSITIONS_MAX + 1):
        machine.handle(ev.AdapterComposed(request(1 + i)))
    assert len(machine.core.pending) == COMPOSITIONS_MAX
    for _ in range(PATIENCE_CHECKPOINTS - 1):
        machine.composer.finalized(empty)
    assert len(machine.core.pending) == COMPOSITIONS_MAX
    machine.composer.finalized(empty)
    assert len(machine.core.pending) == COMPOSITIONS_MAX - 1
