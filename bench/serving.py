"""What servers of questions have in common: they announce where they serve, and do so until they are killed.

They do not call `serve_forever`: rloop 0.5 makes a server that serves already serve once more, which ends it. A server
that is made serves.
"""

import asyncio
from collections.abc import Callable
from typing import Never


async def for_ever() -> Never:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")


async def serve_tcp(announce: Callable[[str], None], server: asyncio.Server) -> Never:
    host, port = server.sockets[0].getsockname()
    announce(f"{host}:{port}")
    await for_ever()
