"""Pipe transports when several things come at once, and what they let go of when they are over."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import warnings
import weakref
from contextlib import suppress
from typing import Any

import pytest
from support import BufferedRecorder, LoopFactory, Recorder, Unhandled, fence, soon

from uringloop.transports import pipe

pytestmark = pytest.mark.tiny_ring


async def reading(factory: Any = Recorder, kind: str = "socket") -> tuple[asyncio.ReadTransport, Any, int]:
    """A transport that reads, its protocol, and the other end."""
    if kind == "socket":
        near, far = socket.socketpair()
        read_end, write_end = near.detach(), far.detach()
    else:
        read_end, write_end = os.pipe()
    file = os.fdopen(read_end, "rb", 0)
    transport, protocol = await soon(asyncio.get_running_loop().connect_read_pipe(factory, file))
    await fence()  # it reads
    return transport, protocol, write_end


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_paused_reader_hears_of_the_end_later(kind: str) -> None:
    transport, protocol, write_end = await reading(kind=kind)
    transport.pause_reading()
    os.close(write_end)
    await fence()
    assert protocol.calls == ["connection_made"]
    transport.resume_reading()
    await protocol.lost()
    assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop calls eof_received after close()
@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_reader_that_closes_hears_of_nothing_behind(kind: str) -> None:
    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            sizes.append(len(data))
            self.transport.close()

    sizes: list[int] = []
    _, protocol, write_end = await reading(Closing, kind)
    os.write(write_end, bytes(60_000))
    os.close(write_end)
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "connection_lost"]
    assert len(sizes) == 1


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop closes behind eof_received
async def test_reader_is_closing_when_it_hears_of_the_end() -> None:
    class Asking(Recorder):
        def eof_received(self) -> bool:
            was_closing.append(self.transport.is_closing())
            self.transport.close()
            return super().eof_received()

    was_closing: list[bool] = []
    _, protocol, write_end = await reading(Asking)
    os.close(write_end)
    assert await protocol.lost() is None
    await fence()
    assert was_closing == [True]
    assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]


@pytest.mark.only_on("uringloop")  # asyncio's pipes know no buffered protocols
def test_end_behind_bytes_that_an_interrupt_kept(new_loop: LoopFactory) -> None:
    class Interrupted(BufferedRecorder):
        interrupt = True

        def get_buffer(self, sizehint: int) -> bytearray:
            if self.interrupt:
                self.interrupt = False
                raise KeyboardInterrupt
            return super().get_buffer(sizehint)

    loop = new_loop()
    _, protocol, write_end = loop.run_until_complete(reading(Interrupted))
    os.write(write_end, b"hello")
    os.close(write_end)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert loop.run_until_complete(protocol.lost()) is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert protocol.data == b"hello"


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop knows of the error when it closes
async def test_closed_reader_hears_of_no_error(unhandled: Unhandled) -> None:
    """What ended a pipe that had been closed just before is no error any more."""

    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            other.close()

    _, protocol, first = await reading(Closing)
    near, far = socket.socketpair()
    near.send(b"never read")  # so that the end is a reset
    other, other_protocol = await soon(asyncio.get_running_loop().connect_read_pipe(Recorder, near))
    os.write(first, b"hello")
    far.close()
    assert await other_protocol.lost() is None
    os.close(first)
    await protocol.lost()
    assert unhandled.contexts == []


async def test_reset_of_a_socket_is_an_error(unhandled: Unhandled) -> None:
    near, far = socket.socketpair()
    near.send(b"never read")
    _, protocol = await soon(asyncio.get_running_loop().connect_read_pipe(Recorder, near))
    far.close()
    assert isinstance(await protocol.lost(), ConnectionResetError)
    unhandled.contexts.clear()  # uvloop tells it to the protocol only


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("end", ["read", "write"])
async def test_transport_that_is_over_lets_go_of_its_protocol(end: str) -> None:
    loop = asyncio.get_running_loop()
    ends = os.pipe()
    transport: Any
    if end == "read":
        transport, protocol = await soon(loop.connect_read_pipe(Recorder, os.fdopen(ends[0], "rb", 0)))
        os.close(ends[1])
    else:
        transport, protocol = await soon(loop.connect_write_pipe(Recorder, os.fdopen(ends[1], "wb", 0)))
        os.close(ends[0])
    await protocol.lost()
    await fence()
    seen = weakref.ref(protocol)
    del protocol
    assert seen() is None
    assert transport.get_protocol() is None


@pytest.mark.usefixtures("no_collection")
@pytest.mark.only_on("uringloop")  # the others hold it, or close it
def test_paused_reader_of_a_closed_loop_waits_for_no_collector(new_loop: LoopFactory) -> None:
    loop = new_loop()
    transport, protocol, write_end = loop.run_until_complete(reading())
    transport.pause_reading()
    file = transport.get_extra_info("pipe")
    loop.close()
    del protocol.transport
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del transport
    assert [str(warning.message)[:18] for warning in caught] == ["unclosed transport"]
    assert file.closed
    os.close(write_end)


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


async def writing(
    factory: Any = Recorder, kind: socket.SocketKind = socket.SOCK_STREAM
) -> tuple[Any, Any, socket.socket]:
    """A transport that writes to a socket, its protocol, and the other end."""
    near, far = socket.socketpair(type=kind)
    transport, protocol = await soon(asyncio.get_running_loop().connect_write_pipe(factory, near))
    return transport, protocol, far


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop hears of the end of both ways
async def test_writer_hears_that_nothing_more_will_come_back() -> None:
    transport, protocol, far = await writing()
    with far:
        await fence()
        assert not transport.is_closing()
        far.shutdown(socket.SHUT_WR)
        assert await protocol.lost() is None


@pytest.mark.only_on("asyncio", "uringloop")
async def test_writer_that_closes_at_once_hears_it_too() -> None:
    class Closing(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.write(bytes(1 << 20))
            transport.close()

    _, protocol, far = await writing(Closing)
    with far:
        await fence()
        assert "connection_lost" not in protocol.calls
        far.shutdown(socket.SHUT_WR)
        assert isinstance(await protocol.lost(), BrokenPipeError)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop closes the fd below the file
async def test_writer_that_is_aborted_when_it_is_made() -> None:
    class Aborting(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.abort()

    read_end, write_end = os.pipe()
    file = os.fdopen(write_end, "wb", 0)
    _, protocol = await soon(asyncio.get_running_loop().connect_write_pipe(Aborting, file))
    assert await protocol.lost() is None
    os.set_blocking(read_end, False)
    assert os.read(read_end, 1) == b""  # nothing keeps it open
    os.close(read_end)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop takes no datagram sockets for pipes
async def test_nothing_is_no_packet() -> None:
    transport, protocol, far = await writing(kind=socket.SOCK_DGRAM)
    with far:
        for nothing in (b"", bytearray(), memoryview(b"")):
            transport.write(nothing)
        transport.write(b"something")
        assert far.recv(100) == b"something"
        transport.close()
        await protocol.lost()


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop counts all that the turn has written
async def test_protocol_is_paused_by_what_is_added() -> None:
    """A pipe that is full, and then one write after the other."""
    read_end, write_end = os.pipe()
    file = os.fdopen(write_end, "wb", 0)
    transport, protocol = await soon(asyncio.get_running_loop().connect_write_pipe(Recorder, file))
    transport.set_write_buffer_limits(high=1000)
    size = 1 << 16
    transport.write(bytes(size))
    transport.write(bytes(600))
    assert "pause_writing" not in protocol.calls
    transport.write(bytes(600))
    assert "pause_writing" in protocol.calls
    assert transport.get_write_buffer_size() == 1200
    assert len(os.read(read_end, size)) == size
    await protocol.called("resume_writing")
    transport.close()
    await protocol.lost()
    os.close(read_end)


async def test_order_is_kept_when_room_comes_between() -> None:
    """What is written when the reader has just made room goes behind what waits for it."""
    read_end, write_end = os.pipe()
    file = os.fdopen(write_end, "wb", 0)
    transport, protocol = await soon(asyncio.get_running_loop().connect_write_pipe(Recorder, file))
    os.set_blocking(read_end, False)
    transport.write(b"a" * 100_000)
    await fence()
    got = os.read(read_end, 50_000)
    transport.write(b"b" * 10_000)
    transport.close()
    while "connection_lost" not in protocol.calls or len(got) < 110_000:
        with suppress(BlockingIOError):
            got += os.read(read_end, 100_000)
        await asyncio.sleep(0)
    assert got == b"a" * 100_000 + b"b" * 10_000
    os.close(read_end)


@pytest.mark.only_on("uringloop")  # the others have no request for it
@pytest.mark.parametrize("first", [True, False])
async def test_no_memory_for_the_wait_ends_it(monkeypatch: pytest.MonkeyPatch, first: bool) -> None:
    """A part of what was written is not to be taken for the whole."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    transport, protocol, far = await writing()
    with far:
        await fence()
        if first:
            monkeypatch.setattr(pipe, "_Poll", fail)
            transport.write(bytes(1 << 20))
            assert transport.is_closing()
        else:
            transport.write(bytes(1 << 20))
            monkeypatch.setattr(pipe, "_Poll", fail)
            far.recv(200_000)
        exc = await protocol.lost()
    assert isinstance(exc, OSError)
    assert exc.errno == errno.ENOMEM
    assert "resume_writing" not in protocol.calls


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop cannot write to a terminal, uvloop#262
@pytest.mark.parametrize("kind", ["pipe", "terminal"])
async def test_aborted_writer_does_not_resume(kind: str) -> None:
    read_end, write_end = os.pipe() if kind == "pipe" else os.openpty()
    file = os.fdopen(write_end, "wb", 0)
    transport, protocol = await soon(asyncio.get_running_loop().connect_write_pipe(Recorder, file))
    transport.write(bytes(1 << 20))
    await protocol.called("pause_writing")
    transport.abort()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "pause_writing", "connection_lost"]
    os.close(read_end)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop raises
async def test_what_is_written_when_a_closed_one_resumes_is_dropped() -> None:
    class Writing(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write(b"too late")

    transport, protocol, far = await writing(Writing)
    with far:
        transport.write(bytes(1 << 20))
        transport.close()
        far.setblocking(False)
        got = b""
        while "connection_lost" not in protocol.calls:
            with suppress(BlockingIOError):
                got += far.recv(1 << 20)
            await asyncio.sleep(0)
        while piece := far.recv(1 << 20):
            got += piece
        assert got == bytes(1 << 20)
        assert "resume_writing" in protocol.calls


async def test_writer_without_room_for_anything_resumes() -> None:
    class Measuring(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            left.append(transport.get_write_buffer_size())

    left: list[int] = []
    transport, protocol, far = await writing(Measuring)
    with far:
        transport.set_write_buffer_limits(high=0)
        transport.write(bytes(1 << 20))
        await protocol.called("pause_writing")
        far.setblocking(False)
        while "resume_writing" not in protocol.calls:
            with suppress(BlockingIOError):
                far.recv(1 << 20)
            await asyncio.sleep(0)
        assert left == [0]
        transport.close()
        await protocol.lost()


@pytest.mark.only_on("uringloop")  # asyncio calls connection_lost for each abort
async def test_writer_is_lost_once(unhandled: Unhandled) -> None:
    fd = os.open("/dev/null", os.O_WRONLY)  # for whose reader nothing waits
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, os.fdopen(fd, "wb", 0))
    transport.abort()
    transport.abort()
    await protocol.lost()
    transport.abort()
    await fence()
    assert protocol.calls == ["connection_made", "connection_lost"]
    assert unhandled.contexts == []
