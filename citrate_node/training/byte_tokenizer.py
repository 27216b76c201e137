"""The tokenizer of the embedded base: one token per byte, its id the byte's value.

It is written as an ordinary tokenizer.json (a BPE of 256 symbols and no merges), so that the embedded
base opens in transformers like any other model. Our own code never needs that library for it:
`encode_bytes` is a view of the bytes. Called by pretrain.py and data.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

VOCABULARY_SIZE = 256


def encode_bytes(data: bytes) -> npt.NDArray[np.int32]:
    """Token ids of a text: its UTF-8 bytes."""
    return np.frombuffer(data, dtype=np.uint8).astype(np.int32)


def byte_symbols() -> tuple[str, ...]:
    """The printable character that stands for each byte in a byte-level vocabulary.

    Printable Latin-1 bytes stand for themselves, the other 68 take the code points from 256 on, in
    order. Source: Radford et al. 2019 (GPT-2), byte-level BPE.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    symbols: list[str] = []
    replaced = 0
    for value in range(VOCABULARY_SIZE):
        if value in printable:
            symbols.append(chr(value))
        else:
            symbols.append(chr(256 + replaced))
            replaced += 1
    return tuple(symbols)


def tokenizer_description() -> dict[str, object]:
    """Content of tokenizer.json."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {symbol: value for value, symbol in enumerate(byte_symbols())},
            "merges": [],
        },
    }


def is_byte_level(description: dict[str, object]) -> bool:
    """True where a tokenizer.json maps every byte to the id of its value, so that no library is needed."""
    model = description.get("model")
    if not isinstance(model, dict) or model.get("merges") != [] or description.get("added_tokens") != []:
        return False
    return bool(model.get("vocab") == {symbol: value for value, symbol in enumerate(byte_symbols())})


def write_tokenizer(directory: Path, length_max: int) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    description = json.dumps(tokenizer_description(), ensure_ascii=True, indent=1)
    (directory / "tokenizer.json").write_text(description + "\n", encoding="utf-8")
    config = {"model_max_length": length_max, "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
