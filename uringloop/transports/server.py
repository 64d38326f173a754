"""The accepting side: a listening socket of an asyncio.Server."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import socket
from asyncio import trsock
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uringloop import addresses, compat
from uringloop.transports.base import set_nodelay
from uringloop.transports.stream import StreamTransport

if TYPE_CHECKING:
    from uringloop.loop import Loop

# The process or the system is out of something that others may give back: wait and try again, as asyncio does.
_OUT_OF_RESOURCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Listener:
    """Makes a transport and a protocol of each connection. Protocol callbacks run in a copy, the connection's own, of
    the context in which serving was started."""

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        server: Any,
        tls: dict[str, Any] | None,
        context: contextvars.Context | None = None,
    ) -> None:
        """`tls`: what `Loop._make_ssl_transport` takes beyond socket and protocol; None for plain connections."""
        self._loop = loop
        self.sock = sock
        self._protocol_factory = protocol_factory
        self._server = server
        self._tls = tls
        # An fd is all that a transport needs; TLS goes the way of asyncio's transports, which have a socket.
        self._is_plain = tls is None and sock.family in addresses.FAMILIES
        self._context = contextvars.copy_context() if context is None else context
        self._retry: asyncio.Handle | None = None
        set_nodelay(sock)  # accepted sockets inherit it: no system call for each
        if server is not None:
            compat.count_clients(server, loop._selector.streams)
        self._token = loop._reactor.listener_open(sock.fileno(), shared=sock in loop._selector.given)
        loop._selector.listeners[self._token] = self

    def close(self) -> None:
        """Stop accepting at once."""
        if self._retry is not None:
            self._retry.cancel()
        del self._loop._selector.listeners[self._token]
        self._stop_accepting()

    def _stop_accepting(self) -> None:
        stopped = self._loop._reactor.listener_close(self._token)
        # Now, not at the end of the tick: an armed accept keeps the port open though its socket is closed.
        self._loop._reactor.flush()
        if stopped == -errno.ENOMEM:
            self._loop.call_soon(self._stop_accepting)

    def on_accepted(self, fd: int, stopped: int) -> None:
        """A connection, or -errno when accepting has stopped; `stopped` is that of one behind which it has, else 0."""
        if fd < 0:
            self._on_failed(-fd)
            return
        if stopped:
            self._retry = self._loop.call_soon(self._on_failed, -stopped)
        sock = fd if self._is_plain else socket.socket(fileno=fd)
        try:
            context = self._context.copy()  # what the protocol changes is changed for this connection
            protocol = context.run(self._protocol_factory)
            if self._tls is None or isinstance(sock, int):
                transport = StreamTransport(self._loop, sock, protocol, context, None, self._server)
            else:
                self._loop._make_ssl_transport(
                    sock, protocol, server_side=True, server=self._server, context=context, **self._tls
                )
                return
        except BaseException as exc:
            os.close(fd) if isinstance(sock, int) else sock.close()
            if isinstance(exc, SystemExit | KeyboardInterrupt):
                raise
            self._loop.call_exception_handler(
                {"message": "Error on transport creation for incoming connection", "exception": exc}
            )
            return
        if self._loop._ready:
            # As on asyncio: what is due, by the factory or before it, comes before connection_made, and a task that is
            # made there begins before the first bytes come (hence the waiter, for whom nobody waits).
            self._loop.call_soon(transport.start, self._loop.create_future())
        else:
            transport.start()

    def _on_failed(self, error: int) -> None:
        exc = OSError(error, os.strerror(error))
        if error in _OUT_OF_RESOURCE:
            message = "socket.accept() out of system resource"
            self._retry = self._loop.call_later(compat.ACCEPT_RETRY_DELAY, self._accept_again)
        else:
            message = "socket.accept() failed; the server no longer accepts on this socket"
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "socket": trsock.TransportSocket(self.sock)}
        )

    def _accept_again(self) -> None:
        self._retry = None
        stopped = self._loop._reactor.listener_start(self._token)
        if stopped:
            self._on_failed(-stopped)
