"""`citrate adapter merge` and `screen`: an adapter inside its base, and a stranger's adapter looked at.

Added to the group by cli/adapter.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from citrate_node.cli.adapter_options import STORES, Chain, bundled
from citrate_node.cli.adapter_read import app
from citrate_node.cli.wallet import JSON

if TYPE_CHECKING:
    from citrate_node.protocol.adapter import AdapterWeights
    from citrate_node.runtime.adapters import AdapterDesk
    from citrate_node.runtime.adapters_screen import Norms
    from citrate_node.training.provenance import Provenance

_TARGET = typer.Argument(..., metavar="ID[@VERSION]|FOLDER", help="An adapter on chain, or a PEFT folder.")

KNOWN_MAX = 32
"""Adapters of the same base that a screening compares with."""


@app.command()
@bundled
def merge(
    target: str = _TARGET,
    out: Path = typer.Option(..., "--out", help="Folder of the merged model; it must be absent or empty."),
    base: str = typer.Option("embedded", "--base", help="`embedded`, a folder or a hub name."),
    dtype: str = typer.Option("float32", "--dtype", help="float32, float16 or bfloat16."),
    stores: list[Path] = STORES,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """Merge an adapter into its base model: nothing is left to slow it down.

    Another base version than the adapter's is refused. The merged logits are compared with those of base and
    adapter before anything is written; the result is safetensors, with the adapter's provenance beside it.
    """
    from typing import cast

    from citrate_node.cli.output import print_json
    from citrate_node.errors import ConfigError
    from citrate_node.runtime.adapters_files import require_base, require_fit
    from citrate_node.training.base_model import BaseModel
    from citrate_node.training.merge import Dtype, merge_adapter

    if dtype not in ("float32", "float16", "bfloat16"):
        raise ConfigError(f"--dtype {dtype!r}: give float32, float16 or bfloat16")
    model = BaseModel.load(base)
    weights, provenance = _loaded(target, base, chain, stores)
    require_base(weights, model.base_model_id, target)
    require_fit(weights, model, target)
    result = merge_adapter(model, weights, provenance, out, cast("Dtype", dtype))
    if json_lines:
        print_json({"type": "merged", "out": str(out), **dataclasses.asdict(result)})
        return
    typer.echo(f"{out}: a model of its own, id {result.merged_base_model_id}")
    typer.echo(f"  logits differ by {result.logits_difference_relative:.1e} of the largest")


@app.command()
@bundled
def screen(
    target: str = _TARGET,
    known: list[Path] = typer.Option([], "--known", help="PEFT folder of a trusted adapter (repeated)."),
    stores: list[Path] = STORES,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """Look for what is odd about a stranger's adapter, before anything loads it; ends with 1 if there is.

    Sizes, ranks, number types, NaN and infinity, files that run code, tensors outside the declared targets,
    and the norm of each module's update against the adapters known for that base: those of `--known`, and,
    for an ID, the others on the same chain whose weights are at hand (four are needed). A small, well-made
    adapter that does something bad is not found this way: try it on prompts of your own.
    """
    import tempfile

    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters import default_limits
    from citrate_node.runtime.adapters_files import read_adapter, write_peft_folder
    from citrate_node.runtime.adapters_screen import norms_of
    from citrate_node.runtime.adapters_screen import screen as look

    limits = default_limits()
    others = []
    for path in known:
        weights = read_adapter(path, limits, bytes(32) if not _names_base(path) else None).weights
        others.append(norms_of(weights.tensors(), weights.config.alpha, weights.config.rank))
    if Path(target).is_dir():
        report = look(Path(target), limits, others)
    else:
        from citrate_node.cli.adapter_send import asked
        from citrate_node.runtime.adapters import adapter_reference
        from citrate_node.runtime.adapters_card import pulled

        place = chain.place(stores)
        adapter_id, number = adapter_reference(target)
        got = asked(place, lambda desk: pulled(desk, adapter_id, number))
        others += asked(place, lambda desk: _norms_on_chain(desk, adapter_id, got.row.base_model_id))
        with tempfile.TemporaryDirectory() as scratch:
            write_peft_folder(Path(scratch), got.file, got.provenance)
            report = look(Path(scratch), place.limits, others)
    if json_lines:
        found = [dataclasses.asdict(each) for each in report.findings]
        print_json({"type": "screened", "target": target, **report.facts, "findings": found})
    else:
        for each in report.findings:
            typer.echo(f"{each.kind:<12} {each.place}: {each.text}")
        against = f"compared with {report.facts['known']} known adapters"
        typer.echo(f"{target}: {len(report.findings) or 'no'} findings, {against}")
    if report.findings:
        raise typer.Exit(1)


async def _norms_on_chain(desk: AdapterDesk, but: bytes, base_model_id: bytes) -> list[Norms]:
    """Norms of the newest other adapters of the base whose weights are at hand."""
    from citrate_node.errors import CitrateError
    from citrate_node.runtime.adapters_card import pulled
    from citrate_node.runtime.adapters_screen import norms_of

    total = await desk.factory.adapter_count()
    rows, _ = await desk.adapters(max(0, total - 4 * KNOWN_MAX), 4 * KNOWN_MAX, base_model_id)
    found: list[Norms] = []
    for row in reversed(rows):
        if row.id == but or row.version_count == 0 or len(found) == KNOWN_MAX:
            continue
        try:
            weights = (await pulled(desk, row.id, None)).file.weights
        except CitrateError:
            continue  # not at hand, or no adapter: nothing to compare with
        found.append(norms_of(weights.tensors(), weights.config.alpha, weights.config.rank))
    return found


def _names_base(path: Path) -> bool:
    from citrate_node.errors import ConfigError
    from citrate_node.runtime.adapters import default_limits
    from citrate_node.runtime.adapters_files import read_adapter

    try:
        read_adapter(path, default_limits())
    except ConfigError:
        return False
    return True


def _loaded(target: str, base: str, chain: Chain, stores: list[Path]) -> tuple[AdapterWeights, Provenance]:
    """A folder as it is, or a version that was checked against the chain."""
    from citrate_node.runtime.adapters import adapter_reference, default_limits
    from citrate_node.runtime.adapters_card import folder_provenance, pulled
    from citrate_node.training.provenance import read_provenance

    if Path(target).is_dir():
        own = read_provenance(Path(target))
        file, provenance = folder_provenance(Path(target), own, "" if own else base, default_limits())
        return file.weights, own or provenance
    from citrate_node.cli.adapter_send import asked

    adapter_id, number = adapter_reference(target)
    place = chain.place(stores)
    got = asked(place, lambda desk: pulled(desk, adapter_id, number))
    return got.file.weights, got.provenance
