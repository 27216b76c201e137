"""Law: a collection removes exactly what nothing keeps, whatever was stored, pinned and leased before."""

import shutil
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from store_samples import LEAF, block_files, stream

from citrate_node.content.block_store import BlockStore
from citrate_node.content.interface import ContentMissing, Entry
from citrate_node.protocol.content_id import ContentId, Importer, content_id

SHARED = stream(LEAF, "shared")
DATAS = [b"", b"a", b"b", SHARED, SHARED + b"x", SHARED + b"y", SHARED + SHARED, SHARED + SHARED + b"z"]


def blocks_of(data: bytes) -> set[str]:
    digests: set[str] = set()
    importer = Importer(lambda digest, codec, block: digests.add(digest.hex()))
    importer.update(data)
    importer.finish()
    return digests


NAMES = [content_id(data) for data in DATAS]
BLOCKS = {name: blocks_of(data) for name, data in zip(NAMES, DATAS, strict=True)}
BYTES = dict(zip(NAMES, DATAS, strict=True))


class StoreAgainstModel(RuleBasedStateMachine):
    """The model is a dictionary of entries and a count of leases."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.store = BlockStore(self.folder / "content", disk_reserve_bytes=0)
        self.entries: dict[ContentId, tuple[bool, int | None]] = {}
        self.leases: Counter[ContentId] = Counter()
        self.held = ExitStack()

    def teardown(self) -> None:
        self.held.close()
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(NAMES), checkpoint=st.none() | st.integers(0, 5))
    def put(self, name: ContentId, checkpoint: int | None) -> None:
        assert self.store.put(BYTES[name], ephemeral_checkpoint=checkpoint) == name
        pinned, before = self.entries.get(name, (False, None))
        if checkpoint is None or (pinned and before is None):
            self.entries[name] = (True, None)
        else:
            self.entries[name] = (pinned, max(checkpoint, -1 if before is None else before))

    @rule(name=st.sampled_from(NAMES), pinned=st.booleans())
    def pin_or_unpin(self, name: ContentId, pinned: bool) -> None:
        whole = BLOCKS[name] <= block_files(self.store)
        try:
            (self.store.pin if pinned else self.store.unpin)(name)
        except ContentMissing:
            assert not (whole if pinned else name in self.entries)
        else:
            assert whole if pinned else name in self.entries
            self.entries[name] = (pinned, self.entries.get(name, (False, None))[1])

    @rule(name=st.sampled_from(NAMES))
    def lease(self, name: ContentId) -> None:
        self.held.enter_context(self.store.lease(name))
        self.leases[name] += 1

    @rule()
    def end_all_leases(self) -> None:
        self.held.close()
        self.leases.clear()

    @rule(final=st.none() | st.integers(0, 5))
    def collect(self, final: int | None) -> None:
        before = block_files(self.store)
        doomed = {
            name
            for name, (pinned, checkpoint) in self.entries.items()
            if not pinned
            and not self.leases[name]
            and (checkpoint is None or (final is not None and checkpoint <= final))
        }
        report = self.store.collect(final)
        for name in doomed:
            del self.entries[name]
        kept = {block for name in (*self.entries, *self.leases) for block in BLOCKS[name]}
        assert set(report.contents_removed) == doomed
        assert block_files(self.store) == before & kept
        assert report.blocks_removed == len(before - kept)

    @rule()
    def open_again(self) -> None:
        self.held.close()
        self.leases.clear()
        self.store.close()
        self.store = BlockStore(self.folder / "content", disk_reserve_bytes=0)

    @invariant()
    def what_is_kept_is_whole(self) -> None:
        assert {e.content: (e.pinned, e.ephemeral_checkpoint) for e in self.store.entries()} == self.entries
        for name in self.entries:
            assert self.store.get(name) == BYTES[name]
        folder = self.store.path / "blocks"
        assert self.store.used_bytes == sum(
            (folder / name).stat().st_size for name in block_files(self.store)
        )

    @invariant()
    def the_store_lists_in_order(self) -> None:
        listed = self.store.entries()
        assert listed == tuple(sorted(listed, key=lambda entry: entry.content))
        assert all(isinstance(entry, Entry) for entry in listed)


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
