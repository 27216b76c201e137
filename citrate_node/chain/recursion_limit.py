"""Keeps Python's recursion limit where it belongs.

web3 and eth_account import py_ecc, which raises the limit of the whole process to 100,000. From then on
deeply nested JSON from a stranger does not end in RecursionError but in a crash of the interpreter. So
whoever imports them does it inside `recursion_limit()`, and a server lowers the limit to parse JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

PARSING_LIMIT = 500
"""Frames for parsing JSON, our own among them. Requests and receipts nest less than ten deep."""


@contextmanager
def recursion_limit(limit: int | None = None) -> Iterator[None]:
    """The limit inside the block (None: as it is); afterwards the one from before, whatever happened."""
    before = sys.getrecursionlimit()
    if limit is not None:
        sys.setrecursionlimit(limit)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
