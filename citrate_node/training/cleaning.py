"""What is left of a person's data before training: long texts in passages, junk and repetitions dropped.

A passage is the unit that is compared with all others and that is held out or trained on as a whole, so
nothing is learnt whose neighbour sentence is tested. Every drop is counted under a reason. Called by
examples.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from citrate_node.errors import ConfigError
from citrate_node.training.documents import Document
from citrate_node.training.near_duplicates import NearDuplicates

PASSAGE_CHARACTERS = 1024


@dataclass(frozen=True, slots=True)
class Filters:
    """What counts as junk. The defaults drop what no model learns from, and no text for its style."""

    characters_min: int = 16
    """Of a text, or of prompt and completion together."""

    odd_share_max: float = 0.1
    """Share of characters that are neither printable nor white space, broken UTF-8 included."""

    repeated_lines_share_max: float = 0.6
    """Share of lines, among five and more, that stand in the same passage already."""

    similarity_max: float | None = 0.8
    """Jaccard similarity from which a passage is a near duplicate of an earlier one. None: exact ones only.
    """

    def __post_init__(self) -> None:
        if self.similarity_max is not None and not 0.5 <= self.similarity_max <= 1:
            raise ConfigError(
                f"near-duplicates is {self.similarity_max}, it must lie between 0.5 and 1\n"
                "  below 0.5 the search would miss many; 0.8 is usual"
            )
        if self.characters_min < 1:
            raise ConfigError(f"characters_min is {self.characters_min}, it must be at least 1")


@dataclass(slots=True)
class CleaningReport:
    """What was read, what was kept, and why the rest was not."""

    documents: int = 0
    passages: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Passages by reason."""

    def summary(self) -> str:
        """One line for people and for the provenance."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        dropped = f"; dropped: {reasons}" if reasons else ""
        if not self.documents:
            return f"{self.kept} examples of the embedded corpus{dropped}"
        return f"{self.documents} documents, {self.kept} of {self.passages} passages kept{dropped}"


def clean(documents: Iterable[Document], filters: Filters, report: CleaningReport) -> Iterator[Document]:
    """Passages that are worth learning from, in their order; counts go into `report`."""
    exact: set[bytes] = set()
    near = NearDuplicates(filters.similarity_max) if filters.similarity_max is not None else None
    for document in documents:
        report.documents += 1
        for passage in _passages(document):
            report.passages += 1
            reason = _junk(passage, filters) or _repeats(passage, exact, near)
            if reason is not None:
                report.dropped[reason] += 1
                continue
            report.kept += 1
            yield passage


def passage_hash(passage: Document) -> bytes:
    """sha256 that decides on which side of the split a passage lies."""
    return hashlib.sha256(passage.content.encode("utf-8", errors="replace")).digest()


def _passages(document: Document) -> Iterator[Document]:
    """A plain text in pieces of whole lines; pairs, conversations and labelled texts as they are."""
    if document.completion is not None or document.label is not None:
        yield document
        return
    text = document.text
    start = 0
    while start < len(text):
        stop = start + PASSAGE_CHARACTERS
        if stop < len(text):
            line_end = text.rfind("\n", start + 1, stop) + 1
            stop = line_end if line_end > start + PASSAGE_CHARACTERS // 4 else stop
        yield dataclasses.replace(document, text=text[start:stop])
        start = stop


def _junk(passage: Document, filters: Filters) -> str | None:
    text = passage.content
    if passage.completion is not None and not passage.completion.strip():
        return "empty completions"
    if len(text.strip()) < filters.characters_min:
        return "too short"
    odd = sum(
        1 for sign in text if sign == "�" or not (sign.isprintable() or sign.isspace() or sign in "\x1e\x1f")
    )
    if odd > filters.odd_share_max * len(text):
        return "not text"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) >= 5 and 1 - len(set(lines)) / len(lines) > filters.repeated_lines_share_max:
        return "repeated lines"
    return None


def _repeats(passage: Document, exact: set[bytes], near: NearDuplicates | None) -> str | None:
    key = passage_hash(passage)
    if key in exact:
        return "exact duplicates"
    exact.add(key)
    if near is not None and near.seen(passage.content):
        return "near duplicates"
    return None
