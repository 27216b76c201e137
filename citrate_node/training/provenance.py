"""Where an adapter came from, as a machine reads it: the schema of provenance.json.

`citrate train` writes base, weights and training; `citrate evaluate` adds an evaluation; `citrate adapter
card` adds use, limits, what the chain says and the creator's signature. The same facts for people are the
card (card.py). Free of torch. Called by export.py, runtime/adapters_card.py and cli/.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from eth_hash.auto import keccak

from citrate_node.errors import ConfigError
from citrate_node.protocol.certificate import account_of, recover_account, sign_digest

SCHEMA = "citrate-provenance-v1"
PROVENANCE_FILE = "provenance.json"
PROVENANCE_BYTES_MAX = 1 << 20
"""A lineage of 256 adapters takes about 150 KB; nothing larger is parsed."""

_STRICT: dict[str, Any] = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
# a field that this version does not know would be lost in the canonical form: it is refused, not dropped


class ProvenanceError(ConfigError):
    """A provenance.json that cannot be read, or whose signature is not its creator's."""


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """The base model that the adapter was trained beside."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    name: str
    """As the trainer wrote it: "embedded", a folder's name or a hub name. The id decides, not the name."""

    base_model_id: str
    """64 hex digits: BaseModel.base_model_id."""

    licence: str = "unknown"


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """The file adapter_model.safetensors, and the settings that give it a meaning."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    sha256: str
    """Hex, of the whole file."""

    size_bytes: int

    rank: int

    alpha: int

    targets: tuple[str, ...]
    """Names of the modules that carry factors, ascending."""

    cid: str | None = None
    """As the chain names the file. None where it is not in this network's spelling (a variant of LoRA)."""

    variant: str = "lora"
    """"lora", "rslora" or "dora"; the last two are no adapters of the network until they are converted."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """A set of examples, named without being shown."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    digest: str
    """Hex: NodeData.digest, sha256 over the sorted hashes of the examples."""

    description: str = ""
    """For people: what it is and where it is from."""

    licence: str = "unknown"

    examples: int | None = None


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """How the factors were learnt. What is not known stays None and is written so."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    method: str
    """How its factors were trained and joined: "freeze_a", "alternate", "factor_mean", "stack" or "local"."""

    data: tuple[DataFacts, ...] = ()
    """One per node that said so; one for training alone."""

    seed: str | None = None
    """Hex of the public seed of the initial weights, or the decimal seed of a local run."""

    checkpoints: int | None = None

    steps: int | None = None
    """Training steps; per node and checkpoint on the network."""

    batch_sequences: int | None = None

    sequence_tokens: int | None = None

    learning_rate: float | None = None

    dropout: float = 0.0

    quantization: str = "none"
    """Of the base while training: "none" or "nf4"."""

    instruction_set: str | None = None
    """Training repeats bit by bit on one instruction set only."""

    started_from: str | None = None
    """Hex sha256 of the weights file that it went on from; None: from the seed."""


@dataclass(frozen=True, slots=True)
class EvaluationFacts:
    """One measurement of these weights on examples that they were not trained on."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    figures: Mapping[str, float]
    """Figure by name, unit last: "loss_own_nats", "loss_general_base_nats", "improvement_ppm" ..."""

    weights_sha256: str | None = None
    """The file that was measured. None: the one this provenance names."""

    quantization: str = "none"
    """Of the base while measuring: what is measured is what is deployed."""

    data: tuple[DataFacts, ...] = ()

    passed: bool | None = None
    """Whether general text got no worse than the bound; None: no bound was asked for."""

    forced_reason: str | None = None
    """Why it was promoted all the same."""


@dataclass(frozen=True, slots=True)
class LineageFacts:
    """One adapter in the tree of compositions above this one, down to weights that were trained."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    adapter_id: str
    """0x and 64 hex digits."""

    name: str

    creator: str
    """0x and 40 hex digits."""

    base_model_id: str

    version: int | None
    """The one that the composition bound; None where it has no version yet."""

    weights_hash: str | None
    """Hex digest of that version's root block."""

    weight_percent: int | None = None
    """Its share in the composition below it; None at the root of the tree."""

    parents: tuple[LineageFacts, ...] = ()

    truncated: bool = False
    """Whether it has parents that are not repeated here: shown elsewhere in the tree, or too many."""


@dataclass(frozen=True, slots=True)
class ChainFacts:
    """The version on chain whose weights these are."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    chain_id: int

    contract: str
    """0x and 40 hex digits."""

    adapter_id: str

    name: str

    version: int

    creator: str
    """Account that created the adapter: the one whose signature counts."""

    weights_hash: str

    checkpoint: int | None = None
    """Finality checkpoint that certified it; None: its owner published it."""

    accuracy_ppm: int | None = None
    """Improvement over the base model as validators measured it; None: nobody did."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """All of provenance.json. Absent parts are null there."""

    __pydantic_config__: ClassVar[Any] = _STRICT

    base: BaseFacts

    weights: WeightsFacts

    training: TrainingFacts | None = None

    evaluations: tuple[EvaluationFacts, ...] = ()

    chain: ChainFacts | None = None

    lineage: LineageFacts | None = None
    """The root is this adapter itself."""

    licence: str = "unknown"
    """Of the adapter: the base's may ask for more than the author's wish, and the data's too."""

    intended_use: str = ""

    limitations: str = ""

    tags: tuple[str, ...] = ("lora", "citrate")

    creator: str | None = None
    """0x and 40 hex digits of the account that signed; None: unsigned."""

    signature: str | None = None
    """0x and 130 hex digits, r ‖ s ‖ v: what a wallet's personal_sign makes of `signed_text`."""

    schema: Literal["citrate-provenance-v1"] = field(default="citrate-provenance-v1")

    def evaluated(self, evaluation: EvaluationFacts) -> Provenance:
        """With one evaluation more. A signature over the old facts is dropped: it would be false."""
        return dataclasses.replace(
            self, evaluations=(*self.evaluations, evaluation), creator=None, signature=None
        )


def canonical(provenance: Provenance) -> bytes:
    """The bytes that are hashed and signed: compact ASCII JSON, sorted keys, without the signature."""
    same = from_json(to_json(provenance).encode())  # 1 and 1.0 are one figure, and are written one way
    facts = dataclasses.asdict(same)
    del facts["signature"]
    return json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def signed_text(provenance: Provenance) -> str:
    """What a wallet is asked to sign, readable in its window."""
    return f"{SCHEMA}\nsha256 {hashlib.sha256(canonical(provenance)).hexdigest()}"


def signed(provenance: Provenance, private_key: bytes) -> Provenance:
    """The same facts with the creator's account and signature (EIP-191 personal_sign, low s)."""
    named = dataclasses.replace(provenance, creator="0x" + account_of(private_key).hex(), signature=None)
    return dataclasses.replace(named, signature="0x" + sign_digest(private_key, _digest(named)).hex())


def require_signature(provenance: Provenance) -> bytes:
    """The account that signed. Raises ProvenanceError for none, or one that is not `creator`'s."""
    if provenance.creator is None or provenance.signature is None:
        raise ProvenanceError(
            "creator, signature: the provenance is not signed\n"
            "  `citrate adapter card --wallet NAME` signs it"
        )
    try:
        signature = bytes.fromhex(provenance.signature.removeprefix("0x"))
        account = recover_account(_digest(provenance), signature)
    except ValueError as error:
        raise ProvenanceError(f"signature: {error}") from None
    if "0x" + account.hex() != provenance.creator.lower():
        raise ProvenanceError(
            f"signature: it is not of creator {provenance.creator} over these facts\n"
            "  something was changed after it was signed; have the creator sign it again"
        )
    return account


def to_json(provenance: Provenance) -> str:
    """The text of provenance.json: every field, in the order of the schema."""
    facts = dataclasses.asdict(provenance)
    return json.dumps({"schema": facts.pop("schema"), **facts}, indent=2, allow_nan=False) + "\n"


def from_json(data: bytes, what: str = PROVENANCE_FILE) -> Provenance:
    """Read what `to_json` wrote. Raises ProvenanceError, naming the first field that is wrong."""
    from pydantic import ValidationError

    if len(data) > PROVENANCE_BYTES_MAX:
        raise ProvenanceError(f"{what} has {len(data)} bytes, the limit is {PROVENANCE_BYTES_MAX}")
    try:
        found: Provenance = _adapter().validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise ProvenanceError(
            f"{what}: {place}: {first['msg'].lower()}\n"
            f"  `citrate adapter card` writes it anew in the schema {SCHEMA}"
        ) from None
    return found


def read_provenance(folder: Path) -> Provenance | None:
    """That of an adapter's folder, or None. Raises ProvenanceError where the file is no such one."""
    path = folder / PROVENANCE_FILE
    try:
        with path.open("rb") as stream:
            data = stream.read(PROVENANCE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ProvenanceError(f"cannot read {path}: {error.strerror}") from None
    return from_json(data, str(path))


def write_provenance(folder: Path, provenance: Provenance) -> None:
    """Write provenance.json whole or not at all."""
    write_whole(folder / PROVENANCE_FILE, to_json(provenance).encode())


def write_whole(path: Path, data: bytes) -> None:
    """A file that is there with all its bytes or not at all, also after a power cut."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(part, path)


def held_back(folder: Path, weights_sha256: str | None = None) -> str | None:
    """Why the newest evaluation of this very file holds it back, or None. Called before it is published.

    weights_sha256: hex digest of the file that is meant; a provenance of other weights says nothing about it.
    """
    provenance = read_provenance(folder)
    if provenance is None or weights_sha256 not in (None, provenance.weights.sha256):
        return None
    own = [e for e in provenance.evaluations if e.weights_sha256 in (None, provenance.weights.sha256)]
    if not own or own[-1].passed is not False or own[-1].forced_reason is not None:
        return None
    figures = own[-1].figures
    before, after = (figures.get(f"loss_general{kind}_nats", 0.0) for kind in ("_base", ""))
    return f"it is held back by its evaluation: general text {before:.4f} base, {after:.4f} adapter"


def _digest(provenance: Provenance) -> bytes:
    """EIP-191, version 0x45: the hash that personal_sign signs."""
    text = signed_text(provenance).encode()
    digest: bytes = keccak(b"\x19Ethereum Signed Message:\n" + str(len(text)).encode() + text)
    return digest


@cache
def _adapter() -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Provenance)
