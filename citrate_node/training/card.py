"""The adapter card: README.md with Hugging Face front matter, written from the provenance and nothing else.

So a card can be compared with its provenance: it must be the one that `card_text` makes. Free of torch.
Called by export.py and runtime/adapters_card.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from citrate_node.training.provenance import (
    PROVENANCE_FILE,
    DataFacts,
    EvaluationFacts,
    LineageFacts,
    Provenance,
    TrainingFacts,
    write_whole,
)

CARD_FILE = "README.md"


def write_card(folder: Path, provenance: Provenance, notes: str = "") -> None:
    """Write README.md whole or not at all. notes: an author's own text, below the card."""
    write_whole(folder / CARD_FILE, (card_text(provenance) + notes).encode())


def notes_below(folder: Path, provenance: Provenance | None) -> str:
    """What stands in README.md below the card of this provenance; all of it where it is no such card."""
    try:
        text = (folder / CARD_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    card = card_text(provenance) if provenance is not None else None
    if card is not None and text.startswith(card):
        return text[len(card) :]
    if text.startswith("---"):  # another card: its front matter must not stand twice
        text = text.split("---", 2)[-1]
    return "\n" + text.lstrip("\n") if text.strip() else ""


def card_text(provenance: Provenance) -> str:
    """The card. The same provenance gives the same text."""
    name = provenance.chain.name if provenance.chain and provenance.chain.name else "LoRA adapter"
    parts = [
        _front_matter(provenance),
        f"# {_line(name)}",
        _what(provenance),
        *_section("Intended use", provenance.intended_use or "Not stated by its author."),
        *_section("Limitations", provenance.limitations or "Not stated by its author."),
        *_section("Training", _training(provenance.training)),
        *_section("Evaluation", _evaluations(provenance.evaluations)),
        *_section("Lineage", _lineage(provenance)),
        *_section("Provenance", _origin(provenance)),
    ]
    return "\n\n".join(parts) + "\n"


def lineage_lines(node: LineageFacts, depth: int = 0) -> list[str]:
    """A tree as indented lines, from this adapter up to the weights and the base it all rests on."""
    share = f"{node.weight_percent} % of " if node.weight_percent is not None else ""
    version = f" version {node.version}" if node.version is not None else " (no version yet)"
    more = " (shown elsewhere, or too many to show)" if node.truncated else ""
    origin = "" if node.parents or node.truncated else f", trained on base {node.base_model_id[:12]}…"
    own = f"{'  ' * depth}- {share}{_line(node.name) or '(composition)'}{version} `{node.adapter_id}`"
    below = [line for parent in node.parents for line in lineage_lines(parent, depth + 1)]
    return [own + origin + more, *below]


def _front_matter(provenance: Provenance) -> str:
    """YAML that the Hugging Face hub reads. JSON strings are YAML strings, so nothing can break out."""
    rows = [
        "---",
        f"base_model: {json.dumps(provenance.base.name)}",
        "library_name: peft",
        f"license: {json.dumps(provenance.licence)}",
        f"tags: {json.dumps(list(provenance.tags))}",
        "---",
    ]
    return "\n".join(rows)


def _what(provenance: Provenance) -> str:
    weights = provenance.weights
    kind = "" if weights.variant == "lora" else f" ({weights.variant})"
    return (
        f"LoRA{kind} of rank {weights.rank}, alpha {weights.alpha}, on {', '.join(weights.targets)}, for "
        f"base model {_line(provenance.base.name)} (`{provenance.base.base_model_id}`, licence "
        f"{_line(provenance.base.licence)}). It computes something else, or fails to load, on any other base."
    )


def _section(title: str, text: str) -> list[str]:
    return [f"## {title}", text.strip()]


def _training(facts: TrainingFacts | None) -> str:
    if facts is None:
        return "Not recorded."
    known: list[tuple[str, Any]] = [
        ("method", facts.method),
        ("base quantized while training", facts.quantization if facts.quantization != "none" else None),
        ("seed", facts.seed),
        ("checkpoints", facts.checkpoints),
        ("steps", facts.steps),
        ("sequences per batch", facts.batch_sequences),
        ("tokens per sequence", facts.sequence_tokens),
        ("learning rate", facts.learning_rate),
        ("dropout", facts.dropout or None),
        ("instruction set", facts.instruction_set),
        ("went on from weights", facts.started_from),
    ]
    rows = [f"- {name}: {value}" for name, value in known if value is not None]
    return "\n".join([*rows, *(f"- data: {_data(data)}" for data in facts.data)])


def _data(data: DataFacts) -> str:
    count = f", {data.examples} examples" if data.examples is not None else ""
    text = f" {_line(data.description)}," if data.description else ""
    return f"{text} digest `{data.digest}`{count}, licence {_line(data.licence)}".strip()


def _evaluations(found: tuple[EvaluationFacts, ...]) -> str:
    if not found:
        return "Not measured by its author."
    blocks = []
    for each in found:
        base = "the base as it is" if each.quantization == "none" else f"the base in {each.quantization}"
        rows = [f"On {base}:", ""]
        rows += [f"- {_code(name)}: {value:.6g}" for name, value in each.figures.items()]
        rows += [f"- data: {_data(data)}" for data in each.data]
        if each.forced_reason is not None:
            rows.append(f"- held back by the bound on general text, promoted because: {each.forced_reason}")
        elif each.passed is not None:
            rows.append(f"- bound on general text: {'kept' if each.passed else 'not kept'}")
        blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def _lineage(provenance: Provenance) -> str:
    if provenance.lineage is None:
        return f"Trained directly on the base model `{provenance.base.base_model_id}`; not on chain yet."
    return "\n".join(lineage_lines(provenance.lineage))


def _origin(provenance: Provenance) -> str:
    rows = [f"- weights: sha256 `{provenance.weights.sha256}`, {provenance.weights.size_bytes} bytes"]
    if provenance.weights.cid is not None:
        rows.append(f"- content id: `{provenance.weights.cid}`")
    chain = provenance.chain
    if chain is not None:
        rows.append(
            f"- version {chain.version} of `{chain.adapter_id}` on chain {chain.chain_id}, contract "
            f"`{chain.contract}`, created by `{chain.creator}`"
        )
        if chain.checkpoint is not None:
            rows.append(f"- certified at checkpoint {chain.checkpoint}")
        if chain.accuracy_ppm is not None:
            rows.append(f"- improvement over the base, as validators measured it: {chain.accuracy_ppm} ppm")
    signer = f"signed by `{provenance.creator}`" if provenance.signature else "not signed"
    return "\n".join([*rows, f"- {signer}; all facts are in {PROVENANCE_FILE}"])


def _code(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`"


def _line(text: str) -> str:
    """A stranger's text within one line of Markdown: no line break, no markup that hides what it is."""
    flat = " ".join(text.split())
    return "".join("\\" + sign if sign in "\\`*_[]<>|#" else sign for sign in flat)
