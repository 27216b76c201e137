"""The bytes of a version, wherever they lie: content stores beside the user, gateways, calldata on the chain.

Nothing is believed: every block is hashed, and the whole is named again and compared with the chain's digest,
codec and size. Called by adapters.py and cli/adapter.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..chain.adapter_factory import AdapterFactory
from ..chain.contract_types import VersionAdded, VersionRow
from ..content.block_store import BlockStore
from ..content.sources import ContentSource
from ..errors import CitrateError, ServiceError
from ..protocol.content_id import RAW, ContentId, cid_text, content_id


class WeightsMissing(ServiceError):
    """None of the places that were asked holds these weights."""


class WeightsMismatch(ServiceError):
    """Bytes, or what the chain says of them, do not belong together."""


async def find_weights(
    factory: AdapterFactory,
    sources: Sequence[ContentSource],
    size_bytes_max: int,
    adapter_id: bytes,
    row: VersionRow,
) -> tuple[bytes, str]:
    """(bytes, where they came from). Raises WeightsMissing, naming every place that was asked."""
    asked: list[str] = []
    for source in sources:
        try:
            data = await _from_source(source, row, size_bytes_max)
        except WeightsMismatch:
            raise
        except CitrateError as error:
            asked.append(f"{source.name}: {str(error).splitlines()[0]}")
        else:
            require_same(data, row, source.name)
            return data, source.name
    in_calldata = await _from_calldata(factory, adapter_id, row)
    if in_calldata is not None:
        require_same(in_calldata, row, "the transaction")
        return in_calldata, f"calldata in block {row.block_number}"
    asked.append(f"block {row.block_number}: the transaction names the weights and does not hold them")
    raise WeightsMissing(
        f"nobody asked has {cid_text(row.codec, row.weights_hash)}, version {row.version} of "
        f"{adapter_id.hex()}: {'; '.join(asked)}\n  name a content store that holds it with --store"
    )


def require_same(data: bytes, row: VersionRow, what: str) -> None:
    """Raises WeightsMismatch unless the bytes have the digest, codec and size that the chain holds."""
    content = content_id(data)
    wrong = differences(content, row)
    if wrong:
        raise WeightsMismatch(
            f"{what} does not hold version {row.version}: {'; '.join(wrong)}\n"
            "  get the weights elsewhere, or ask the owner to publish them anew"
        )


def differences(content: ContentId, row: VersionRow) -> list[str]:
    """What differs between a content and the chain's row, as sentences. A size of 0 on chain says nothing."""
    wrong = []
    if content.digest != row.weights_hash:
        wrong.append(f"weights hash {content.digest.hex()}, on chain {row.weights_hash.hex()}")
    if content.codec != row.codec:
        wrong.append(f"codec 0x{content.codec:02x}, on chain 0x{row.codec:02x}")
    if row.size_bytes and content.size_bytes != row.size_bytes:
        wrong.append(f"{content.size_bytes} bytes, on chain {row.size_bytes}")
    return wrong


async def _from_source(source: ContentSource, row: VersionRow, size_bytes_max: int) -> bytes:
    content = await source.resolve(cid_text(row.codec, row.weights_hash), size_bytes_max)
    if row.size_bytes and content.size_bytes != row.size_bytes:
        raise WeightsMismatch(
            f"{content.cid} has {content.size_bytes} bytes, but the chain says {row.size_bytes}\n"
            "  whoever published version "
            f"{row.version} stated a wrong size; ask the owner to publish it anew"
        )
    return await source.get(content)


async def _from_calldata(factory: AdapterFactory, adapter_id: bytes, row: VersionRow) -> bytes | None:
    """The weights, if the owner's transaction carried them."""
    if row.checkpoint or row.codec != RAW:
        return None
    for event in await factory.events(row.block_number, row.block_number):
        if (
            isinstance(event, VersionAdded)
            and event.adapter_id == adapter_id
            and event.version == row.version
            and event.weights is not None
        ):
            return event.weights
    return None


def held_by(stores: Sequence[Path], content: ContentId) -> Path | None:
    """The first store that holds the whole content."""
    for path in stores:
        try:
            store = BlockStore(path, read_only=True)
        except CitrateError:
            continue  # not a store, or one of another version: it holds nothing for us
        try:
            if store.has(content):
                return path
        finally:
            store.close()
    return None
