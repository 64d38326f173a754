"""Storms: much of one thing at once. Small here; URINGLOOP_STORMS=whole in the environment makes them whole."""

from __future__ import annotations

import asyncio
import os
import socket
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import PATIENCE, eventually, in_use, soon

import uringloop

WHOLE = os.environ.get("URINGLOOP_STORMS") == "whole"
PROCESSES, PROCESSES_AT_ONCE = (1000, 50) if WHOLE else (50, 10)
DATAGRAMS = 100_000 if WHOLE else 2_000
WINDOW = 64  # datagrams on their way in each direction: a small part of what the socket holds
CANCELS = 10_000 if WHOLE else 300
LIMIT = 20 * PATIENCE if WHOLE else 3 * PATIENCE

Pair = tuple[socket.socket, socket.socket]

pytestmark = pytest.mark.timeout(2 * LIMIT)


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------


async def test_processes() -> None:
    """Each says back what it is given, and ends with a status of its own."""
    loop = asyncio.get_running_loop()
    at_rest = in_use(loop)
    places = asyncio.Semaphore(PROCESSES_AT_ONCE)

    async def run(number: int) -> None:
        async with places:
            program = f"cat; echo done {number} >&2; exit {number % 200}"
            process = await asyncio.create_subprocess_exec("sh", "-c", program, stdin=PIPE, stdout=PIPE, stderr=PIPE)
            text = b"%d " % number * (1 + number * 37 % 3000)
            output, errors = await process.communicate(text)
            assert output == text
            assert errors == b"done %d\n" % number
            assert process.returncode == number % 200

    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(run(number) for number in range(PROCESSES)))
    await eventually(lambda: in_use(loop) == at_rest)


# ---------------------------------------------------------------------------------------------------------------------
# Messages for a small pool
# ---------------------------------------------------------------------------------------------------------------------


def test_receives_that_wait_for_a_small_pool_are_not_made_in_vain() -> None:
    """A pool that holds four of a hundred messages: about as many receives are made as find a place."""
    count, message, rounds = 100, bytes(1000), 5

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, uringloop.Loop)
        pairs = [socket.socketpair() for _ in range(count)]
        streams = [await asyncio.open_connection(sock=near) for near, _ in pairs]
        before = loop.stats()
        for _ in range(rounds):
            for _, far in pairs:
                far.sendall(message)
            for reader, _ in streams:
                assert await reader.readexactly(len(message)) == message
        stats = loop.stats()
        assert stats.receive_starved > before.receive_starved
        assert stats.receive_rearms - before.receive_rearms < 4 * (stats.receives - before.receives)
        for (_, far), (_, writer) in zip(pairs, streams, strict=True):
            far.close()
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=lambda: uringloop.Loop(buffers=2, buffer_size=2048)) as runner:
        runner.run(asyncio.wait_for(main(), 10))


# ---------------------------------------------------------------------------------------------------------------------
# Datagrams
# ---------------------------------------------------------------------------------------------------------------------


class Storm(asyncio.DatagramProtocol):
    """Sends numbered datagrams, so many ahead of what has come from the other side, which does the same."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.sent = 0
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self.transport = transport

    def send(self, peer: Any) -> None:
        self.peer = peer
        while self.sent < DATAGRAMS and self.sent < len(self.received) + WINDOW:
            self.transport.sendto(self.sent.to_bytes(4, "big") * (1 + self.sent % 20), peer)
            self.sent += 1

    def datagram_received(self, data: bytes, addr: Any) -> None:
        number = int.from_bytes(data[:4], "big")
        assert data == data[:4] * (1 + number % 20)
        self.received.append(number)
        self.send(addr)
        if len(self.received) == DATAGRAMS and not self.over.done():
            self.over.set_result(None)

    def error_received(self, exc: Exception) -> None:
        self.over.set_exception(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


async def test_datagrams_each_way() -> None:
    """On loopback, and with a window, none is lost."""
    loop = asyncio.get_running_loop()
    ends = []
    for _ in range(2):
        _, protocol = await loop.create_datagram_endpoint(Storm, ("127.0.0.1", 0))
        ends.append(protocol)
    one, other = ends
    one.send(other.transport.get_extra_info("sockname"))
    other.send(one.transport.get_extra_info("sockname"))
    try:
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(one.over, other.over)
    finally:
        missing = [DATAGRAMS - len(end.received) for end in ends]
        for end in ends:
            end.transport.close()
            await soon(end.lost.wait())
    assert missing == [0, 0]
    for end in ends:
        assert end.received == list(range(DATAGRAMS))


# ---------------------------------------------------------------------------------------------------------------------
# Cancels of what waits, under traffic
# ---------------------------------------------------------------------------------------------------------------------

# The others lose what arrives between their call and the task that waits for it.
only_on_the_ring = pytest.mark.only_on("uringloop")
NUMBER_BYTES = 4
RECORD = 16


def records(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield number.to_bytes(NUMBER_BYTES, "big") * (RECORD // NUMBER_BYTES)


@pytest.fixture(params=["stream", "datagrams"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    kind = socket.SOCK_STREAM if request.param == "stream" else socket.SOCK_DGRAM
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


async def receive(name: str, sock: socket.socket, buffer: bytearray) -> bytes:
    """A record at the most, by the method of this name."""
    loop = asyncio.get_running_loop()
    if name == "sock_recv":
        return await loop.sock_recv(sock, RECORD)
    if name == "sock_recv_into":
        return bytes(buffer[: await loop.sock_recv_into(sock, buffer)])
    if name == "sock_recvfrom":
        return (await loop.sock_recvfrom(sock, RECORD))[0]
    count, _ = await loop.sock_recvfrom_into(sock, buffer)
    return bytes(buffer[:count])


@only_on_the_ring
@pytest.mark.tiny_ring
@pytest.mark.parametrize("name", ["sock_recv", "sock_recv_into", "sock_recvfrom", "sock_recvfrom_into"])
async def test_cancelled_receives_lose_nothing(pair: Pair, name: str) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    at_rest = in_use(loop)
    sent = list(records(CANCELS))
    received = bytearray()
    waited = 0

    async def send() -> None:
        for number, record in enumerate(sent):
            await loop.sock_sendall(far, record)
            if number % 3 == 0:
                await asyncio.sleep(0)

    sending = None
    buffer = bytearray(RECORD)
    turns = 0
    async with asyncio.timeout(LIMIT):
        while len(received) < RECORD * CANCELS or waited < CANCELS:
            receiving = asyncio.create_task(receive(name, near, buffer))
            turns = turns % 4 + 1
            for _ in range(turns):
                await asyncio.sleep(0)
            # Half of them wait before there is any traffic: each of those is cancelled while it does.
            if waited >= CANCELS // 2 and sending is None:
                sending = asyncio.create_task(send())
            receiving.cancel()
            try:
                received += await receiving
            except asyncio.CancelledError:
                waited += 1
        assert sending is not None
        await sending
    assert received == b"".join(sent)
    await eventually(lambda: in_use(loop) == at_rest)


def drain(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    try:
        while len(data) < size:
            data += sock.recv(size - len(data))
    except BlockingIOError:
        pass
    return bytes(data)


@only_on_the_ring
@pytest.mark.tiny_ring
async def test_cancelled_sends_of_datagrams_send_once_or_not_at_all() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        await cancelled_sends(near, far, lambda loop, record: loop.sock_sendall(near, record))


@only_on_the_ring
@pytest.mark.tiny_ring
async def test_cancelled_sendto_sends_once_or_not_at_all(tmp_path: Any) -> None:
    address = str(tmp_path / "socket")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as near,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as far,
    ):
        far.bind(address)
        near.setblocking(False)
        far.setblocking(False)
        await cancelled_sends(near, far, lambda loop, record: loop.sock_sendto(near, record, address))


async def cancelled_sends(near: socket.socket, far: socket.socket, send: Callable[[Any, bytes], Any]) -> None:
    """Who was told that his was sent finds it on the other side, in order; who was cancelled does not."""
    loop = asyncio.get_running_loop()
    told, received = [], []
    cancelled = turns = 0
    for record in records(2 * CANCELS):
        sending = asyncio.create_task(send(loop, record))
        turns = turns % 4 + 1
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns == 3 and not sending.done():
            received.append(far.recv(RECORD))  # room, of which it may hear in time or not
        sending.cancel()
        try:
            await soon(sending)
            told.append(record)
        except asyncio.CancelledError:
            cancelled += 1
    while rest := drain(far, RECORD):
        received.append(rest)
    assert received == told
    assert cancelled > CANCELS // 2
    assert len(told) > 10


@only_on_the_ring
@pytest.mark.tiny_ring
async def test_cancelled_sendall_has_sent_a_beginning() -> None:
    loop = asyncio.get_running_loop()
    data = b"".join(records(50_000))
    for turn in range(CANCELS // 30):
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.setblocking(False)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sending = asyncio.create_task(loop.sock_sendall(near, data))
            received = bytearray()
            for _ in range(turn % 7):
                await asyncio.sleep(0)
                received += drain(far, turn * 100)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await soon(sending)
            received += drain(far, len(data))
            assert received == data[: len(received)]
            assert len(received) < len(data)
