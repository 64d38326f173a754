"""Datagram transports: the options of their sockets, flow control, their end, and what else they are asked."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from datagrams import Datagrams, Kind, Make, name_of, native_only
from support import PATIENCE, Address, eventually, fence, loop_kind, soon

import uringloop

pytestmark = pytest.mark.tiny_ring

KIB = 1 << 10
HEADER = 8 if sys.version_info >= (3, 13) else 0  # what a queued datagram counts beside its bytes


# ---------------------------------------------------------------------------------------------------------------------
# Options of sockets
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("uvloop", "uringloop")  # asyncio has lost the argument
async def test_reuse_address_is_refused_or_warned_of(endpoint: Make) -> None:
    with pytest.raises(ValueError, match="reuse_address"):
        await endpoint(local_addr=("127.0.0.1", 0), reuse_address=True)
    with pytest.warns(DeprecationWarning, match="reuse_address"):
        await endpoint(local_addr=("127.0.0.1", 0), reuse_address=False)


@pytest.mark.parametrize("allowed", [True, False])
async def test_broadcast_needs_leave(endpoint: Make, plain: Kind, allowed: bool) -> None:
    peer = plain.socket(bound=False)
    peer.bind(("127.255.255.255", 0))
    protocol = await endpoint(local_addr=("127.0.0.1", 0), allow_broadcast=allowed or None)
    protocol.transport.sendto(b"to all", peer.getsockname())
    if allowed:
        await fence()
        assert peer.recv(100) == b"to all"
    else:
        assert isinstance(await protocol.next_error(), PermissionError)


async def test_multicast_through_the_socket(endpoint: Make, plain: Kind) -> None:
    group, loopback = socket.inet_aton("239.1.2.3"), socket.inet_aton("127.0.0.1")
    receiver = await endpoint(local_addr=("0.0.0.0", 0))
    sender = await endpoint(local_addr=("127.0.0.1", 0))
    sock = receiver.transport.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + loopback)
    sender.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, loopback)
    sender.transport.sendto(b"to the group", ("239.1.2.3", name_of(receiver)[1]))
    assert await receiver.next() == (b"to the group", name_of(sender))


async def test_port_is_shared_if_asked_and_free_once_closed(endpoint: Make) -> None:
    first = await endpoint(local_addr=("127.0.0.1", 0), reuse_port=True)
    second = await endpoint(local_addr=name_of(first), reuse_port=True)
    address = name_of(first)
    for protocol in (first, second):
        protocol.transport.close()
        await protocol.lost()
    await endpoint(local_addr=address)


# ---------------------------------------------------------------------------------------------------------------------
# Flow control
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no Unix datagrams
async def test_writing_pauses_above_the_high_limit_and_resumes_at_the_low_one(endpoint: Make, unix: Kind) -> None:
    peer = unix.socket()
    protocol = await endpoint(**unix.connected(peer))
    protocol.transport.set_write_buffer_limits(high=10_000, low=1000)
    sent = 0
    while "pause_writing" not in protocol.calls:
        protocol.transport.sendto(bytes(500))
        sent += 1
        await asyncio.sleep(0)
    assert protocol.transport.get_write_buffer_size() > 10_000
    assert "resume_writing" not in protocol.calls
    for _ in range(sent):
        assert len(await soon(asyncio.to_thread(peer.recv, 1000))) == 500
    await protocol.called("resume_writing")
    await eventually(lambda: protocol.transport.get_write_buffer_size() <= 1000)
    protocol.check_flow_order()


@pytest.mark.only_on("uringloop")  # the others send at once what the socket takes
@native_only
async def test_what_is_queued_counts_as_on_asyncio(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    for _ in range(3):
        protocol.transport.sendto(bytes(100), peer.getsockname())
    assert protocol.transport.get_write_buffer_size() == 3 * (100 + HEADER)
    await fence()
    assert protocol.transport.get_write_buffer_size() == 0


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop's datagram transports cannot pause
async def test_reading_can_be_paused(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    protocol.transport.pause_reading()
    assert not protocol.transport.is_reading()
    for number in range(5):
        peer.sendto(b"%d" % number, name_of(protocol))
    await fence()
    assert protocol.got == []
    protocol.transport.resume_reading()
    peer.sendto(b"5", name_of(protocol))
    await protocol.until(lambda: len(protocol.got) == 6)
    assert [data for data, _ in protocol.got] == [b"0", b"1", b"2", b"3", b"4", b"5"]


# ---------------------------------------------------------------------------------------------------------------------
# The end, and what else a transport is
# ---------------------------------------------------------------------------------------------------------------------


async def test_close_sends_what_is_queued_and_receives_no_more(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    peer.sendto(b"too late", name_of(protocol))
    protocol.transport.sendto(b"last", peer.getsockname())
    protocol.transport.sendto(b"words", peer.getsockname())
    protocol.transport.close()
    assert protocol.transport.is_closing()
    assert "connection_lost" not in protocol.calls
    assert await protocol.lost() is None
    assert [peer.recv(100) for _ in range(2)] == [b"last", b"words"]
    assert protocol.got == []
    assert protocol.transport.get_extra_info("sockname") is not None


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no Unix datagrams
async def test_close_waits_for_a_full_receiver_and_abort_does_not(endpoint: Make, unix: Kind) -> None:
    peers = [unix.socket(), unix.socket()]
    closing, aborted = [await endpoint(**unix.connected(peer)) for peer in peers]
    for protocol in (closing, aborted):
        for number in range(1000):
            protocol.transport.sendto(b"%d" % number)
    await fence()
    closing.transport.close()
    aborted.transport.abort()
    assert await aborted.lost() is None
    await fence()
    assert "connection_lost" not in closing.calls
    received = await soon(asyncio.to_thread(lambda: [int(peers[0].recv(10)) for _ in range(1000)]))
    assert received == list(range(1000))
    assert await closing.lost() is None


async def test_closed_transport_takes_nothing(endpoint: Make, plain: Kind) -> None:
    peer = plain.socket()
    protocol = await endpoint(**plain.connected(peer))
    protocol.transport.close()
    for _ in range(3):
        protocol.transport.sendto(b"data")
    await protocol.lost()
    protocol.transport.close()
    protocol.transport.abort()
    peer.setblocking(False)
    with pytest.raises(BlockingIOError):
        peer.recv(100)


async def test_many_endpoints_come_and_go(endpoint: Make, plain: Kind) -> None:
    protocols = [await endpoint(**plain.local()) for _ in range(20)]
    for sender, receiver in zip(protocols, protocols[1:] + protocols[:1], strict=True):
        sender.transport.sendto(b"%d" % name_of(sender)[1], name_of(receiver))
    for protocol in protocols:
        data, address = await protocol.next()
        assert int(data) == address[1]


async def test_transport_tells_what_it_is(endpoint: Make, plain: Kind) -> None:
    peer = plain.socket()
    protocol = await endpoint(**plain.connected(peer))
    transport = protocol.transport
    assert isinstance(transport, asyncio.BaseTransport) or loop_kind() == "uvloop"
    assert transport.get_protocol() is protocol
    assert transport.get_extra_info("socket").getsockname() == name_of(protocol)
    assert transport.get_extra_info("socket").type == socket.SOCK_DGRAM
    assert transport.get_write_buffer_limits()[1] == 64 * KIB
    assert transport.get_extra_info("no such thing", "default") == "default"


async def test_protocol_is_called_in_the_context_of_its_making(endpoint: Make, plain: Kind) -> None:
    where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")
    seen = []

    class Looking(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            seen.append(where.get())
            super().datagram_received(data, addr)

        def error_received(self, exc: Exception) -> None:
            seen.append(where.get())
            super().error_received(exc)

    where.set("when made")
    protocol, peer = await endpoint(Looking, **plain.local()), plain.socket()
    where.set("later")
    peer.sendto(b"data", name_of(protocol))
    await protocol.next()
    assert seen == ["when made"]


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop closes its sockets without a word
def test_transport_that_is_left_open_is_warned_of(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    loop = new_loop()

    async def leave_open() -> None:
        await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))

    with pytest.warns(ResourceWarning, match="unclosed transport"):  # noqa: PT031 - it comes with the collection
        loop.run_until_complete(leave_open())
        loop.close()
        gc.collect()


@pytest.mark.only_on("uringloop")  # the others raise from some of these
@native_only
def test_transport_outlives_its_loop(new_loop: Callable[[], asyncio.AbstractEventLoop], plain: Kind) -> None:
    loop = new_loop()
    transport, _ = loop.run_until_complete(loop.create_datagram_endpoint(asyncio.DatagramProtocol, **plain.local()))
    transport.sendto(b"data", ("127.0.0.1", 9))
    loop.close()
    transport.sendto(b"data", ("127.0.0.1", 9))
    transport.close()
    transport.abort()
    assert transport.is_closing()
    assert transport.get_write_buffer_size() == 0
    assert "closed" in repr(transport)
    with pytest.warns(ResourceWarning, match="unclosed transport"):  # noqa: PT031 - it comes with the collection
        del transport
        gc.collect()


@pytest.mark.only_on("uringloop")  # asyncio demands an address here
@native_only
async def test_pair_of_unix_sockets_needs_no_address(endpoint: Make) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with far:
        protocol = await endpoint(sock=near)
        protocol.transport.sendto(b"there")
        await fence()
        assert far.recv(100) == b"there"
        far.send(b"back")
        assert await protocol.next() == (b"back", None)


async def test_everything_works_in_debug_mode(endpoint: Make, end: Kind) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    try:
        protocol, peer = await endpoint(**end.local()), end.socket()
        peer.sendto(b"question", name_of(protocol))
        assert await protocol.next() == (b"question", peer.getsockname())
        protocol.transport.sendto(b"answer", peer.getsockname())
        await fence()
        assert peer.recv(100) == b"answer"
        protocol.transport.close()
        await protocol.lost()
    finally:
        loop.set_debug(False)


def test_endpoint_goes_with_its_loop_to_another_thread(
    new_loop: Callable[[], asyncio.AbstractEventLoop], plain: Kind
) -> None:
    loop, peer = new_loop(), plain.socket()
    _, protocol = loop.run_until_complete(loop.create_datagram_endpoint(Datagrams, **plain.local()))

    def exchange() -> None:
        peer.sendto(b"question", name_of(protocol))
        data, address = loop.run_until_complete(protocol.next())
        protocol.transport.sendto(data, address)
        loop.run_until_complete(asyncio.sleep(0))
        assert peer.recv(100) == b"question"

    with ThreadPoolExecutor(1) as other:
        for _ in range(3):
            other.submit(exchange).result(PATIENCE)
            exchange()
    protocol.transport.close()
    loop.run_until_complete(protocol.lost())


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop delivers it before the run ends
def test_datagram_behind_one_that_ended_the_run_comes_with_the_next(
    new_loop: Callable[[], asyncio.AbstractEventLoop], plain: Kind
) -> None:
    loop, peer, got = new_loop(), plain.socket(), []

    class Interrupting(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            got.append(data)
            if data == b"first":
                raise KeyboardInterrupt
            loop.call_soon(loop.stop)  # in a turn that has nothing else to do

    transport, _ = loop.run_until_complete(loop.create_datagram_endpoint(Interrupting, **plain.local()))
    for data in (b"first", b"second"):
        peer.sendto(data, transport.get_extra_info("sockname"))
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    loop.run_forever()
    assert got == [b"first", b"second"]
    transport.close()
    loop.run_until_complete(asyncio.sleep(0))


# ---------------------------------------------------------------------------------------------------------------------
# What only uringloop has
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("uringloop")
@native_only
async def test_stats_count_datagrams(endpoint: Make, plain: Kind) -> None:
    loop: Any = asyncio.get_running_loop()
    before = loop.stats()
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    for _ in range(3):
        protocol.transport.sendto(b"data", peer.getsockname())
        peer.sendto(b"data", name_of(protocol))
    await protocol.until(lambda: len(protocol.got) == 3)
    after = loop.stats()
    assert after.datagrams_received - before.datagrams_received == 3
    assert after.datagrams_sent - before.datagrams_sent == 3
    assert after.datagrams_joined - before.datagrams_joined == 3
    assert after.endpoints_open == 1
    assert after.datagrams_truncated == 0


@pytest.mark.only_on("uringloop")
def test_without_buffers_the_transport_is_asyncios_own(plain: Kind) -> None:
    loop = uringloop.new_event_loop(datagram_buffers=0)

    async def exchange() -> str:
        transport, protocol = await loop.create_datagram_endpoint(Datagrams, **plain.local())
        transport.sendto(b"to itself", name_of(protocol))
        assert (await protocol.next())[0] == b"to itself"
        transport.close()
        await protocol.lost()
        return type(transport).__module__

    try:
        assert loop.run_until_complete(exchange()) == "asyncio.selector_events"
    finally:
        loop.close()
