"""Connections whose messages are large: their bytes go straight to where the protocol has them."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from support import (
    BufferedRecorder,
    Journal,
    LoopFactory,
    OpenEnd,
    Peer,
    Recorder,
    Unhandled,
    address_of,
    connect_plainly,
    eventually,
    fence,
    listen,
    loop_kind,
)

import uringloop

MESSAGE = random.Random(3).randbytes(50_000)


KERNEL = tuple(int(number) for number in os.uname().release.split(".")[:2])


PROBE = uringloop.probe()
CUTS_MESSAGES = PROBE.incremental_buffers and not (PROBE.rewound_buffers and PROBE.defer_taskrun)


class LargeBuffer(BufferedRecorder):
    buffer_size = len(MESSAGE)


async def exchange(protocol: Journal, peer: Peer) -> None:
    await peer.send(MESSAGE)
    assert await protocol.received(len(MESSAGE)) == MESSAGE


async def grow_used_to_large_ones(protocol: Journal, peer: Peer) -> None:
    loop: Any = asyncio.get_running_loop()
    if loop_kind() != "uringloop":
        await exchange(protocol, peer)
        return
    before = loop.stats().receives_bulk
    async with asyncio.timeout(10):
        while loop.stats().receives_bulk == before:
            await exchange(protocol, peer)


@pytest.mark.parametrize("factory", [Recorder, LargeBuffer])
async def test_large_messages_and_small_ones_by_turns(open_end: OpenEnd, factory: type[Recorder | LargeBuffer]) -> None:
    protocol, peer = await open_end(factory)
    for _ in range(3):
        await grow_used_to_large_ones(protocol, peer)
        for _ in range(20):
            await peer.send(b"small")
            assert await protocol.received(5) == b"small"


@pytest.mark.parametrize("factory", [Recorder, LargeBuffer])
async def test_paused_one_is_given_all_when_it_resumes(
    open_end: OpenEnd, factory: type[Recorder | LargeBuffer]
) -> None:
    protocol, peer = await open_end(factory)
    await grow_used_to_large_ones(protocol, peer)
    protocol.transport.pause_reading()
    await peer.send(MESSAGE)
    await fence()
    assert not protocol.data
    protocol.transport.resume_reading()
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()
    assert await protocol.received(len(MESSAGE)) == MESSAGE
    await exchange(protocol, peer)


async def test_nothing_comes_after_the_close(open_end: OpenEnd) -> None:
    class Closing(Recorder):
        closes = False

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.closes:
                self.transport.close()

    protocol, peer = await open_end(Closing)
    await grow_used_to_large_ones(protocol, peer)
    protocol.closes = True
    await peer.send(MESSAGE)
    assert await protocol.lost() is None
    assert MESSAGE.startswith(bytes(protocol.data))


@pytest.mark.parametrize("factory", [Recorder, LargeBuffer])
async def test_eof_comes_behind_the_bytes(open_end: OpenEnd, factory: type[Recorder | LargeBuffer]) -> None:
    protocol, peer = await open_end(factory)
    await grow_used_to_large_ones(protocol, peer)
    await peer.send(MESSAGE)
    peer.send_fin()
    assert await protocol.lost() is None
    assert protocol.data == MESSAGE
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_protocol_that_fails_ends_the_connection(open_end: OpenEnd, unhandled: Unhandled) -> None:
    class Failing(LargeBuffer):
        fails = False

        def buffer_updated(self, nbytes: int) -> None:
            if self.fails:
                raise RuntimeError("no more")
            super().buffer_updated(nbytes)

    protocol, peer = await open_end(Failing)
    await grow_used_to_large_ones(protocol, peer)
    protocol.fails = True
    await peer.send(MESSAGE)
    assert isinstance(await protocol.lost(), RuntimeError)
    assert str((await unhandled.next())["exception"]) == "no more"


@pytest.mark.only_on("uringloop")  # the others do not read by os.read
async def test_no_memory_for_a_large_message_ends_that_connection_alone(
    open_end: OpenEnd, unhandled: Unhandled, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, peer = await open_end(Recorder)
    near, far = socket.socketpair()
    _, other = await asyncio.get_running_loop().connect_accepted_socket(Recorder, near)
    other_peer = Peer(far)
    await grow_used_to_large_ones(protocol, peer)
    await grow_used_to_large_ones(other, other_peer)
    fail_to_read(monkeypatch, protocol.transport.get_extra_info("socket").fileno())
    await peer.send(MESSAGE)
    assert isinstance((await unhandled.next())["exception"], MemoryError)
    assert isinstance(await protocol.lost(), MemoryError)
    await exchange(other, other_peer)
    other_peer.close()
    await other.lost()


@pytest.mark.only_on("uringloop")
async def test_no_memory_for_what_comes_through_a_pipe_ends_it(
    unhandled: Unhandled, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_end, write_end = os.pipe()
    file = os.fdopen(read_end, "rb", 0)
    _, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, file)
    fail_to_read(monkeypatch, read_end)
    os.write(write_end, b"hello")
    exc = await protocol.lost()
    assert isinstance(exc, OSError)
    assert exc.errno == errno.ENOMEM
    assert (await unhandled.next())["exception"] is exc
    os.close(write_end)


def fail_to_read(monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
    read = os.read

    def fail(from_fd: int, size: int) -> bytes:
        if from_fd == fd:
            raise MemoryError
        return read(from_fd, size)

    monkeypatch.setattr(os, "read", fail)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop hands what a protocol raises to the exception handler
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
def test_exit_from_a_protocol_leaves_the_loop_and_loses_no_data(
    new_loop: LoopFactory, error: type[BaseException], method: str
) -> None:
    class Exiting(LargeBuffer):
        exits_in = ""

        def get_buffer(self, sizehint: int) -> bytearray:
            self.exit("get_buffer")
            return super().get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.exit("buffer_updated")

        def exit(self, method: str) -> None:
            if method == self.exits_in:
                self.exits_in = ""
                raise error

    loop = new_loop()
    protocol = Exiting()
    near, far = socket.socketpair()
    peer = Peer(far)
    loop.run_until_complete(loop.connect_accepted_socket(lambda: protocol, near))
    loop.run_until_complete(grow_used_to_large_ones(protocol, peer))
    loop.run_until_complete(loop.shutdown_default_executor())
    protocol.exits_in = method
    far.sendall(MESSAGE)
    with pytest.raises(error):
        loop.run_forever()

    async def finish() -> None:
        assert await protocol.received(len(MESSAGE)) == MESSAGE
        far.sendall(b"small")
        assert await protocol.received(5) == b"small"
        far.close()
        await protocol.lost()

    loop.run_until_complete(finish())


async def test_addresses_and_socket_of_an_accepted_connection(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    transport = protocol.transport
    sock = transport.get_extra_info("socket")
    assert sock.getsockname() == transport.get_extra_info("sockname")
    assert sock.getpeername() == transport.get_extra_info("peername")
    assert sock.gettimeout() == 0
    assert sock.type == socket.SOCK_STREAM
    peer.close()
    await protocol.lost()


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no peername of Unix sockets, and fails when asked late
async def test_addresses_are_known_when_the_connection_is_gone(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    own, far = peer.sock.getpeername(), peer.sock.getsockname()
    peer.close()
    await protocol.lost()
    transport = protocol.transport
    assert transport.get_extra_info("sockname") == own
    assert transport.get_extra_info("peername") == far
    assert transport.get_extra_info("no such thing", 7) == 7


class Upload:
    """A peer in a thread that sends without end, until it is told to stop; then it reads what there is."""

    def __init__(self, sock: socket.socket) -> None:
        self.sent = 0
        self._sock = sock
        self._stop = threading.Event()

    def stop(self) -> None:
        self._stop.set()

    def run(self) -> None:
        with self._sock as sock:
            while not self._stop.is_set():
                sock.sendall(MESSAGE)
                self.sent += len(MESSAGE)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass


class Taking(asyncio.Protocol):
    """Counts what it is given, and the pieces."""

    def __init__(self, answers: bool) -> None:
        self.answers = answers
        self.taken = self.pieces = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.taken += len(data)
        self.pieces += 1
        if self.answers:
            self.transport.write(b".")


async def tick_for_ever() -> None:
    while True:  # noqa: ASYNC110 - the timers are what is wanted
        await asyncio.sleep(0.0001)


@pytest.mark.skipif(KERNEL < (6, 12), reason="this kernel cannot end a sleep with the second completion: Linux 6.12")
@pytest.mark.only_on("uringloop")
@pytest.mark.parametrize(
    ("family", "answers", "timer", "coalesces"),
    [
        ("tcp", False, False, True),
        ("tcp", True, False, False),  # the peer may wait for the answer
        ("tcp", False, True, False),  # it would be late
        ("unix", False, False, False),  # the peer waits for room: the buffer of a Unix socket is small
    ],
    indirect=["family"],
)
async def test_loop_sleeps_a_little_behind_what_comes_one_way(
    family: str, answers: bool, timer: bool, coalesces: bool, tmp_path: Path
) -> None:
    loop: Any = asyncio.get_running_loop()
    ticking = loop.create_task(tick_for_ever()) if timer else None
    protocol = Taking(answers)
    server = await listen(family, lambda: protocol, tmp_path)
    upload = Upload(connect_plainly(address_of(server)))
    uploading = loop.run_in_executor(None, upload.run)
    await eventually(lambda: loop.stats().sleeps_coalesced > 3 if coalesces else protocol.pieces > 2000)
    upload.stop()
    await uploading
    if ticking is not None:
        ticking.cancel()
    assert protocol.taken == upload.sent
    assert (loop.stats().sleeps_coalesced > 0) is coalesces
    server.close()
    await server.wait_closed()


@pytest.mark.skipif(CUTS_MESSAGES, reason="here a buffer that is full cuts the message that comes at its end in two")
async def test_messages_of_one_packet_come_whole(open_end: OpenEnd) -> None:
    class Counter(Recorder):
        pieces = 0

        def data_received(self, data: bytes) -> None:
            self.pieces += 1
            super().data_received(data)

    message = MESSAGE[:10_000]
    protocol, peer = await open_end(Counter)
    for count in range(1, 201):  # more bytes than any pool of buffers has
        await peer.send(message)
        assert await protocol.received(len(message)) == message
        assert protocol.pieces == count
