"""What transports that read a stream of the core have in common: how their protocol is fed, pauses, and is changed.

Small messages come as DATA events, and the loop's turn calls the transport's `_sink` with them, in its context:
`protocol.data_received` itself while reading flows; `_park` while it is paused; `drop` once the transport is closing.
So the hot path asks no questions. Large ones are received here, when the core says READABLE: straight into the object
that the protocol is to have, or into the buffer that it hands out.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import errno
import os
from asyncio.log import logger
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uringloop.reactor import RECEIVE_BYTES_MAX, Reactor
from uringloop.transports.base import NOTHING, Life, ProtocolError, check_protocol, is_buffered

if TYPE_CHECKING:
    from uringloop.loop import Loop

# os.read makes an object of all it might read, and cuts it down to what it has read. For so much memory glibc asks the
# kernel, each time anew, until the first time that a piece of that size is given back to it: here.
bytes(2 * RECEIVE_BYTES_MAX)


class Reading(enum.Enum):
    UNMADE = enum.auto()  # connection_made has not been called yet
    WAITING = enum.auto()  # it has; whoever waits for the connection is told before anything is received
    FLOWING = enum.auto()
    PAUSED = enum.auto()
    ENDED = enum.auto()  # eof_received was called


def drop(data: bytes) -> None:
    """The sink of a transport that takes nothing any more."""


class ReceivingTransport:
    """The receiving half of a transport."""

    if not TYPE_CHECKING:
        __slots__ = ()  # its fields are in the slots of the transport

    _context: contextvars.Context
    _eof_parked: bool
    _fd: int
    _is_buffered: bool
    _life: Life
    _loop: Loop
    _parked: deque[bytes]
    _protocol: Any
    _reactor: Reactor
    _reading: Reading
    _receive_stopped: bool
    _token: int
    _sink: Callable[[bytes], object]

    def _expect_bytes(self, loop: Loop, protocol: asyncio.BaseProtocol) -> None:
        """Before there is a stream. Raises AttributeError for what is no protocol."""
        check_protocol(protocol)
        self._loop = loop
        self._reactor = loop._reactor
        self._token = -1
        self._reading = Reading.UNMADE
        self._parked = NOTHING
        self._eof_parked = False
        self._receive_stopped = True  # the core has been told to stop, or not yet to receive
        self._sink = drop
        self._protocol = protocol
        self._is_buffered = is_buffered(protocol)

    def _receive_from(self, fd: int, token: int) -> None:
        """This is the stream of the core that the bytes come from."""
        self._fd = fd
        self._token = token
        self._sink = self._park

    def on_receive_failed(self, exc: BaseException) -> None:
        """The protocol raised while it was given bytes."""
        raise NotImplementedError

    def on_read_failed(self, exc: MemoryError) -> None:
        """There is no memory for what has arrived: the end of this transport."""
        raise NotImplementedError

    def on_eof(self) -> None:
        """The peer will send no more."""
        raise NotImplementedError

    def _report(self, exc: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": exc, "transport": self, "protocol": self._protocol}
        )

    def start(self, waiter: asyncio.Future[None] | None = None) -> None:
        """Call connection_made, then begin to receive."""
        self._reading = Reading.WAITING
        try:
            self._context.run(self._protocol.connection_made, self)
        except (SystemExit, KeyboardInterrupt):
            self._loop.call_soon(self._begin, waiter)  # if the loop is run again
            raise
        except BaseException as exc:  # as on asyncio it goes on: whoever made the connection may close it
            self._report(exc, "Error in protocol.connection_made()")
        self._begin(waiter)

    def _begin(self, waiter: asyncio.Future[None] | None) -> None:
        if waiter is None:
            self._start_receiving()
            return
        if not waiter.done():
            waiter.set_result(None)
        # Whoever waits for the connection learns of it before its first bytes come.
        self._loop.call_soon(self._start_receiving)

    def _start_receiving(self) -> None:
        if self._reading is Reading.WAITING and self._life is Life.OPEN:
            self._reading = Reading.FLOWING
            self._receive()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._is_buffered = is_buffered(protocol)
        receive = self._protocols_sink()
        if self._flows():
            self._sink = receive

    def _protocols_sink(self) -> Callable[[bytes], object]:
        if self._is_buffered:
            return self._fill_buffers
        receive: Callable[[bytes], object] = getattr(self._protocol, "data_received", self._deliver)
        return receive

    def _deliver(self, data: bytes) -> None:
        # To a protocol that only writes: as on asyncio, that it cannot receive is an error when something comes.
        self._protocol.data_received(data)

    def _flows(self) -> bool:
        """True while bytes go to the protocol as they come."""
        return self._reading is Reading.FLOWING and self._life is Life.OPEN and not self._parked

    # A private name of asyncio's transports and of uvloop's, at which programs look.
    @property
    def _paused(self) -> bool:
        return self._reading is Reading.PAUSED

    def is_reading(self) -> bool:
        return self._life is Life.OPEN and self._reading is not Reading.PAUSED

    def pause_reading(self) -> None:
        if not self.is_reading() or self._reading is Reading.ENDED:
            return
        self._reading = Reading.PAUSED
        self._sink = self._park
        if self._loop._debug:
            logger.debug("%r pauses reading", self)

    def resume_reading(self) -> None:
        if self._life is not Life.OPEN or self._reading is not Reading.PAUSED:
            return
        self._reading = Reading.FLOWING
        if self._loop._debug:
            logger.debug("%r resumes reading", self)
        if self._parked or self._eof_parked:
            self._loop.call_soon(self._unpark)
        else:
            self._receive()

    def _receive(self) -> None:
        self._sink = self._protocols_sink()
        if self._receive_stopped:
            self._receive_stopped = False
            self._reactor.stream_read(self._token, True)

    def on_readable(self, room: int) -> None:
        """There are bytes, many as a rule: receive up to `room` of them to where the protocol wants them."""
        if not self._flows():
            self._stop_core()  # they stay where they are until they are wanted
            return
        if self._is_buffered:
            self._receive_to_buffer(room)
            return
        try:
            data = os.read(self._fd, room)
        except OSError as exc:
            self._reactor.stream_received(self._token, -exc.errno)  # type: ignore[operator]
            return
        except MemoryError as exc:
            self.on_read_failed(exc)
            return
        self._reactor.stream_received(self._token, len(data))
        if not data:
            self.on_eof()
            return
        try:
            self._context.run(self._sink, data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.on_receive_failed(exc)

    def _receive_to_buffer(self, room: int) -> None:
        try:
            at_end = self._context.run(self._receive_buffer, room)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.on_receive_failed(exc)
            return
        if at_end:
            self.on_eof()

    def _receive_buffer(self, room: int) -> bool:
        """True at the end of the stream."""
        method, protocol = "get_buffer", self._protocol
        try:
            buffer = protocol.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
            if len(buffer) > room:
                buffer = memoryview(buffer)[:room]
            try:
                count = os.readv(self._fd, (buffer,))
            except OSError as exc:
                self._reactor.stream_received(self._token, -exc.errno)  # type: ignore[operator]
                return False
            self._reactor.stream_received(self._token, count)
            if not count:
                return True
            del buffer  # a view would keep the protocol from resizing it
            method = "buffer_updated"
            protocol.buffer_updated(count)
            return False
        except BaseException as exc:
            if method == "get_buffer":  # the bytes are still in the socket
                self._reactor.stream_received(self._token, -errno.EINTR)
            if isinstance(exc, SystemExit | KeyboardInterrupt):
                raise
            raise ProtocolError(method) from exc

    def _fill_buffers(self, data: bytes) -> None:
        protocol = self._protocol
        count = self._fill_buffer(protocol, data)
        if count < len(data):
            self._fill_more(protocol, memoryview(data)[count:])

    def _fill_buffer(self, protocol: Any, data: bytes | memoryview) -> int:
        """Give a BufferedProtocol the first of these bytes, in the buffer that it hands out; how many it took."""
        method = "get_buffer"
        try:
            count = len(data)
            buffer = protocol.get_buffer(count)
            if type(buffer) is not bytearray and type(buffer) is not memoryview:
                buffer = memoryview(buffer).cast("B")  # of whatever it is an array
            room = len(buffer)
            if not room:
                raise RuntimeError("get_buffer() returned an empty buffer")
            try:
                if room < count:
                    count = room
                    buffer[:room] = memoryview(data)[:room]
                else:
                    buffer[:count] = data
            except (ValueError, NotImplementedError):  # it is a view of other items than bytes
                buffer = memoryview(buffer).cast("B")
                count = min(len(data), len(buffer))
                buffer[:count] = memoryview(data)[:count]
            del buffer  # a view would keep the protocol from resizing it
            method = "buffer_updated"
            protocol.buffer_updated(count)
        except (SystemExit, KeyboardInterrupt):
            self._keep(data if method == "get_buffer" else data[count:])
            raise
        except BaseException as exc:
            raise ProtocolError(method) from exc
        return count

    def _keep(self, rest: bytes | memoryview) -> None:
        """What the protocol has not taken is for the next run of the loop."""
        if rest and self._life is Life.OPEN:
            self._keep_parked().appendleft(bytes(rest))
            self._sink = self._park
            self._loop.call_soon(self._unpark)

    def _fill_more(self, protocol: asyncio.BaseProtocol, rest: memoryview) -> None:
        while rest and self._protocol is protocol and self.is_reading():
            rest = rest[self._fill_buffer(protocol, rest) :]
        if rest and self._life is Life.OPEN:
            self._return(bytes(rest))

    def _return(self, data: bytes) -> None:
        # The protocol paused reading, or another took its place, in the middle of what had arrived.
        if self.is_reading():
            self._protocols_sink()(data)  # we are in the context already
        else:
            self._keep_parked().appendleft(data)

    def _park(self, data: bytes) -> None:
        # The kernel is told to stop only when bytes come while reading is paused: most pauses end before that, and
        # then cost nothing.
        self._keep_parked().append(data)
        self._stop_core()

    def _keep_parked(self) -> deque[bytes]:
        if self._parked is NOTHING:
            self._parked = deque()
        return self._parked

    def _stop_core(self) -> None:
        if not self._receive_stopped:
            self._receive_stopped = True
            self._reactor.stream_read(self._token, False)

    def _unpark(self) -> None:
        while self._parked and self.is_reading():
            try:
                self._context.run(self._protocols_sink(), self._parked.popleft())
            except (SystemExit, KeyboardInterrupt):
                self._loop.call_soon(self._unpark)  # the rest, if the loop is run again
                raise
            except BaseException as exc:
                self.on_receive_failed(exc)
        if not self.is_reading() or self._parked:
            return
        self._receive()
        if self._eof_parked:
            self._eof_parked = False
            self.on_eof()

    def _stop_receiving(self) -> None:
        self._sink = drop
        self._parked.clear()
