"""What a mentor does: trains, keeps its delta back, announces it, joins a later checkpoint when late."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from node_world import (
    finish,
    head,
    node,
    of,
    trained,
)
from small_network import (
    network,
)

from citrate_node.node import actions as act
from citrate_node.node import events as ev
from citrate_node.protocol.content_id import content_id
from citrate_node.protocol.messages import MentorshipSignal


def test_training_begins_with_the_checkpoint_and_once() -> None:
    machine = node()
    state = machine.state
    (action,) = of(act.Train, head(machine, 101))
    assert (action.target_checkpoint, action.weights_hash) == (1, state.weights_content.digest)
    assert action.manifest == state.moving_manifest
    assert of(act.Train, head(machine, 102)) == []


def test_a_signal_is_stored_then_journaled_then_published() -> None:
    """The bytes and the journal entry are on disk before the world hears of them."""
    machine = node()
    head(machine, 101)
    actions = machine.handle(trained(machine))
    kinds = [type(action) for action in actions]
    assert kinds == [
        *(act.StoreDelta, act.StoreResidual, act.Journal, act.StoreMessage),
        *(act.Publish, act.Notice),
    ]
    (published,) = of(act.Publish, actions)
    body = published.message.body
    assert isinstance(body, MentorshipSignal)
    assert content_id(actions[0].data).digest == body.delta_hash  # type: ignore[union-attr]


def test_what_quantization_dropped_is_sent_with_the_next_delta() -> None:
    """Error feedback: the residual is intended minus decoded, and is added to the next intention."""
    machine = node()
    head(machine, 101)
    event = trained(machine, 0.001)
    wobble = np.linspace(0, 1e-3, event.values.size, dtype=np.float32)
    actions = machine.handle(
        ev.TrainingFinished(1, event.parent_weights_hash, event.parent_values, event.values + wobble, 64, 1.0)
    )
    (store,) = of(act.StoreDelta, actions)
    (residual,) = of(act.StoreResidual, actions)
    decoded = machine.state.decode_delta(store.data).astype(np.float64) / 2**32
    intended = (event.values + wobble - event.parent_values).astype(np.float64)
    assert np.abs(residual.values).max() > 0
    assert np.allclose(decoded + residual.values, intended, atol=1e-9)


def test_own_deltas_are_withheld_until_the_signal_phase_has_closed() -> None:
    machine = node()
    head(machine, 101)
    (published,) = of(act.Publish, machine.handle(trained(machine)))
    assert machine.withheld() == {published.message.body.delta_hash}  # type: ignore[union-attr]
    head(machine, 103)
    assert machine.withheld() != frozenset(), "one block in which nodes merge what they hold"
    head(machine, 104)
    assert machine.withheld() == frozenset()


def test_who_trained_too_long_asks_to_join_the_next_checkpoint() -> None:
    machine = node()
    head(machine, 101)
    late = trained(machine)
    head(machine, 104)
    assert of(act.Publish, machine.handle(late)) == []
    actions = finish(machine)
    (published,) = of(act.Publish, actions)
    body = published.message.body
    assert isinstance(body, MentorshipSignal)
    assert (body.target_checkpoint, body.parent_weights_hash) == (2, late.parent_weights_hash)
    (train,) = of(act.Train, actions)
    assert train.target_checkpoint == 3, "so that a slow machine has a signal in every checkpoint"


def test_a_machine_that_is_fast_again_trains_from_the_latest_weights() -> None:
    machine = node()
    head(machine, 101)
    late = trained(machine)
    head(machine, 104)
    machine.handle(late)
    (ahead,) = of(act.Train, finish(machine))
    done = replace(late, target_checkpoint=ahead.target_checkpoint)
    assert machine.handle(done) == [], "done within the signal phase of checkpoint 2"
    assert machine.mentor.held is None


def test_a_delta_of_the_factor_that_does_not_move_now_is_dropped() -> None:
    machine = node(state=network(4, method="alternate"))
    head(machine, 101)
    late = trained(machine)
    head(machine, 104)
    machine.handle(late)
    actions = finish(machine)
    assert of(act.Publish, actions) == []
    assert "dropped" in [a.what for a in of(act.Notice, actions)]


def test_what_was_trained_for_one_factor_is_not_announced_as_the_other() -> None:
    """A and B of a square module have equally many values; a late delta of B is no delta of A."""
    machine = node(state=network(4, method="alternate"))
    head(machine, 101)
    late = trained(machine)
    head(machine, 104)
    machine.handle(late)
    actions = finish(machine)
    assert machine.state.factor == "lora_A"
    assert late.values.size == machine.state.moving_manifest.count
    assert of(act.Publish, actions) == []
    assert "dropped" in {notice.what for notice in of(act.Notice, actions)}


def test_numbers_that_cannot_be_sent_are_dropped_and_said() -> None:
    machine = node()
    head(machine, 101)
    event = trained(machine)
    broken = event.values.copy()
    broken[0] = np.nan
    actions = machine.handle(
        ev.TrainingFinished(1, event.parent_weights_hash, event.parent_values, broken, 64, 1.0)
    )
    assert [a.what for a in of(act.Notice, actions)] == ["dropped"]
    assert of(act.Publish, actions) == []
