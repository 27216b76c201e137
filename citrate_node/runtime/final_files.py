"""What a node keeps of a final checkpoint, and for how long. Called by main_loop when a checkpoint is final.

Deltas carry their checkpoint and go at the collection that follows. The state and the weights are what peers
that come late ask for: they stay for a number of checkpoints, or for ever where the operator says so or pins
them. The record, a few kilobytes that the chain names by hash, and the first weights of compositions stay.
"""

from ..content.interface import CollectReport, ContentStore
from ..node.actions import Finalize
from ..protocol.content_id import ContentId


async def store_final(
    store: ContentStore, action: Finalize, versions_kept: int
) -> tuple[ContentId, ContentId]:
    """(state file, weights) of the checkpoint, stored durably. versions_kept: 0 for ever."""
    until = action.number + versions_kept if versions_kept else None
    state_file = await store.put(action.state_file, ephemeral_checkpoint=until)
    weights = await store.put(action.weights, ephemeral_checkpoint=until)
    await store.put(action.record)
    for request in action.compositions:
        await store.put(request.result.weights.encode())
    return state_file, weights


async def prune(store: ContentStore, number: int) -> CollectReport:
    """Let go of what served checkpoints up to `number`, which is final and in the database."""
    return await store.collect(number)
