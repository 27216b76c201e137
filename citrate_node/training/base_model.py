"""A base model as the network knows it: where its files are, what its id is, which tensors LoRA adds.

Free of torch and transformers, so that a node, the command line and the chain client can ask for an
id or for tensor shapes at once; lora.py loads the same directory for real.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training.byte_tokenizer import is_byte_level
from citrate_node.training.settings import ALL_LINEAR, LoraSettings

EMBEDDED = "embedded"

_ID_DOMAIN = b"citrate-base-model-v1\n"
_VOLATILE_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
)
_HEADER_BYTES_MAX = 100_000_000  # safetensors' own limit
_READ_BYTES = 1 << 22

_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "olmo2")
_LINEAR = re.compile(r"^model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight$")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file, as its header declares it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen base model in a directory. Two nodes work on the same base when the ids are equal."""

    name: str
    """As the operator wrote it: "embedded", a path or a hub name."""

    directory: Path

    base_model_id: bytes
    """sha256 of, in this order: the line "citrate-base-model-v1"; the canonical architecture config
    (sorted, compact ASCII JSON of config.json without the keys that say nothing about the function
    computed: library version, path, dtype, cache flag) and a newline; one line "name dtype shape sha256"
    per tensor, sorted by name, where shape is "128x384" and the hash is over the stored little-endian
    bytes; one line "file sha256" per tokenizer file, sorted. Splitting the weights into other files does
    not change it; any other weight does."""

    licence: str
    """From the front matter of the model card; "unknown" where there is none."""

    config: Mapping[str, Any]

    tensors: Mapping[str, StoredTensor]

    byte_level: bool
    """Token ids are byte values, so that no tokenizer library is needed."""

    @classmethod
    def load(cls, name_or_path: str = EMBEDDED) -> BaseModel:
        """Find a base and compute its id. Reads every weight once (about 1.6 GB/s).

        name_or_path: "embedded", a directory that transformers loads, or a hub name.
        """
        directory = _find(name_or_path)
        config = _read_config(directory)
        tensors = dict(_read_headers(directory))
        return cls(
            name=name_or_path,
            directory=directory,
            base_model_id=_identify(directory, config, tensors),
            licence=_licence(directory),
            config=config,
            tensors=tensors,
            byte_level=_is_byte_level(directory),
        )

    def tensor_shapes(self, settings: LoraSettings) -> dict[str, tuple[int, int]]:
        """PEFT's saved tensor names and their shapes, sorted by name.

        Known layouts (Llama and its relatives) are answered from the file header in microseconds; for
        any other model PEFT is asked, on torch's meta device.
        """
        targets = self._linear_layers(settings)
        if targets is None:
            from citrate_node.training.lora import lora_shapes_by_injection

            return lora_shapes_by_injection(self, settings)
        shapes: dict[str, tuple[int, int]] = {}
        for module, (rows, columns) in targets.items():
            shapes[f"base_model.model.{module}.lora_A.weight"] = (settings.rank, columns)
            shapes[f"base_model.model.{module}.lora_B.weight"] = (rows, settings.rank)
        return dict(sorted(shapes.items()))

    def _linear_layers(self, settings: LoraSettings) -> dict[str, tuple[int, int]] | None:
        """Targeted linear layers and their (out, in), or None where this layout is not known here."""
        if self.config.get("model_type") not in _LLAMA_LIKE or "quantization_config" in self.config:
            return None
        layers: dict[str, tuple[int, int]] = {}
        for name, tensor in self.tensors.items():
            if _LINEAR.match(name) and len(tensor.shape) == 2:
                layers[name.removesuffix(".weight")] = (tensor.shape[0], tensor.shape[1])
        if settings.targets == ALL_LINEAR:
            return layers
        wanted = settings.targets
        chosen = {m: s for m, s in layers.items() if any(m == t or m.endswith("." + t) for t in wanted)}
        found = {t for t in wanted if any(m == t or m.endswith("." + t) for m in chosen)}
        if missing := sorted(set(wanted) - found):
            known = sorted({m.rsplit(".", 1)[1] for m in layers})
            raise ConfigError(f"{self.name} has no module {', '.join(missing)}\n  it has: {', '.join(known)}")
        return chosen


def _find(name_or_path: str) -> Path:
    if name_or_path == EMBEDDED:
        return Path(str(resources.files("citrate_node.training"))) / "assets" / "base"
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path.resolve()
    if name_or_path.count("/") > 1 or name_or_path.startswith((".", "/", "~")):
        raise ConfigError(f"base model {name_or_path}: no such directory")
    return _fetch(name_or_path)


def _fetch(name: str) -> Path:
    """A hub name, through the hub's own client and its cache. Weights in safetensors only, never pickle."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ServiceError(
            f"base model {name} is no directory, and the hub client is not installed\n"
            "  pip install 'citrate-node[training]', or give a directory"
        ) from error
    try:
        found = snapshot_download(
            name, allow_patterns=["*.json", "*.safetensors", "README.md", *_TOKENIZER_FILES]
        )
    except Exception as error:
        raise ServiceError(
            f"cannot get base model {name} from the hub: {type(error).__name__}: {error}\n"
            f'  use "{EMBEDDED}", which needs no download, or give a directory'
        ) from error
    return Path(found)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"base model in {directory}: cannot read config.json: {error}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise ConfigError(f"base model in {directory}: config.json names no model_type")
    return config


def _read_headers(directory: Path) -> Iterator[tuple[str, StoredTensor]]:
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ConfigError(
            f"base model in {directory} has no .safetensors file\n"
            "  other formats may run code when opened and are not read; convert it first"
        )
    seen: set[str] = set()
    for file in files:
        for name, tensor in _read_header(file):
            if name in seen:
                raise ConfigError(f"base model in {directory}: tensor {name} stands in two files")
            seen.add(name)
            yield name, tensor


def _read_header(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _HEADER_BYTES_MAX:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(stream.read(length))
        for name, row in header.items():
            if name == "__metadata__":
                continue
            start, stop = (int(n) for n in row["data_offsets"])
            shape = tuple(int(n) for n in row["shape"])
            yield name, StoredTensor(file, str(row["dtype"]), shape, 8 + length + start, stop - start)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConfigError(f"{file} is not a safetensors file: {error}") from error


def _identify(directory: Path, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bytes:
    digest = hashlib.sha256(_ID_DOMAIN)
    kept = {key: value for key, value in config.items() if key not in _VOLATILE_KEYS}
    digest.update(json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode() + b"\n")
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = "x".join(str(n) for n in tensor.shape)
        digest.update(f"{name} {tensor.dtype} {shape} {_hash_tensor(tensor)}\n".encode())
    for file in sorted(_TOKENIZER_FILES):
        path = directory / file
        if path.is_file():
            digest.update(f"{file} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.digest()


def _hash_tensor(tensor: StoredTensor) -> str:
    digest = hashlib.sha256()
    left = tensor.size_bytes
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start)
        while left > 0:
            block = stream.read(min(left, _READ_BYTES))
            if not block:
                raise ConfigError(f"{tensor.file} is shorter than its header says")
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _licence(directory: Path) -> str:
    """`license:` of the card's front matter."""
    try:
        card = (directory / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    if not card.startswith("---"):
        return "unknown"
    found = re.search(r"^license:\s*(\S+)\s*$", card.split("---", 2)[1], re.MULTILINE)
    return found.group(1).strip("'\"") if found else "unknown"


def _is_byte_level(directory: Path) -> bool:
    try:
        description = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(description, dict) and is_byte_level(description)
