"""Pipes, terminals and sockets as pipe transports: one that reads, one that writes.

Facts: a FIFO that no writer has opened yet reads as ended, but a poll waits for one. A write through the ring that
waits keeps its pipe open. A poll for nothing at all tells when the reader has gone; until it is cancelled it keeps the
pipe open too.
So: reading is a stream of the core in bulk mode (core/stream_receive.c), which polls and then reads. Writing is
write(2) at once, as on asyncio, so that the reader is woken now and not at the end of the turn. What does not fit is
kept, and a poll waits for room. Another one waits for the reader to go. The pipe is closed when they are over, and its
reader sees the end.

Names, errors and their order are those of asyncio's `unix_events`; callbacks run in the context of whoever made the
transport.
"""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import select
import socket
import stat
import warnings
from asyncio.log import logger
from collections.abc import Callable
from os import write  # for the hot path
from typing import TYPE_CHECKING, Any, Final

from uringloop import compat
from uringloop.transports.base import Life, NativeTransport, ProtocolError, check_protocol, copied
from uringloop.transports.receiving import Reading, ReceivingTransport, drop

if TYPE_CHECKING:
    from uringloop.loop import Loop

_ONLY_ERRORS: Final = 0  # a poll's mask: what it tells unasked
_POLLRDHUP: Final = 0x2000  # select has it since 3.14 only; the same on all architectures but SPARC


def is_native_pipe(pipe: Any) -> bool:
    """False for packet sockets, of which a buffer that is too short would lose the rest; only asyncio reads as much as
    they may bring. True for what neither takes."""
    fd = pipe.fileno()
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return True
    sock = socket.socket(fileno=fd)
    try:
        return sock.type == socket.SOCK_STREAM
    finally:
        sock.detach()


def _described(transport: ReadPipeTransport | WritePipeTransport, fd: int, waits: bool) -> str:
    info = [type(transport).__name__]
    if transport._pipe is None:
        info.append("closed")
    elif transport._loop.is_closed():
        info.append("open")
    elif transport.is_closing():
        info.append("closing")
    return f"{' '.join(info)} fd={fd} {'polling' if waits else 'idle'}"


def _lose(context: contextvars.Context, protocol: Any, pipe: Any, exc: BaseException | None) -> None:
    try:
        context.run(protocol.connection_lost, exc)
    finally:
        pipe.close()


class ReadPipeTransport(ReceivingTransport, asyncio.ReadTransport):
    """asyncio.ReadTransport over a stream of the core."""

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_context",
        "_eof_parked",
        "_fd",
        "_is_buffered",
        "_life",
        "_loop",
        "_parked",
        "_pipe",
        "_protocol",
        "_reactor",
        "_reading",
        "_receive_stopped",
        "_sink",
        "_token",
    )

    pinned: object = None  # nothing is sent

    def __init__(
        self,
        loop: Loop,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        context: contextvars.Context,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        # What __del__ and __repr__ look at comes first: anything below may fail.
        self._life = Life.LOST
        self._pipe: Any = None
        super().__init__(extra)
        self._extra: dict[str, Any]  # asyncio's
        self._extra["pipe"] = pipe
        self._fd: int = pipe.fileno()
        self._context = context
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
            raise ValueError("Pipe transport is for pipes/sockets only.")
        os.set_blocking(self._fd, False)
        opened = loop._reactor.stream_open if stat.S_ISSOCK(mode) else loop._reactor.stream_open_pipe
        self._expect_bytes(loop, protocol)
        self._receive_from(self._fd, opened(self._fd))
        loop._selector.streams[self._token] = self
        self._pipe = pipe
        self._life = Life.OPEN
        loop.call_soon(self.start, waiter)

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        return self._life is not Life.OPEN

    # A private name of asyncio's transports and of uvloop's, at which programs look.
    @property
    def _closing(self) -> bool:
        return self.is_closing()

    def __repr__(self) -> str:
        reading = self._life is Life.OPEN and self._reading is Reading.FLOWING
        return f"<{_described(self, self._fd, reading)}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._pipe is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._pipe.close()

    def on_receive_failed(self, exc: BaseException) -> None:
        # As on asyncio, where it is a callback of the loop: reading goes on.
        method = "data_received"
        if isinstance(exc, ProtocolError) and exc.__cause__ is not None:
            method, exc = exc.method, exc.__cause__
        self._report(exc, f"Exception in protocol.{method}()")

    def on_read_failed(self, exc: MemoryError) -> None:
        self._reactor.stream_received(self._token, -errno.ENOMEM)  # on_lost reports it

    def on_eof(self) -> None:
        if self._life is not Life.OPEN:
            return
        if self._reading is Reading.PAUSED or self._parked:
            self._eof_parked = True
            return
        if self._loop.get_debug():
            logger.info("%r was closed by peer", self)
        self._reading = Reading.ENDED
        self._life = Life.CLOSING
        try:
            self._context.run(self._protocol.eof_received)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._report(exc, "Exception in protocol.eof_received()")
        finally:
            self._reactor.stream_close(self._token)

    def close(self) -> None:
        if self._life is not Life.OPEN:
            if self._life is Life.LOST and self._pipe is not None:  # the loop has been closed
                self._let_go().close()
            return
        self._life = Life.CLOSING
        self._stop_receiving()
        self._reactor.stream_close(self._token)

    def on_drained(self, released: int) -> None:
        """Nothing is sent."""
        raise AssertionError("a pipe that is read has no send queue")

    def on_lost(self, error: int) -> None:
        """The core is done with the pipe; `error` is the errno that ended it, if one did."""
        exc = None
        if error and self._life is Life.OPEN:
            exc = OSError(error, os.strerror(error))
            self._tell_of(exc)
        self._life = Life.LOST
        self._parked.clear()
        try:
            _lose(self._context, self._protocol, self._let_go(), exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as failure:
            self._report(failure, "Exception in protocol.connection_lost()")
        finally:
            self._protocol = None
            self._sink = drop

    def _let_go(self) -> Any:
        pipe, self._pipe = self._pipe, None
        return pipe

    def _tell_of(self, exc: OSError) -> None:
        message = "Fatal read error on pipe transport"
        if exc.errno != errno.EIO:
            self._report(exc, message)
        elif self._loop.get_debug():  # the way in which a terminal ends
            logger.debug("%r: %s", self, message, exc_info=exc)

    def on_loop_closed(self) -> None:
        """The core is gone, and this stream with it: nothing may be asked of it any more."""
        self._life = Life.LOST
        self._sink = drop


class _Poll:
    """One poll on the ring. `then` hears what it found (poll(2)), or -errno, also if it was cancelled."""

    __slots__ = ("_loop", "_then", "_token")

    def __init__(self, loop: Loop, fd: int, mask: int, then: Callable[[int], None]) -> None:
        """Raises OSError when memory is out."""
        self._loop = loop
        self._then = then
        self._token = loop._reactor.poll_start(fd, mask)
        loop._selector.operations[self._token] = self

    def cancel(self) -> None:
        self._loop._reactor.operation_cancel(self._token)

    def complete(self, result: int) -> None:
        """For the selector."""
        self._then(result)


class WritePipeTransport(NativeTransport):
    """asyncio.WriteTransport by write(2)."""

    __slots__ = (
        "_at_once",
        "_buffer",
        "_fd",
        "_lost_because",
        "_pipe",
        "_reader_gone",
        "_room",
        "_watched",
        "_writes_refused",
    )

    def __init__(
        self,
        loop: Loop,
        pipe: Any,
        protocol: asyncio.BaseProtocol,
        context: contextvars.Context,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        # What __del__ and __repr__ look at comes first: anything below may fail.
        self._life = Life.LOST
        self._pipe: Any = None
        check_protocol(protocol)
        super().__init__(extra, loop)
        self._loop: Loop = loop
        self._extra["pipe"] = pipe
        self._fd: int = pipe.fileno()
        self._context = context
        self._buffer = bytearray()
        self._writes_refused = 0
        self._lost_because: BaseException | None = None
        mode = os.fstat(self._fd).st_mode
        # What the poll asks for that tells of the reader's end. A terminal's is not waited for, as on asyncio.
        self._watched: int | None = None
        if stat.S_ISFIFO(mode):
            self._watched = _ONLY_ERRORS
        elif stat.S_ISSOCK(mode):
            self._watched = _POLLRDHUP
        elif not stat.S_ISCHR(mode):
            raise ValueError("Pipe transport is only for pipes, sockets and character devices")
        self._reader_gone: _Poll | None = None
        self._room: _Poll | None = None  # there is one while there is something in the buffer
        os.set_blocking(self._fd, False)
        self._pipe = pipe
        self._life = Life.OPEN
        self._at_once = True  # for write: OPEN, and nothing is in the buffer
        self.set_protocol(protocol)
        loop.call_soon(self.start, waiter)

    def start(self, waiter: asyncio.Future[None] | None = None) -> None:
        """Call connection_made, then watch the reader."""
        try:
            self._context.run(self._protocol.connection_made, self)
        except (SystemExit, KeyboardInterrupt):
            self._loop.call_soon(self._begin, waiter)  # if the loop is run again
            raise
        except BaseException as exc:
            self._report(exc, "Error in protocol.connection_made()")
        self._begin(waiter)

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        if self._watched is not None and self._life in (Life.OPEN, Life.CLOSING):
            try:
                self._reader_gone = _Poll(self._loop, self._fd, self._watched, self._on_reader_gone)
            except OSError as exc:  # no memory
                self._report(exc, "Cannot watch for the end of a pipe's reader")
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def __repr__(self) -> str:
        return f"<{_described(self, self._fd, self._room is not None)} bufsize={self.get_write_buffer_size()}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if self._pipe is not None:
            _warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
            self._pipe.close()

    # --- writing -----------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if type(data) is not bytes:
            data = copied(data)
        if not self._at_once:
            self._write_later(data)
            return
        if not data:  # a datagram socket would send it
            return
        try:
            written = write(self._fd, data)
        except (BlockingIOError, InterruptedError):
            written = 0
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._on_write_failed(exc)
            return
        if written != len(data):
            self._keep(data, written)

    def _write_later(self, data: bytes) -> None:
        if not data:
            return
        if self._life is Life.OPEN:
            self._buffer += data
            self._maybe_pause_protocol()
            return
        if self._writes_refused >= compat.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")
        self._writes_refused += 1

    def _keep(self, data: bytes, written: int) -> None:
        """Write what is behind the first `written` bytes when there is room."""
        if self._waits_for_room():
            self._buffer += memoryview(data)[written:]
            self._at_once = False
            self._maybe_pause_protocol()

    def _waits_for_room(self) -> bool:
        """False where that failed: then it is over, since a part of what was written is not to be taken for the
        whole."""
        try:
            self._room = _Poll(self._loop, self._fd, select.POLLOUT, self._on_room)
        except OSError as exc:
            self._on_write_failed(exc)
            return False
        return True

    def _on_room(self, result: int) -> None:
        self._room = None
        if self._life is Life.ABORTED:
            self._settle()
            return
        try:
            written = write(self._fd, self._buffer)
        except (BlockingIOError, InterruptedError):
            written = 0
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._on_write_failed(exc)
            return
        del self._buffer[:written]
        if self._buffer and not self._waits_for_room():
            return
        self._at_once = not self._buffer and self._life is Life.OPEN
        try:
            if len(self._buffer) <= self._low_water:
                self._maybe_resume_protocol()  # which may write, or close
        finally:  # also if the protocol lets KeyboardInterrupt or SystemExit out
            if self._life is Life.CLOSING and not self._buffer:
                self._force_close(None)

    def _on_write_failed(self, exc: BaseException) -> None:
        message = "Fatal write error on pipe transport"
        self._writes_refused += 1
        if not isinstance(exc, OSError):
            self._report(exc, message)
        elif self._loop.get_debug():
            logger.debug("%r: %s", self, message, exc_info=exc)
        self._force_close(exc)

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def can_write_eof(self) -> bool:
        return True

    # --- the end -----------------------------------------------------------------------------------------------------

    def write_eof(self) -> None:
        if self._life is not Life.OPEN:
            return
        self._life = Life.CLOSING
        self._at_once = False
        if not self._buffer:
            self._force_close(None)

    def close(self) -> None:
        self.write_eof()

    def _on_reader_gone(self, result: int) -> None:
        self._reader_gone = None
        if self._life is Life.ABORTED:
            self._settle()
        elif result > 0:
            if self._loop.get_debug():
                logger.info("%r was closed by peer", self)
            self._force_close(BrokenPipeError() if self._buffer else None)

    def _force_close(self, exc: BaseException | None) -> None:
        if self._life in (Life.ABORTED, Life.LOST):
            return
        self._life = Life.ABORTED
        self._at_once = False
        self._buffer.clear()
        self._lost_because = exc
        for poll in (self._room, self._reader_gone):
            if poll is not None:
                poll.cancel()
        self._settle()

    def _settle(self) -> None:
        if self._loop.is_closed():  # nobody will tell of the polls any more
            self._let_go().close()
        elif self._room is None and self._reader_gone is None:
            self._loop.call_soon(self._on_lost)

    def _let_go(self) -> Any:
        self._life = Life.LOST
        pipe, self._pipe = self._pipe, None
        return pipe

    def _on_lost(self) -> None:
        try:
            exc, self._lost_because = self._lost_because, None  # its traceback may lead back here
            _lose(self._context, self._protocol, self._let_go(), exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as failure:
            self._report(failure, "Exception in protocol.connection_lost()")
        finally:
            self._protocol = None

    def _report(self, exc: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )
