"""Flow control: the write buffer's limits, a protocol that is told to pause, and back-pressure from end to end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support import Journal, OpenEnd, Recorder, address_of, connect, eventually, fence, listen, per_loop, soon

pytestmark = pytest.mark.tiny_ring

KIB, MIB = 1 << 10, 1 << 20
MORE_THAN_THE_KERNEL_TAKES = 16 * MIB  # no socket buffer on this side of tcp_wmem + tcp_rmem holds as much


def flow(protocol: Journal) -> list[str]:
    """The flow control calls that a protocol got."""
    return [call for call in protocol.calls if call.endswith("_writing")]


# ---------------------------------------------------------------------------------------------------------------------
# The limits
# ---------------------------------------------------------------------------------------------------------------------


async def test_default_limits_are_16_and_64_kib(open_end: OpenEnd) -> None:
    protocol, _ = await open_end(Recorder)
    # uvloop takes the quarter of 64, not of 64 KiB.
    low = per_loop(asyncio=16 * KIB, uvloop=16, uringloop=16 * KIB)
    assert protocol.transport.get_write_buffer_limits() == (low, 64 * KIB)


@pytest.mark.parametrize(
    ("high", "low", "expected"),
    [
        (1000, None, (250, 1000)),
        (None, 1000, (1000, 4000)),
        (1000, 10, (10, 1000)),
        (1000, 1000, (1000, 1000)),
        (0, None, (0, 0)),
        (None, 0, (0, 0)),
        (7, 0, (0, 7)),
    ],
)
async def test_limit_that_is_not_given_follows_from_the_other(
    open_end: OpenEnd, high: int | None, low: int | None, expected: tuple[int, int]
) -> None:
    protocol, _ = await open_end(Recorder)
    protocol.transport.set_write_buffer_limits(high=high, low=low)
    assert protocol.transport.get_write_buffer_limits() == expected


@pytest.mark.parametrize(("high", "low"), [(10, 11), (-1, None), (None, -1), (5, -5)])
async def test_limits_that_make_no_sense_are_refused_and_change_nothing(
    open_end: OpenEnd, high: int | None, low: int | None
) -> None:
    protocol, _ = await open_end(Recorder)
    before = protocol.transport.get_write_buffer_limits()
    with pytest.raises(ValueError, match="high"):
        protocol.transport.set_write_buffer_limits(high=high, low=low)
    assert protocol.transport.get_write_buffer_limits() == before


# ---------------------------------------------------------------------------------------------------------------------
# Pausing and resuming the protocol
# ---------------------------------------------------------------------------------------------------------------------


async def test_protocol_is_paused_inside_the_write_that_passes_the_limit(open_end: OpenEnd) -> None:
    protocol, _ = await open_end(Recorder)
    protocol.transport.write(b"small")
    assert flow(protocol) == []
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    assert flow(protocol) == ["pause_writing"]
    protocol.transport.write(bytes(MIB))
    assert flow(protocol) == ["pause_writing"]


async def test_protocol_is_paused_above_the_limit_and_not_at_it(open_end: OpenEnd) -> None:
    protocol, _ = await open_end(Recorder)
    transport = protocol.transport
    transport.set_write_buffer_limits(high=1 << 30)
    transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    # From here to the end the loop does not run, so nothing but the writes changes the size of the buffer.
    size = transport.get_write_buffer_size()
    transport.set_write_buffer_limits(high=size + 1000)
    assert flow(protocol) == []
    transport.write(bytes(1000))
    assert transport.get_write_buffer_size() == size + 1000
    assert flow(protocol) == []
    transport.write(b"!")
    assert flow(protocol) == ["pause_writing"]


async def test_lowering_the_limit_below_the_buffer_pauses_the_protocol(open_end: OpenEnd) -> None:
    protocol, _ = await open_end(Recorder)
    protocol.transport.set_write_buffer_limits(high=1 << 30)
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    assert flow(protocol) == []
    protocol.transport.set_write_buffer_limits(high=KIB)
    assert flow(protocol) == ["pause_writing"]


@pytest.mark.parametrize("low", [0, 100 * KIB])
async def test_protocol_is_resumed_once_the_buffer_is_at_the_low_limit(open_end: OpenEnd, low: int) -> None:
    sizes = []

    class Measuring(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            sizes.append(self.transport.get_write_buffer_size())

    protocol, peer = await open_end(Measuring)
    protocol.transport.set_write_buffer_limits(high=200 * KIB, low=low)
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    await fence()
    assert flow(protocol) == ["pause_writing"]
    assert len(await peer.receive(MORE_THAN_THE_KERNEL_TAKES)) == MORE_THAN_THE_KERNEL_TAKES
    await protocol.called("resume_writing")
    assert sizes[0] <= low
    await eventually(lambda: protocol.transport.get_write_buffer_size() == 0)
    assert flow(protocol) == ["pause_writing", "resume_writing"]


async def test_pauses_and_resumes_alternate_while_the_protocol_writes_all_it_may(open_end: OpenEnd) -> None:
    class Pump(Recorder):
        """Writes whenever it may, until it has written it all."""

        left = 3 * MORE_THAN_THE_KERNEL_TAKES
        paused = False

        def pump(self) -> None:
            while self.left and not self.paused:
                self.left -= 64 * KIB
                self.transport.write(bytes(64 * KIB))

        def pause_writing(self) -> None:
            super().pause_writing()
            assert not self.paused
            self.paused = True

        def resume_writing(self) -> None:
            super().resume_writing()
            assert self.paused
            self.paused = False
            self.pump()

    protocol, peer = await open_end(Pump)
    protocol.pump()
    for _ in range(3):  # a peer that reads all the time may keep up, and then there is nothing to pause for
        await eventually(lambda: protocol.paused or not protocol.left)
        assert len(await peer.receive(MORE_THAN_THE_KERNEL_TAKES)) == MORE_THAN_THE_KERNEL_TAKES
    await eventually(lambda: protocol.transport.get_write_buffer_size() == 0)
    assert protocol.left == 0
    assert flow(protocol).count("pause_writing") > 1
    protocol.check_flow_order()


async def test_buffer_size_counts_what_the_kernel_has_not_taken(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    transport = protocol.transport
    assert transport.get_write_buffer_size() == 0
    transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    await fence()
    waiting = transport.get_write_buffer_size()
    assert 0 < waiting <= MORE_THAN_THE_KERNEL_TAKES
    transport.write(bytes(MIB))
    assert transport.get_write_buffer_size() == waiting + MIB
    await peer.receive(MORE_THAN_THE_KERNEL_TAKES + MIB)
    await eventually(lambda: transport.get_write_buffer_size() == 0)


# ---------------------------------------------------------------------------------------------------------------------
# Back-pressure from end to end
# ---------------------------------------------------------------------------------------------------------------------


async def test_receiver_that_pauses_reading_pauses_the_sender(family: str, tmp_path: Path) -> None:
    receivers: list[Recorder] = []

    class PausedReceiver(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            receivers.append(self)

    server = await listen(family, PausedReceiver, tmp_path)
    sender = await connect(Recorder, address_of(server))
    await eventually(lambda: receivers)
    receiver = receivers[0]
    receiver.transport.pause_reading()

    written = 0
    while "pause_writing" not in sender.calls:
        sender.transport.write(bytes(64 * KIB))
        written += 64 * KIB
        await fence()
        assert written < 2 * MORE_THAN_THE_KERNEL_TAKES, "the sender was never told to wait"
    assert len(receiver.data) == 0

    receiver.transport.resume_reading()
    await sender.called("resume_writing")
    sender.transport.close()
    assert await receiver.lost() is None
    assert receiver.data == bytes(written)
    server.close()
    await server.wait_closed()


@asynccontextmanager
async def stream_to_a_plain_socket(limit: int) -> AsyncIterator[tuple[asyncio.StreamWriter, socket.socket]]:
    near, far = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=near)
    writer.transport.set_write_buffer_limits(high=limit)
    with far:
        far.settimeout(0)
        yield writer, far
    writer.close()


def drain_peer(sock: socket.socket) -> int:
    """Takes what the kernel holds for this socket."""
    taken = 0
    while True:
        try:
            taken += len(sock.recv(MIB))
        except BlockingIOError:
            return taken


async def test_drain_returns_at_once_below_the_limit() -> None:
    async with stream_to_a_plain_socket(limit=64 * KIB) as (writer, _):
        writer.write(b"small")
        await asyncio.wait_for(writer.drain(), 0.5)


async def test_drain_waits_for_a_slow_reader_and_the_buffer_stays_small() -> None:
    limit, piece, total = 64 * KIB, 16 * KIB, 16 * MIB
    high_water = 0

    async def write_all(writer: asyncio.StreamWriter) -> None:
        nonlocal high_water
        for _ in range(total // piece):
            writer.write(bytes(piece))
            high_water = max(high_water, writer.transport.get_write_buffer_size())
            await writer.drain()

    async with stream_to_a_plain_socket(limit) as (writer, sock):
        writing = asyncio.create_task(write_all(writer))
        await fence()
        assert not writing.done()
        taken = 0
        while taken < total:
            taken += drain_peer(sock)
            await fence()
        await soon(writing)
    assert taken == total
    assert limit < high_water <= limit + piece


async def test_every_task_that_drains_is_woken() -> None:
    async with stream_to_a_plain_socket(limit=0) as (writer, sock):
        writer.write(bytes(MIB))
        drains = [asyncio.create_task(writer.drain()) for _ in range(3)]
        await fence()
        assert not any(drain.done() for drain in drains)
        taken = 0
        while taken < MIB:
            taken += drain_peer(sock)
            await fence()
        await soon(asyncio.gather(*drains))


async def test_drain_fails_when_the_peer_is_gone() -> None:
    async with stream_to_a_plain_socket(limit=0) as (writer, sock):
        writer.write(bytes(MIB))
        draining = asyncio.create_task(writer.drain())
        await fence()
        assert not draining.done()
        sock.close()
        with pytest.raises(ConnectionError):
            await soon(draining)
