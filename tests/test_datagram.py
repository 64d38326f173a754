"""UDP and Unix datagrams: whole, in order, with the address of their other end; and errors that concern one of them."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from datagrams import NATIVE, Datagrams, Kind, Make, name_of
from support import PATIENCE, Address, Unhandled, eventually, fence, loop_kind, per_loop, soon

pytestmark = pytest.mark.tiny_ring

KIB = 1 << 10
LARGEST = {"udp4": 65507, "udp6": 65527, "unix": 200 * KIB}  # the last is what the usual send buffer allows
UDP_SEGMENT = 103  # of linux/udp.h
SENDS_EMPTY = sys.version_info >= (3, 13)  # asyncio drops an empty datagram before that


# ---------------------------------------------------------------------------------------------------------------------
# Datagrams arrive whole
# ---------------------------------------------------------------------------------------------------------------------


async def test_datagram_goes_and_comes_with_the_address_of_its_other_end(endpoint: Make, end: Kind) -> None:
    protocol, peer = await endpoint(**end.local()), end.socket()
    peer.sendto(b"question", name_of(protocol))
    data, address = await protocol.next()
    assert (data, address) == (b"question", peer.getsockname())
    assert type(data) is bytes
    protocol.transport.sendto(b"answer", address)
    await fence()
    assert peer.recvfrom(100) == (b"answer", name_of(protocol))


async def test_answers_go_to_whom_they_are_for_whoever_asked_last(endpoint: Make, end: Kind) -> None:
    class Answering(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            for number, (asked, asker) in enumerate(self.got):
                self.transport.sendto(asked + str(number).encode(), asker)

    protocol, peers = await endpoint(factory=Answering, **end.local()), [end.socket(), end.socket()]
    for name, peer in zip((b"a", b"b"), peers, strict=True):
        peer.sendto(name, name_of(protocol))
        await fence()
    assert [peers[0].recv(100), peers[0].recv(100), peers[1].recv(100)] == [b"a0", b"a0", b"b1"]


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no Unix datagrams
async def test_nobody_is_answered_who_has_no_address(endpoint: Make, unix: Kind, unhandled: Unhandled) -> None:
    protocol = await endpoint(**unix.local())
    unix.socket(bound=False).sendto(b"from nobody", name_of(protocol))
    _, address = await protocol.next()
    protocol.transport.sendto(b"to nobody", address)
    await unhandled.next()
    assert isinstance(await protocol.lost(), TypeError)


async def test_connected_endpoint_needs_no_address(endpoint: Make, end: Kind) -> None:
    peer = end.socket()
    protocol = await endpoint(**end.connected(peer))
    assert protocol.transport.get_extra_info("peername") == peer.getsockname()
    protocol.transport.sendto(b"one")
    protocol.transport.sendto(b"two", None)
    await fence()
    assert [peer.recvfrom(100) for _ in range(2)] == [(data, name_of(protocol)) for data in (b"one", b"two")]
    peer.sendto(b"back", name_of(protocol))
    assert await protocol.next() == (b"back", peer.getsockname())


@pytest.mark.parametrize("kind_of_bytes", [bytes, bytearray, memoryview])
async def test_mutable_memory_may_be_reused_at_once(endpoint: Make, plain: Kind, kind_of_bytes: Any) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    memory = bytearray(b"original")
    protocol.transport.sendto(kind_of_bytes(memory), peer.getsockname())
    memory[:] = b"changed!"
    await fence()
    assert peer.recv(100) == b"original"


@pytest.mark.parametrize("size", [1, 1500, 16 * KIB, None], ids=lambda size: str(size or "largest"))
async def test_datagram_of_any_size_arrives_whole(endpoint: Make, end: Kind, size: int | None) -> None:
    protocol, peer = await endpoint(**end.local()), end.socket()
    data = bytes(itertools.islice(itertools.cycle(range(251)), size or LARGEST[end.name]))
    for _ in range(5):  # more often than the small pool has buffers
        peer.sendto(data, name_of(protocol))
        assert (await protocol.next())[0] == data
        protocol.transport.sendto(data, peer.getsockname())
        await fence()
        assert peer.recv(1 << 18) == data


async def test_empty_datagram_is_received_and_ends_nothing(endpoint: Make, end: Kind) -> None:
    protocol, peer = await endpoint(**end.local()), end.socket()
    for data in (b"", b"between", b"", b"", b"last"):
        peer.sendto(data, name_of(protocol))
    await protocol.until(lambda: len(protocol.got) == 5)
    assert protocol.got == [(data, peer.getsockname()) for data in (b"", b"between", b"", b"", b"last")]


async def test_empty_datagram_is_sent_where_this_python_has_them(endpoint: Make, end: Kind) -> None:
    protocol, peer = await endpoint(**end.local()), end.socket()
    for data in (b"", b"behind it"):
        protocol.transport.sendto(data, peer.getsockname())
    await fence()
    sent = per_loop(asyncio=SENDS_EMPTY, uvloop=False, uringloop=SENDS_EMPTY)
    assert peer.recv(100) == (b"" if sent else b"behind it")


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no Unix datagrams
async def test_sender_without_an_address_has_none(endpoint: Make, unix: Kind) -> None:
    protocol = await endpoint(**unix.local())
    unix.socket(bound=False).sendto(b"from nobody", name_of(protocol))
    assert await protocol.next() == (b"from nobody", None)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no Unix datagrams
async def test_abstract_addresses_of_unix_sockets(endpoint: Make, unix: Kind) -> None:
    peer, ours = unix.socket(bound=False), unix.socket(bound=False)
    peer.bind(b"\0peer of " + bytes(next(unix._paths), "utf-8"))
    ours.bind(b"\0" + bytes(next(unix._paths), "utf-8"))
    unix.opened.remove(ours)
    protocol = await endpoint(sock=ours)
    peer.sendto(b"abstract", name_of(protocol))
    assert await protocol.next() == (b"abstract", peer.getsockname())
    protocol.transport.sendto(b"answer", peer.getsockname())
    await fence()
    assert peer.recvfrom(100) == (b"answer", name_of(protocol))


# ---------------------------------------------------------------------------------------------------------------------
# In order, and all of them
# ---------------------------------------------------------------------------------------------------------------------


async def test_datagrams_of_one_turn_keep_their_order(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    sent = [str(number).encode() for number in range(200)]  # as many as the receiver's buffer holds
    for data in sent:
        protocol.transport.sendto(data, peer.getsockname())
    await fence()
    assert [peer.recv(100) for _ in sent] == sent


async def test_datagrams_of_one_turn_keep_their_lengths_and_addresses(endpoint: Make, plain: Kind) -> None:
    protocol, peers = await endpoint(**plain.local()), [plain.socket(), plain.socket()]
    sent: list[list[bytes]] = [[], []]
    rest = itertools.count()
    for length, peer in zip((9, 9, 9, 5, 5, 7, 9, 9, 9, 9, 9, 2), (0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1), strict=True):
        data = f"{next(rest):02}".encode().ljust(length, b".")
        sent[peer].append(data)
        protocol.transport.sendto(data, peers[peer].getsockname())
    await fence()
    assert [[peer.recv(100) for _ in theirs] for peer, theirs in zip(peers, sent, strict=True)] == sent
    assert protocol.errors == []


async def test_kernel_cuts_each_datagram_as_its_socket_was_told_to(endpoint: Make, plain: Kind) -> None:
    sock, peer = plain.socket(), plain.socket()
    plain.opened.remove(sock)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
    protocol = await endpoint(sock=sock)
    for data in (b"a" * 250, b"b" * 250):
        protocol.transport.sendto(data, peer.getsockname())
    await fence()
    cut = [data * length for data in (b"a", b"b") for length in (100, 100, 50)]
    assert [peer.recv(1000) for _ in cut] == cut


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no Unix datagrams
@pytest.mark.parametrize("connected", [True, False])
async def test_full_receiver_loses_and_reorders_nothing(endpoint: Make, unix: Kind, connected: bool) -> None:
    peer = unix.socket()
    protocol = await endpoint(**(unix.connected(peer) if connected else unix.local()))
    sent = [str(number).encode() * 50 for number in range(2000)]  # of which the kernel queues a few
    for data in sent:
        protocol.transport.sendto(data, None if connected else peer.getsockname())
    assert await soon(asyncio.to_thread(lambda: [peer.recv(1000) for _ in sent])) == sent
    assert protocol.errors == []
    if loop_kind() == "uringloop" and NATIVE:  # asyncio 3.13.0 adds a header to the size and does not take it away
        await eventually(lambda: protocol.transport.get_write_buffer_size() == 0)


async def test_100_000_datagrams_each_way(endpoint: Make, plain: Kind) -> None:
    count, window = 100_000, 32

    class Echo(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            self.transport.sendto(data, addr)

    class Counting(Datagrams):
        sent = received = 0

        def send(self) -> None:
            if self.sent < count:
                self.transport.sendto(self.sent.to_bytes(4, "big"))
                self.sent += 1

        def datagram_received(self, data: bytes, addr: Address) -> None:
            assert int.from_bytes(data, "big") == self.received
            self.received += 1
            self.send()
            if self.received == count:
                self._write_down("all")

    echo = await endpoint(Echo, **plain.local())
    counting = await endpoint(Counting, remote_addr=name_of(echo))
    for _ in range(window):
        counting.send()
    async with asyncio.timeout(50):
        while "all" not in counting.calls:
            counting._called.clear()
            await counting._called.wait()
    assert counting.received == count
    assert counting.errors == echo.errors == []


@pytest.mark.parametrize("count", [1, 3])
async def test_abort_sends_what_the_socket_takes(endpoint: Make, plain: Kind, count: int) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    for number in range(count):
        protocol.transport.sendto(b"%d" % number, peer.getsockname())
    protocol.transport.abort()
    assert await protocol.lost() is None
    assert [int(peer.recv(100)) for _ in range(count)] == list(range(count))
    assert protocol.errors == []


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop raises from sendto
async def test_what_was_sent_before_a_fatal_error_is_sent(endpoint: Make, plain: Kind, unhandled: Unhandled) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    protocol.transport.sendto(b"before", peer.getsockname())
    protocol.transport.sendto(b"to nobody", "no address")
    assert isinstance(await protocol.lost(), TypeError)
    await unhandled.next()
    assert peer.recv(100) == b"before"


def test_what_the_last_turn_sends_is_sent(new_loop: Callable[[], asyncio.AbstractEventLoop], plain: Kind) -> None:
    loop, peer = new_loop(), plain.socket()

    async def main() -> Datagrams:
        _, protocol = await loop.create_datagram_endpoint(Datagrams, **plain.local())
        for number in range(3):
            protocol.transport.sendto(b"%d" % number, peer.getsockname())
        return protocol

    protocol = loop.run_until_complete(main())
    assert [peer.recv(10) for _ in range(3)] == [b"0", b"1", b"2"]
    protocol.transport.close()
    loop.run_until_complete(protocol.lost())


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------


async def test_datagram_that_is_too_long_is_an_error_of_its_own(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    for data in (b"before", bytes(LARGEST["udp4"] + 1), b"behind"):
        protocol.transport.sendto(data, peer.getsockname())
    error = await protocol.next_error()
    assert isinstance(error, OSError)
    assert error.errno == errno.EMSGSIZE
    assert [peer.recv(100) for _ in range(2)] == [b"before", b"behind"]
    protocol.transport.sendto(bytes(LARGEST["udp4"] + 1), peer.getsockname())  # alone in its turn
    assert (await protocol.next_error()).errno == errno.EMSGSIZE  # type: ignore[attr-defined]
    assert protocol.errors == []


async def test_nobody_there_is_told_and_the_endpoint_goes_on(endpoint: Make, plain: Kind) -> None:
    peer = plain.socket()
    address = peer.getsockname()
    protocol = await endpoint(**plain.connected(peer))
    peer.close()
    for _ in range(3):
        protocol.transport.sendto(b"anybody?")
        assert isinstance(await protocol.next_error(), ConnectionRefusedError)
    with socket.socket(type=socket.SOCK_DGRAM) as again:
        again.bind(address)
        again.settimeout(PATIENCE)
        protocol.transport.sendto(b"now?")
        await fence()
        assert again.recv(100) == b"now?"
        again.sendto(b"yes", name_of(protocol))
        assert (await protocol.next())[0] == b"yes"


async def test_other_address_than_the_one_connected_to_is_refused(endpoint: Make, plain: Kind) -> None:
    peer = plain.socket()
    protocol = await endpoint(**plain.connected(peer))
    with pytest.raises(ValueError, match="Invalid address"):
        protocol.transport.sendto(b"data", ("127.0.0.1", 1))
    protocol.transport.sendto(b"data", peer.getsockname())
    await fence()
    assert peer.recv(100) == b"data"


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop drops what is false, and names no type
@pytest.mark.parametrize("data", ["text", 7, None, [b"list"]])
async def test_data_must_be_bytes(endpoint: Make, plain: Kind, data: Any) -> None:
    protocol = await endpoint(**plain.local())
    with pytest.raises(TypeError, match="data argument must be a bytes-like object"):
        protocol.transport.sendto(data, ("127.0.0.1", 9))


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop raises from sendto
@pytest.mark.parametrize(
    ("address", "error"),
    [(None, TypeError), ("127.0.0.1", TypeError), (("127.0.0.1", 1 << 16), OverflowError), ((1, 2), TypeError)],
)
async def test_what_is_no_address_ends_the_transport(
    endpoint: Make, plain: Kind, unhandled: Unhandled, address: Any, error: type[Exception]
) -> None:
    protocol = await endpoint(**plain.local())
    protocol.transport.sendto(b"data", address)
    context = await unhandled.next()
    assert context["message"] == "Fatal write error on datagram transport"
    assert isinstance(context["exception"], error)
    assert isinstance(await protocol.lost(), error)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop resolves no names here
async def test_names_resolve_when_they_are_used(endpoint: Make, plain: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    protocol.transport.sendto(b"by name", ("localhost", peer.getsockname()[1]))
    await fence()
    assert peer.recv(100) == b"by name"
    protocol.transport.sendto(b"nowhere", ("not a name at all", 9))
    assert isinstance(await protocol.next_error(), socket.gaierror)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop closes the transport
async def test_protocol_that_fails_is_told_of_and_the_endpoint_goes_on(
    endpoint: Make, plain: Kind, unhandled: Unhandled
) -> None:
    class Failing(Datagrams):
        def datagram_received(self, data: bytes, addr: Address) -> None:
            super().datagram_received(data, addr)
            if data == b"fail":
                raise RuntimeError("on purpose")

    protocol, peer = await endpoint(Failing, **plain.local()), plain.socket()
    for data in (b"fail", b"go on"):
        peer.sendto(data, name_of(protocol))
    assert str((await unhandled.next())["exception"]) == "on purpose"
    await protocol.until(lambda: len(protocol.got) == 2)
