"""The corpus that ships is the corpus in its index, and can be cut again from a standard library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training import corpus


def test_every_part_of_the_corpus_has_the_bytes_of_its_index() -> None:
    index = corpus.read_index()
    assert set(index) == {*corpus.DOMAINS, corpus.GENERAL_TRAIN, corpus.GENERAL_HELD_OUT}
    for name, entry in index.items():
        documents = corpus.read_documents(name)
        assert len(documents) == len(entry.sources)
        assert len(corpus.SEPARATOR.join(documents)) == entry.size_bytes
    assert 1_000_000 < sum(entry.size_bytes for entry in index.values()) < 2_000_000


def test_general_held_out_text_shares_no_file_with_what_the_base_learnt_or_a_domain_holds() -> None:
    index = corpus.read_index()
    held_out = set(index[corpus.GENERAL_HELD_OUT].sources)
    for name, entry in index.items():
        if name != corpus.GENERAL_HELD_OUT:
            assert held_out.isdisjoint(entry.sources)


def test_a_damaged_corpus_file_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gui.txt").write_bytes(b"something else")
    row = {"sha256": "0" * 64, "size_bytes": 14, "sources": ["a.py"]}
    (tmp_path / "index.json").write_text(json.dumps({"files": {"gui": row}}))
    monkeypatch.setattr(corpus, "_assets", lambda: tmp_path)
    corpus._read_documents.cache_clear()
    with pytest.raises(ServiceError, match=r"gui\.txt has sha256 (?s:.*)reinstall"):
        corpus.read_documents("gui")


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no part 'poetry'"):
        corpus.read_documents("poetry")


def test_building_the_corpus_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """From a small library: tests and build data are left out, long files are cut at a line."""
    library = tmp_path / "lib"
    line = "x = 'a line of a module'\n"
    for number in range(30):
        for pattern in ("a{}.py", "encodings/a{}.py", "tkinter/a{}.py", "xml/a{}.py", "email/a{}.py"):
            path = library / pattern.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {path.name}\n" + line * (30 + 40 * number))
    for folder in ("asyncio", "distutils", "encodings/test"):
        (library / folder).mkdir()
        (library / folder / "m.py").write_text(line * 40)
    (library / "pydoc_data").mkdir()
    (library / "pydoc_data" / "topics.py").write_text(f"topics = {{'if': {line * 30!r}}}\n")
    (library / "idlelib").mkdir()
    (library / "idlelib" / "NEWS.txt").write_text("What is new\n" * 60)
    (library / "LICENSE.txt").write_text("PSF LICENSE AGREEMENT\n" * 30)
    (library / "_sysconfigdata_x.py").write_text(line * 40)

    first = corpus.build_corpus(library, tmp_path / "one", "3.11.0")
    again = corpus.build_corpus(library, tmp_path / "two", "3.11.0")
    assert first == again
    assert (tmp_path / "one" / "index.json").read_bytes() == (tmp_path / "two" / "index.json").read_bytes()
    sources = {source for entry in first.values() for source in entry.sources}
    assert "encodings/test/m.py" not in sources
    assert "_sysconfigdata_x.py" not in sources
    assert first["documentation"].sources == ("pydoc_data/topics.py#if",)
    text = (tmp_path / "one" / "encodings.txt").read_bytes()
    for document in text.split(corpus.SEPARATOR):
        assert len(document) <= 14_000
        assert document.endswith(b"\n")
    assert (tmp_path / "one" / "LICENSE.txt").read_text().startswith("PSF LICENSE")
