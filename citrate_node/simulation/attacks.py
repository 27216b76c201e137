"""What dishonest mentors send instead of what they learnt: the attacks that rules and reputations meet.

Pure functions of the deltas of a checkpoint and a seed. An attacker knows the deltas of all honest mentors,
as the strongest one would. Called by rounds.py and by benchmarks; what dishonest nodes of the message engine
say to whom is in adversaries.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from statistics import NormalDist

import numpy as np

from ..errors import ConfigError
from ..protocol.preset import ONE_PPM
from .workload import Values

HONEST = "honest"

ATTACKS = {
    "sign_flip": "the opposite of what it learnt",
    "boosted_flip": "ten times the opposite of what it learnt: what a plain mean cannot stand",
    "label_shuffle": "what it learnt from text whose order was destroyed",
    "noise": "Gaussian noise of the size of its own delta",
    "ipm": "the opposite of the honest mean (Xie et al. 2019, arXiv:1903.03936, epsilon 1)",
    "alie": "the honest mean less z deviations per coordinate (Baruch et al. 2019, arXiv:1902.06156)",
    "free_rider": "noise of a hundredth of the size of its own delta",
    "copier": "the delta of an honest mentor, another one each time, and 1 % of noise",
    "drift": "half of what it learnt, and a quarter of its size in a direction that all attackers share",
}
"""Name to what such a mentor sends."""

COLLECTIVE = frozenset({"ipm", "alie", "copier"})
"""Attacks for which the attacker must know what the others learnt."""

COPY_NOISE, FREE_RIDE, DRIFT, BOOST = 0.01, 0.01, 0.25, 10.0
"""Sizes as parts of the delta they stand beside."""


def check_attack(name: str) -> str:
    """The name. Raises ConfigError for one that does not exist."""
    if name and name not in ATTACKS:
        raise ConfigError(f"there is no attack {name!r}\n  choose one of {', '.join(ATTACKS)}")
    return name


def kinds_of(nodes: int, attack: str, share_ppm: int) -> tuple[str, ...]:
    """For each node "honest" or the attack; the dishonest stand at even distances from each other."""
    before = [i * share_ppm // ONE_PPM for i in range(nodes + 1)]
    return tuple(attack if attack and before[i + 1] > before[i] else HONEST for i in range(nodes))


def own_attack(kind: str, delta: Values, seed: int, node: int, checkpoint: int) -> Values:
    """What a mentor sends that needs nobody else's delta for it. float32 (count,) in and out.

    label_shuffle is the identity here: its training was on other text already.
    """
    match kind:
        case "honest" | "label_shuffle":
            return delta
        case "sign_flip":
            return -delta
        case "boosted_flip":
            return np.asarray(delta * np.float32(-BOOST), dtype=np.float32)
        case "noise":
            return _noise(delta, 1.0, seed, f"{node}/{checkpoint}")
        case "free_rider":
            return _noise(delta, FREE_RIDE, seed, f"{node}/{checkpoint}")
        case "drift":
            # the same direction in every checkpoint: small steps that nothing takes back
            secret = _noise(delta, DRIFT, seed, f"drift/{delta.size}")
            return np.asarray(delta * np.float32(0.5) + secret, dtype=np.float32)
    raise ConfigError(f"attack {kind!r} needs the deltas of others")


def collective_attacks(
    kinds: Sequence[str], deltas: Mapping[int, Values], seed: int, checkpoint: int
) -> dict[int, Values]:
    """What the dishonest among these nodes send who look at the honest deltas first.

    kinds: by node number; deltas: node number to float32 (count,), what its training gave.
    """
    honest = np.stack([delta for node, delta in deltas.items() if kinds[node] == HONEST])
    count, dishonest = len(deltas), len(deltas) - len(honest)
    mean = honest.mean(axis=0)
    sent: dict[int, Values] = {}
    for node in deltas:
        match kinds[node]:
            case "ipm":
                sent[node] = -mean
            case "alie":
                deviation = honest.std(axis=0)
                sent[node] = np.asarray(mean - alie_z(count, dishonest) * deviation, dtype=np.float32)
            case "copier":
                name = f"{node}/{checkpoint}"
                original = honest[_generator(seed, f"original/{name}").integers(len(honest))]
                sent[node] = original + _noise(original, COPY_NOISE, seed, name)
    return sent


def alie_z(count: int, dishonest: int) -> float:
    """How many deviations may be gone unseen (ALIE, equation 3): a majority lies further out."""
    supporters = count // 2 + 1 - dishonest
    part = (count - dishonest - supporters) / (count - dishonest)
    return NormalDist().inv_cdf(min(max(part, 0.51), 0.99))


def _noise(like: Values, size: float, seed: int, name: str) -> Values:
    """Gaussian noise with `size` times the norm of `like`, from the seed and a name."""
    drawn = _generator(seed, name).standard_normal(like.size)
    norm = float(np.linalg.norm(drawn))
    return np.asarray(drawn * (size * float(np.linalg.norm(like)) / norm), dtype=np.float32)


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = sha256(f"citrate/attack/{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))
