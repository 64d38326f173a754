"""Connections whose messages are large: their bytes go straight to where the protocol has them."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest
from support import BufferedRecorder, Journal, OpenEnd, Peer, Recorder, Unhandled, fence, loop_kind

MESSAGE = random.Random(3).randbytes(50_000)


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
