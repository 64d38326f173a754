"""Pipes as transports: what asyncio's do, on pipes, FIFOs, sockets and terminals."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support import (
    BufferedRecorder,
    LoopFactory,
    Recorder,
    Unhandled,
    eventually,
    fence,
    loop_kind,
    soon,
)

pytestmark = pytest.mark.tiny_ring

PATTERN = bytes(range(256)) * (4 << 10)  # 1 MiB: more than any of these holds


@pytest.fixture(params=["pipe", "fifo", "socket"])
def pipe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[int, int]]:
    """What is read from, and what is written to."""
    ends: tuple[int, int]
    if request.param == "pipe":
        ends = os.pipe()
    elif request.param == "fifo":
        os.mkfifo(tmp_path / "fifo")
        read_end = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        ends = read_end, os.open(tmp_path / "fifo", os.O_WRONLY)
        os.set_blocking(read_end, True)
    else:
        near, far = socket.socketpair()
        ends = near.detach(), far.detach()
    made = [os.fstat(fd).st_ino for fd in ends]
    yield ends
    for fd, inode in zip(ends, made, strict=True):
        with suppress(OSError):  # a transport had it
            if os.fstat(fd).st_ino == inode:
                os.close(fd)


async def reading(read_end: int, factory: Any = Recorder) -> tuple[asyncio.ReadTransport, Any]:
    file = os.fdopen(read_end, "rb", 0)
    return await soon(asyncio.get_running_loop().connect_read_pipe(factory, file))


async def writing(write_end: int) -> tuple[asyncio.WriteTransport, Recorder]:
    file = os.fdopen(write_end, "wb", 0)
    return await soon(asyncio.get_running_loop().connect_write_pipe(Recorder, file))


def read_all(read_end: int) -> bytes:
    """In a thread: all there is until the end."""
    with open(read_end, "rb", closefd=False) as file:
        return file.read()


async def reads_all(read_end: int) -> bytes:
    os.set_blocking(read_end, True)
    data = await soon(asyncio.to_thread(read_all, read_end))
    await asyncio.get_running_loop().shutdown_default_executor()
    return data


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


async def test_reads_up_to_the_end(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await reading(read_end)
    os.write(write_end, b"hello")
    assert await protocol.received(5) == b"hello"
    assert not transport.is_closing()
    os.close(write_end)
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read_end)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop keeps it open
async def test_end_comes_though_the_protocol_would_keep_it_open(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    _, protocol = await reading(read_end)
    protocol.keep_open = True
    os.close(write_end)
    assert await protocol.lost() is None


async def test_reads_large_and_small_in_order(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    _, protocol = await reading(read_end)
    sent = 0
    for size in [10, 60_000, 60_000, 60_000, 10, 10, 10, 10, 10, 60_000, 1]:
        data = PATTERN[sent : sent + size]
        os.write(write_end, data)
        assert await protocol.received(size) == data
        sent += size
    os.close(write_end)
    await protocol.lost()


async def test_what_was_written_before_comes_with_the_end(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    os.write(write_end, b"hello")
    os.close(write_end)
    _, protocol = await reading(read_end)
    await protocol.lost()
    assert protocol.data == b"hello"
    protocol.check_order()


async def test_paused_reader_gets_nothing(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await reading(read_end)
    assert transport.is_reading()
    transport.pause_reading()
    transport.pause_reading()
    assert not transport.is_reading()
    os.write(write_end, b"hello")
    os.close(write_end)
    await fence()
    assert not protocol.data
    assert "eof_received" not in protocol.calls
    transport.resume_reading()
    transport.resume_reading()
    assert transport.is_reading()
    assert await protocol.received(5) == b"hello"
    await protocol.lost()
    assert not transport.is_reading()
    protocol.check_order()


async def test_pauses_lose_nothing(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe

    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    _, protocol = await reading(read_end, Pausing)
    writer, writer_protocol = await writing(write_end)
    writer.write(PATTERN)
    writer.close()
    await protocol.lost()
    assert bytes(protocol.data) == PATTERN
    await writer_protocol.lost()


async def test_closed_reader_hears_no_more(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await reading(read_end)
    transport.close()
    transport.close()
    assert transport.is_closing()
    os.write(write_end, b"hello")
    assert await protocol.lost() is None
    assert not protocol.data
    assert "closed" in repr(transport)
    with pytest.raises(BrokenPipeError):
        os.write(write_end, b"x")


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop closes it
async def test_reader_whose_protocol_fails_goes_on(pipe: tuple[int, int], unhandled: Unhandled) -> None:
    read_end, write_end = pipe

    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if data == b"fail":
                raise ZeroDivisionError

    _, protocol = await reading(read_end, Failing)
    os.write(write_end, b"fail")
    assert isinstance((await unhandled.next())["exception"], ZeroDivisionError)
    os.write(write_end, b"more")
    assert (await protocol.received(8)) == b"failmore"
    os.close(write_end)
    await protocol.lost()


async def test_reader_changes_its_protocol(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, first = await reading(read_end)
    os.write(write_end, b"first")
    assert await first.received(5) == b"first"
    second = Recorder()
    transport.set_protocol(second)
    assert transport.get_protocol() is second
    os.write(write_end, b"second")
    os.close(write_end)
    assert await second.received(6) == b"second"
    await second.lost()
    first.connection_lost(None)


@pytest.mark.only_on("uringloop")  # asyncio's pipes call data_received only
async def test_buffered_reader(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    _, protocol = await reading(read_end, BufferedRecorder)
    os.write(write_end, PATTERN[:60_000])
    assert await protocol.received(60_000) == PATTERN[:60_000]
    os.close(write_end)
    await protocol.lost()


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop writes at the end of the turn
async def test_written_at_once(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    transport.write(b"hello")
    os.set_blocking(read_end, False)
    assert os.read(read_end, 100) == b"hello"
    transport.close()
    await protocol.lost()


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_writes_more_than_the_pipe_holds(pipe: tuple[int, int], kind: Any) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    data = kind(PATTERN) if kind is not memoryview else memoryview(bytearray(PATTERN))
    transport.write(data)
    if kind is not bytes and loop_kind() != "uvloop":  # which keeps what is the caller's
        data[:] = bytes(len(data))  # the caller's again
    await protocol.called("pause_writing")
    assert transport.get_write_buffer_size() > 0
    transport.write(b"more")
    transport.writelines([b"and", b"more"])
    transport.close()
    assert transport.is_closing()
    if loop_kind() != "uvloop":  # which raises
        transport.write(b"too late")
    assert await reads_all(read_end) == PATTERN + b"moreandmore"
    assert await protocol.lost() is None
    protocol.check_flow_order()


async def test_writing_resumes(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    transport.set_write_buffer_limits(high=1000, low=10)
    assert transport.get_write_buffer_limits() == (10, 1000)
    transport.write(PATTERN)
    await protocol.called("pause_writing")
    os.set_blocking(read_end, False)
    got = bytearray()
    while len(got) < len(PATTERN):
        try:
            got += os.read(read_end, 1 << 20)
        except BlockingIOError:
            await asyncio.sleep(0)
    assert got == PATTERN
    await protocol.called("resume_writing")
    assert transport.get_write_buffer_size() == 0
    transport.close()
    await protocol.lost()


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop shuts a socket down, and keeps all open
async def test_end_of_file_is_written_behind_what_is_queued(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    assert transport.can_write_eof()
    transport.write(PATTERN)
    transport.write_eof()
    transport.write_eof()
    assert await reads_all(read_end) == PATTERN
    assert await protocol.lost() is None


async def test_aborted_writer_drops_what_is_queued(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    transport.write(PATTERN)
    transport.abort()
    assert transport.is_closing()
    assert await protocol.lost() is None
    assert transport.get_write_buffer_size() == 0
    assert 0 < len(await reads_all(read_end)) < len(PATTERN)


async def test_writer_hears_that_the_reader_has_gone(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    os.close(read_end)
    assert await protocol.lost() is None
    assert transport.is_closing()


async def test_reader_goes_while_much_is_queued(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    transport.write(PATTERN)
    os.close(read_end)
    # A socket says what it lost.
    assert isinstance(await protocol.lost(), BrokenPipeError | ConnectionResetError)
    assert protocol.calls[:2] == ["connection_made", "pause_writing"]


async def test_reader_goes_while_a_closed_writer_has_much_queued(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    transport.write(PATTERN)
    transport.close()
    os.close(read_end)
    await protocol.lost()


async def test_broken_pipe(pipe: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    os.close(read_end)
    for _ in range(4):
        transport.write(b"lost")
    if loop_kind() != "uvloop":  # which is not closed before the end of the turn
        assert transport.is_closing()
        assert transport.get_write_buffer_size() == 0
        with caplog.at_level(logging.WARNING, "asyncio"):
            transport.write(b"")
            transport.write(b"lost")
            assert not caplog.records
            transport.write(b"lost")
            assert "os.write(pipe, data) raised exception" in caplog.text
    assert isinstance(await protocol.lost(), BrokenPipeError)


async def test_only_bytes_are_written(pipe: tuple[int, int]) -> None:
    _, write_end = pipe
    transport, protocol = await writing(write_end)
    with pytest.raises((TypeError, AssertionError)):  # the latter is asyncio's
        transport.write("text")  # type: ignore[arg-type]
    transport.close()
    await protocol.lost()


async def test_reader_sees_the_end_when_connection_lost_has_been_called(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await writing(write_end)
    transport.close()
    await protocol.lost()
    assert os.read(read_end, 1) == b""  # would block


# ---------------------------------------------------------------------------------------------------------------------
# Both
# ---------------------------------------------------------------------------------------------------------------------


async def test_what_a_transport_tells_of_its_pipe(pipe: tuple[int, int]) -> None:
    reader, reader_protocol = await reading(pipe[0])
    writer, writer_protocol = await writing(pipe[1])
    assert isinstance(reader, asyncio.ReadTransport) or loop_kind() == "uvloop"
    assert isinstance(writer, asyncio.WriteTransport) or loop_kind() == "uvloop"
    for transport, fd, protocol in ((reader, pipe[0], reader_protocol), (writer, pipe[1], writer_protocol)):
        assert transport.get_extra_info("pipe").fileno() == fd
        assert transport.get_extra_info("nothing", 1) == 1
        assert not os.get_blocking(fd)
        assert not transport.is_closing()
        assert transport.get_protocol() is protocol
        assert f"fd={fd}" in repr(transport) or loop_kind() == "uvloop"
    reader.close()
    writer.close()
    await reader_protocol.lost()
    await writer_protocol.lost()
    assert reader.get_extra_info("pipe").closed or loop_kind() == "uvloop"


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has its own order
async def test_callbacks_do_not_stop_the_loop(pipe: tuple[int, int], unhandled: Unhandled) -> None:

    class Failing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            raise ZeroDivisionError

        def connection_lost(self, exc: BaseException | None) -> None:
            super().connection_lost(exc)
            raise ZeroDivisionError

    loop = asyncio.get_running_loop()
    reader, reader_protocol = await reading(pipe[0], Failing)
    writer, writer_protocol = await soon(loop.connect_write_pipe(Failing, os.fdopen(pipe[1], "wb", 0)))
    writer.write(b"hello")
    assert await reader_protocol.received(5) == b"hello"
    reader.close()
    writer.close()
    await reader_protocol.lost()
    await writer_protocol.lost()
    for _ in range(4):
        assert isinstance((await unhandled.next())["exception"], ZeroDivisionError)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop leaves them open
async def test_cancelled_connects_close_the_pipe(pipe: tuple[int, int]) -> None:
    loop = asyncio.get_running_loop()
    files = os.fdopen(pipe[0], "rb", 0), os.fdopen(pipe[1], "wb", 0)
    connects = [
        asyncio.ensure_future(loop.connect_read_pipe(Recorder, files[0])),
        asyncio.ensure_future(loop.connect_write_pipe(Recorder, files[1])),
    ]
    await asyncio.sleep(0)
    for connect in connects:
        connect.cancel()
    for connect in connects:
        with pytest.raises(asyncio.CancelledError):
            await soon(connect)
    await eventually(lambda: all(file.closed for file in files))


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop takes it
async def test_regular_file_is_refused(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with open(tmp_path / "file", "w+b") as file:  # noqa: ASYNC230 - an open of a temporary file does not block
        with pytest.raises(ValueError, match=r"^Pipe transport is only for pipes, sockets and character devices$"):
            await loop.connect_write_pipe(Recorder, file)
        with pytest.raises(ValueError, match=r"^Pipe transport is for pipes/sockets only.$"):
            await loop.connect_read_pipe(Recorder, file)
        assert not file.closed


@pytest.mark.only_on("uringloop")  # asyncio does so too, and then fails in __del__
async def test_closed_file_is_refused(pipe: tuple[int, int]) -> None:
    loop = asyncio.get_running_loop()
    file = os.fdopen(pipe[0], "rb", 0)
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        await loop.connect_read_pipe(Recorder, file)
    with pytest.raises(ValueError, match="closed file"):
        await loop.connect_write_pipe(Recorder, file)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop closes them with the loop
def test_unclosed_transports_say_so(new_loop: LoopFactory) -> None:
    loop = new_loop()
    files = [os.fdopen(fd, mode, 0) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]
    reader, _ = loop.run_until_complete(loop.connect_read_pipe(asyncio.Protocol, files[0]))
    writer, _ = loop.run_until_complete(loop.connect_write_pipe(asyncio.Protocol, files[1]))
    loop.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del reader, writer
        gc.collect()
    assert sorted(str(warning.message)[:18] for warning in caught) == ["unclosed transport"] * 2
    assert all(file.closed for file in files)


@pytest.mark.only_on("uringloop")  # on asyncio it raises RuntimeError
def test_closed_after_the_loop(new_loop: LoopFactory) -> None:
    loop = new_loop()
    files = [os.fdopen(fd, mode, 0) for fd, mode in zip(os.pipe(), ("rb", "wb"), strict=True)]
    reader, _ = loop.run_until_complete(loop.connect_read_pipe(asyncio.Protocol, files[0]))
    writer, _ = loop.run_until_complete(loop.connect_write_pipe(asyncio.Protocol, files[1]))
    loop.close()
    reader.close()
    writer.close()
    assert all(file.closed for file in files)
