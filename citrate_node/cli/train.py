"""`citrate train`: one adapter from one person's data, ready for `citrate adapter create`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from citrate_node.training.training_run import Run, RunResult

app = typer.Typer(add_completion=False)

_WHERE = "Where"
_ADAPTER = "Adapter"
_LEARNING = "Learning"
_CARD = "Card"


@app.command("train")
def train(
    data: str = typer.Option(
        ...,
        "--data",
        help="A file or folder (text, .jsonl, .parquet, a folder of datasets' save_to_disk), "
        "domain:NAME of the embedded corpus, or embedded:INDEX/NODES, a devnet node's share.",
        rich_help_panel=_WHERE,
    ),
    out: Path = typer.Option(..., "--out", help="Folder to write the adapter to.", rich_help_panel=_WHERE),
    base: str = typer.Option(
        "embedded",
        "--base",
        help='"embedded", a folder that transformers loads, or a hub name.',
        rich_help_panel=_WHERE,
    ),
    continue_from: Path | None = typer.Option(
        None,
        "--continue-from",
        help="Refresh: begin with the weights of this adapter folder (see `citrate adapter pull`), not anew.",
        rich_help_panel=_WHERE,
    ),
    fresh: bool = typer.Option(
        False, "--fresh", help="Begin again where --out holds a run or an adapter.", rich_help_panel=_WHERE
    ),
    rank: int = typer.Option(8, "--rank", min=1, max=64, rich_help_panel=_ADAPTER),
    alpha: int | None = typer.Option(
        None,
        "--alpha",
        min=1,
        help="The update is scaled by alpha / rank. [default: twice the rank]",
        rich_help_panel=_ADAPTER,
    ),
    targets: str = typer.Option(
        "all-linear",
        "--targets",
        help='Layers that get factors: "all-linear", "attention", "q,v", or names with commas.',
        rich_help_panel=_ADAPTER,
    ),
    dropout: float = typer.Option(0.0, "--dropout", min=0.0, max=0.9, rich_help_panel=_ADAPTER),
    variant: str = typer.Option("lora", "--variant", help="lora, rslora or dora.", rich_help_panel=_ADAPTER),
    quantization: str = typer.Option(
        "none",
        "--quantization",
        help="nf4: QLoRA, the frozen base in 4 bits with double quantization.",
        rich_help_panel=_ADAPTER,
    ),
    adapter_dtype: str = typer.Option(
        "float32", "--adapter-dtype", help="float32 or bfloat16, while learning.", rich_help_panel=_ADAPTER
    ),
    local_only: bool = typer.Option(
        False,
        "--local-only",
        help="Allow what the network cannot hold (dora, a head for labels): a folder for PEFT alone.",
        rich_help_panel=_ADAPTER,
    ),
    steps: int = typer.Option(200, "--steps", min=1, help="At most.", rich_help_panel=_LEARNING),
    batch: int = typer.Option(8, "--batch", min=1, help="Sequences per step.", rich_help_panel=_LEARNING),
    sequence: int = typer.Option(
        128,
        "--sequence",
        min=8,
        help="Tokens per sequence (bytes, for the embedded base).",
        rich_help_panel=_LEARNING,
    ),
    learning_rate: float = typer.Option(2e-3, "--learning-rate", rich_help_panel=_LEARNING),
    warmup: int = typer.Option(10, "--warmup", min=0, help="Steps.", rich_help_panel=_LEARNING),
    weight_decay: float = typer.Option(0.0, "--weight-decay", min=0.0, rich_help_panel=_LEARNING),
    validate_every: int = typer.Option(
        20, "--validate-every", min=1, help="Steps.", rich_help_panel=_LEARNING
    ),
    patience: int = typer.Option(
        5,
        "--patience",
        min=0,
        help="Stop after this many validations without a better loss. 0: never.",
        rich_help_panel=_LEARNING,
    ),
    checkpoint_every: int = typer.Option(
        20, "--checkpoint-every", min=1, help="Steps; what kill -9 may cost.", rich_help_panel=_LEARNING
    ),
    recompute: bool = typer.Option(
        False,
        "--recompute-activations",
        help="Less memory, a third more time (gradient checkpointing).",
        rich_help_panel=_LEARNING,
    ),
    seed: int = typer.Option(0, "--seed", min=0, rich_help_panel=_LEARNING),
    near_duplicates: float = typer.Option(
        0.8,
        "--near-duplicates",
        min=0.0,
        max=1.0,
        help="Drop passages this similar to an earlier one (0.5 to 1). 0: exact duplicates only.",
        rich_help_panel=_LEARNING,
    ),
    chat_template: Path | None = typer.Option(
        None,
        "--chat-template",
        help="A Jinja file that spells conversations, instead of the tokenizer's own.",
        rich_help_panel=_LEARNING,
    ),
    device: str = typer.Option("auto", "--device", help="auto, cpu or cuda.", rich_help_panel=_LEARNING),
    threads: int = typer.Option(1, "--threads", min=1, help="CPU threads.", rich_help_panel=_LEARNING),
    description: str = typer.Option("", "--description", help="What the data are.", rich_help_panel=_CARD),
    data_licence: str = typer.Option("unknown", "--data-licence", rich_help_panel=_CARD),
    licence: str | None = typer.Option(
        None, "--licence", help="Of the adapter. [default: the base's]", rich_help_panel=_CARD
    ),
    json_lines: bool = typer.Option(
        False, "--json", help="One JSON object per line on stdout, nothing else."
    ),
) -> None:
    """Train a LoRA adapter on your own data.

    Reads the data, drops junk and duplicates and says how many, holds out a fifth by hash, and trains with
    early stopping. Writes a PEFT folder with its provenance and card, which `citrate adapter create` takes
    as it is. Stopped in any way, the same command goes on where it was and ends with the same bytes.

    Example: citrate train --data domain:web --out web-adapter --steps 300
    """
    from citrate_node.training.architecture import objective_of, resolve_targets
    from citrate_node.training.base_model import BaseModel
    from citrate_node.training.cleaning import Filters
    from citrate_node.training.examples import DataSettings, load_dataset
    from citrate_node.training.run_settings import RunSettings
    from citrate_node.training.settings import LoraSettings
    from citrate_node.training.training_run import Run

    model = BaseModel.load(base)
    settings = RunSettings(
        lora=LoraSettings(rank, alpha or 2 * rank, resolve_targets(model, targets), dropout),
        variant=variant,  # type: ignore[arg-type]  # RunSettings refuses what is none
        quantization=quantization,  # type: ignore[arg-type]
        adapter_dtype=adapter_dtype,  # type: ignore[arg-type]
        steps=steps,
        batch_sequences=batch,
        sequence_tokens=sequence,
        learning_rate=learning_rate,
        warmup_steps=warmup,
        weight_decay=weight_decay,
        validate_every_steps=validate_every,
        patience=patience,
        checkpoint_every_steps=checkpoint_every,
        recompute_activations=recompute,
        seed=seed,
    )
    objective = objective_of(model, has_labels=_first_has_label(data))
    reading = DataSettings(sequence, Filters(similarity_max=near_duplicates or None), _text(chat_template))
    dataset = load_dataset(data, model, objective, reading)
    run = Run(
        model,
        dataset,
        objective,
        settings,
        out,
        start=continue_from,
        local_only=local_only,
        description=description or data,
        data_licence=data_licence,
        licence=licence,
    )
    _go(run, fresh, device, threads, json_lines)


def _go(run: Run, fresh: bool, device: str, threads: int, json_lines: bool) -> None:
    from citrate_node.cli.output import print_json
    from citrate_node.training.training_run import check_run
    from citrate_node.training.training_run import train as run_training

    resumed = check_run(run, fresh).step
    report = run.dataset.report
    counts = {
        "documents": report.documents,
        "passages": report.passages,
        "kept": report.kept,
        "dropped": dict(sorted(report.dropped.items())),
    }
    if json_lines:
        print_json({"type": "data", "digest": run.dataset.digest, **counts})
    else:
        typer.echo(f"data       {report.summary()}   digest {run.dataset.digest[:12]}…")
        if resumed:
            typer.echo(f"going on   after step {resumed} of {run.settings.steps}")
    try:
        with _Display(json_lines) as display:
            result = run_training(run, fresh=False, device=device, threads=threads, notify=display.notify)
    except KeyboardInterrupt:
        typer.echo("citrate: stopped; the same command goes on from the last checkpoint", err=True)
        raise typer.Exit(130) from None
    _show(result, run.dataset.source, json_lines)


class _Display:
    """A progress bar for people; for scripts one line per event, steps left out."""

    def __init__(self, json_lines: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._json = json_lines
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("step {task.completed:.0f} of {task.total:.0f}   {task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=json_lines,
            transient=True,
        )
        self._task: Any = None

    def __enter__(self) -> _Display:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def notify(self, facts: dict[str, Any]) -> None:
        from citrate_node.cli.output import print_json

        kind = facts["type"]
        if self._json:
            if kind in ("started", "validated"):
                print_json(facts)
            return
        if kind == "started":
            self._task = self._bar.add_task("", total=facts["of"], completed=facts["step"])
            typer.echo(
                f"examples   {facts['train_examples']} to train on, "
                f"{facts['validation_examples']} to validate on, "
                f"{facts['held_out_examples']} held out   {facts['parameters']:,} parameters learn"
            )
        elif kind == "step":
            self._bar.update(self._task, completed=facts["step"], description=f"loss {facts['loss']:.3f}")
        elif kind == "validated":
            typer.echo(
                f"step {facts['step']:<5} validation loss {facts['loss_validation']:.4f} nats per token"
            )


def _show(result: RunResult, source: str, json_lines: bool) -> None:
    from citrate_node.cli.output import print_json

    weights = result.provenance.weights
    facts = {
        "type": "trained",
        "folder": str(result.folder),
        "steps": result.steps,
        "best_step": result.best_step,
        "stopped_early": result.stopped_early,
        "resumed_at_step": result.resumed_at_step,
        "loss_train": round(result.loss_train, 6),
        "loss_validation_base": round(result.loss_validation_base, 6),
        "loss_validation": round(result.loss_validation, 6),
        "weights_sha256": weights.sha256,
        "cid": weights.cid,
        "for_the_network": result.for_the_network,
    }
    if json_lines:
        print_json(facts)
        return
    early = ", stopped early" if result.stopped_early else ""
    typer.echo(
        f"trained    {result.steps} steps{early}; kept step {result.best_step}: validation loss "
        f"{result.loss_validation_base:.4f} base, {result.loss_validation:.4f} adapter"
    )
    typer.echo(f"written    {result.folder}   sha256 {weights.sha256[:12]}…   {weights.size_bytes:,} bytes")
    if result.for_the_network:
        typer.echo(f"next       citrate evaluate {result.folder} --data {source}")
    else:
        typer.echo("           for PEFT alone: this network cannot hold it")


def _first_has_label(source: str) -> bool:
    """Whether the data are labelled texts: asked of the first record, load_dataset checks them all."""
    from citrate_node.training.documents import read_documents

    if source.startswith(("domain:", "embedded:")) or source == "general":
        return False
    first = next(iter(read_documents(source)), None)
    return first is not None and first.label is not None


def _text(path: Path | None) -> str | None:
    from citrate_node.errors import ConfigError

    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the chat template {path}: {error}") from None
