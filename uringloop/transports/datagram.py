"""UDP and Unix datagram transports.

A datagram's way in: the selector takes a DATAGRAM event and calls `on_datagram`, which slices bytes and sender out of
the pool and gives them to `protocol.datagram_received`, in the transport's context, while reading flows; to `_park`
while it is paused; to `_drop` once the transport is closing.

Its way out: `sendto` hands bytes and address to the core, which sends all datagrams of a turn at its end, in order. The
address from which the last datagram came, to which most answers go, is not made into a sockaddr again.

An error concerns one datagram: it is told to `error_received`, and the transport goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import warnings
from asyncio import trsock
from asyncio.log import logger
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uringloop import addresses, compat
from uringloop.addresses import unpack
from uringloop.reactor import NAME_BITS, NAME_BYTES, NAME_MASK
from uringloop.transports.base import CLOSE_FAILED, Life, NativeTransport, add_addresses, check_protocol, copied

if TYPE_CHECKING:
    from uringloop.loop import Loop

Address = Any  # what recvfrom gives: a tuple, a path, or None
NOBODY: Address = object()


def is_native(sock: socket.socket) -> bool:
    """True for the sockets that this transport is for: the addresses of others only the socket module knows."""
    return sock.type == socket.SOCK_DGRAM and sock.family in addresses.FAMILIES


class DatagramTransport(NativeTransport, asyncio.DatagramTransport):
    """asyncio.DatagramTransport over an endpoint of the core."""

    __slots__ = (
        "_address",
        "_elsewhere",
        "_endpoint_write",
        "_endpoints",
        "_lost_because",
        "_only_name",
        "_pack",
        "_parked",
        "_paused",
        "_pool",
        "_reactor",
        "_receive_stopped",
        "_selector",
        "_sender",
        "_sender_name",
        "_sends_refused",
        "_sock",
        "_sock_fd",
        "_token",
    )

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        context: contextvars.Context,
        address: Address = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """`address`: the only one that datagrams may go to; None for any, or for a socket that came connected."""
        # What __del__ and __repr__ look at comes first: anything below may fail.
        self._life = Life.LOST
        self._sock: socket.socket | None = None
        check_protocol(protocol)
        super().__init__(extra, loop)
        self._extra["socket"] = trsock.TransportSocket(sock)
        add_addresses(self._extra, sock)
        self._loop: Loop = loop
        self._sock_fd = sock.fileno()
        self._context = context
        self._paused = False
        # What takes datagrams instead of the protocol: `_park` while reading is paused, `_drop` once it is over.
        self._elsewhere: Callable[[bytes, Address], None] | None = None
        # Of the last datagram, if it can be answered so: only where datagrams may go to any address.
        self._sender, self._sender_name = NOBODY, b""
        self._receive_stopped = True  # the core has been told to stop, or not yet to receive
        self._parked: deque[tuple[bytes, Address]] = deque()
        self._sends_refused = 0
        self._lost_because: BaseException | None = None
        self._pack = addresses.packer(sock.family)
        self._address = address
        # Where all datagrams go, if they all go to one place: b"" to where the socket is connected.
        self._only_name: bytes | None = None
        if self._extra["peername"]:
            self._only_name = b""
        elif address:
            self._only_name = self._pack(address)
        self._selector = loop._selector
        self._reactor = loop._reactor
        self._endpoint_write, self._endpoints = self._reactor.endpoint_write, self._reactor.endpoints
        self._token = self._reactor.endpoint_open(self._sock_fd, compat.DATAGRAM_HEADER_BYTES)
        self._pool = self._reactor.datagram_pool()
        self._selector.endpoints[self._token] = self
        self._sock = sock
        self._life = Life.OPEN
        self.set_protocol(protocol)
        loop._selector.by_fd[self._sock_fd] = self

    def start(self, waiter: asyncio.Future[None] | None = None) -> None:
        """Call connection_made, then begin to receive."""
        try:
            self._context.run(self._protocol.connection_made, self)
        except (SystemExit, KeyboardInterrupt):
            self._loop.call_soon(self._begin, waiter)  # if the loop is run again
            raise
        except BaseException as exc:
            self._report(exc, "connection_made")
        self._begin(waiter)

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        self._receive()
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- protocol and description ------------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._life is Life.LOST:
            info.append("closed")
        else:
            info.append(f"fd={self._sock_fd}")
            if self._life is not Life.OPEN:
                info.append("closing")
            info.append(f"read={'paused' if self._paused else 'flowing'}")
            if not self._loop.is_closed():
                info.append(f"bufsize={self.get_write_buffer_size()}")
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._sock is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._sock.close()

    def _report(self, exc: BaseException, method: str) -> None:
        # As on asyncio, where these run as callbacks of the loop: the transport stays as it is.
        self._loop.call_exception_handler(
            {
                "message": f"Exception in callback protocol.{method}()",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            }
        )

    # --- receiving ---------------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        return self._life is Life.OPEN and not self._paused

    def pause_reading(self) -> None:
        if not self.is_reading():
            return
        self._paused = True
        self._elsewhere = self._park
        if self._loop.get_debug():
            logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        if self._life is not Life.OPEN or not self._paused:
            return
        self._paused = False
        if self._loop.get_debug():
            logger.debug("%r resumes reading", self)
        if self._parked:
            self._loop.call_soon(self._unpark)
        else:
            self._receive()

    def _receive(self) -> None:
        if not self.is_reading():
            return
        self._elsewhere = None
        if self._receive_stopped:
            self._receive_stopped = False
            self._reactor.endpoint_read(self._token, True)

    def on_datagram(self, start: int, lengths: int, behind: bool) -> None:
        """A datagram is in the pool at `start`, behind the address that it came from; `lengths` holds both lengths. It
        is delivered now, or `behind` the callbacks that were ready before it was looked for, as on asyncio: whoever
        sends outside the loop and then runs a task that waits for the answer relies on it."""
        pool, begin = self._pool, start - NAME_BYTES
        data = pool[start : start + (lengths >> NAME_BITS)]
        name = pool[begin : begin + (lengths & NAME_MASK)]
        address = unpack(name)
        if behind:
            self._loop.call_soon(self._hand_over, data, address)
            return
        if self._only_name is None and address is not None:
            self._sender, self._sender_name = address, name
        if self._elsewhere is not None:
            self._elsewhere(data, address)
            return
        try:  # as in _to_protocol: a call less
            self._context.run(self._protocol.datagram_received, data, address)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, "datagram_received")

    def _hand_over(self, data: bytes, address: Address) -> None:
        if self._life is Life.OPEN:
            (self._elsewhere or self._to_protocol)(data, address)

    def _to_protocol(self, data: bytes, address: Address) -> None:
        try:
            self._context.run(self._protocol.datagram_received, data, address)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, "datagram_received")

    def _park(self, data: bytes, address: Address) -> None:
        # The kernel is told to stop only when a datagram comes while reading is paused: a shorter pause costs nothing.
        self._parked.append((data, address))
        if not self._receive_stopped:
            self._receive_stopped = True
            self._reactor.endpoint_read(self._token, False)

    def _drop(self, data: bytes, address: Address) -> None:
        pass

    def _unpark(self) -> None:
        while self._parked and self.is_reading():
            data, address = self._parked.popleft()
            try:
                self._to_protocol(data, address)
            except (SystemExit, KeyboardInterrupt):
                self._loop.call_soon(self._unpark)  # the rest, if the loop is run again
                raise
        if not self._parked:
            self._receive()

    def on_error(self, error: int) -> None:
        """A datagram could not be sent, or the network tells of one that was sent earlier."""
        try:
            self._context.run(self._protocol.error_received, OSError(error, os.strerror(error)))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, "error_received")

    # --- sending -----------------------------------------------------------------------------------------------------

    def sendto(self, data: bytes | bytearray | memoryview, addr: Address = None) -> None:
        if type(data) is not bytes:
            data = copied(data)
        if not data and not compat.SENDS_EMPTY_DATAGRAMS:
            return
        name = self._only_name
        if addr is self._sender and self._life is Life.OPEN:
            name = self._sender_name
        elif name is None:
            if self._life is not Life.OPEN:
                self._refuse()
                return
            try:
                # A Unix socket may be connected to one without a name, and then needs none.
                name = b"" if addr is None and self._extra["peername"] is not None else self._pack(addr)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._on_no_address(exc)
                return
        else:
            if self._address and addr is not None and addr != self._address:
                raise ValueError(f"Invalid address: must be None or {self._address}")
            if self._life is not Life.OPEN:
                self._refuse()
                return
        queued = self._endpoint_write(self._endpoints, self._token, data, len(data), name, len(name))
        if queued > self._high_water:
            try:
                self._maybe_pause_protocol()
            finally:  # also if the protocol lets KeyboardInterrupt or SystemExit out
                self._ask_for_drained()
        elif queued < 0:
            self._on_not_queued(-queued)

    def _refuse(self) -> None:
        if self._sends_refused >= compat.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("socket.send() raised exception.")
        self._sends_refused += 1

    def _on_no_address(self, exc: BaseException) -> None:
        # As on asyncio: what does not resolve is an error of this datagram, what is no address ends the transport.
        if isinstance(exc, OSError):
            self._context.copy().run(self._protocol.error_received, exc)
        else:
            self._fatal_error(exc, "Fatal write error on datagram transport")

    def _on_not_queued(self, error: int) -> None:
        exc = OSError(error, os.strerror(error))
        # A copy: sendto is called from within the context most often, which cannot be entered twice.
        self._context.copy().run(self._protocol.error_received, exc)

    def get_write_buffer_size(self) -> int:
        return 0 if self._life is Life.LOST else self._reactor.endpoint_queued(self._token)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        try:
            super().set_write_buffer_limits(high, low)
        finally:
            self._ask_for_drained()

    def _ask_for_drained(self) -> None:
        if self._protocol_paused and self._life in (Life.OPEN, Life.CLOSING):
            self._reactor.endpoint_set_low_water(self._token, self._low_water)

    def on_drained(self) -> None:
        """No more is queued than the low limit."""
        try:
            self._maybe_resume_protocol()
        finally:
            self._ask_for_drained()

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._life is not Life.OPEN:
            return
        self._life = Life.CLOSING
        self._stop_receiving()
        self._reactor.endpoint_close(self._token)

    def _stop_receiving(self) -> None:
        self._parked.clear()
        self._elsewhere = self._drop

    def _fatal_error(self, exc: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )
        self._force_close(exc)

    def _force_close(self, exc: BaseException | None) -> None:
        if self._life in (Life.ABORTED, Life.LOST):
            return
        self._life = Life.ABORTED
        self._lost_because = exc
        self._stop_receiving()
        self._reactor.endpoint_abort(self._token)

    def on_lost(self) -> None:
        """The core is done with the socket."""
        self._life = Life.LOST
        try:
            self._context.run(self._protocol.connection_lost, self._lost_because)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, "connection_lost")
        finally:
            self._let_go()

    def on_loop_closed(self) -> None:
        """The core goes now, with this endpoint: nothing may be asked of it any more."""
        self._life = Life.LOST
        self._parked.clear()
        self._elsewhere = None  # a method of ours: the transport is to go with its last reference

    def _let_go(self) -> None:
        self._loop._selector.by_fd.pop(self._sock_fd, None)
        sock, self._sock = self._sock, None
        if sock is not None:
            try:
                sock.close()
            except OSError as exc:  # somebody has closed its fd: no reason to end the run of the loop
                context = {"message": CLOSE_FAILED, "exception": exc, "transport": self, "protocol": self._protocol}
                self._loop.call_exception_handler(context)
        self._lost_because = None
        self._protocol = None
        self._elsewhere = None
