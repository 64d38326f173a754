"""What all transports share: extra info, flow control in the protocol's context, and what protocols want."""

from __future__ import annotations

import asyncio
import contextvars
import enum
import socket
from asyncio import transports
from collections import deque
from typing import Any


class Life(enum.Enum):
    OPEN = enum.auto()
    CLOSING = enum.auto()  # close() was called: what is queued is still sent, nothing is received
    ABORTED = enum.auto()  # nothing is sent or received; connection_lost is on its way
    LOST = enum.auto()  # connection_lost was called, the socket is closed


class NativeTransport(transports._FlowControlMixin, asyncio.Transport):
    """What transports that write have in common: asyncio's own write limits, with pause_writing and
    resume_writing called in the transport's context, as on uvloop."""

    # asyncio's base classes have slots, and CPython does not specialize attributes in the dict of an instance that has
    # both; so all fields are slots, and a turn costs a tenth less. There still is a dict for what users add.
    __slots__ = ("__dict__", "__weakref__", "_context", "_life", "_protocol")

    _context: contextvars.Context
    _life: Life
    _protocol: Any
    # asyncio's.
    _extra: dict[str, Any]
    _protocol_paused: bool
    _high_water: int
    _low_water: int

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._life is not Life.OPEN

    # A private name of asyncio's transports and of uvloop's, at which programs look.
    @property
    def _closing(self) -> bool:
        return self.is_closing()

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, exc: BaseException | None) -> None:
        """Give up at once; `exc` is what connection_lost is told."""
        raise NotImplementedError

    def _maybe_pause_protocol(self) -> None:
        # Called from write(), so most often from within the context, which cannot be entered twice: a copy, as on
        # uvloop.
        if not self._protocol_paused:
            self._context.copy().run(super()._maybe_pause_protocol)  # type: ignore[misc]

    def _maybe_resume_protocol(self) -> None:
        if self._protocol_paused:
            self._context.run(super()._maybe_resume_protocol)  # type: ignore[misc]


def _usual_limits() -> tuple[int, int]:
    no_loop: Any = object()
    mixin: Any = transports._FlowControlMixin(None, no_loop)
    return mixin._high_water, mixin._low_water


# asyncio's write limits, in bytes.
HIGH_WATER, LOW_WATER = _usual_limits()

# Stands in where most transports have nothing to keep: an empty deque is larger than all else that a stream needs.
NOTHING: deque[Any] = deque(maxlen=0)


CLOSE_FAILED = "Closing the socket of a transport failed"


class ProtocolError(Exception):
    """A protocol's own method failed: `__cause__` says how, `method` which."""

    def __init__(self, method: str) -> None:
        super().__init__(method)
        self.method = method


def check_protocol(protocol: asyncio.BaseProtocol) -> None:
    """As on asyncio, whoever makes a connection is told of a factory that gives no protocol. Raises AttributeError."""
    protocol.connection_made  # noqa: B018 - only to see that it is there


def is_buffered(protocol: asyncio.BaseProtocol) -> bool:
    """True if the protocol wants its bytes through get_buffer. Like uvloop, and unlike asyncio, by what it has, not
    by its base class."""
    if isinstance(protocol, asyncio.BufferedProtocol):
        return True
    return not isinstance(protocol, asyncio.Protocol) and hasattr(protocol, "get_buffer")


def add_addresses(extra: dict[str, Any], sock: socket.socket) -> None:
    """Fill in sockname and peername now, not when asked: they must be there after the connection is gone."""
    try:
        extra["sockname"] = sock.getsockname()
    except OSError:
        extra["sockname"] = None
    if "peername" not in extra:
        try:
            extra["peername"] = sock.getpeername()
        except OSError:
            extra["peername"] = None


def copied(data: Any) -> bytes:
    """The bytes of what is not `bytes`: mutable memory may be reused as soon as write() returns."""
    if type(data) is memoryview:  # what libraries have, if they have not bytes: half the time of bytes(data)
        return data.tobytes()
    if not isinstance(data, (bytes, bytearray)):
        raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
    return bytes(data)


def set_nodelay(sock: socket.socket) -> None:
    """Send small writes at once. asyncio looks at `proto` too, and so misses sockets made with proto 0; uvloop does
    not."""
    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
