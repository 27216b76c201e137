"""Roles drawn by hash: mentors, evaluators, committee, proposer. Pure; every node draws the same.

The seed is the hash of an earlier record, so nobody can choose it for himself. Draws by weight are exact
integer draws without replacement: counter-mode sha256 gives a number below the total weight that remains,
a Fenwick tree finds whose it is. (Multiplying a hash by a weight in 64 bits wraps and ignores the weight.)
The work per node is bounded by the preset, whatever the size of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from .preset import ONE_PPM, Preset


def _number_below(seed: bytes, role: str, counter: int, limit: int) -> int:
    """Uniform in [0, limit): 256 hash bits reduced modulo a limit below 2^128, biased by less than 2^-128."""
    assert 0 < limit < 2**128
    block = sha256(seed + b"\0" + role.encode() + b"\0" + counter.to_bytes(8, "big")).digest()
    return int.from_bytes(block, "big") % limit


def draw_by_weight(seed: bytes, role: str, weights: Sequence[int], count: int) -> list[int]:
    """Positions of `count` draws without replacement, each by weight among those that remain.

    Zero weights are never drawn. When `count` covers all positive weights, all of them in drawn order.
    Cost: O(n + count log n).
    """
    size = len(weights)
    tree = [0] * (size + 1)
    for position, weight in enumerate(weights, 1):
        tree[position] += weight
        parent = position + (position & -position)
        if parent <= size:
            tree[parent] += tree[position]
    total = sum(weights)
    top = 1 << size.bit_length()
    drawn: list[int] = []
    while total > 0 and len(drawn) < count:
        target = _number_below(seed, role, len(drawn), total)
        position, step = 0, top
        while step:  # descend to the last position whose running sum is at most the target
            nxt = position + step
            if nxt <= size and tree[nxt] <= target:
                position, target = nxt, target - tree[nxt]
            step >>= 1
        drawn.append(position)
        weight = weights[position]
        total -= weight
        index = position + 1
        while index <= size:
            tree[index] -= weight
            index += index & -index
    return drawn


def draw_mentors(preset: Preset, seed: bytes, reputations: Sequence[int]) -> frozenset[int]:
    """Positions of the nodes that may announce: most by reputation, a share by lot among the rest.

    A node of reputation zero (equivocation) is never drawn.
    """
    places = preset.mentors_per_checkpoint
    eligible = sum(1 for reputation in reputations if reputation > 0)
    if eligible <= places:
        return frozenset(i for i, reputation in enumerate(reputations) if reputation > 0)
    by_lot = places * preset.newcomer_share_ppm // ONE_PPM
    chosen = draw_by_weight(seed, "mentor", reputations, places - by_lot)
    taken = set(chosen)
    rest = [int(reputation > 0 and i not in taken) for i, reputation in enumerate(reputations)]
    return frozenset(chosen) | frozenset(draw_by_weight(seed, "newcomer", rest, by_lot))


def draw_committee(preset: Preset, seed: bytes, stakes: Sequence[int]) -> tuple[int, ...]:
    """Positions, ascending, of the validators that propose and vote, drawn by stake."""
    return tuple(sorted(draw_by_weight(seed, "committee", stakes, preset.committee_size)))


def draw_proposer(seed: bytes, round_number: int, stakes: Sequence[int]) -> int:
    """Position of the proposer of a round, by stake. Later rounds draw anew, with replacement."""
    return draw_by_weight(seed, f"proposer/{round_number}", stakes, 1)[0]


def draw_evaluators(
    preset: Preset, seed: bytes, mentors: Sequence[int], node_count: int
) -> dict[int, frozenset[int]]:
    """For each mentor's position, the positions of the nodes that measure its signal (never itself).

    All nodes stand in a ring ordered by hash; mentor j takes the next places of the ring after those of
    mentor j - 1, so signals get equally many evaluators, and no node more than `evaluations_per_node` (one
    more where a mentor had to be skipped).
    """
    if not mentors or node_count < 2:
        return {mentor: frozenset() for mentor in mentors}
    per_signal = min(
        preset.evaluators_per_signal,
        node_count - 1,
        max(1, preset.evaluations_per_node * node_count // len(mentors)),
    )
    ring = sorted(range(node_count), key=lambda i: sha256(seed + b"\0ring\0" + i.to_bytes(8, "big")).digest())
    start = 0
    drawn = {}
    for mentor in sorted(mentors):
        places: list[int] = []
        while len(places) < per_signal:
            node = ring[start % node_count]
            start += 1
            if node != mentor:
                places.append(node)
        drawn[mentor] = frozenset(places)
    return drawn
