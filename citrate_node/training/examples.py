"""From a data source to examples of one width: cleaned, tokenized, and split by hash into three parts.

    train        learnt from
    validation   decides when training stops and which weights are kept
    held out     measured by `citrate evaluate`, and by nothing before

Which part a passage is in follows from its own hash alone, so the same data gives the same parts on every
machine, in any order, and no passage is in two. The sources "domain:NAME" and "embedded:…" keep the rule by
which nodes hold out (data.py), so what is held out here is held out on the network. Called by
training_run.py and evaluation.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from citrate_node.errors import ConfigError, ServiceError
from citrate_node.training import corpus
from citrate_node.training.architecture import Objective
from citrate_node.training.base_model import BaseModel
from citrate_node.training.cleaning import CleaningReport, Filters, clean, passage_hash
from citrate_node.training.data import (
    EXAMPLE_TOKENS_MIN,
    HELD_OUT_ONE_IN,
    PAD,
    Rows,
    domain_rows,
    encoder,
    example_hash,
    general_held_out,
    load_node_data,
)
from citrate_node.training.documents import Document, read_documents
from citrate_node.training.near_duplicates import NearDuplicates

Part = Literal["train", "validation", "held_out"]

GENERAL = "general"
"""The source of general text: of the embedded corpus, held out from everybody."""
GENERAL_EXAMPLES_MAX = 96
VALIDATION_ONE_IN = 8
_DOMAIN = "domain:"
_EMBEDDED = "embedded:"
NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of one width."""

    tokens: Rows
    """(count, width): token ids, then PAD."""

    learns: npt.NDArray[np.bool_]
    """(count, width): the tokens that are to be predicted; not a prompt, not padding."""

    labels: npt.NDArray[np.int64]
    """(count,): place in `Dataset.labels`; NO_LABEL where there are none."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, places: npt.NDArray[Any] | slice) -> Examples:
        return Examples(self.tokens[places], self.learns[places], self.labels[places])

    @classmethod
    def of_rows(cls, rows: Rows) -> Examples:
        """Plain text, every token of it to be learnt."""
        return cls(rows, rows != PAD, np.full(len(rows), NO_LABEL, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Dataset:
    """Everything a training or an evaluation needs to know of its data."""

    source: str
    train: Examples
    validation: Examples
    held_out: Examples
    labels: tuple[str, ...]
    """Of labelled texts, ascending. Empty: there are none."""
    digest: str
    """Hex sha256 over the sorted hashes of the examples of all parts: names the data without showing it."""
    report: CleaningReport

    def whole(self) -> Examples:
        """All parts as one, for data that nothing was trained on."""
        return _joined([self.train, self.validation, self.held_out])


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How a source is read."""

    width_tokens: int = 128
    filters: Filters = dataclasses.field(default_factory=Filters)
    chat_template: str | None = None
    """Jinja text that spells conversations. None: the tokenizer's own."""


def load_dataset(
    source: str,
    base: BaseModel,
    objective: Objective,
    settings: DataSettings | None = None,
    *,
    labels: Sequence[str] = (),
) -> Dataset:
    """Read, clean, tokenize and split a source.

    labels: the labels of the adapter that is evaluated or trained on; empty: those that stand in the data.
    Raises ConfigError for data that cannot be read, or that do not suit what the base learns.
    """
    settings = settings or DataSettings()
    limit = base.config.get("max_position_embeddings")
    if isinstance(limit, int) and settings.width_tokens > limit:
        raise ConfigError(f"sequence_tokens is {settings.width_tokens}, base model {base.name} reads {limit}")
    if source == GENERAL or source.startswith((_DOMAIN, _EMBEDDED)):
        return _of_corpus(source, base, objective, settings)
    report = CleaningReport()
    passages = list(clean(read_documents(source), settings.filters, report))
    known = _labels(passages, objective, tuple(labels), source)
    spell = _Spelling(base, objective, settings, known)
    parts: dict[Part, list[tuple[Rows, npt.NDArray[np.bool_], int]]] = {
        "train": [],
        "validation": [],
        "held_out": [],
    }
    seen: set[bytes] = set()
    for passage in passages:
        part = part_of(passage_hash(passage))
        made = spell.examples(passage)
        if not made:
            report.dropped["longer than a sequence" if passage.completion is not None else "few tokens"] += 1
            report.kept -= 1
        for example in made:
            key = example[0].tobytes() + example[1].tobytes()
            if key not in seen:  # a short rest of two texts may be the same
                seen.add(key)
                parts[part].append(example)
    train, validation, held_out = (_stacked(parts[name], settings.width_tokens) for name in parts)
    return Dataset(source, train, validation, held_out, known, _digest([train, validation, held_out]), report)


def part_of(key: bytes) -> Part:
    """The part that a passage or example with this sha256 is in."""
    if int.from_bytes(key[:8], "little") % HELD_OUT_ONE_IN == 0:
        return "held_out"
    return "validation" if _validates(key) else "train"


def _validates(key: bytes) -> bool:
    """Of what is not held out. Other bytes of the hash decide, so the two choices are independent."""
    return int.from_bytes(key[8:16], "little") % VALIDATION_ONE_IN == 0


def _of_corpus(source: str, base: BaseModel, objective: Objective, settings: DataSettings) -> Dataset:
    if objective == "labelled":
        raise ConfigError(f"data source {source}: the embedded corpus has no labels")
    width = settings.width_tokens
    report = CleaningReport()
    if source == GENERAL:
        held = general_held_out(base, GENERAL_EXAMPLES_MAX, width)
        learnt = held[:0]
    elif source.startswith(_DOMAIN):
        name = source.removeprefix(_DOMAIN)
        if name not in corpus.DOMAINS:
            raise ConfigError(f"data source {source}: the domains are {', '.join(corpus.DOMAINS)}")
        learnt, held = domain_rows(base, name, width)
        before = len(learnt)
        learnt = _unlike(learnt, held, base, settings.filters.similarity_max)
        if before > len(learnt):
            report.dropped["near duplicates"] = before - len(learnt)
    else:
        data = load_node_data(source, base, width)
        learnt, held = data.train, data.held_out
    chosen = np.array([_validates(example_hash(row)) for row in learnt], dtype=np.bool_)
    train, validation, held_out = (Examples.of_rows(rows) for rows in (learnt[~chosen], learnt[chosen], held))
    if objective == "masked":
        framed = _Spelling(base, objective, settings, ()).framed
        train, validation, held_out = framed(train), framed(validation), framed(held_out)
    report.kept = len(learnt) + len(held)
    report.passages = report.kept + report.dropped.total()
    return Dataset(source, train, validation, held_out, (), _digest([train, validation, held_out]), report)


def _unlike(learnt: Rows, held: Rows, base: BaseModel, similarity: float | None) -> Rows:
    """Rows to learn from that are no near duplicate of a held-out one, nor of one before them.

    What is held out stays as every node holds it out.
    """
    if similarity is None:
        return learnt
    tokenizer = None if base.byte_level else load_tokenizer(base.directory)

    def text(row: Rows) -> str:
        tokens = row[row != PAD]
        if tokenizer is None:
            return bytes(tokens.astype(np.uint8)).decode("utf-8", errors="replace")
        return str(tokenizer.decode(tokens))

    near = NearDuplicates(similarity)
    for row in held:
        near.seen(text(row))
    unlike = np.array([not near.seen(text(row)) for row in learnt], dtype=np.bool_)
    kept: Rows = learnt[unlike]
    return kept


class _Spelling:
    """Passages to token rows, for one base and one objective."""

    def __init__(
        self, base: BaseModel, objective: Objective, settings: DataSettings, labels: tuple[str, ...]
    ) -> None:
        self._base, self._objective = base, objective
        self._width, self._template = settings.width_tokens, settings.chat_template
        self._encode: Callable[[bytes], npt.NDArray[np.int32]] = encoder(base)
        self._labels = {label: place for place, label in enumerate(labels)}
        self._tokenizer: Any = None
        self._before, self._after = self._frame() if objective != "causal" else ((), ())
        self._room = self._width - len(self._before) - len(self._after)

    def examples(self, passage: Document) -> list[tuple[Rows, npt.NDArray[np.bool_], int]]:
        """(tokens, learns, label) of one passage; none where it does not fit or says too little."""
        if self._objective == "labelled":
            tokens = self._encode(passage.text.encode())[: self._room]
            return [self._row(tokens, np.ones(len(tokens), bool), self._labels[str(passage.label)])]
        prompt, completion = self._pair(passage)
        if completion is None:
            tokens = self._encode(prompt.encode())
            pieces = [tokens[s : s + self._room] for s in range(0, len(tokens), self._room)]
            least = min(self._room, EXAMPLE_TOKENS_MIN)
            return [self._row(p, np.ones(len(p), bool)) for p in pieces if len(p) >= least]
        asked, learnt = self._encode(prompt.encode()), self._encode(completion.encode())
        if len(asked) + len(learnt) > self._room or len(learnt) == 0:
            return []
        learns = np.arange(len(asked) + len(learnt)) >= len(asked)
        return [self._row(np.concatenate([asked, learnt]), learns)]

    def framed(self, examples: Examples) -> Examples:
        """Plain rows again with the marks that an encoder wants around a text."""
        rows = [row[row != PAD][: self._room] for row in examples.tokens]
        return _stacked([self._row(r, np.ones(len(r), bool)) for r in rows], self._width)

    def _row(
        self, tokens: npt.NDArray[np.int32], learns: npt.NDArray[np.bool_], label: int = NO_LABEL
    ) -> tuple[Rows, npt.NDArray[np.bool_], int]:
        whole = np.concatenate([self._before, tokens, self._after]).astype(np.int32)
        padding = self._width - len(whole)
        before, after = np.zeros(len(self._before), bool), np.zeros(len(self._after), bool)
        mask = np.concatenate([before, learns, after])
        return np.pad(whole, (0, padding), constant_values=PAD), np.pad(mask, (0, padding)), label

    def _pair(self, passage: Document) -> tuple[str, str | None]:
        if passage.messages:
            return self._conversation(passage)
        if passage.label is not None:  # a causal model learns to write the label
            return passage.text.rstrip() + "\n", passage.label
        return passage.text, passage.completion

    def _conversation(self, passage: Document) -> tuple[str, str]:
        tokenizer = self._load_tokenizer()
        template = self._template or getattr(tokenizer, "chat_template", None)
        turns = [{"role": role, "content": content} for role, content in passage.messages]
        if template is None:
            if len(turns) > 1:
                raise ConfigError(
                    f"base model {self._base.name} has no chat template, and the data are conversations\n"
                    "  give one with --chat-template FILE, or write prompt and completion"
                )
            return turns[0]["content"].rstrip() + "\n\n", str(passage.completion)
        answer = {"role": "assistant", "content": passage.completion}
        try:
            spelt = tokenizer.apply_chat_template([*turns, answer], chat_template=template, tokenize=False)
            prompt = tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # jinja's own errors, and whatever a template raises
            raise ConfigError(f"the chat template cannot spell these messages: {error}") from error
        if not spelt.startswith(prompt):
            raise ConfigError(
                "the chat template spells the question otherwise once the answer follows\n"
                "  what it makes of the question must be how it begins what it makes of both"
            )
        return prompt, spelt[len(prompt) :]

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The marks that an encoder saw around every text: [CLS] and [SEP], by whatever name."""
        tokenizer = self._load_tokenizer()
        first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
        last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        return tuple(t for t in (first,) if t is not None), tuple(t for t in (last,) if t is not None)

    def _load_tokenizer(self) -> Any:
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._base.directory)
        return self._tokenizer


def load_tokenizer(directory: Path) -> Any:
    """The base's tokenizer through transformers; no code of the folder runs."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ServiceError(f"transformers cannot load the tokenizer in {directory}: {error}") from error


def _labels(
    passages: list[Document], objective: Objective, given: tuple[str, ...], source: str
) -> tuple[str, ...]:
    labelled = sum(passage.label is not None for passage in passages)
    if labelled not in (0, len(passages)):
        raise ConfigError(
            f"data source {source}: {labelled} of {len(passages)} passages have a label, not all"
        )
    if objective != "labelled":
        if objective == "masked" and any(p.completion is not None for p in passages):
            raise ConfigError(
                f"data source {source} holds prompts and completions, and this base is an encoder\n"
                "  give it plain texts, or texts with labels"
            )
        return ()
    if not labelled:
        raise ConfigError(f'data source {source}: this adapter learns labels: give {{"text": …, "label": …}}')
    found = {str(passage.label) for passage in passages}
    if given:
        if unknown := sorted(found - set(given)):
            raise ConfigError(
                f"data source {source} has the label {unknown[0]!r}; known are {', '.join(given)}"
            )
        return given
    if len(found) < 2:
        raise ConfigError(f"data source {source} has one label only: there is nothing to tell apart")
    return tuple(sorted(found))


def _stacked(rows: list[tuple[Rows, npt.NDArray[np.bool_], int]], width: int) -> Examples:
    if not rows:
        return Examples.of_rows(np.empty((0, width), dtype=np.int32))
    tokens, learns, labels = zip(*rows, strict=True)
    return Examples(np.stack(tokens), np.stack(learns), np.array(labels, dtype=np.int64))


def _joined(parts: list[Examples]) -> Examples:
    return Examples(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.learns for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _hashes(examples: Examples) -> Iterator[bytes]:
    for tokens, learns, label in zip(examples.tokens, examples.learns, examples.labels, strict=True):
        kept = tokens != PAD
        facts = tokens[kept].astype("<i4").tobytes()
        if label != NO_LABEL or not learns[kept].all():  # plain text keeps the hash that nodes use
            facts += learns[kept].tobytes() + int(label).to_bytes(8, "little", signed=True)
        yield hashlib.sha256(facts).digest()


def _digest(parts: list[Examples]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        for key in sorted(_hashes(part)):
            digest.update(key)
    return digest.hexdigest()
