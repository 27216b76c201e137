"""What a person's data become: passages without junk or repetitions, in three parts that share nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from citrate_node.errors import ConfigError
from citrate_node.training.base_model import BaseModel
from citrate_node.training.cleaning import CleaningReport, Filters, clean
from citrate_node.training.documents import Document, read_documents
from citrate_node.training.examples import Dataset, DataSettings, load_dataset
from citrate_node.training.near_duplicates import NearDuplicates, jaccard, shingles

WORDS = ("river", "stone", "lamp", "garden", "letter", "engine", "winter", "copper", "window", "market")


def sentences(count: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 14)) + f" {seed} {n}." for n in range(count)]


def write_lines(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def kept_of(
    documents: list[Document], filters: Filters | None = None
) -> tuple[list[Document], CleaningReport]:
    report = CleaningReport()
    return list(clean(documents, filters or Filters(), report)), report


def test_every_record_format_becomes_one_document(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "data.jsonl",
        [
            {"text": "plain"},
            {"prompt": "p", "completion": "c"},
            {"instruction": "do", "input": "it", "output": "done"},
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            {"text": "good", "label": 1},
        ],
    )
    assert list(read_documents(str(file))) == [
        Document("plain"),
        Document("p", completion="c"),
        Document("", completion="done", messages=(("user", "do\n\nit"),)),
        Document("", completion="a", messages=(("user", "q"),)),
        Document("good", label="1"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"body": "x"}', "line 1: expected"),
        ('{"text": "x", "label": 1.5}', "label is 1.5"),
        ('{"messages": [{"role": "user", "content": "x"}]}', 'end with one of role "assistant"'),
        ('{"messages": ["x", "y"]}', 'needs a text "role"'),
    ],
)
def test_a_record_that_cannot_be_meant_is_named_by_file_and_line(
    tmp_path: Path, line: str, message: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        list(read_documents(str(tmp_path)))


def test_parquet_and_datasets_folders_read_the_same_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"text": ["one text", "another text"], "label": ["a", "b"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    saved = tmp_path / "saved" / "train"  # as datasets' DatasetDict.save_to_disk lays it out
    saved.mkdir(parents=True)
    (saved.parent / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (saved / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    with pa.ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), table.schema) as stream:
        stream.write_table(table)
    (saved / "cache-1.arrow").write_bytes(b"an old transformation, not the data")
    rows = [Document("one text", label="a"), Document("another text", label="b")]
    assert list(read_documents(str(tmp_path / "rows.parquet"))) == rows
    assert list(read_documents(str(tmp_path / "saved"))) == rows


def test_each_drop_is_counted_under_its_reason() -> None:
    good = "A passage that is worth reading, about lamps and gardens."
    documents = [
        Document(good),
        Document(good),
        Document(good.replace("lamps", "Lamps") + "  "),
        Document("short"),
        Document("\x00\x01\x02\x03" * 10),
        Document("the same line again\n" * 8),
        Document("a question of some length", completion=" "),
    ]
    kept, report = kept_of(documents)
    assert kept == [Document(good)]
    assert dict(report.dropped) == {
        "exact duplicates": 1,
        "near duplicates": 1,
        "too short": 1,
        "not text": 1,
        "repeated lines": 1,
        "empty completions": 1,
    }
    assert (report.documents, report.passages, report.kept) == (7, 7, 1)


def test_without_a_similarity_only_exact_duplicates_go() -> None:
    one = "A passage that is worth reading, about lamps and gardens."
    kept, _ = kept_of([Document(one), Document(one + " "), Document(one)], Filters(similarity_max=None))
    assert kept == [Document(one), Document(one + " ")]


def test_near_duplicates_are_those_that_comparing_all_pairs_finds() -> None:
    random = np.random.default_rng(3)
    texts = sentences(60)
    for text in texts[:40]:
        words = text.split()
        for _ in range(int(random.integers(0, 4))):
            words[int(random.integers(len(words)))] = str(random.choice(WORDS))
        texts.append(" ".join(words))
    index = NearDuplicates(0.8)
    found = [index.seen(text) for text in texts]
    kept: list[str] = []
    expected = []
    for text in texts:
        mine = shingles(text.lower().encode())
        expected.append(any(jaccard(mine, shingles(k.lower().encode())) >= 0.8 for k in kept))
        if not expected[-1]:
            kept.append(text)
    assert found == expected
    assert 5 < sum(found) < 40


@given(st.text(max_size=300))
def test_a_text_is_always_a_near_duplicate_of_itself(text: str) -> None:
    index = NearDuplicates(1.0)
    assert [index.seen(text), index.seen(text)] == [False, True]


def test_long_text_is_cut_at_line_ends_and_nothing_is_lost() -> None:
    text = "\n".join(sentences(60))
    report = CleaningReport()
    pieces = list(clean([Document(text)], Filters(similarity_max=None), report))
    assert "".join(piece.text for piece in pieces) == text
    assert all(piece.text.endswith("\n") for piece in pieces[:-1])


def rows_of(dataset: Dataset) -> list[set[bytes]]:
    parts = (dataset.train, dataset.validation, dataset.held_out)
    return [{row.tobytes() for row in part.tokens} for part in parts]


def test_no_example_is_in_two_parts_and_order_does_not_matter(tmp_path: Path, base: BaseModel) -> None:
    lines = [{"text": text} for text in sentences(120)]
    one = load_dataset(str(write_lines(tmp_path / "a.jsonl", lines)), base, "causal")
    other = load_dataset(str(write_lines(tmp_path / "b.jsonl", lines[::-1])), base, "causal")
    train, validation, held_out = rows_of(one)
    assert train
    assert validation
    assert held_out
    assert len(train | validation | held_out) == len(train) + len(validation) + len(held_out)
    assert rows_of(other) == rows_of(one)
    assert other.digest == one.digest
    changed = load_dataset(str(write_lines(tmp_path / "c.jsonl", lines[1:])), base, "causal")
    assert changed.digest != one.digest


def test_of_a_pair_only_the_completion_is_learnt(tmp_path: Path, base: BaseModel) -> None:
    records = [{"prompt": f"{text}\n", "completion": f"answer {n}"} for n, text in enumerate(sentences(40))]
    dataset = load_dataset(str(write_lines(tmp_path / "p.jsonl", records)), base, "causal")
    row = 0
    tokens, learns = dataset.train.tokens[row], dataset.train.learns[row]
    learnt = bytes(tokens[learns].astype(np.uint8)).decode()
    shown = bytes(tokens[(tokens >= 0) & ~learns].astype(np.uint8)).decode()
    assert {"prompt": shown, "completion": learnt} in records


def test_a_pair_longer_than_a_sequence_is_dropped_and_counted(tmp_path: Path, base: BaseModel) -> None:
    records = [{"prompt": text, "completion": "yes"} for text in sentences(40)]
    records.append({"prompt": "long " * 60, "completion": "no"})
    dataset = load_dataset(str(write_lines(tmp_path / "p.jsonl", records)), base, "causal")
    assert dataset.report.dropped["longer than a sequence"] == 1


def test_a_conversation_needs_a_template_and_follows_it(tmp_path: Path, base: BaseModel) -> None:
    from tiny_bases import TEMPLATE

    talk = [
        {"role": "user", "content": "first question"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "second question"},
        {"role": "assistant", "content": "second answer"},
    ]
    file = str(write_lines(tmp_path / "t.jsonl", [{"messages": talk}]))
    with pytest.raises(ConfigError, match="has no chat template"):
        load_dataset(file, base, "causal")
    dataset = load_dataset(file, base, "causal", DataSettings(128, chat_template=TEMPLATE))
    whole = dataset.whole()
    tokens, learns = whole.tokens[0], whole.learns[0]
    assert bytes(tokens[tokens >= 0].astype(np.uint8)).decode() == (
        "<user>first question</><assistant>first answer</><user>second question</><assistant>second answer</>"
    )
    assert bytes(tokens[learns].astype(np.uint8)).decode() == "second answer</>"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no-such-file", "there is no such file or folder"),
        ("domain:poetry", "the domains are changelog"),
    ],
)
def test_a_source_that_is_none_is_refused(base: BaseModel, source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(source, base, "causal")


def test_a_sequence_longer_than_the_base_reads_is_refused(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match="sequence_tokens is 1024, base model embedded reads 512"):
        load_dataset("domain:web", base, "causal", DataSettings(1024))


def test_what_is_learnt_of_a_domain_is_unlike_what_is_held_out(base: BaseModel) -> None:
    """The codecs of the standard library are one table written many times over; held out stays as it was."""
    found = load_dataset("domain:encodings", base, "causal")
    exact = load_dataset(
        "domain:encodings", base, "causal", DataSettings(filters=Filters(similarity_max=None))
    )

    def own(rows: np.ndarray) -> list[np.ndarray]:
        texts = (bytes(row[row >= 0].astype(np.uint8)).decode(errors="replace") for row in rows)
        return [shingles(" ".join(text.lower().split()).encode()) for text in texts]

    def learnt(data: Dataset) -> list[bytes]:
        return [row.tobytes() for part in (data.train, data.validation) for row in part.tokens]

    def nearest(row: np.ndarray, others: list[np.ndarray]) -> float:
        return max(jaccard(row, other) for other in others)

    assert (found.held_out.tokens == exact.held_out.tokens).all()
    gone = set(learnt(exact)) - set(learnt(found))
    assert found.report.dropped == {"near duplicates": len(gone)}
    assert len(gone) > 100
    held = own(found.held_out.tokens)
    assert all(nearest(row, held) < 0.8 for row in own(found.train.tokens[:60]))
    rows = np.concatenate([found.train.tokens, found.validation.tokens, found.held_out.tokens])
    every = own(rows)
    dropped = own(np.stack([np.frombuffer(row, dtype=rows.dtype) for row in sorted(gone)[:20]]))
    assert all(nearest(row, every) >= 0.8 for row in dropped)
