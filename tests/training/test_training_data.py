"""Local data: cut, deduplicated, split by hash, and different for every node."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training import corpus
from citrate_node.training.base_model import BaseModel
from citrate_node.training.byte_tokenizer import tokenizer_description
from citrate_node.training.data import (
    PAD,
    NodeData,
    Rows,
    domain_held_out,
    domain_mixture,
    encoder,
    example_hash,
    general_held_out,
    held_out_mask,
    load_node_data,
    parse_embedded,
)


def hashes(rows: Rows) -> set[bytes]:
    return {example_hash(row) for row in rows}


def nodes(base: BaseModel, count: int, options: str = "") -> list[NodeData]:
    return [load_node_data(f"embedded:{i}/{count}{options}", base) for i in range(count)]


def test_no_node_trains_on_what_any_node_or_the_summary_holds_out(base: BaseModel) -> None:
    data = nodes(base, 6)
    learnt = set[bytes]().union(*(hashes(d.train) for d in data))
    held = set[bytes]().union(*(hashes(d.held_out) for d in data))
    shown = set[bytes]().union(*(hashes(rows) for rows in domain_held_out(base).values()))
    assert learnt.isdisjoint(held | shown | hashes(general_held_out(base)))


def test_nodes_get_different_slices_of_different_mixtures(base: BaseModel) -> None:
    data = nodes(base, 4)
    for one in range(4):
        for other in range(one):
            assert hashes(data[one].train).isdisjoint(hashes(data[other].train))
    assert len({d.digest for d in data}) == 4
    assert len({max(d.mixture, key=d.mixture.__getitem__) for d in data}) >= 3
    for d in data:
        assert tuple(d.mixture) == corpus.DOMAINS
        assert sum(d.mixture.values()) == pytest.approx(1.0)
        assert (len(d.train), len(d.held_out)) == (128, 64)


def test_the_same_source_gives_the_same_data_and_another_seed_other_data(base: BaseModel) -> None:
    first, again, other = (load_node_data(f"embedded:2/4?bytes=8192&seed={seed}", base) for seed in (1, 1, 2))
    assert np.array_equal(first.train, again.train)
    assert first.digest == again.digest
    assert first.digest != other.digest


def test_a_large_alpha_makes_nodes_alike_and_a_small_one_makes_specialists() -> None:
    def largest_share(alpha: float) -> float:
        sources = (parse_embedded(f"embedded:{i}/20?alpha={alpha}") for i in range(20))
        return float(np.mean([max(domain_mixture(source).values()) for source in sources]))

    assert largest_share(100.0) < 0.2 < 0.6 < largest_share(0.1)


def test_many_nodes_share_a_domain_that_is_used_up(base: BaseModel) -> None:
    data = load_node_data("embedded:199/200", base)
    assert len(data.train) > 50


def test_duplicates_are_removed_and_short_rests_are_padded(base: BaseModel, tmp_path: Path) -> None:
    first = "".join(f"line number {i} of a text\n" for i in range(200))
    (tmp_path / "a.txt").write_text(first)
    (tmp_path / "b.md").write_text(first)
    (tmp_path / ".hidden.txt").write_text("secret " * 50)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG" * 100)
    data = load_node_data(str(tmp_path), base, sequence_bytes=64)
    rows = np.concatenate([data.train, data.held_out])
    tokens = first.encode()
    assert len(hashes(rows)) == len(rows) == -(-len(tokens) // 64)
    assert sum(int(np.count_nonzero(row != PAD)) for row in rows) == len(tokens)
    assert data.mixture == {"local": 1.0}
    assert np.array_equal(held_out_mask(data.held_out), np.ones(len(data.held_out), dtype=bool))


def test_json_lines_are_one_example_each(base: BaseModel, tmp_path: Path) -> None:
    records = [{"text": f"what is {i} plus one?"} for i in range(30)]
    records += [{"prompt": f"say number {i}: ", "completion": f"it is {i}"} for i in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(r) for r in records) + "\n\n")
    data = load_node_data(f"folder:{tmp_path}", base, sequence_bytes=64)
    texts = {bytes(row[row != PAD].tolist()) for row in (*data.train, *data.held_out)}
    assert len(texts) == 60
    assert b"say number 7: it is 7" in texts


def test_a_limit_takes_the_first_bytes_of_a_folder(base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"{i:07d}\n" for i in range(2000)))
    data = load_node_data(f"{tmp_path}?bytes=4096", base, sequence_bytes=64)
    assert len(data.train) + len(data.held_out) == 64


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("embedded:4/4", "between 0 and 3"),
        ("embedded:x", "embedded:INDEX/NODES"),
        ("embedded:0/4?alhpa=1", "unknown option alhpa"),
        ("embedded:0/4?alpha=often", "not a number"),
        ("embedded:0/4?alpha=0", "must be positive"),
        ("embedded:0/4?held_out=0", "must be positive"),
        ("no/such/folder", "not a folder"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(base: BaseModel, source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_node_data(source, base)


@pytest.mark.parametrize("line", ["not json", '{"body": "x"}', '["x"]', '{"prompt": "x"}'])
def test_a_bad_json_line_is_named(base: BaseModel, tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        load_node_data(str(tmp_path), base)


def test_a_base_with_a_tokenizer_of_its_own_gets_its_own_tokens(base: BaseModel, tmp_path: Path) -> None:
    """A byte pair is one token; the text comes back from the tokens."""
    shutil.copytree(base.directory, tmp_path / "base")
    description = tokenizer_description()
    model = cast(dict[str, Any], description["model"])
    model["vocab"] = {**model["vocab"], "se": 256}
    model["merges"] = [["s", "e"]]
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(description))
    other = BaseModel.load(str(tmp_path / "base"))
    assert not other.byte_level
    assert encoder(other)(b"self.sets").tolist() == [256, *b"lf.", 256, *b"ts"]
    ours, theirs = load_node_data("embedded:0/4", base), load_node_data("embedded:0/4", other)
    assert int(theirs.train.max()) == 256 > int(ours.train.max())
    assert theirs.digest != ours.digest


def test_a_base_whose_tokenizer_cannot_be_read_says_so(base: BaseModel, tmp_path: Path) -> None:
    shutil.copytree(base.directory, tmp_path / "base")
    for path in (tmp_path / "base").glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ServiceError, match="cannot load the tokenizer"):
        load_node_data("embedded:0/4", BaseModel.load(str(tmp_path / "base")))
