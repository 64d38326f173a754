"""Datagram transports that pause, close or are interrupted while datagrams are on their way."""

from __future__ import annotations

import asyncio
import socket
import struct
import warnings
import weakref
from typing import Any

import pytest
from datagrams import Datagrams, Kind, Make, name_of, native_only
from support import Address, LoopFactory, Unhandled, fence, soon

pytestmark = [
    pytest.mark.tiny_ring,
    pytest.mark.only_on("asyncio", "uringloop"),  # uvloop's datagram transports cannot pause
]


def send(peer: socket.socket, protocol: Datagrams, numbers: range) -> None:
    for number in numbers:
        peer.sendto(b"%d" % number, name_of(protocol))


async def has(protocol: Datagrams, count: int) -> None:
    await protocol.until(lambda: len(protocol.got) >= count)


def numbers_in(protocol: Datagrams) -> list[int]:
    return [int(data) for data, _ in protocol.got]


async def test_pause_after_each_loses_and_reorders_nothing(endpoint: Make, plain: Kind) -> None:
    class Pausing(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            assert self.transport.is_reading()
            super().datagram_received(data, addr)
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.transport.resume_reading)

    protocol, peer = await endpoint(Pausing, **plain.local()), plain.socket()
    for first in (0, 10, 20):
        send(peer, protocol, range(first, first + 10))
        await has(protocol, first + 10)
    assert numbers_in(protocol) == list(range(30))


async def test_short_pause_costs_no_datagram(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    for first in (0, 1, 2):
        protocol.transport.pause_reading()
        protocol.transport.resume_reading()
        send(peer, protocol, range(first, first + 1))
        await has(protocol, first + 1)
    protocol.transport.pause_reading()
    protocol.transport.pause_reading()
    send(peer, protocol, range(3, 6))
    await fence()
    assert numbers_in(protocol) == [0, 1, 2]
    protocol.transport.resume_reading()
    protocol.transport.resume_reading()
    await has(protocol, 6)
    send(peer, protocol, range(6, 9))
    await has(protocol, 9)
    assert numbers_in(protocol) == list(range(9))


async def test_paused_from_the_beginning(endpoint: Make, plain: Kind) -> None:
    class Pausing(Datagrams):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.pause_reading()

    protocol, peer = await endpoint(Pausing, **plain.local()), plain.socket()
    send(peer, protocol, range(2))
    await fence()
    assert protocol.got == []
    protocol.transport.resume_reading()
    await has(protocol, 2)


async def test_paused_by_the_last_that_had_waited(endpoint: Make, plain: Kind) -> None:
    class Pausing(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            if data == b"2":
                self.transport.pause_reading()

    protocol, peer = await endpoint(Pausing, **plain.local()), plain.socket()
    await fence()
    protocol.transport.pause_reading()
    send(peer, protocol, range(3))
    await fence()
    protocol.transport.resume_reading()
    await has(protocol, 3)
    send(peer, protocol, range(3, 6))
    await fence()
    assert numbers_in(protocol) == [0, 1, 2]
    protocol.transport.resume_reading()
    await has(protocol, 6)


@pytest.mark.only_on("uringloop")
@native_only
async def test_paused_one_leaves_datagrams_in_the_kernel(endpoint: Make, plain: Kind) -> None:
    loop: Any = asyncio.get_running_loop()
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    await fence()
    protocol.transport.pause_reading()
    send(peer, protocol, range(1))
    await fence()
    before = loop.stats().datagrams_received
    for number in range(1, 20):
        send(peer, protocol, range(number, number + 1))
        await asyncio.sleep(0)
    await fence()
    assert loop.stats().datagrams_received == before
    protocol.transport.resume_reading()
    await has(protocol, 20)
    assert numbers_in(protocol) == list(range(20))


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_closed_in_the_middle_hears_no_more(endpoint: Make, plain: Kind, end: str) -> None:
    class Closing(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            getattr(self.transport, end)()

    protocol, peer = await endpoint(Closing, **plain.local()), plain.socket()
    await fence()
    send(peer, protocol, range(3))
    await protocol.lost()
    await fence()
    assert numbers_in(protocol) == [0]


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_closed_when_it_has_just_resumed_hears_no_more(endpoint: Make, plain: Kind, end: str) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    protocol.transport.pause_reading()
    send(peer, protocol, range(3))
    await fence()
    protocol.transport.resume_reading()
    getattr(protocol.transport, end)()
    await protocol.lost()
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()
    await fence()
    assert protocol.got == []


async def test_callback_that_is_ready_may_close_before_a_datagram_comes(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    await fence()
    send(peer, protocol, range(1))
    asyncio.get_running_loop().call_soon(protocol.transport.close)
    await protocol.lost()
    assert protocol.got == []


async def test_callback_that_is_ready_may_pause_before_a_datagram_comes(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    await fence()
    send(peer, protocol, range(1))
    asyncio.get_running_loop().call_soon(protocol.transport.pause_reading)
    await fence()
    assert protocol.got == []
    protocol.transport.resume_reading()
    assert (await protocol.next())[0] == b"0"


def test_interrupt_leaves_those_that_had_waited(new_loop: LoopFactory, plain: Kind) -> None:
    class Interrupting(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            if data == b"0":
                raise KeyboardInterrupt

    loop, peer = new_loop(), plain.socket()
    transport, protocol = loop.run_until_complete(loop.create_datagram_endpoint(Interrupting, **plain.local()))
    transport.pause_reading()
    send(peer, protocol, range(3))
    loop.run_until_complete(fence())
    transport.resume_reading()
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_until_complete(soon(has(protocol, 3)))
    assert numbers_in(protocol) == [0, 1, 2]
    transport.close()
    loop.run_until_complete(protocol.lost())


async def test_low_limit_may_rise_while_writing_is_paused(endpoint: Make, unix: Kind) -> None:
    peer = unix.socket()
    protocol = await endpoint(**unix.connected(peer))
    transport = protocol.transport
    transport.set_write_buffer_limits(high=10_000, low=0)
    sent = await send_until_paused(protocol)
    transport.set_write_buffer_limits(high=20_000, low=9_000)
    for _ in range(10):
        assert len(peer.recv(1000)) == 500
        await fence()
    await protocol.called("resume_writing")
    assert 0 < transport.get_write_buffer_size() <= 9_000
    transport.set_write_buffer_limits()
    await drained(peer, sent - 10)


async def test_closed_one_still_resumes(endpoint: Make, unix: Kind) -> None:
    peer = unix.socket()
    protocol = await endpoint(**unix.connected(peer))
    protocol.transport.set_write_buffer_limits(high=10_000)
    sent = await send_until_paused(protocol)
    protocol.transport.close()
    await drained(peer, sent)
    await protocol.lost()
    assert protocol.calls == ["connection_made", "pause_writing", "resume_writing", "connection_lost"]


async def test_high_limit_itself_is_no_reason_to_pause(endpoint: Make, unix: Kind) -> None:
    peer = unix.socket()
    protocol = await endpoint(**unix.connected(peer))
    transport = protocol.transport
    while not transport.get_write_buffer_size():
        transport.sendto(bytes(500))
        await fence()
    one = transport.get_write_buffer_size()
    transport.set_write_buffer_limits(high=2 * one)
    transport.sendto(bytes(500))
    assert transport.get_write_buffer_size() == 2 * one
    assert "pause_writing" not in protocol.calls
    transport.sendto(bytes(500))
    assert "pause_writing" in protocol.calls
    transport.abort()


async def send_until_paused(protocol: Datagrams) -> int:
    """How many datagrams that took."""
    sent = 0
    while "pause_writing" not in protocol.calls:
        protocol.transport.sendto(bytes(500))
        sent += 1
        await asyncio.sleep(0)
    return sent


async def drained(peer: socket.socket, count: int) -> None:
    for _ in range(count):
        assert len(await soon(asyncio.to_thread(peer.recv, 1000))) == 500


@pytest.mark.only_on("uringloop")  # asyncio sends it
@native_only
async def test_closed_one_answers_nobody(endpoint: Make, plain: Kind) -> None:
    class Answering(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            self.transport.close()
            self.transport.sendto(b"to whom asked", addr)
            self.transport.sendto(b"to another", ("127.0.0.1", addr[1]))

    protocol, peer = await endpoint(Answering, **plain.local()), plain.socket()
    send(peer, protocol, range(1))
    assert await protocol.lost() is None
    assert protocol.errors == []
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(100)


async def test_fd_is_the_transports(endpoint: Make, plain: Kind) -> None:
    loop = asyncio.get_running_loop()
    protocol = await endpoint(**plain.local())
    fd = protocol.transport.get_extra_info("socket").fileno()
    with pytest.raises(RuntimeError, match="is used by transport"):
        loop.add_reader(fd, print)
    protocol.transport.close()
    await protocol.lost()
    near, far = socket.socketpair()
    with near, far:
        assert near.fileno() == fd
        loop.add_reader(near, print)
        loop.remove_reader(near)


@pytest.mark.usefixtures("no_collection")
async def test_transport_that_is_over_waits_for_no_collector(endpoint: Make, plain: Kind) -> None:
    """Nor does its protocol wait for the transport to go."""

    class Nothing(asyncio.DatagramProtocol):
        pass

    transport, protocol = await soon(asyncio.get_running_loop().create_datagram_endpoint(Nothing, **plain.local()))
    transport.close()
    await fence()
    seen = weakref.ref(protocol)
    del protocol
    assert seen() is None
    assert transport.get_protocol() is None
    seen = weakref.ref(transport)
    del transport
    assert seen() is None


async def test_connected_socket_is_asked_for_no_address(endpoint: Make, plain: Kind) -> None:
    """Where it came connected, all goes there, whatever address is given."""
    peer, other = plain.socket(), plain.socket()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(peer.getsockname())
    protocol = await endpoint(sock=sock)
    protocol.transport.sendto(b"first")
    protocol.transport.sendto(b"second", other.getsockname())
    await fence()
    assert [peer.recv(100) for _ in range(2)] == [b"first", b"second"]


async def test_endpoint_that_nobody_waits_for_any_more(unhandled: Unhandled, plain: Kind) -> None:
    protocol = Datagrams()
    making = asyncio.ensure_future(
        asyncio.get_running_loop().create_datagram_endpoint(lambda: protocol, **plain.local())
    )
    while not protocol.calls:
        await asyncio.sleep(0)
        making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    await protocol.lost()
    assert unhandled.contexts == []


@pytest.mark.usefixtures("no_collection")
@pytest.mark.only_on("uringloop")  # asyncio's own waits for the collector
@native_only
def test_paused_one_of_a_closed_loop_waits_for_no_collector(new_loop: LoopFactory, plain: Kind) -> None:
    loop = new_loop()
    transport, _ = loop.run_until_complete(loop.create_datagram_endpoint(asyncio.DatagramProtocol, **plain.local()))
    transport.pause_reading()
    loop.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del transport, _
    assert [str(warning.message)[:18] for warning in caught] == ["unclosed transport"]


async def test_family_that_only_the_socket_module_knows(endpoint: Make) -> None:
    noop_and_acknowledge = struct.pack("=IHHII", 16, 1, 1 | 4, 7, 0)  # struct nlmsghdr
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, socket.NETLINK_ROUTE)
    protocol = await endpoint(sock=sock)
    protocol.transport.sendto(noop_and_acknowledge, (0, 0))
    data, address = await protocol.next()
    assert data[16 + 4 :] == noop_and_acknowledge
    assert address == (0, 0)
