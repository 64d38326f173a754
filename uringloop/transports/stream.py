"""TCP and Unix stream transports.

The bytes' way in is in `receiving.py`.

The bytes' way out: `write` hands them to the core, which joins all that is written in one turn of the loop into one
send at its end.

The end: `close` or `abort` tells the core; it reports LOST when the last request of the socket is done; only then is
connection_lost called and the socket closed.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import select
import socket
import warnings
from asyncio import trsock
from asyncio.log import logger
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from uringloop import addresses, compat
from uringloop.reactor import pin, raise_errno
from uringloop.transports.base import (
    CLOSE_FAILED,
    HIGH_WATER,
    LOW_WATER,
    NOTHING,
    Life,
    NativeTransport,
    ProtocolError,
    add_addresses,
    copied,
)
from uringloop.transports.receiving import Reading, ReceivingTransport, drop

if TYPE_CHECKING:
    from uringloop.loop import Loop

# Writes of this many bytes or more are offered to the socket without the GIL, and what it does not take is sent from
# the caller's own bytes object; copying less costs less than keeping track of it.
PIN_BYTES = 32 * 1024
OUT_OF_MEMORY = "out of memory for the send queue"


class StreamTransport(ReceivingTransport, NativeTransport):
    """asyncio.Transport over a stream of the core."""

    __slots__ = (
        "_draining",
        "_empty_waiter",
        "_eof_parked",
        "_eof_written",
        "_fd",
        "_is_buffered",
        "_known",
        "_lost_because",
        "_parked",
        "_peername",
        "_pinned",
        "_reactor",
        "_reading",
        "_receive_stopped",
        "_room",
        "_server",
        "_sink",
        "_sock",
        "_sockname",
        "_stream_write",
        "_streams",
        "_token",
        "_writable",
        "_writes_refused",
    )

    _start_tls_compatible = True
    _sendfile_compatible = compat.SENDFILE_TRY_NATIVE

    def __init__(
        self,
        loop: Loop,
        sock: socket.socket | int,
        protocol: asyncio.BaseProtocol,
        context: contextvars.Context,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> None:
        """`sock`: a connected socket; or its fd if the family is one of `addresses.FAMILIES`, and then a socket object
        is made when one is asked for. If this raises, it is still the caller's."""
        # What __del__ and __repr__ look at comes first: anything below may fail.
        self._life = Life.LOST
        self._fd = -1
        # What the constructors of asyncio's base classes do, four calls for each connection.
        self._protocol_paused, self._high_water, self._low_water = False, HIGH_WATER, LOW_WATER
        self._known = extra
        fd = sock if isinstance(sock, int) else sock.fileno()
        self._sock = None if isinstance(sock, int) else sock
        if self._sock is not None and self._sock.family not in addresses.FAMILIES:
            add_addresses(self._extra, self._sock)
            self._sockname = self._peername = b""
        else:  # asked for now: they are to be known after the connection is gone
            self._sockname, self._peername = loop._reactor.socket_names(fd)
        self._context = context
        self._eof_written = False
        self._writes_refused = 0
        self._lost_because: BaseException | None = None
        self._pinned = NOTHING
        self._draining = False  # in on_drained: the protocol may write even if nothing is queued and close() was called
        self._empty_waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[int] | None = None  # what a sendfile waits with for room in the socket
        self._stream_write, self._streams = loop._reactor.stream_write, loop._reactor.streams
        self._expect_bytes(loop, protocol)
        self._server = server
        if server is not None:
            compat.attach(server, self)
        try:
            self._receive_from(fd, self._reactor.stream_open(fd))
        except BaseException:
            if server is not None:
                compat.detach(server, self)
            raise
        loop._selector.streams[self._token] = self
        self._life = Life.OPEN
        self._writable = True  # for write: OPEN, no end of file written, no sendfile in progress
        loop._selector.by_fd[fd] = self

    # --- protocol and description ------------------------------------------------------------------------------------

    @property
    def pinned(self) -> object:
        return self._pinned

    def __repr__(self) -> str:
        info = [type(self).__name__]
        if self._life is Life.LOST:
            info.append("closed")
        else:
            info.append(f"fd={self._fd}")
            if self._life is not Life.OPEN:
                info.append("closing")
            info.append(f"read={self._reading.name.lower()}")
            info.append(f"write={'eof' if self._eof_written else 'open'}")
            if not self._loop.is_closed():
                info.append(f"bufsize={self.get_write_buffer_size()}")
        return f"<{' '.join(info)}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._fd >= 0:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._close_socket()
            if self._server is not None:
                compat.detach(self._server, self)

    # What get_extra_info tells is made when it is asked for: most connections never are.
    @property
    def _extra(self) -> dict[str, Any]:  # type: ignore[override]
        if self._known is None:
            self._known = {}
        return self._known

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        extra = self._extra
        if name not in extra:
            if name == "socket" and self._fd >= 0:
                extra[name] = trsock.TransportSocket(self._socket())
            elif name == "sockname":
                extra[name] = addresses.unpack_name(self._sockname)
            elif name == "peername":
                extra[name] = addresses.unpack_name(self._peername)
        return extra.get(name, default)

    def _socket(self) -> socket.socket:
        if self._sock is None:
            self._sock = socket.socket(fileno=self._fd)
            self._sock.setblocking(False)
        return self._sock

    def _close_socket(self) -> None:
        fd, self._fd = self._fd, -1
        sock, self._sock = self._sock, None
        if sock is not None:
            sock.close()
        elif fd >= 0:
            os.close(fd)

    # --- receiving ---------------------------------------------------------------------------------------------------

    def on_receive_failed(self, exc: BaseException) -> None:
        """The protocol raised while it was given bytes."""
        method = "data_received"
        if isinstance(exc, ProtocolError) and exc.__cause__ is not None:
            method, exc = exc.method, exc.__cause__
        self._fatal_error(exc, f"Fatal error: protocol.{method}() call failed.")

    def on_read_failed(self, exc: MemoryError) -> None:
        self._fatal_error(exc, "Fatal read error on socket transport")

    def on_eof(self) -> None:
        """The peer will send no more."""
        if self._life is not Life.OPEN:
            return
        if self._reading is Reading.PAUSED or self._parked:
            self._eof_parked = True
            return
        if self._loop._debug:
            logger.debug("%r received EOF", self)
        self._reading = Reading.ENDED
        try:
            keep_open = self._context.run(self._protocol.eof_received)
        except (SystemExit, KeyboardInterrupt):
            self._loop.call_soon(self.on_eof)  # once more, if the loop is run again: as on asyncio
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    # --- sending -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if type(data) is not bytes:
            data = copied(data)
        if not self._writable and self._refuses_write():
            return
        length = len(data)
        if length < PIN_BYTES:
            if not length:
                return
            queued = self._stream_write(self._streams, self._token, data, length)
        else:
            queued = self._reactor.stream_send_now(self._streams, self._token, data, length)
            if queued == length:
                return
            if queued >= 0:
                queued = self._pin_rest(data, length, queued)
        if queued > self._high_water:
            self._over_high_water()
        elif queued < 0:
            self._write_failed(-queued)

    def _write_failed(self, error: int) -> None:
        if error == errno.ENOMEM:
            raise MemoryError(OUT_OF_MEMORY)
        # connection_lost is on its way. Whoever writes until pause_writing or is_closing() must not do so for ever.
        self._life, self._writable = Life.CLOSING, False
        self._stop_receiving()

    def _pin_rest(self, data: bytes, length: int, sent: int) -> int:
        pinned = pin(memoryview(data)[sent:])
        queued = self._reactor.stream_write_pinned(self._token, pinned, length - sent)
        if queued > 0:
            if self._pinned is NOTHING:
                self._pinned = deque()
            self._pinned.append(pinned)
        elif queued < 0 and sent:  # half of a write is on its way, and must not be taken for a whole one
            self._force_close(MemoryError(OUT_OF_MEMORY))
        return queued

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def _refuses_write(self) -> bool:
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        # As on asyncio, a closing transport takes more until it has sent all: TLS writes its last record then.
        if self._life is Life.CLOSING and (self._draining or self.get_write_buffer_size()):
            return False
        if self._writes_refused >= compat.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("socket.send() raised exception.")
        self._writes_refused += 1
        return True

    def _over_high_water(self) -> None:
        try:
            self._maybe_pause_protocol()
        finally:  # also if the protocol lets KeyboardInterrupt or SystemExit out
            self._ask_for_drained()

    def get_write_buffer_size(self) -> int:
        return 0 if self._life is Life.LOST else self._reactor.stream_queued(self._token)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        try:
            super().set_write_buffer_limits(high, low)
        finally:
            if self._life is Life.OPEN:
                self._ask_for_drained()

    def _ask_for_drained(self) -> None:
        if self._protocol_paused:
            self._reactor.stream_set_low_water(self._token, self._low_water)
        elif self._empty_waiter is not None:
            self._reactor.stream_set_low_water(self._token, 0)

    def on_drained(self, released: int) -> None:
        """Something has been sent; so many pinned buffers are no longer in use."""
        for _ in range(released):
            self._pinned.popleft()
        # By what is queued now: since the event more may have gone, in the same tick, or been written.
        try:
            if self.get_write_buffer_size() <= self._low_water:
                self._draining = True
                self._maybe_resume_protocol()
        finally:  # also if the protocol lets KeyboardInterrupt or SystemExit out
            self._draining = False
            waiter = self._empty_waiter
            if waiter is not None and not waiter.done() and not self.get_write_buffer_size():
                waiter.set_result(None)
            if self._life in (Life.OPEN, Life.CLOSING):
                self._ask_for_drained()
            if self._life is Life.CLOSING:
                self._reactor.stream_close(self._token)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._life is not Life.OPEN or self._eof_written:
            return
        if self._empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        self._eof_written = True
        self._writable = False
        error = self._reactor.stream_write_eof(self._token)
        if error < 0:
            raise_errno(error)

    def _make_empty_waiter(self) -> asyncio.Future[None]:
        # asyncio's sendfile, which has paused reading, waits with this until what was written before it is sent. Until
        # it is done the socket is not to be lost to an error of a receive that is still armed.
        if self._empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        if self._reading is Reading.PAUSED:
            self._stop_core()
        self._empty_waiter = self._loop.create_future()
        self._writable = False
        if self.get_write_buffer_size() == 0:
            self._empty_waiter.set_result(None)
        else:
            self._ask_for_drained()
        return self._empty_waiter

    def _reset_empty_waiter(self) -> None:
        self._empty_waiter = None
        self._writable = self._life is Life.OPEN and not self._eof_written

    def fileno(self) -> int:
        """For sendfile: the socket. Raises ConnectionError when the connection is not open any more."""
        if self._life is not Life.OPEN:
            raise self._lost_because or ConnectionError("Connection is closed by peer")
        return self._fd

    async def room(self) -> None:
        """For sendfile: wait until the socket takes more. Raises ConnectionError when the connection is lost."""
        self._room = self._loop.create_future()
        await self._loop._operations.ready(self.fileno(), select.POLLOUT, self._room)

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        if self._life is not Life.OPEN:
            return
        self._life = Life.CLOSING
        self._writable = False
        self._stop_receiving()
        self._reactor.stream_close(self._token)

    def _fatal_error(self, exc: BaseException, message: str = "Fatal error on transport") -> None:
        if isinstance(exc, OSError):
            if self._loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=True)
        else:
            self._report(exc, message)
        self._force_close(exc)

    def _force_close(self, exc: BaseException | None) -> None:
        if self._life in (Life.ABORTED, Life.LOST):
            return
        self._life = Life.ABORTED
        self._writable = False
        self._lost_because = exc
        self._stop_receiving()
        self._reactor.stream_abort(self._token, 0)

    def on_lost(self, error: int) -> None:
        """The core is done with the socket; `error` is the errno that ended it, if one did."""
        if self._reading is Reading.UNMADE:
            # Aborted between two runs, the first of which was interrupted: `start` is still among what is ready.
            self._loop.call_soon(self._lose, error)
        else:
            self._lose(error)

    def _lose(self, error: int) -> None:
        exc, self._lost_because = self._lost_because, None  # its traceback may lead back here
        if exc is None and error and self._life is not Life.ABORTED:
            exc = OSError(error, os.strerror(error))
            if self._loop.get_debug():
                logger.debug("%r: Fatal error on socket transport", self, exc_info=exc)
        self._life, self._writable = Life.LOST, False
        self._pinned.clear()
        self._parked.clear()
        if self._empty_waiter is not None or self._room is not None:
            self._end_sendfile(exc)
        try:
            self._context.run(self._protocol.connection_lost, exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as failure:
            self._report(failure, "Fatal error: protocol.connection_lost() call failed.")
        finally:
            self._let_go()

    def _end_sendfile(self, exc: BaseException | None) -> None:
        for waiter in (self._empty_waiter, self._room):
            if waiter is not None and not waiter.done():
                waiter.set_exception(exc or ConnectionError("Connection is closed by peer"))

    def on_loop_closed(self) -> None:
        """The core is gone, and this stream with it: nothing may be asked of it any more."""
        self._life = Life.LOST
        self._writable = False
        self._sink = drop

    def _let_go(self) -> None:
        self._loop._selector.by_fd.pop(self._fd, None)
        try:
            self._close_socket()
        except OSError as exc:  # somebody has closed its fd: no reason to end the run of the loop
            self._report(exc, CLOSE_FAILED)
        self._protocol = None
        self._sink = drop
        server, self._server = self._server, None
        if server is not None:
            compat.detach(server, self)
