"""How stream connections end: closing, aborting, half-closing, a peer that goes away; and what the peer sees."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import random
import weakref
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import (
    Address,
    Echo,
    OpenEnd,
    Peer,
    Recorder,
    Unhandled,
    address_of,
    connect,
    eventually,
    fence,
    listen,
    loop_kind,
)

pytestmark = pytest.mark.tiny_ring

MORE_THAN_THE_KERNEL_TAKES = 16 << 20  # no socket buffer on this side of tcp_wmem + tcp_rmem holds as much
ENDINGS = pytest.mark.parametrize("end", [asyncio.Transport.close, asyncio.Transport.abort], ids=["close", "abort"])
tcp_only = pytest.mark.parametrize("family", ["tcp"])

Ending = Callable[[asyncio.Transport], None]


def call(end: Ending, transport: asyncio.Transport) -> None:
    """Calls the method of that name; uvloop's transports are not asyncio.Transports."""
    getattr(transport, end.__name__)()


# ---------------------------------------------------------------------------------------------------------------------
# close() and abort()
# ---------------------------------------------------------------------------------------------------------------------


@ENDINGS
async def test_connection_is_lost_once_and_not_inside_the_call(open_end: OpenEnd, end: Ending) -> None:
    protocol, _ = await open_end(Recorder)
    assert not protocol.transport.is_closing()
    call(end, protocol.transport)
    assert protocol.transport.is_closing()
    assert not protocol.transport.is_reading()
    assert protocol.calls == ["connection_made"]
    call(end, protocol.transport)
    protocol.transport.close()
    protocol.transport.abort()
    assert await protocol.lost() is None
    await fence()
    assert protocol.calls == ["connection_made", "connection_lost"]
    call(end, protocol.transport)


@ENDINGS
async def test_connection_ended_as_soon_as_it_is_made_is_lost(open_end: OpenEnd, end: Ending) -> None:
    class Ender(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            call(end, self.transport)

    protocol, peer = await open_end(Ender)
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "connection_lost"]
    assert await peer.receive_all() == b""


@ENDINGS
async def test_data_that_had_arrived_already_is_not_delivered_after_the_end(open_end: OpenEnd, end: Ending) -> None:
    class OneGulp(Recorder):
        gulps = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.gulps += 1
            call(end, self.transport)

    protocol, peer = await open_end(OneGulp)
    protocol.transport.pause_reading()
    sending = asyncio.create_task(peer.send(random.Random(4).randbytes(MORE_THAN_THE_KERNEL_TAKES)))
    await fence()
    protocol.transport.resume_reading()
    await protocol.lost()
    await fence()
    assert protocol.gulps == 1
    with pytest.raises(ConnectionError):  # the rest could not be sent
        await sending


async def test_close_while_reading_is_paused_loses_the_connection(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.pause_reading()
    await peer.send(b"unread")
    await fence()
    protocol.transport.close()
    protocol.transport.resume_reading()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_close_sends_everything_written_before(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    data = random.Random(5).randbytes(MORE_THAN_THE_KERNEL_TAKES)
    protocol.transport.write(data[:-5])
    protocol.transport.write(data[-5:])
    protocol.transport.close()
    assert protocol.transport.get_write_buffer_size() > 0
    await fence()
    assert "connection_lost" not in protocol.calls
    assert await peer.receive_all() == data
    assert await protocol.lost() is None
    assert protocol.transport.get_write_buffer_size() == 0


async def test_abort_drops_what_is_not_yet_sent(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    data = random.Random(6).randbytes(MORE_THAN_THE_KERNEL_TAKES)
    protocol.transport.write(data)
    protocol.transport.abort()
    assert await protocol.lost() is None
    received = await peer.receive_all()
    assert len(received) < len(data)
    assert data.startswith(received)


async def test_abort_drops_nothing_that_the_kernel_had_room_for(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(b"the last ")
    protocol.transport.writelines([b"words", b" of all"])
    protocol.transport.abort()
    assert await protocol.lost() is None
    assert await peer.receive_all() == b"the last words of all"


async def test_abort_after_close_does_not_wait_for_a_peer_that_does_not_read(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    protocol.transport.close()
    await fence()
    assert "connection_lost" not in protocol.calls
    protocol.transport.abort()
    assert await protocol.lost() is None
    assert len(await peer.receive_all()) < MORE_THAN_THE_KERNEL_TAKES


async def test_write_after_the_end_is_dropped_and_repeated_ones_are_warned_of(
    open_end: OpenEnd, caplog: pytest.LogCaptureFixture
) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.close()
    protocol.transport.write(b"too late")
    await protocol.lost()
    if loop_kind() == "uvloop":
        with pytest.raises(RuntimeError, match="the handler is closed"):
            protocol.transport.write(b"too late")
    else:
        assert "socket.send() raised exception." not in caplog.messages
        for _ in range(9):
            protocol.transport.write(b"too late")
        assert "socket.send() raised exception." in caplog.messages
    assert await peer.receive_all() == b""


async def test_closed_connection_keeps_no_protocol_alive(family: str, tmp_path: Path) -> None:
    alive: weakref.WeakSet[Echo] = weakref.WeakSet()

    class Mortal(Echo):
        def __init__(self) -> None:
            super().__init__()
            alive.add(self)

    async def live_and_die(address: Address) -> None:
        protocol = await connect(Mortal, address)
        protocol.transport.set_protocol(successor := Recorder())
        successor.transport = protocol.transport
        protocol.transport.write(b"data")
        await successor.received(4)
        protocol.transport.set_protocol(protocol)
        protocol.transport.close()
        await protocol.lost()

    server = await listen(family, Mortal, tmp_path)
    await live_and_die(address_of(server))
    await eventually(lambda: gc.collect() >= 0 and not alive)
    server.close()
    await server.wait_closed()


# ---------------------------------------------------------------------------------------------------------------------
# Half-closing
# ---------------------------------------------------------------------------------------------------------------------


async def test_write_eof_ends_one_direction_and_leaves_the_other_open(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    assert protocol.transport.can_write_eof()
    protocol.transport.write(b"question")
    protocol.transport.write_eof()
    protocol.transport.write_eof()
    assert await peer.receive_all() == b"question"
    assert not protocol.transport.is_closing()
    await peer.send(b"answer")
    assert await protocol.received(6) == b"answer"
    peer.send_fin()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_write_eof_waits_for_what_was_written_before(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    data = random.Random(7).randbytes(MORE_THAN_THE_KERNEL_TAKES)
    protocol.transport.write(data)
    protocol.transport.write_eof()
    assert await peer.receive_all() == data


async def test_nothing_can_be_written_after_write_eof(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write_eof()
    with pytest.raises(RuntimeError, match="after write_eof"):
        protocol.transport.write(b"more")
    with pytest.raises(RuntimeError, match="after write_eof"):
        protocol.transport.writelines([b"more"])
    assert await peer.receive_all() == b""


async def test_close_after_write_eof_sends_everything(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    data = random.Random(8).randbytes(MORE_THAN_THE_KERNEL_TAKES)
    protocol.transport.write(data)
    protocol.transport.write_eof()
    protocol.transport.close()
    assert await peer.receive_all() == data
    assert await protocol.lost() is None


async def test_write_eof_after_close_does_nothing(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(b"last words")
    protocol.transport.close()
    protocol.transport.write_eof()
    assert await peer.receive_all() == b"last words"
    assert await protocol.lost() is None


async def test_transport_can_write_after_the_eof_if_eof_received_says_so(open_end: OpenEnd) -> None:
    class KeepOpen(Recorder):
        keep_open = True

    protocol, peer = await open_end(KeepOpen)
    peer.send_fin()
    await protocol.called("eof_received")
    await fence()
    assert not protocol.transport.is_closing()
    data = random.Random(9).randbytes(MORE_THAN_THE_KERNEL_TAKES)
    protocol.transport.write(data)
    assert await peer.receive(len(data)) == data
    protocol.transport.close()
    assert await protocol.lost() is None
    assert await peer.receive_all() == b""
    assert [call for call in protocol.calls if not call.endswith("_writing")] == [
        "connection_made",
        "eof_received",
        "connection_lost",
    ]


async def test_transport_closes_by_itself_after_the_eof_once_all_is_written(open_end: OpenEnd) -> None:
    data = random.Random(10).randbytes(MORE_THAN_THE_KERNEL_TAKES)

    class Answer(Recorder):
        def eof_received(self) -> bool:
            self.transport.write(data)
            return super().eof_received()

    protocol, peer = await open_end(Answer)
    peer.send_fin()
    assert await peer.receive_all() == data
    assert await protocol.lost() is None


# ---------------------------------------------------------------------------------------------------------------------
# What the peer does, and sees
# ---------------------------------------------------------------------------------------------------------------------


@tcp_only
async def test_reset_by_the_peer_is_told_as_such(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    peer.reset()
    assert isinstance(await protocol.lost(), ConnectionResetError)
    assert protocol.calls == ["connection_made", "connection_lost"]


class Pump(Recorder):
    """Answers anything with all that can be written."""

    paused = False

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        while not self.paused and not self.transport.is_closing():
            self.transport.write(bytes(10_000))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused = True


async def test_reset_behind_data_ends_an_endless_answer(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Pump)
    peer.sock.send(b"question")
    peer.reset()  # before the loop has looked
    await protocol.lost()


@tcp_only
async def test_reset_while_reading_is_paused_is_told_after_the_resume_at_the_latest(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.pause_reading()
    peer.reset()
    await fence()
    protocol.transport.resume_reading()
    assert isinstance(await protocol.lost(), ConnectionResetError)


@tcp_only
async def test_reset_while_data_waits_to_be_sent_is_told(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    await fence()
    peer.reset()
    assert isinstance(await protocol.lost(), ConnectionError)
    assert protocol.transport.get_write_buffer_size() == 0


@tcp_only
async def test_reset_ends_a_close_that_waits_for_the_peer(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    protocol.transport.close()
    await fence()
    peer.reset()
    assert isinstance(await protocol.lost(), ConnectionError)


async def test_peer_that_closes_without_reading_resets_the_connection(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(b"never read")
    await asyncio.to_thread(peer.sock.recv, 1)
    peer.close()
    assert isinstance(await protocol.lost(), ConnectionResetError)


async def test_write_to_a_peer_that_is_gone_loses_the_connection(open_end: OpenEnd) -> None:
    class KeepOpen(Recorder):
        keep_open = True

    protocol, peer = await open_end(KeepOpen)
    peer.close()
    await protocol.called("eof_received")
    # TCP learns that nobody is there from the answer to the first write, and tells at the next.
    while "connection_lost" not in protocol.calls:
        protocol.transport.write(b"hello?")
        await fence()
    assert isinstance(protocol.lost_with, ConnectionError)


async def close(protocol: Recorder, peer: Peer, unhandled: Unhandled) -> None:
    protocol.transport.close()


async def abort(protocol: Recorder, peer: Peer, unhandled: Unhandled) -> None:
    protocol.transport.abort()


async def write_eof(protocol: Recorder, peer: Peer, unhandled: Unhandled) -> None:
    protocol.transport.write_eof()


async def peer_ends_first(protocol: Recorder, peer: Peer, unhandled: Unhandled) -> None:
    peer.send_fin()


async def close_while_paused(protocol: Recorder, peer: Peer, unhandled: Unhandled) -> None:
    protocol.transport.pause_reading()
    await fence()
    protocol.transport.close()


async def close_after_the_eof(protocol: Recorder, peer: Peer, unhandled: Unhandled) -> None:
    protocol.keep_open = True
    peer.send_fin()
    await protocol.called("eof_received")
    protocol.transport.close()


async def protocol_fails(protocol: Recorder, peer: Peer, unhandled: Unhandled) -> None:
    def fail(data: bytes) -> None:
        raise ZeroDivisionError

    protocol.data_received = fail  # type: ignore[method-assign]
    protocol.transport.set_protocol(protocol)
    await peer.send(b"provocation")
    assert isinstance((await unhandled.next())["exception"], ZeroDivisionError)


@pytest.mark.parametrize(
    "way", [close, abort, write_eof, peer_ends_first, close_while_paused, close_after_the_eof, protocol_fails]
)
async def test_peer_sees_a_fin_however_the_transport_ends(
    open_end: OpenEnd, unhandled: Unhandled, way: Callable[[Recorder, Peer, Unhandled], Awaitable[None]]
) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(b"before")
    assert await peer.receive(6) == b"before"
    await way(protocol, peer, unhandled)
    assert await peer.receive_all() == b""


@pytest.mark.only_on("uringloop")
async def test_write_that_is_half_sent_when_memory_runs_out_ends_the_connection(
    open_end: OpenEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, peer = await open_end(Recorder)
    data = random.Random(6).randbytes(MORE_THAN_THE_KERNEL_TAKES)
    loop: Any = asyncio.get_running_loop()
    send_now = loop._reactor.stream_send_now
    fd = protocol.transport.get_extra_info("socket").fileno()
    # A fault may have the socket take nothing, and then nothing is half sent: one byte is.
    monkeypatch.setattr(loop._reactor, "stream_send_now", lambda *call: send_now(*call) or os.write(fd, data[:1]))
    monkeypatch.setattr(loop._reactor, "stream_write_pinned", lambda *_: -errno.ENOMEM)
    with pytest.raises(MemoryError):
        protocol.transport.write(data)
    protocol.transport.write(b"the next one")
    assert isinstance(await protocol.lost(), MemoryError)
    assert data.startswith(await peer.receive_all())
