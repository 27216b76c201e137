"""Finds texts that are almost another one: MinHash picks the candidates, exact Jaccard similarity decides.

Texts are compared as sets of character shingles after folding case and white space. Sixteen bands of four
minima let a pair of similarity 0.8 slip through about once in 10,000, and candidates are then compared
exactly, so nothing is dropped that is not as similar as asked. Source: Broder 1997, "On the resemblance and
containment of documents". Only numpy: the libraries that do this bring scipy. Called by cleaning.py.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SHINGLE_BYTES = 12
"""Two or three words: shorter ones make all English alike, longer ones break at every typing error."""

BANDS = 16
ROWS = 4

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 4096

Hashes = npt.NDArray[np.uint64]


class NearDuplicates:
    """Remembers texts, and tells whether a new one is at least `similarity` like one before it."""

    def __init__(self, similarity: float) -> None:
        generator = np.random.Generator(np.random.PCG64(0x51A6))
        draws = generator.integers(1, 1 << 63, size=(2, BANDS * ROWS), dtype=np.uint64)
        self._factors, self._offsets = draws[0] | np.uint64(1), draws[1]
        self._similarity = similarity
        self._texts: list[bytes] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = {}

    def seen(self, text: str) -> bool:
        """Whether a text like this was kept before; if not, it is kept now."""
        folded = " ".join(text.lower().split()).encode()
        own = shingles(folded)
        keys = self._keys(own)
        candidates = sorted({place for key in keys for place in self._buckets.get(key, ())})
        for place in candidates:
            if jaccard(own, shingles(self._texts[place])) >= self._similarity:
                return True
        self._texts.append(folded)
        for key in keys:
            self._buckets.setdefault(key, []).append(len(self._texts) - 1)
        return False

    def _keys(self, own: Hashes) -> list[tuple[int, bytes]]:
        minima = np.full(BANDS * ROWS, np.iinfo(np.uint64).max, dtype=np.uint64)
        for start in range(0, len(own), _CHUNK):
            mixed = own[start : start + _CHUNK, None] * self._factors + self._offsets
            mixed ^= mixed >> np.uint64(29)  # the low bits of a product depend on low bits alone
            mixed *= _MULTIPLIER
            minima = np.minimum(minima, (mixed >> np.uint64(16)).min(axis=0))
        return [(band, row.tobytes()) for band, row in enumerate(minima.reshape(BANDS, ROWS))]


def shingles(folded: bytes) -> Hashes:
    """Distinct 64-bit hashes of every window of SHINGLE_BYTES bytes, sorted. Short texts are one window."""
    data = np.frombuffer(folded.ljust(SHINGLE_BYTES, b" "), dtype=np.uint8).astype(np.uint64)
    count = len(data) - SHINGLE_BYTES + 1
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(SHINGLE_BYTES):
        total = total * _MULTIPLIER + data[offset : offset + count] + np.uint64(1)
    found: Hashes = np.unique(total)
    return found


def jaccard(one: Hashes, other: Hashes) -> float:
    """Size of the intersection over size of the union of two sorted sets."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)
