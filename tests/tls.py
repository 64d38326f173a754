"""Servers and clients over TLS, for tests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from support import (
    Address,
    J,
    Journal,
    Peer,
    address_of,
    connect,
    connect_plainly,
    soon,
)

MORE_THAN_THE_BUFFERS_TAKE = 16 << 20


class Tls:
    """Servers and clients of one test. What it leaves open is closed."""

    def __init__(self, server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
        self.server_context = server_context
        self.client_context = client_context
        self._servers: list[asyncio.Server] = []
        self._protocols: list[Journal] = []

    async def serve(
        self, factory: Callable[[], J], context: ssl.SSLContext | None = None, **options: Any
    ) -> tuple[Address, list[J]]:
        """A server: its address, and the protocols that it has made so far."""
        made: list[J] = []

        def remember() -> J:
            made.append(factory())
            self._protocols.append(made[-1])
            return made[-1]

        loop = asyncio.get_running_loop()
        context = context or self.server_context
        self._servers.append(await loop.create_server(remember, "127.0.0.1", 0, ssl=context, **options))
        return address_of(self._servers[-1]), made

    async def connect(
        self,
        factory: Callable[[], J],
        address: Address,
        context: ssl.SSLContext | None = None,
        hostname: str = "localhost",
        **options: Any,
    ) -> J:
        context = context or self.client_context
        protocol = await connect(factory, address, ssl=context, server_hostname=hostname, **options)
        self._protocols.append(protocol)
        return protocol

    @contextmanager
    def peer(self, address: Address) -> Iterator[TlsPeer]:
        """A client that does not use the loop. Its handshake is made by its first call, in the call's thread."""
        sock = connect_plainly(address)
        with self.client_context.wrap_socket(
            sock, server_hostname="localhost", do_handshake_on_connect=False, suppress_ragged_eofs=False
        ) as wrapped:
            yield TlsPeer(wrapped)

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for protocol in self._protocols:
            if "connection_made" in protocol.calls:
                if "connection_lost" not in protocol.calls:
                    protocol.transport.abort()
                await protocol.lost()
                protocol.check_order()
        for server in self._servers:
            await soon(server.wait_closed())


class TlsPeer(Peer):
    sock: ssl.SSLSocket

    async def unwrap(self) -> Peer:
        """Exchanges close_notify with the other side, and goes on in the clear."""
        return Peer(await asyncio.to_thread(self.sock.unwrap))
