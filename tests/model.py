"""A loop of ours under load: connections, datagrams, files and sockets, driven and checked in plain Python.

What is promised of connections is in model_ends.py; that nothing is left in the end is checked here.
"""

from __future__ import annotations

import asyncio
import errno
import io
import random
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from model_ends import LARGEST, Connection, End, size_of
from model_pipes import Pipe

import uringloop
from uringloop import compat
from uringloop.reactor import leaked_bytes

T = TypeVar("T")

PATIENCE = 20  # seconds, for what takes a moment
SOON = 0.002  # seconds, in place of a second, until a server that was out of descriptors tries again
DATAGRAM_BYTES = 8


# What was found wrong. Hypothesis runs an example again, and where that goes another way it reports only that.
noticed: list[str] = []


@contextmanager
def noticing() -> Iterator[None]:
    try:
        yield
    except AssertionError as exc:
        noticed.append(str(exc) or str(traceback.extract_tb(exc.__traceback__)[-1].line))
        raise


class Datagrams(asyncio.DatagramProtocol):
    """Writes down what comes."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.errors: list[Exception] = []

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.append(data)

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)


class World:
    """One loop and all that goes on in it."""

    def __init__(self, seed: int, **options: int) -> None:
        self.chance = random.Random(seed)
        self.folder = tempfile.TemporaryDirectory()
        self.loop = make_loop(options)
        self.loop.set_exception_handler(self._on_unhandled)
        self.unhandled: list[dict[str, Any]] = []
        self.connections: list[Connection] = []
        self.servers: dict[str, asyncio.AbstractServer] = {}
        self._accepting: End | None = None
        self._names = 0
        self._thread = threading.get_native_id()  # that has run the loop last
        self.hangs = False  # has failed by that; it will not end in good order
        self._leaked = leaked_bytes()  # by other loops of the process

    # --- running -----------------------------------------------------------------------------------------------------

    def _on_unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context["message"] != "socket.accept() out of system resource":
            self.unhandled.append(context)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run it to its end, and look whether anything has gone wrong meanwhile."""
        task = self.loop.create_task(coroutine)
        # Not wait_for: what hangs may not end when it is cancelled either.
        watch = self.loop.create_task(asyncio.wait([task], timeout=2 * PATIENCE))
        while not watch.done():
            try:
                self.loop.run_until_complete(watch)
            except OSError as exc:
                # The next ring, when the loop changes threads: it says so, and goes on when it is run again.
                if exc.errno != errno.ENOMEM or self._thread == threading.get_native_id():
                    raise
        self._thread = threading.get_native_id()
        with noticing():
            self.hangs = self.hangs or not task.done()
            assert task.done(), f"not in {2 * PATIENCE} seconds: {self._stacks()}{self.loop.stats()}"
            self.check()
            return task.result()

    def _stacks(self) -> str:
        """Where everything waits."""
        text = io.StringIO()
        for task in asyncio.all_tasks(self.loop):
            task.print_stack(file=text)
        return text.getvalue()

    def check(self) -> None:
        for connection in self.connections:
            for end in connection.ends:
                if end.failure is not None:
                    raise end.failure
        assert self.unhandled == []

    async def until(self, condition: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    await asyncio.sleep(0)
                    self.check()
        except TimeoutError:
            self.hangs = True
            raise AssertionError(f"not in {PATIENCE} seconds: {self.connections}, {self.loop.stats()}") from None

    # --- connections -------------------------------------------------------------------------------------------------

    def open(self, kind: str) -> Connection:
        self._names += 1
        connection = Connection(f"{kind}{self._names}", self.chance)
        self.connections.append(connection)
        self.run(self._open(kind, connection))
        return connection

    async def _open(self, kind: str, connection: Connection) -> None:
        first, second = connection.ends
        if kind == "pair":
            near, far = socket.socketpair()
            await self.loop.create_connection(lambda: first, sock=near)
            await self.loop.connect_accepted_socket(lambda: second, far)
            return
        if kind not in self.servers:
            self.servers[kind] = await self._listen(kind)
        self._accepting = second
        if kind == "tcp":
            host, port = self.servers[kind].sockets[0].getsockname()  # type: ignore[attr-defined]
            await self.loop.create_connection(lambda: first, host, port)
        else:
            await self.loop.create_unix_connection(lambda: first, self._socket_path())
        await self.until(lambda: second.stage == "made")

    def _socket_path(self) -> str:
        return str(Path(self.folder.name) / "socket")

    async def _listen(self, kind: str) -> asyncio.AbstractServer:
        if kind == "tcp":
            return await self.loop.create_server(self._accept, "127.0.0.1", 0)
        return await self.loop.create_unix_server(self._accept, self._socket_path())

    def _accept(self) -> End:
        end, self._accepting = self._accepting, None
        assert end is not None
        return end

    def settle(self) -> None:
        """Wait until all that was sent has come."""

        async def settle() -> None:
            for connection in self.connections:
                for end in connection.ends:
                    end.set_reading(True)
            await self.until(lambda: all(c.is_settled() for c in self.connections if c.strict))

        self.run(settle())

    def forget_ended(self) -> None:
        """Drop the connections that are over, once they have been looked at."""
        self.check()
        self.connections = [c for c in self.connections if any(end.stage != "lost" for end in c.ends)]

    def burst(self, rounds: int) -> None:
        """Everybody writes, now and then pauses, for so many turns; then all is to come."""

        async def burst() -> None:
            chance = self.chance
            ends = [end for c in self.connections if c.strict for end in c.ends if end.is_open]
            for _ in range(rounds):
                for end in ends:
                    if chance.random() < 0.7:
                        end.write(size_of(chance))
                    if chance.random() < 0.05:
                        end.set_reading(chance.random() < 0.5)
                await asyncio.sleep(0)
                if chance.random() < 0.3:
                    for end in ends:
                        end.set_reading(True)

        self.run(burst())
        self.settle()

    def end(self, connection: Connection, side: int, how: str) -> None:
        """`close` when all has come; or at once, and rudely: `slam`, `abort`."""
        end = connection.ends[side]
        if how == "close":
            self.settle()
        else:
            connection.be_rude()
            end.write(size_of(self.chance))
        (end.abort if how == "abort" else end.close)()
        self.run(self._see_off(end, how))
        self.forget_ended()

    async def _see_off(self, end: End, how: str) -> None:
        other = end.other
        if how == "close":
            await self.until(lambda: other.heard_eof or other.stage == "lost")
            other.close()
        else:
            for _ in range(self.chance.randint(0, 20)):
                await asyncio.sleep(0)
            other.abort()  # it may not read, and then what was slammed waits for ever
        await self.until(lambda: end.stage == other.stage == "lost")

    # --- other things ------------------------------------------------------------------------------------------------

    def exchange_datagrams(self, count: int) -> None:
        self.run(self._exchange_datagrams(count))

    async def _exchange_datagrams(self, count: int) -> None:
        there = await self._endpoint(local_addr=("127.0.0.1", 0))
        address = there[0].get_extra_info("sockname")
        here = await self._endpoint(remote_addr=address)
        sent = [number.to_bytes(DATAGRAM_BYTES, "big") * self.chance.randint(1, 20) for number in range(count)]
        for number, datagram in enumerate(sent):
            here[0].sendto(datagram)
            if self.chance.random() < 0.3:
                await asyncio.sleep(0)
            if number % 50 == 49:  # no more than the receiver's socket holds
                await self.until(lambda so_far=number: len(there[1].received) > so_far)
        await self.until(lambda: len(there[1].received) >= count)
        assert there[1].received == sent
        assert here[1].errors == there[1].errors == []
        for transport, _ in (here, there):
            transport.close()
        await asyncio.sleep(0)

    async def _endpoint(self, **addresses: Any) -> tuple[asyncio.DatagramTransport, Datagrams]:
        while True:
            try:
                return await self.loop.create_datagram_endpoint(Datagrams, **addresses)
            except OSError as exc:
                if exc.errno != errno.ENOMEM:  # the pool of buffers
                    raise

    def use_pipe(self, writes: int, *, by_two_threads: bool) -> None:
        pipe = Pipe(self.chance)
        self.run(pipe.open(self.loop))
        self.run(pipe.use(writes))
        if by_two_threads:
            self.change_threads()
            self.run(pipe.use(writes))
        self.run(pipe.close(self.until))

    def use_file(self, size: int) -> None:
        self.run(self._use_file(size))

    async def _use_file(self, size: int) -> None:
        content = self.chance.randbytes(size)
        path = Path(self.folder.name) / "file"
        async with uringloop.open(path, "w+b", buffering=0) as file:
            file._in_place = False  # by the ring, though the pages are in memory
            written = 0
            while written < size:
                written += await file.write(content[written:])
            await file.seek(0)
            read = b""
            while piece := await file.read(self.chance.randint(1, size)):
                read += piece
        assert read == content

    def use_socket(self, rounds: int) -> None:
        """The calls on plain sockets: a receive that is cancelled has taken nothing."""
        self.run(self._use_socket(rounds))

    async def _use_socket(self, rounds: int) -> None:
        loop, chance = self.loop, self.chance
        near, far = socket.socketpair()
        with near, far:
            near.setblocking(False)
            far.setblocking(False)
            for _ in range(rounds):
                data = chance.randbytes(chance.choice([10, 1000, LARGEST]))
                receiving = loop.create_task(loop.sock_recv(far, len(data)))
                await asyncio.sleep(0)
                receiving.cancel()
                sending = loop.create_task(loop.sock_sendall(near, data))
                received = b""
                with suppress(asyncio.CancelledError):
                    received = await receiving
                while len(received) < len(data):
                    received += await loop.sock_recv(far, len(data))
                await sending
                assert received == data

    def change_threads(self) -> None:
        """The next turns are another thread's, and so need a ring of their own."""
        failures: list[BaseException] = []

        def turns() -> None:
            try:
                self.burst(3)
            except BaseException as exc:
                failures.append(exc)

        thread = threading.Thread(target=turns)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """End everything; nothing may be left."""
        try:
            if not self.hangs:
                self._end_all()
        finally:
            self.abandon()
        with noticing():
            assert leaked_bytes() == self._leaked, "memory was left to the kernel"

    def _end_all(self) -> None:
        self.settle()
        for number, connection in enumerate(list(self.connections)):
            self.end(connection, number % 2, ("close", "slam", "abort")[number % 3])

        async def stop() -> None:
            for server in self.servers.values():
                server.close()
                await server.wait_closed()
            await self.until(lambda: not any(in_use(self.loop).values()))

        self.run(stop())

    def abandon(self) -> None:
        """Close the loop as it is."""
        for connection in self.connections:
            for end in connection.ends:
                end.abort()
        self.loop.close()
        self.folder.cleanup()


def make_loop(options: dict[str, int]) -> uringloop.Loop:
    compat.ACCEPT_RETRY_DELAY = SOON
    while True:
        try:
            return uringloop.Loop(**options)
        except OSError as exc:
            if exc.errno != errno.ENOMEM:
                raise


def in_use(loop: uringloop.Loop) -> dict[str, int]:
    """What must be nothing in the end."""
    stats = loop.stats()
    names = ["operations_in_flight", "slots_in_use", "buffers_in_use", "streams_open", "endpoints_open"]
    return {name: getattr(stats, name) for name in [*names, "datagram_buffers_in_use", "listeners_open"]}
