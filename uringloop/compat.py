"""Differences between Python versions, and private names of asyncio's modules that the loop stands on."""

from __future__ import annotations

import asyncio
import sys
import weakref
from asyncio import base_events, base_subprocess, constants, sslproto, unix_events
from collections.abc import Callable, Mapping
from typing import Any

# How a transport says that loop.sendfile may use its socket (asyncio.constants._SendfileMode).
SENDFILE_TRY_NATIVE: Any = constants._SendfileMode.TRY_NATIVE
# Seconds between attempts to accept when the process is out of fds or memory.
ACCEPT_RETRY_DELAY: float = constants.ACCEPT_RETRY_DELAY
# Writes on a lost connection that are passed over in silence before each further one is logged.
LOG_THRESHOLD_FOR_CONNLOST_WRITES: int = constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES

# The pipes and the protocol of a process; how it starts and how its end is heard of is left to a subclass.
BaseSubprocessTransport: Any = base_subprocess.BaseSubprocessTransport

# Raises TypeError for an SSL socket, which cannot be used without blocking.
check_ssl_socket: Callable[[Any], None] = base_events._check_ssl_socket  # type: ignore[attr-defined]

# Stands in for the protocol while loop.sendfile writes a file that must pass through Python.
SendfileFallbackProtocol: Any = base_events._SendfileFallbackProtocol  # type: ignore[attr-defined]

# TLS over any transport: the protocol, its states, what the application sees, and what a read raises that needs more.
SSLProtocol: Any = sslproto.SSLProtocol
SSLProtocolState: Any = sslproto.SSLProtocolState
SSLProtocolTransport: Any = sslproto._SSLProtocolTransport
SSL_AGAIN_ERRORS: Any = sslproto.SSLAgainErrors

# What call_soon_threadsafe gives from 3.14 on: others that cancel it, or look at it, wait while its callback runs.
ThreadSafeHandle: Any = getattr(asyncio.events, "_ThreadSafeHandle", None)

# Cancelled timers are swept out of the heap when there are more than this many and they are more than this fraction.
MIN_SCHEDULED_TIMER_HANDLES: int = base_events._MIN_SCHEDULED_TIMER_HANDLES  # type: ignore[attr-defined]
MIN_CANCELLED_TIMER_HANDLES_FRACTION: float = base_events._MIN_CANCELLED_TIMER_HANDLES_FRACTION  # type: ignore[attr-defined]

# Since 3.13 an empty datagram is one, and each that is queued counts so many bytes more against the write limits.
SENDS_EMPTY_DATAGRAMS: bool = sys.version_info >= (3, 13)
DATAGRAM_HEADER_BYTES: int = 8 if SENDS_EMPTY_DATAGRAMS else 0


def _check_open(server: Any) -> None:
    # asyncio asserts it. A client more would have the server wake those up, at its end, who have been woken up already.
    if server._sockets is None:
        raise RuntimeError("the server was closed while it accepted this connection")


if sys.version_info >= (3, 13):

    class Clients:
        """The set of an asyncio.Server's transports, in the place of its WeakSet, which costs a weak reference and a
        microsecond each: they are counted, and found among all that are open."""

        def __init__(self, server: Any, streams: Mapping[int, Any]) -> None:
            self._server = weakref.ref(server)  # which has this: else a server that is closed waits for the collector
            self._streams = streams
            self.count = 0

        def __len__(self) -> int:
            return self.count

        def copy(self) -> list[Any]:
            server = self._server()
            return [stream for stream in self._streams.values() if getattr(stream, "_server", None) is server]

    def count_clients(server: Any, streams: Mapping[int, Any]) -> None:
        """Before it has any: have a server (asyncio.Server) know its transports by what is open, `streams`."""
        if not isinstance(server._clients, Clients):
            server._clients = Clients(server, streams)

    def attach(server: Any, transport: Any) -> None:
        """Count the transport as a client of its server (asyncio.Server), as its own _attach does. Raises RuntimeError
        when the server is closed."""
        _check_open(server)
        server._clients.count += 1

    def detach(server: Any, transport: Any) -> None:
        """Undo `attach`; the server's wait_closed may end."""
        server._clients.count -= 1
        if not server._clients.count and server._sockets is None:
            server._wakeup()

else:

    def count_clients(server: Any, streams: Mapping[int, Any]) -> None:
        """It counts them by itself."""

    def attach(server: Any, transport: Any) -> None:
        """Count the transport as a client of its server (asyncio.Server). Raises RuntimeError when the server is
        closed."""
        _check_open(server)
        server._attach()

    def detach(server: Any, transport: Any) -> None:
        """Undo `attach`; the server's wait_closed may end."""
        server._detach()


class LoopFreeLock(asyncio.Lock):
    """A lock that belongs to no loop: asyncio's stays with the first in which anybody has waited for it."""

    def _get_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()


def log_slow(what: Any, seconds: float) -> None:
    """asyncio's debug-mode warning about a callback that held up the loop; `what` is a handle, or a transport."""
    described = base_events._format_handle(what) if isinstance(what, asyncio.Handle) else repr(what)  # type: ignore[attr-defined]
    # By the module that warns on asyncio: CPython's tests put another logger there.
    base_events.logger.warning("Executing %s took %.3f seconds", described, seconds)  # type: ignore[attr-defined]


def make_everywhere(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Let everything that asks asyncio for a new loop get one of `factory`, without a look at the policy: that warns
    from Python 3.14 on."""
    asyncio.new_event_loop = factory
    asyncio.events.new_event_loop = factory  # what asyncio.run and asyncio.Runner call
    policy: Any = getattr(unix_events, "_UnixDefaultEventLoopPolicy", None)
    if policy is not None:  # until Python 3.16
        policy._loop_factory = staticmethod(factory)
