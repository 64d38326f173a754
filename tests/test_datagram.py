"""UDP and Unix datagrams: whole, in order, with the address of their other end; and errors that concern one of them."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import itertools
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Address, Journal, Unhandled, eventually, fence, loop_kind, per_loop, soon

import uringloop
from uringloop import addresses

pytestmark = pytest.mark.tiny_ring

KIB = 1 << 10
LARGEST = {"udp4": 65507, "udp6": 65527, "unix": 200 * KIB}  # the last is what the usual send buffer allows
EMPTY_COUNTS = sys.version_info >= (3, 13)  # asyncio drops an empty datagram before that


class Datagrams(Journal, asyncio.DatagramProtocol):
    """Keeps what it is given."""

    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[bytes, Address]] = []
        self.errors: list[Exception] = []

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.got.append((data, addr))
        self._write_down("datagram_received")

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)
        self._write_down("error_received")

    async def next(self) -> tuple[bytes, Address]:
        await self.until(lambda: self.got)
        return self.got.pop(0)

    async def next_error(self) -> Exception:
        await self.until(lambda: self.errors)
        return self.errors.pop(0)


Make = Callable[..., Any]


@pytest.fixture
async def endpoint() -> AsyncIterator[Make]:
    """Makes endpoints, with create_datagram_endpoint's arguments; they are closed when the test is over."""
    made: list[Datagrams] = []

    async def endpoint(factory: Callable[[], Datagrams] = Datagrams, **options: Any) -> Datagrams:
        _, protocol = await soon(asyncio.get_running_loop().create_datagram_endpoint(factory, **options))
        made.append(protocol)
        return protocol

    yield endpoint
    for protocol in made:
        if "connection_lost" not in protocol.calls:
            protocol.transport.abort()
        await protocol.lost()
        assert [protocol.calls[0], protocol.calls[-1]] == ["connection_made", "connection_lost"]
        assert protocol.calls.count("connection_lost") == 1


@pytest.fixture(params=["udp4", "udp6", "unix"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "unix" and "uvloop" in request.node.name:
        pytest.skip("uvloop has no Unix datagrams")
    return str(request.param)


class Kind:
    """Sockets and endpoints of one family."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._paths = (str(directory / f"socket{number}") for number in itertools.count())
        self.family = {"udp4": socket.AF_INET, "udp6": socket.AF_INET6, "unix": socket.AF_UNIX}[name]
        self.opened: list[socket.socket] = []

    def fresh_address(self) -> Address:
        return next(self._paths) if self.name == "unix" else ({"udp4": "127.0.0.1", "udp6": "::1"}[self.name], 0)

    def socket(self, *, bound: bool = True) -> socket.socket:
        """A plain one; it waits with patience."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        self.opened.append(sock)
        sock.settimeout(PATIENCE)
        if bound:
            sock.bind(self.fresh_address())
        return sock

    def local(self) -> dict[str, Any]:
        return {"local_addr": self.fresh_address(), "family": self.family}

    def connected(self, peer: socket.socket) -> dict[str, Any]:
        name = peer.getsockname()
        return self.local() | {"remote_addr": name if self.name == "unix" else name[:2]}


@pytest.fixture
def end(kind: str, tmp_path: Path) -> Any:
    end = Kind(kind, tmp_path)
    yield end
    for sock in end.opened:
        sock.close()


@pytest.fixture
def plain(tmp_path: Path) -> Any:
    """The same for UDP over IPv4 only."""
    end = Kind("udp4", tmp_path)
    yield end
    for sock in end.opened:
        sock.close()


@pytest.fixture
def unix(tmp_path: Path) -> Any:
    end = Kind("unix", tmp_path)
    yield end
    for sock in end.opened:
        sock.close()


def name_of(protocol: Datagrams) -> Address:
    return protocol.transport.get_extra_info("sockname")


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
    sent = per_loop(asyncio=EMPTY_COUNTS, uvloop=False, uringloop=EMPTY_COUNTS)
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
    if loop_kind() == "uringloop":  # asyncio 3.13.0 adds a header to the size and does not take it away
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


# ---------------------------------------------------------------------------------------------------------------------
# Options of sockets
# ---------------------------------------------------------------------------------------------------------------------


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
async def test_what_is_queued_counts_as_on_asyncio(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    for _ in range(3):
        protocol.transport.sendto(bytes(100), peer.getsockname())
    assert protocol.transport.get_write_buffer_size() == 3 * (108 if EMPTY_COUNTS else 100)
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


# ---------------------------------------------------------------------------------------------------------------------
# What only uringloop has
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("uringloop")
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


def test_addresses_are_what_the_socket_module_makes_of_them() -> None:
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", 65535)),
        (socket.AF_INET, ("", 1)),
        (socket.AF_INET, ("<broadcast>", 2)),
        (socket.AF_INET6, ("::1", 3)),
        (socket.AF_INET6, ("fe80::1", 4, 5, 6)),
        (socket.AF_UNIX, "/a/path"),
        (socket.AF_UNIX, b"\0abstract"),
    ):
        name = addresses.packer(family)(address)
        expected: Any = address
        if family == socket.AF_INET:
            expected = ({"": "0.0.0.0", "<broadcast>": "255.255.255.255"}.get(address[0], address[0]), address[1])  # type: ignore[dict-item,index,call-overload]
        elif family == socket.AF_INET6:
            expected = (*address, 0, 0)[:4]
        assert addresses.unpack(name) == expected
    with pytest.raises(OSError, match="too long"):
        addresses.packer(socket.AF_UNIX)("x" * 108)
