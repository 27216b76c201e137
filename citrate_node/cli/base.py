"""`citrate base`: the base model that adapters are trained beside. On chain: base_chain.py."""

from __future__ import annotations

from pathlib import Path

import typer

from citrate_node.cli.adapter_options import Chain, bundled
from citrate_node.cli.base_chain import add_to, id_typed, show_registered

app = typer.Typer(no_args_is_help=True, help="The base model that adapters are trained beside.")

add_to(app)

_JSON = typer.Option(False, "--json", help="One JSON object on stdout, nothing else.")
_BASE = typer.Argument("embedded", help='"embedded", a directory that transformers loads, or a hub name.')


@app.command("id")
def show_id(base: str = _BASE, json_lines: bool = _JSON) -> None:
    """Print the base model id: sha256 over architecture, tensors and tokenizer."""
    from citrate_node.cli.output import print_json
    from citrate_node.training.base_model import BaseModel

    model = BaseModel.load(base)
    if json_lines:
        print_json({"name": model.name, "base_model_id": model.base_model_id.hex()})
    else:
        typer.echo(model.base_model_id.hex())


@app.command()
@bundled
def show(
    base: str = typer.Argument(
        "embedded",
        help='"embedded", a directory that transformers loads, a hub name, or an id: what is said on chain.',
    ),
    rank: int = typer.Option(8, "--rank", help="Rank of the adapter whose size is shown."),
    chain: Chain = Chain(),
    json_lines: bool = _JSON,
) -> None:
    """Show what a base is, and how large an adapter on all its linear layers would be.

    Of an id (64 hex digits) it shows what was registered on chain.
    """
    base_id = id_typed(base)
    if base_id is not None:
        show_registered(base_id, chain, json_lines=json_lines)
        return
    from citrate_node.cli.output import print_json
    from citrate_node.training.base_model import BaseModel
    from citrate_node.training.settings import LoraSettings

    model = BaseModel.load(base)
    shapes = model.tensor_shapes(LoraSettings(rank=rank))
    values = sum(rows * columns for rows, columns in shapes.values())
    facts = {
        "name": model.name,
        "base_model_id": model.base_model_id.hex(),
        "licence": model.licence,
        "directory": str(model.directory),
        "architecture": model.config["model_type"],
        "size_bytes": sum(tensor.size_bytes for tensor in model.tensors.values()),
        "adapter_rank": rank,
        "adapter_tensors": len(shapes),
        "adapter_size_bytes": 4 * values,
    }
    if json_lines:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:<20} {value}")


@app.command()
def pretrain(
    out: Path = typer.Option(..., "--out", help="Directory to write the base to."),
    json_lines: bool = _JSON,
) -> None:
    """Train the embedded base again from the corpus in the package.

    Gives the shipped bytes on a machine with the same instruction set (it says whether it did); elsewhere the
    same losses. Takes about two and a half minutes on two idle cores.
    """
    from citrate_node.cli.output import print_json
    from citrate_node.training.base_model import BaseModel
    from citrate_node.training.pretrain import pretrain as run

    def on_step(done: int, of: int, loss: float) -> None:
        if not json_lines and done % 50 == 0:
            typer.echo(f"step {done} of {of}   loss {loss:.3f} nats per byte", err=True)

    result = run(out, on_step=on_step)
    made, shipped = BaseModel.load(str(out)), BaseModel.load()
    same = made.base_model_id == shipped.base_model_id
    facts = {
        "directory": str(out),
        "base_model_id": made.base_model_id.hex(),
        "shipped_base_model_id": shipped.base_model_id.hex(),
        "same_as_shipped": same,
        "loss_train": round(result.loss_train, 4),
        "loss_general": round(result.loss_general, 4),
        "parameters": result.parameters,
        "seconds": round(result.seconds, 1),
        "instruction_set": result.instruction_set,
    }
    if json_lines:
        print_json(facts)
        return
    for name, value in facts.items():
        typer.echo(f"{name:<22} {value}")


@app.command()
def corpus(
    out: Path = typer.Option(..., "--out", help="Directory to write the corpus to."),
    json_lines: bool = _JSON,
) -> None:
    """Cut the corpus again out of the standard library of the Python that runs this.

    Gives the shipped files on the Python they were cut from (it says which), other text on another one.
    """
    import platform
    import sysconfig

    from citrate_node.cli.output import print_json
    from citrate_node.training.corpus import build_corpus, read_index

    made = build_corpus(Path(sysconfig.get_path("stdlib")), out, platform.python_version())
    shipped = read_index()
    for name, part in made.items():
        facts = {
            "name": name,
            "size_bytes": part.size_bytes,
            "sha256": part.sha256,
            "same_as_shipped": part == shipped[name],
        }
        if json_lines:
            print_json(facts)
        else:
            same = "as shipped" if facts["same_as_shipped"] else "not as shipped"
            typer.echo(f"{name:<18} {part.size_bytes:>8}   {part.sha256[:16]}…   {same}")
