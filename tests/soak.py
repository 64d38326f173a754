"""python -m tests.soak --minutes N: a mixed load for so long, on a core that makes a few faults; nothing may grow.

The load is everything at once: echoes small and large, streams, TLS, datagrams, processes, files, connections that come
and go, and cancels of all of that. In a lull at the end of each interval a line says what the process holds. It exits
with 1 if after the warm-up, half of the time, the memory grows by more than 512 KiB; if a byte is wrong; or if in the
end anything is left: descriptors, slots, buffers, operations, tasks.

What leaks goes on growing in the second half. What has to be made once has been made by then, also on a slow machine.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import itertools
import os
import random
import resource
import socket
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trustme

import uringloop
from tests.faults import is_in_tree, run_in_tree, table
from uringloop.reactor import leaked_bytes

KIB = 1 << 10
GROWTH_MAX = 512 * KIB
WARM_UP = 1 / 2  # of the time
INTERVALS = 30
# So long may one turn of a worker take; what takes longer hangs.
PATIENCE = 60
LULL = 0.01  # seconds between two looks at whether all is quiet

Worker = Callable[["Soak"], Awaitable[None]]


class Gate:
    """Lets the turns of the workers through, or none."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.under_way = 0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        await self._open.wait()
        self.under_way += 1
        try:
            async with asyncio.timeout(PATIENCE):
                yield
        finally:
            self.under_way -= 1

    @asynccontextmanager
    async def lull(self) -> AsyncIterator[None]:
        self._open.clear()
        while self.under_way:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(LULL)
        yield
        self._open.set()


class Soak:
    """The servers, and what the workers share."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.chance = random.Random(seed)
        self.folder = folder
        self.gate = Gate()
        self.turns: dict[str, int] = {}
        self.numbers = itertools.count()
        authority = trustme.CA()
        self.server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self.server_tls)
        self.client_tls = ssl.create_default_context()
        authority.configure_trust(self.client_tls)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        echo = await loop.create_server(Echo, "127.0.0.1", 0)
        streams = await asyncio.start_server(echo_lines, "127.0.0.1", 0)
        tls = await loop.create_server(Echo, "127.0.0.1", 0, ssl=self.server_tls)
        self.echo, self.streams, self.tls = (server.sockets[0].getsockname() for server in (echo, streams, tls))
        yield
        for server in (echo, streams, tls):
            server.close()
            await server.wait_closed()

    async def work(self, worker: Worker) -> None:
        name = getattr(worker, "__name__", "")
        while True:
            async with self.gate.turn():
                await worker(self)
            self.turns[name] = self.turns.get(name, 0) + 1


class Echo(asyncio.Protocol):
    """Sends back what it gets, no faster than it is taken."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def echo_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


# ---------------------------------------------------------------------------------------------------------------------
# Workers: each does one thing a turn
# ---------------------------------------------------------------------------------------------------------------------


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    assert await reader.readexactly(len(data)) == data


@asynccontextmanager
async def connected(address: Any, **options: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address[:2], **options)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):  # where a cancel leaves it in the middle
            await writer.wait_closed()


async def small_echoes(soak: Soak) -> None:
    async with connected(soak.echo) as ends:
        for _ in range(200):
            await exchange(*ends, soak.chance.randbytes(soak.chance.randint(1, 1000)))


async def large_echoes(soak: Soak) -> None:
    async with connected(soak.echo) as (reader, writer):
        for _ in range(10):
            data = soak.chance.randbytes(soak.chance.randint(50 * KIB, 500 * KIB))
            _, echoed = await asyncio.gather(send_all(writer, data), reader.readexactly(len(data)))
            assert echoed == data


async def send_all(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def lines(soak: Soak) -> None:
    async with connected(soak.streams) as (reader, writer):
        for number in range(100):
            line = b"%d\n" % number * soak.chance.randint(1, 20)
            writer.write(line)
            assert await reader.readexactly(len(line)) == line
        writer.write_eof()
        assert await reader.read() == b""


async def tls_echoes(soak: Soak) -> None:
    async with connected(soak.tls, ssl=soak.client_tls, server_hostname="localhost") as ends:
        for _ in range(20):
            await exchange(*ends, soak.chance.randbytes(soak.chance.choice([10, 1000, 30_000])))


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.received.put_nowait(data)


async def datagrams(soak: Soak) -> None:
    loop = asyncio.get_running_loop()
    far, hears = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
    near, _ = await loop.create_datagram_endpoint(Datagrams, remote_addr=far.get_extra_info("sockname"))
    for _ in range(20):
        sent = [soak.chance.randbytes(soak.chance.randint(1, 1400)) for _ in range(soak.chance.randint(1, 20))]
        for datagram in sent:
            near.sendto(datagram)
        assert [await hears.received.get() for _ in sent] == sent
    near.close()
    far.close()


async def processes(soak: Soak) -> None:
    data = soak.chance.randbytes(soak.chance.randint(1, 100 * KIB))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("cat", stdin=pipe, stdout=pipe)
    out, _ = await process.communicate(data)
    assert out == data
    assert process.returncode == 0


async def files(soak: Soak) -> None:
    path = soak.folder / str(next(soak.numbers))
    data = soak.chance.randbytes(soak.chance.randint(1, 200 * KIB))
    async with uringloop.open(path, "w+b") as file:
        await file.write(data)
        await file.seek(0)
        assert await file.read() == data
    await uringloop.fs.unlink(path)


async def churn(soak: Soak) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_connection(*soak.echo[:2])
        await exchange(reader, writer, b"?")
        if soak.chance.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def cancels(soak: Soak) -> None:
    """Begin each of the other things, and cancel it somewhere in the middle."""
    for other in (small_echoes, large_echoes, lines, tls_echoes, churn, receives):
        task = asyncio.create_task(other(soak))  # type: ignore[arg-type]
        await asyncio.wait([task], timeout=soak.chance.random() * 0.02)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def receives(soak: Soak) -> None:
    """On plain sockets."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        for size in (1, 1000, 300_000):
            data = soak.chance.randbytes(size)
            sending = asyncio.create_task(loop.sock_sendall(near, data))
            try:
                received = b""
                while len(received) < size:
                    received += await loop.sock_recv(far, size)
                await sending
            finally:
                sending.cancel()
                with suppress(asyncio.CancelledError):
                    await sending
            assert received == data


WORKERS: list[Worker] = [
    *[small_echoes] * 8,
    *[large_echoes] * 2,
    *[lines] * 3,
    *[tls_echoes] * 3,
    *[datagrams] * 2,
    *[processes, files, files, churn, churn, cancels, cancels, receives],
]


# ---------------------------------------------------------------------------------------------------------------------
# Watching
# ---------------------------------------------------------------------------------------------------------------------


def resident() -> int:
    """Memory of this process, bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def held(loop: uringloop.Loop) -> dict[str, int]:
    stats = loop.stats()
    names = ["operations_in_flight", "slots_in_use", "buffers_in_use", "streams_open", "endpoints_open"]
    numbers = {name: getattr(stats, name) for name in [*names, "datagram_buffers_in_use", "listeners_open"]}
    return numbers | {"fds": len(os.listdir("/proc/self/fd")), "tasks": len(asyncio.all_tasks())}


def faults_made() -> dict[str, int]:
    import faulty

    return faulty.counts()


class Watch:
    """Says what the process holds, and whether it has grown."""

    def __init__(self, seconds: float) -> None:
        self.began = time.monotonic()
        self.warm_at = seconds * WARM_UP
        self.warm = self.most = 0  # the most that it held in the warm-up, and altogether

    def look(self, soak: Soak, loop: uringloop.Loop) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps of what was freed goes up and down by chance
        memory, now = resident(), time.monotonic() - self.began
        if now <= self.warm_at:
            self.warm = max(self.warm, memory)
        self.most = max(self.most, memory)
        numbers = held(loop) | {"turns": sum(soak.turns.values()), "faults": sum(faults_made().values())}
        told = " ".join(f"{name}={number}" for name, number in numbers.items())
        print(f"{now:6.0f} s  rss={memory // KIB} KiB  {told}", flush=True)


async def soak_for(seconds: float, seed: int, folder: Path) -> Watch:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, uringloop.Loop)
    soak = Soak(seed, folder)
    watch = Watch(seconds)
    async with soak.serving():
        at_rest = held(loop)
        workers = [asyncio.create_task(soak.work(worker)) for worker in WORKERS]
        for interval in itertools.count(1):
            until = watch.began + seconds * interval / INTERVALS
            done, _ = await asyncio.wait(workers, timeout=until - time.monotonic(), return_when=asyncio.FIRST_COMPLETED)
            for failed in done:
                failed.result()
            async with soak.gate.lull():
                await eventually_at_rest(loop, at_rest | {"tasks": len(workers) + 1})
                watch.look(soak, loop)
            if interval == INTERVALS:
                break
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    nothing = dict.fromkeys(at_rest, 0) | {"tasks": 1, "fds": at_rest["fds"] - 3}  # but for the three servers
    await eventually_at_rest(loop, nothing)
    print(f"turns: {soak.turns}\nin the end: {held(loop)}\nfaults:\n{table(faults_made())}", flush=True)
    return watch


async def eventually_at_rest(loop: uringloop.Loop, expected: dict[str, int]) -> None:
    """What is on its way to the end gets there."""
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while held(loop) != expected:  # noqa: ASYNC110 - nothing announces it
                await asyncio.sleep(LULL)
    left = {name: number for name, number in held(loop).items() if number != expected[name]}
    assert not left, f"left over: {left}, expected {expected}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    if not is_in_tree():
        return run_in_tree("tests.soak", sys.argv[1:])
    import faulty

    seed = int.from_bytes(os.urandom(4), "big") if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    uringloop.probe()  # of the kernel as it is
    faulty.set_seed(seed)
    faulty.set_rates(faulty.FEW)
    with tempfile.TemporaryDirectory() as folder:
        watch = uringloop.run(soak_for(arguments.minutes * 60, seed, Path(folder)))
    faulty.set_rates({})
    growth, leaked = watch.most - watch.warm, leaked_bytes()
    print(f"after the warm-up the memory grew by {growth // KIB} KiB at the most; {GROWTH_MAX // KIB} are allowed")
    print(f"left to the kernel: {leaked} bytes")
    return int(growth > GROWTH_MAX or leaked > 0)


if __name__ == "__main__":
    sys.exit(main())
