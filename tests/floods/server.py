"""The server that is flooded: python -m tests.floods.server LOOP CONTROL_FD PATIENCE

It announces its ports on the control socket, and tells what it has done and what it holds whenever a line comes there.
That it answers at all shows that the loop lives. It ends when the control socket does.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

CHUNK = bytes(16 * 1024)
DEAF: set[asyncio.Transport] = set()


@dataclass
class Counts:
    lines_open: int = 0
    sources_open: int = 0
    deaf_open: int = 0
    answered: int = 0
    timed_out: int = 0
    written: int = 0  # bytes, by the sources
    datagrams: int = 0
    complaints: int = 0  # to the exception handler


class Lines(asyncio.Protocol):
    """Sends each line back, and gives up on a peer that does not end one in time."""

    transport: asyncio.Transport

    def __init__(self, counts: Counts, patience: float) -> None:
        self._counts = counts
        self._patience = patience
        self._begun = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._counts.lines_open += 1
        self._restart_timer()

    def _restart_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._patience, self._give_up)

    def _give_up(self) -> None:
        self._counts.timed_out += 1
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        if not lines:
            self._begun += rest
            return
        lines[0] = bytes(self._begun) + lines[0]
        self._begun = bytearray(rest)
        self._counts.answered += len(lines)
        self.transport.writelines([line + b"\n" for line in lines])
        self._timer.cancel()
        self._restart_timer()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._timer.cancel()
        self._counts.lines_open -= 1


class Source(asyncio.Protocol):
    """Writes without end, but for flow control."""

    transport: asyncio.Transport

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._counts.sources_open += 1
        self._pump()

    def _pump(self) -> None:
        while not self._full and not self.transport.is_closing():
            self.transport.write(CHUNK)
            self._counts.written += len(CHUNK)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._pump()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._full = True
        self._counts.sources_open -= 1


class Deaf(asyncio.Protocol):
    """Never reads, after the first bytes."""

    transport: asyncio.Transport

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._counts.deaf_open += 1
        DEAF.add(self.transport)

    def data_received(self, data: bytes) -> None:
        self.transport.pause_reading()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._counts.deaf_open -= 1
        DEAF.discard(self.transport)


class Datagrams(asyncio.DatagramProtocol):
    """Sends back what begins with a question mark, and counts the rest."""

    transport: asyncio.DatagramTransport

    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._counts.datagrams += 1
        if data.startswith(b"?"):
            self.transport.sendto(data, addr)


def new_event_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.SelectorEventLoop()
    module = __import__(name)
    loop: asyncio.AbstractEventLoop = module.new_event_loop()
    return loop


def memory() -> dict[str, int]:
    """Of this process now, and the most since `begin`, bytes."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[field].split()[0]) * 1024 for name, field in (("rss", "VmRSS"), ("peak", "VmHWM"))}


def begin() -> None:
    """Let the peak of the memory be counted from here on (proc(5), clear_refs)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def held(loop: Any) -> dict[str, int]:
    """What must be as before when a flood is over."""
    numbers = {"fds": len(os.listdir("/proc/self/fd")), "tasks": len(asyncio.all_tasks(loop))}
    if hasattr(loop, "stats"):
        stats = loop.stats()
        names = ("operations_in_flight", "slots_in_use", "buffers_in_use", "datagram_buffers_in_use", "streams_open")
        numbers |= {name: getattr(stats, name) for name in names}
    return numbers


@contextmanager
def fds_to_tell_with() -> Iterator[None]:
    """A server that is out of fds has a few more to look at itself with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def serve(control: socket.socket, patience: float) -> None:
    loop = asyncio.get_running_loop()
    counts = Counts()

    def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        counts.complaints += 1

    loop.set_exception_handler(complain)
    factories: dict[str, Callable[[], asyncio.Protocol]] = {
        "lines": lambda: Lines(counts, patience),
        "source": lambda: Source(counts),
        "deaf": lambda: Deaf(counts),
    }
    ports = {}
    servers = []
    for name, factory in factories.items():
        server = await loop.create_server(factory, "127.0.0.1", 0, backlog=1024)
        servers.append(server)
        ports[name] = server.sockets[0].getsockname()[1]
    datagrams, _ = await loop.create_datagram_endpoint(lambda: Datagrams(counts), local_addr=("127.0.0.1", 0))
    ports["datagrams"] = datagrams.get_extra_info("sockname")[1]
    reader, writer = await asyncio.open_connection(sock=control)
    writer.write(json.dumps(ports).encode() + b"\n")
    while command := await reader.readline():
        if command == b"drop\n":
            for transport in list(DEAF):
                transport.abort()
        with fds_to_tell_with():
            if command == b"begin\n":
                begin()
            told = memory() | {"cpu": time.process_time(), "held": held(loop), "counts": asdict(counts)}
        writer.write(json.dumps(told).encode() + b"\n")
    writer.close()
    os._exit(0)  # with all connections as they are


def main() -> None:
    name, fd, patience = sys.argv[1:]
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if soft := os.environ.get("FLOODS_FILES"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(soft), int(soft) + 16))
    with asyncio.Runner(loop_factory=lambda: new_event_loop(name)) as runner:
        runner.run(serve(socket.socket(fileno=int(fd)), float(patience)))


if __name__ == "__main__":
    main()
