"""What the behaviour tests share: which loops they run on, how they wait, and protocols that write down what happens.

Two rules keep these tests honest. A wait is for the thing itself, bounded by `PATIENCE`, never for a while. And the
other end of a connection is, wherever it can be, a plain socket used from a thread (`Peer`), so that the loop under
test is judged by the kernel and not by itself.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import functools
import itertools
import os
import socket
import struct
import termios
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import uvloop

import uringloop

T = TypeVar("T")
J = TypeVar("J", bound="Journal")
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Address = Any  # what getsockname() gives: a tuple for TCP, a path for Unix

PATIENCE = 10.0  # seconds; the bound on every wait, reached only if the thing waited for never happens


# ---------------------------------------------------------------------------------------------------------------------
# The loops under test
# ---------------------------------------------------------------------------------------------------------------------

LOOPS: dict[str, LoopFactory] = {
    "asyncio": asyncio.SelectorEventLoop,
    "uvloop": uvloop.new_event_loop,
    "uringloop": uringloop.new_event_loop,
}

# Here a full submission queue and an empty buffer pool, rare elsewhere, are the common case.
TINY_RING = {
    "uringloop-tiny": functools.partial(
        uringloop.new_event_loop, entries=4, buffers=2, buffer_size=4096, datagram_buffers=2
    ),
}


def loops_for(test: pytest.Item) -> Mapping[str, LoopFactory]:
    """The loops that a test runs on: all, or those that `only_on` names; and a tiny ring if it is a `tiny_ring`."""
    loops = LOOPS | TINY_RING if test.get_closest_marker("tiny_ring") else LOOPS
    only_on = test.get_closest_marker("only_on")
    if only_on is None:
        return loops
    return {name: factory for name, factory in loops.items() if name.removesuffix("-tiny") in only_on.args}


def loop_kind(loop: asyncio.AbstractEventLoop | None = None) -> str:
    """Whose loop this is (by default the running one): "asyncio", "uvloop" or "uringloop"."""
    return type(loop or asyncio.get_running_loop()).__module__.partition(".")[0]


def per_loop(loop: asyncio.AbstractEventLoop | None = None, /, **expected: T) -> T:
    """What to expect of this loop, where the three really differ. The reason belongs beside the call."""
    return expected[loop_kind(loop)]


def in_use(loop: asyncio.AbstractEventLoop) -> dict[str, int]:
    """What a uringloop holds at the moment; nothing for the other loops, which cannot tell."""
    if loop_kind(loop) != "uringloop":
        return {}
    stats = loop.stats()  # type: ignore[attr-defined]
    return {
        name: getattr(stats, name)
        for name in (
            "operations_in_flight",
            "slots_in_use",
            "buffers_in_use",
            "streams_open",
            "datagram_buffers_in_use",
            "endpoints_open",
        )
    }


# ---------------------------------------------------------------------------------------------------------------------
# Waiting
# ---------------------------------------------------------------------------------------------------------------------


async def soon(awaitable: Awaitable[T]) -> T:
    """Awaits, with patience."""
    async with asyncio.timeout(PATIENCE):
        return await awaitable


async def eventually(condition: Callable[[], object]) -> None:
    """Waits for something that nothing announces."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.001)


async def fence() -> None:
    """Returns once the loop has fetched events from the kernel three times since the call.

    For asserting that something does *not* happen: what the kernel had ready before the fence has been delivered
    after it, if it ever will be.
    """
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        for _ in range(3):
            readable = loop.create_future()
            loop.add_reader(near, set_once, readable, None)
            far.send(b"x")
            await soon(readable)
            loop.remove_reader(near)
            near.recv(1)


def set_once(future: asyncio.Future[T], result: T) -> None:
    """For callbacks that may come more than once."""
    if not future.done():
        future.set_result(result)


class Unhandled:
    """Keeps what reaches the loop's exception handler. What a test expects, it takes; what is left over fails it."""

    def __init__(self) -> None:
        self.contexts: list[dict[str, Any]] = []

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.contexts.append(context)

    async def next(self) -> dict[str, Any]:
        """Waits for a context and takes it."""
        await eventually(lambda: self.contexts)
        return self.contexts.pop(0)


class Opened:
    """What the helpers below have opened, and is not closed yet."""

    def __init__(self) -> None:
        self.servers: weakref.WeakSet[asyncio.AbstractServer] = weakref.WeakSet()
        self.connected: weakref.WeakSet[Journal] = weakref.WeakSet()

    def any(self) -> bool:
        return any(server.is_serving() for server in self.servers) or len(self.connected) > 0

    async def close(self) -> None:
        for server in self.servers:
            server.close()
        for protocol in self.connected:
            protocol.transport.abort()
        await eventually(lambda: not self.any())


opened = Opened()


# ---------------------------------------------------------------------------------------------------------------------
# Protocols that write down what happens to them
# ---------------------------------------------------------------------------------------------------------------------


class Journal(asyncio.BaseProtocol):
    """Writes down the calls of its transport, in order, and lets a test wait for them."""

    keep_open = False  # what eof_received() answers
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.lost_with: BaseException | None = None
        self._called = asyncio.Event()

    def _write_down(self, call: str) -> None:
        # How many pieces the data comes in is the kernel's affair, so a run of them is one entry.
        if not (call == "data_received" and self.calls and self.calls[-1] == call):
            self.calls.append(call)
        self._called.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        opened.connected.add(self)
        self._write_down("connection_made")

    def eof_received(self) -> bool:
        self._write_down("eof_received")
        return self.keep_open

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost_with = exc
        opened.connected.discard(self)
        self._write_down("connection_lost")

    def pause_writing(self) -> None:
        self._write_down("pause_writing")

    def resume_writing(self) -> None:
        self._write_down("resume_writing")

    async def until(self, condition: Callable[[], object]) -> None:
        """Waits for a condition, which is looked at after every call of the transport."""
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self._called.clear()
                await self._called.wait()

    async def called(self, call: str, times: int = 1) -> None:
        await self.until(lambda: self.calls.count(call) >= times)

    async def received(self, size: int) -> bytes:
        """Waits for at least `size` bytes and takes all that there is."""
        await self.until(lambda: len(self.data) >= size)
        data = bytes(self.data)
        self.data.clear()
        return data

    async def lost(self) -> BaseException | None:
        """Waits for the end of the connection, and gives what connection_lost() was given."""
        await self.called("connection_lost")
        return self.lost_with

    def check_order(self) -> None:
        """The contract that holds whatever happened: made first, lost last, each once, and no data after the EOF."""
        told = [call for call, _ in itertools.groupby(call for call in self.calls if not call.endswith("_writing"))]
        assert told in (
            ["connection_made", *middle, "connection_lost"]
            for middle in ([], ["data_received"], ["eof_received"], ["data_received", "eof_received"])
        )
        self.check_flow_order()

    def check_flow_order(self) -> None:
        flow = [call for call in self.calls if call.endswith("_writing")]
        assert flow == [("pause_writing", "resume_writing")[i % 2] for i in range(len(flow))]


class Recorder(Journal, asyncio.Protocol):
    """A Journal that keeps the data it is given."""

    def data_received(self, data: bytes) -> None:
        self.data += data
        self._write_down("data_received")


class BufferedRecorder(Journal, asyncio.BufferedProtocol):
    """A Journal that is given its data through a buffer of its own."""

    buffer_size = 4096

    def __init__(self) -> None:
        super().__init__()
        self.buffer = bytearray(self.buffer_size)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        self._write_down("data_received")


class Echo(Recorder):
    """Sends back what it receives, as fast as the other side takes it."""

    def data_received(self, data: bytes) -> None:
        self._write_down("data_received")
        self.transport.write(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.resume_reading()


# ---------------------------------------------------------------------------------------------------------------------
# The two ends of a connection
# ---------------------------------------------------------------------------------------------------------------------


class Peer:
    """The other end: a plain blocking socket that shares nothing with the loop under test."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(PATIENCE)
        self.sock = sock

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.sock.sendall, data)

    async def receive(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer if a FIN comes first."""
        return await asyncio.to_thread(self._receive, size)

    async def receive_all(self) -> bytes:
        """Everything up to the FIN; ConnectionResetError if a RST comes instead."""
        return await asyncio.to_thread(self._receive, None)

    async def sees_the_end(self) -> bool:
        """Whether nothing more comes before the connection ends, by a FIN or by a RST."""
        try:
            return await self.receive_all() == b""
        except ConnectionResetError:
            return True

    def _receive(self, size: int | None) -> bytes:
        received = bytearray()
        while size is None or len(received) < size:
            piece = self.sock.recv(1 << 18 if size is None else size - len(received))
            if not piece:
                break
            received += piece
        return bytes(received)

    def send_fin(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Ends the connection with a RST (TCP only)."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self) -> None:
        self.sock.close()


async def listen(
    family: str, factory: Callable[[], asyncio.BaseProtocol], directory: Path, **options: Any
) -> asyncio.Server:
    """A server of the family, "tcp" or "unix", at an address of its own."""
    loop = asyncio.get_running_loop()
    if family == "tcp":
        return await tracked(loop.create_server(factory, "127.0.0.1", 0, **options))
    return await tracked(loop.create_unix_server(factory, str(directory / "socket"), **options))


async def tracked(starting: Awaitable[asyncio.Server]) -> asyncio.Server:
    """A server that is closed if the test fails before it does so."""
    server = await starting
    opened.servers.add(server)
    return server


def address_of(server: asyncio.Server) -> Address:
    return server.sockets[0].getsockname()


async def connect(factory: Callable[[], J], address: Address, **options: Any) -> J:
    """Connects with the loop under test; gives the protocol, connected."""
    loop = asyncio.get_running_loop()
    if isinstance(address, str):
        _, protocol = await soon(loop.create_unix_connection(factory, address, **options))
    else:
        _, protocol = await soon(loop.create_connection(factory, *address[:2], **options))
    return protocol


def connect_plainly(address: Address) -> socket.socket:
    """Connects with a plain blocking socket."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


class OpenEnd(Protocol):
    """Opens a connection whose near end is a transport of the loop under test, and whose far end is a plain socket."""

    async def __call__(self, factory: Callable[[], J], /) -> tuple[J, Peer]: ...


@asynccontextmanager
async def opened_end(
    factory: Callable[[], J], family: str, side: str, directory: Path
) -> AsyncIterator[tuple[J, Peer]]:
    """One connection of the family, with the transport on the "client" or the "server" side of it."""
    end = _accepted_end if side == "server" else _connected_end
    async with end(factory, family, directory) as (protocol, peer):
        try:
            yield protocol, peer
        finally:
            peer.close()
            if "connection_lost" not in protocol.calls:
                protocol.transport.abort()
            await protocol.lost()
            protocol.check_order()


@asynccontextmanager
async def _accepted_end(factory: Callable[[], J], family: str, directory: Path) -> AsyncIterator[tuple[J, Peer]]:
    protocols: list[J] = []

    def remember() -> J:
        protocols.append(factory())
        return protocols[-1]

    server = await listen(family, remember, directory)
    try:
        peer = Peer(connect_plainly(address_of(server)))
        await eventually(lambda: protocols)
        await protocols[0].called("connection_made")
        yield protocols[0], peer
    finally:
        server.close()
        await soon(server.wait_closed())


@asynccontextmanager
async def _connected_end(factory: Callable[[], J], family: str, directory: Path) -> AsyncIterator[tuple[J, Peer]]:
    with socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX) as listener:
        listener.bind(("127.0.0.1", 0) if family == "tcp" else str(directory / "socket"))
        listener.listen()
        protocol = await connect(factory, listener.getsockname())
        yield protocol, Peer(listener.accept()[0])


# ---------------------------------------------------------------------------------------------------------------------
# What the process holds
# ---------------------------------------------------------------------------------------------------------------------


def children() -> set[int]:
    """The processes that this thread has started and not reaped."""
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
        return set(map(int, file.read().split()))


def open_files() -> dict[int, str]:
    """The process's file descriptors, and what each of them is."""
    files = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            files[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the directory that was being listed
            continue
    return files


def unread(fd: int) -> int:
    """The bytes in a pipe."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]


async def taken(fd: int) -> None:
    """Waits until all that is in a pipe has been read."""
    await eventually(lambda: unread(fd) == 0)
    await fence()


class Stopwatch:
    """The wall and processor time of a `with` block, in seconds."""

    def __enter__(self) -> Stopwatch:
        self._began = time.monotonic(), time.process_time()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.wall = time.monotonic() - self._began[0]
        self.processor = time.process_time() - self._began[1]
