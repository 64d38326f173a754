"""Stream transports: the order of the calls, writing, reading, and what a transport tells about itself.

How connections end is in test_stream_closing.py, flow control in test_flow_control.py.
"""

from __future__ import annotations

import array
import asyncio
import os
import random
import socket
from asyncio import trsock
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from support import (
    BufferedRecorder,
    OpenEnd,
    Recorder,
    address_of,
    connect,
    connect_plainly,
    eventually,
    fence,
    listen,
    loop_kind,
    per_loop,
    tracked,
)

pytestmark = pytest.mark.tiny_ring

MORE_THAN_THE_KERNEL_TAKES = 16 << 20  # no socket buffer on this side of tcp_wmem + tcp_rmem holds as much


# ---------------------------------------------------------------------------------------------------------------------
# The order of the calls
# ---------------------------------------------------------------------------------------------------------------------


async def test_every_callback_comes_once_and_in_order(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    await peer.send(b"hello")
    peer.send_fin()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert protocol.data == b"hello"


async def test_connection_is_made_before_the_connect_call_returns(family: str, tmp_path: Path) -> None:
    server = await listen(family, Recorder, tmp_path)
    protocol = await connect(Recorder, address_of(server))
    assert protocol.calls == ["connection_made"]
    protocol.transport.close()
    await protocol.lost()
    server.close()
    await server.wait_closed()


async def test_data_sent_ahead_of_the_accept_is_not_lost(family: str, tmp_path: Path) -> None:
    protocols: list[Recorder] = []

    class Remembered(Recorder):
        def __init__(self) -> None:
            super().__init__()
            protocols.append(self)

    server = await listen(family, Remembered, tmp_path)
    with connect_plainly(address_of(server)) as sock:
        sock.sendall(b"early")
    await eventually(lambda: protocols)
    assert await protocols[0].lost() is None
    assert protocols[0].data == b"early"
    protocols[0].check_order()
    server.close()
    await server.wait_closed()


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"payload",
        bytearray(b"payload"),
        memoryview(b"payload"),
        memoryview(bytearray(b"[payload]"))[1:-1],
        memoryview(b"payload").toreadonly(),
        memoryview(array.array("H", b"payload!")),
    ],
    ids=["bytes", "bytearray", "memoryview", "slice", "readonly", "view-of-16-bit-items"],
)
async def test_bytes_like_objects_can_be_written(open_end: OpenEnd, data: Any) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(data)
    protocol.transport.write_eof()
    assert await peer.receive_all() == bytes(data)


@pytest.mark.parametrize("data", ["text", 7, ["list"], 1.5], ids=["str", "int", "list", "float"])
async def test_other_objects_cannot_be_written(open_end: OpenEnd, data: Any) -> None:
    protocol, peer = await open_end(Recorder)
    with pytest.raises(TypeError):
        protocol.transport.write(data)
    protocol.transport.write(b"still open")
    assert await peer.receive(10) == b"still open"


@pytest.mark.parametrize("data", [None, "", 0], ids=["None", "empty-str", "zero"])
async def test_empty_objects_of_other_types_cannot_be_written_either(open_end: OpenEnd, data: Any) -> None:
    protocol, peer = await open_end(Recorder)
    if loop_kind() == "uvloop":  # looks at the truth of the object before its type
        protocol.transport.write(data)
    else:
        with pytest.raises(TypeError):
            protocol.transport.write(data)
    protocol.transport.write_eof()
    assert await peer.receive_all() == b""


@pytest.mark.parametrize("data", [b"", bytearray(), memoryview(b"")], ids=["bytes", "bytearray", "memoryview"])
async def test_writing_nothing_sends_nothing(open_end: OpenEnd, data: bytes) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(data)
    protocol.transport.write(b"something")
    assert await peer.receive(9) == b"something"


async def test_a_small_buffer_may_be_reused_once_it_is_written(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    buffer = bytearray(8)
    sent = b""
    for number in range(100):
        buffer[:] = number.to_bytes(8, "big")
        sent += buffer
        protocol.transport.write(buffer)
        buffer[:] = b"\xff" * 8
    assert await peer.receive(len(sent)) == sent


# asyncio (from 3.12 on) and uvloop keep a view of what they could not send at once, so there the peer sees the change.
@pytest.mark.only_on("uringloop")
@pytest.mark.parametrize("view", [bytearray, memoryview])
async def test_a_large_buffer_may_be_reused_once_it_is_written(open_end: OpenEnd, view: Callable[[Any], Any]) -> None:
    protocol, peer = await open_end(Recorder)
    buffer = bytearray(b"x" * MORE_THAN_THE_KERNEL_TAKES)
    protocol.transport.write(buffer if view is bytearray else memoryview(buffer))
    buffer[:] = b"y" * len(buffer)
    buffer.clear()  # a BufferError if the transport still held on to it
    assert await peer.receive(MORE_THAN_THE_KERNEL_TAKES) == b"x" * MORE_THAN_THE_KERNEL_TAKES


@pytest.mark.parametrize(
    "lines",
    [
        [b"one", b"two", b"three"],
        (bytearray(b"one"), memoryview(b"two"), b"three"),
        [b"", b"onetwo", b"", b"three"],
        [bytes([byte]) for byte in b"onetwothree"],
    ],
    ids=["list", "mixed-tuple", "with-empty-pieces", "single-bytes"],
)
async def test_writelines_sends_the_pieces_in_order(open_end: OpenEnd, lines: Iterable[bytes]) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.writelines(lines)
    protocol.transport.write_eof()
    assert await peer.receive_all() == b"onetwothree"


# asyncio, from 3.12 on, waits for ever for an empty last piece to be sent, and spins while it does.
@pytest.mark.only_on("uvloop", "uringloop")
async def test_an_empty_last_piece_does_not_hold_up_writelines(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.writelines([b"one", b""])
    protocol.transport.write_eof()
    assert await peer.receive_all() == b"one"


async def test_writelines_takes_a_generator(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.writelines(line.encode() for line in ["a", "b", "c"])
    protocol.transport.write_eof()
    assert await peer.receive_all() == b"abc"


async def test_writelines_of_nothing_sends_nothing(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.writelines([])
    protocol.transport.write(b"something")
    assert await peer.receive(9) == b"something"


async def test_more_pieces_than_one_system_call_takes_are_sent_in_order(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    lines = [b"%6d\n" % number for number in range(5000)]  # IOV_MAX is 1024
    protocol.transport.writelines(lines)
    assert await peer.receive(7 * len(lines)) == b"".join(lines)


async def test_small_and_large_writes_keep_their_order(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    chance = random.Random(1)
    pieces = [chance.randbytes(chance.choice([1, 50, 5_000, 500_000])) for _ in range(40)]
    for number, piece in enumerate(pieces):
        if number % 5 == 4:
            protocol.transport.writelines([piece[:10], piece[10:]])
        else:
            protocol.transport.write(piece)
    protocol.transport.write_eof()
    assert await peer.receive_all() == b"".join(pieces)


async def test_a_write_from_every_callback_is_sent(open_end: OpenEnd) -> None:
    class Talker(Recorder):
        keep_open = True

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(b"made,")

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(b"data,")

        def eof_received(self) -> bool:
            self.transport.write(b"eof.")
            return super().eof_received()

    _, peer = await open_end(Talker)
    await peer.send(b"?")
    assert await peer.receive(10) == b"made,data,"
    peer.send_fin()
    assert await peer.receive(4) == b"eof."


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


async def test_reading_can_be_paused_and_resumed_any_number_of_times(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    transport = protocol.transport
    transport.resume_reading()  # not paused: nothing to do
    assert transport.is_reading()
    for word in (b"one", b"two", b"three"):
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        transport.resume_reading()
        transport.resume_reading()
        assert transport.is_reading()
        await peer.send(word)
        assert await protocol.received(len(word)) == word


async def test_no_data_arrives_while_reading_is_paused(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.pause_reading()
    await peer.send(b"waiting")
    await fence()
    assert protocol.calls == ["connection_made"]
    protocol.transport.resume_reading()
    assert await protocol.received(7) == b"waiting"


async def test_reading_paused_in_connection_made_stays_paused(open_end: OpenEnd) -> None:
    class Shy(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    protocol, peer = await open_end(Shy)
    await peer.send(b"waiting")
    await fence()
    if loop_kind() != "uvloop":  # which starts to read after connection_made() whatever that did
        assert not protocol.transport.is_reading()
        assert protocol.calls == ["connection_made"]
    protocol.transport.resume_reading()
    assert await protocol.received(7) == b"waiting"


async def test_data_that_had_arrived_already_is_withheld_after_a_pause(open_end: OpenEnd) -> None:
    class OneGulp(Recorder):
        gulps: list[bytes]

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.gulps.append(data)
            self.transport.pause_reading()

    OneGulp.gulps = []
    protocol, peer = await open_end(OneGulp)
    data = random.Random(2).randbytes(1 << 20)
    sending = asyncio.create_task(peer.send(data))
    while sum(map(len, protocol.gulps)) < len(data):
        count = len(protocol.gulps)
        await fence()
        assert len(protocol.gulps) <= count + 1, "data_received() was called on a paused transport"
        protocol.transport.resume_reading()
        await protocol.until(lambda count=count: len(protocol.gulps) > count)  # type: ignore[misc]
    assert b"".join(protocol.gulps) == data
    await sending


async def test_an_eof_that_comes_while_reading_is_paused_is_told_after_the_data(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.pause_reading()
    await peer.send(b"last words")
    peer.send_fin()
    await fence()
    assert protocol.calls == ["connection_made"]
    protocol.transport.resume_reading()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert protocol.data == b"last words"


async def test_the_protocol_can_be_exchanged_for_a_buffered_one_and_back(open_end: OpenEnd) -> None:
    first, peer = await open_end(Recorder)
    transport = first.transport
    buffered, last = BufferedRecorder(), Recorder()
    await peer.send(b"first")
    assert await first.received(5) == b"first"

    transport.set_protocol(buffered)
    assert transport.get_protocol() is buffered
    await peer.send(b"second")
    assert await buffered.received(6) == b"second"

    transport.set_protocol(last)
    await peer.send(b"third")
    assert await last.received(5) == b"third"
    assert (first.calls, buffered.calls) == (["connection_made", "data_received"], ["data_received"])

    transport.set_protocol(first)
    peer.send_fin()
    await first.lost()
    assert first.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_a_protocol_may_hand_over_to_another_from_data_received(open_end: OpenEnd) -> None:
    successor = BufferedRecorder()

    class Greeter(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.set_protocol(successor)

    greeter, peer = await open_end(Greeter)
    rest = random.Random(3).randbytes(1 << 20)
    await peer.send(b"!")  # one byte, which no short receive can divide: the rest would be the successor's
    assert await greeter.received(1) == b"!"
    await peer.send(rest)
    assert await successor.received(len(rest)) == rest
    greeter.transport.set_protocol(greeter)


# ---------------------------------------------------------------------------------------------------------------------
# What a transport tells about itself
# ---------------------------------------------------------------------------------------------------------------------


async def test_a_transport_is_an_asyncio_transport(open_end: OpenEnd) -> None:
    protocol, _ = await open_end(Recorder)
    # uvloop's transports are only registered with nothing, and cannot be told by isinstance().
    assert isinstance(protocol.transport, asyncio.Transport) is per_loop(asyncio=True, uvloop=False, uringloop=True)


async def test_a_transport_knows_its_addresses_even_when_closed(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    transport = protocol.transport
    names = peer.sock.getpeername(), peer.sock.getsockname()
    assert (transport.get_extra_info("sockname"), transport.get_extra_info("peername")) == names
    transport.close()
    await protocol.lost()
    assert (transport.get_extra_info("sockname"), transport.get_extra_info("peername")) == names


async def test_unknown_extra_info_has_a_default(open_end: OpenEnd) -> None:
    protocol, _ = await open_end(Recorder)
    assert protocol.transport.get_extra_info("no such thing") is None
    assert protocol.transport.get_extra_info("no such thing", 7) == 7
    assert protocol.transport.get_extra_info("sslcontext") is None


async def test_the_socket_of_a_transport_can_be_asked_but_not_taken(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    sock = protocol.transport.get_extra_info("socket")
    # uvloop has a class of its own that does the same.
    assert isinstance(sock, trsock.TransportSocket) is per_loop(asyncio=True, uvloop=False, uringloop=True)
    assert (sock.family, sock.type) == (peer.sock.family, socket.SOCK_STREAM)
    assert sock.getsockname() == peer.sock.getpeername()
    assert sock.gettimeout() == 0
    assert sock.fileno() >= 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    sock.dup().close()  # it would make blocking what knows of no timeout
    assert not os.get_blocking(sock.fileno())
    assert hasattr(sock, "recv") is per_loop(asyncio=False, uvloop=True, uringloop=False)  # uvloop's always raises


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_socket_can_be_asked_for_in_connection_lost(open_end: OpenEnd, how: str) -> None:
    class Asks(Recorder):
        sock: Any = None

        def connection_lost(self, exc: BaseException | None) -> None:
            self.sock = self.transport.get_extra_info("socket")
            super().connection_lost(exc)

    protocol, _ = await open_end(Asks)
    getattr(protocol.transport, how)()
    await protocol.lost()
    assert protocol.sock is not None


@pytest.mark.parametrize("asked", [True, False])
async def test_aborted_transport_has_no_socket_but_one_that_was_asked_for(open_end: OpenEnd, asked: bool) -> None:
    protocol, _ = await open_end(Recorder)
    if asked:
        protocol.transport.get_extra_info("socket")
    protocol.transport.abort()
    await protocol.lost()
    assert (protocol.transport.get_extra_info("socket") is not None) is (asked or loop_kind() == "asyncio")


async def test_the_repr_of_a_transport_works_at_every_stage(open_end: OpenEnd) -> None:
    protocol, _ = await open_end(Recorder)
    stages = [repr(protocol.transport)]
    protocol.transport.close()
    stages.append(repr(protocol.transport))
    await protocol.lost()
    stages.append(repr(protocol.transport))
    assert all(stage.startswith("<") for stage in stages)
    assert stages[0] != stages[2]


def nodelay(protocol: Recorder) -> int:
    option: int = protocol.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    return option


@pytest.mark.parametrize("family", ["tcp"])
async def test_tcp_sockets_send_without_delay(open_end: OpenEnd) -> None:
    protocol, _ = await open_end(Recorder)
    assert nodelay(protocol) == 1


async def test_tcp_sockets_that_are_handed_in_send_without_delay_too() -> None:
    accepted: list[Recorder] = []

    class Remembered(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.append(self)

    loop = asyncio.get_running_loop()
    server = await tracked(loop.create_server(Remembered, sock=socket.create_server(("127.0.0.1", 0))))
    sock = connect_plainly(address_of(server))
    sock.setblocking(False)
    _, connected = await loop.create_connection(Recorder, sock=sock)
    await eventually(lambda: accepted)
    # asyncio looks at the socket's protocol number, which is 0 unless its maker spelled out IPPROTO_TCP.
    expected = per_loop(asyncio=(0, 0), uvloop=(1, 1), uringloop=(1, 1))
    assert (nodelay(accepted[0]), nodelay(connected)) == expected
    connected.transport.close()
    await connected.lost()
    await accepted[0].lost()
    server.close()
    await server.wait_closed()
