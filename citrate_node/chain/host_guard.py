"""Answers only to the names a loopback listener has: against DNS rebinding.

A page of a stranger may let its own name point to 127.0.0.1 and so speak to a listener there as if that were
its own server. What gives it away is the Host header. Used by rpc_proxy.py and by dashboard/server.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def loopback_names_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """421 for a Host header that names anything but this machine's loopback."""
    if not is_loopback_name(request.headers.get("Host", "")):
        return web.Response(status=421, text="this listener answers to localhost and 127.0.0.1 only\n")
    return await handler(request)


def is_loopback_name(host: str) -> bool:
    """Whether `host[:port]`, as in a Host header, is localhost or a loopback address."""
    try:
        name = urlsplit(f"//{host}").hostname
        return name == "localhost" or (name is not None and ipaddress.ip_address(name).is_loopback)
    except ValueError:
        return False
