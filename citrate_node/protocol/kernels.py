"""Decides between numpy and the compiled kernels; both give the same bytes.

Pure. numba costs a second to load and to compile, so vectors that numpy handles in milliseconds never
wait for it, and an installation without numba works, only slower. Called by codecs, aggregation and metrics.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

KERNEL_VALUES_MIN = 1 << 20
"""Below this many values numpy needs a few milliseconds: less than compiling would take back in a day."""


def kernels_for(count: int) -> ModuleType | None:
    """The compiled kernels, when there are so many values that they pay, and numba is installed."""
    return _load("kernels_numba") if count >= KERNEL_VALUES_MIN else None


def gram_kernels_for(count: int) -> ModuleType | None:
    """Those of inner products, likewise."""
    return _load("kernels_gram") if count >= KERNEL_VALUES_MIN else None


@functools.cache
def _load(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f".{name}", __package__)
    except ImportError:
        return None
