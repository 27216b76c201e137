"""`citrate adapter serve`: an OpenAI-style server of one base and many adapters.

Added to the group by cli/adapter.py.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from citrate_node.cli.adapter_options import GATEWAYS, STORES, Chain, bundled
from citrate_node.cli.adapter_read import app
from citrate_node.cli.wallet import JSON

if TYPE_CHECKING:
    from citrate_node.runtime.adapters import Place
    from citrate_node.runtime.serving_config import LocalAdapter, ServeConfig


@app.command()
@bundled
def serve(
    config: Path | None = typer.Option(
        None, "--config", help="TOML: [server], [limits], [stores], [[local]], [access]."
    ),
    base: str = typer.Option("", "--base", help="`embedded`, a folder or a hub name. Default: the config's."),
    host: str = typer.Option("", "--host", help="Default 127.0.0.1; another asks for API keys."),
    port: int = typer.Option(-1, "--port", help="Default 8400; 0: any that is free."),
    record: str = typer.Option("", "--record", help="Runtime record (JSONL). Default: serve.jsonl."),
    load: list[str] = typer.Option(
        [], "--load", help="ID[@VERSION] or local:NAME to load at the start (repeated)."
    ),
    threads: int = typer.Option(1, "--threads", min=1, help="Of the computation."),
    new_key: str = typer.Option("", "--new-key", help="Make an API key of this name, print it, and end."),
    local: list[str] = typer.Option(
        [], "--local", help="NAME=FOLDER: serve this folder as local:NAME, unverified (repeated)."
    ),
    stores: list[Path] = STORES,
    gateways: list[str] = GATEWAYS,
    chain: Chain = Chain(),
    json_lines: bool = JSON,
) -> None:
    """Serve one base with an adapter per request, many adapters in one pass, over OpenAI's completions API.

    `model` in a request is the base's name, or an adapter on chain: ID, ID@VERSION or ID@latest. An adapter
    is loaded when first asked for, if the chain confirms its weights and it is made for this base version;
    the weights may lie in a store, behind a gateway or in the transaction. `local:NAME` is a folder that
    `--local` or the config names, and that nothing confirms: every answer says so.
    Every answer names base, adapter, version and hash; every request leaves a line in the runtime record.

    The config says who may use what: `access.creators` and `access.adapters` (empty: any of this base),
    `access.keys` with name and sha256 per caller; and the limits of requests.
    """
    from citrate_node.errors import ConfigError
    from citrate_node.runtime.devnet_folder import DevnetFolder
    from citrate_node.runtime.serving_config import load_serve_config
    from citrate_node.runtime.serving_config import new_key as make_key

    if new_key:
        from citrate_node.cli.output import print_json

        key, entry = make_key(new_key)
        if json_lines:
            print_json({"type": "key", "name": new_key, "key": key, "config": entry})
        else:
            typer.echo(
                f"{key}\n\nGive it to its user; it is kept nowhere. Put this into the config:\n\n{entry}"
            )
        return
    settings = load_serve_config(config)
    known = settings.server
    server = dataclasses.replace(
        known,
        base=base or known.base,
        host=host or known.host,
        port=port if port >= 0 else known.port,
        record=record or known.record,
    )
    try:
        settings = dataclasses.replace(settings, server=server, local=(*settings.local, *map(_local, local)))
    except ValueError as error:  # one name twice, here and in the file
        raise ConfigError(f"--local: {error}") from None
    settings.require_safe()
    place = None
    if chain.rpc_url or not settings.local or DevnetFolder(chain.folder.resolve()).exists:
        place = chain.place(
            stores or [Path(each) for each in settings.stores.folders],
            gateways or settings.stores.gateways,
        )
    asyncio.run(_serve(settings, place, load, threads, json_lines))


def _local(text: str) -> LocalAdapter:
    from citrate_node.errors import ConfigError
    from citrate_node.runtime.serving_config import LocalAdapter

    name, mark, folder = text.partition("=")
    if not mark or not folder:
        raise ConfigError(f"--local {text!r}: give NAME=FOLDER, such as mine=out/mine")
    try:
        return LocalAdapter(name, folder)
    except ValueError as error:
        raise ConfigError(f"--local: {error}") from None


async def _serve(
    settings: ServeConfig, place: Place | None, load: list[str], threads: int, json_lines: bool
) -> None:
    from citrate_node.cli.output import print_json
    from citrate_node.runtime.adapters import connected
    from citrate_node.runtime.serving_adapters import ServedAdapters
    from citrate_node.runtime.serving_engine import ServingEngine
    from citrate_node.runtime.serving_http import AdapterServer
    from citrate_node.training.base_model import BaseModel

    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    model = BaseModel.load(settings.server.base)
    async with AsyncExitStack() as stack:
        desk = await stack.enter_async_context(connected(place)) if place is not None else None
        engine = ServingEngine(model, threads)
        await engine.start()
        stack.push_async_callback(engine.stop)
        adapters = ServedAdapters(engine, desk, settings)
        for reference in load:
            async with adapters.use(reference, None):
                pass
        server = AdapterServer(engine, adapters, settings)
        await server.start()
        stack.push_async_callback(server.stop)
        loaded = [each.key for each in adapters.loaded]
        facts = {"type": "serving", "url": f"{server.address}/v1", "base": model.name}
        if json_lines:
            print_json({**facts, "base_model_id": model.base_model_id.hex(), "loaded": loaded})
        else:
            typer.echo(f"{model.name} with adapters at {server.address}/v1   Ctrl-C ends it")
        await stopped.wait()
