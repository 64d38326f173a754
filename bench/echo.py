"""What does it cost to answer a request over TCP?

The least that a server can do: a Protocol writes back what it reads. So the cost is the loop's and the kernel's own,
user and system time together, and what an application saves by changing its loop is the difference in this number.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

from . import load
from .launch import running_server
from .question import Case, Question, Run, Sample

KIB = 1024
MIB = 1024 * KIB


class Echo(asyncio.Protocol):
    """Knows nothing of messages and keeps nothing: bytes go back in the pieces in which the loop hands them over."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def serve(announce: Callable[[str], None]) -> None:
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    announce(f"{host}:{port}")
    await server.serve_forever()


def measure(run: Run, *, size: int, connections: int) -> Sample:
    with running_server("echo", run) as server:
        return load.generate(server, run, size=size, connections=connections).sample()


def case(name: str, *, size: int, connections: int, default: bool = True) -> Case:
    return Case(name, partial(measure, size=size, connections=connections), default)


QUESTION = Question(
    title="an asyncio.Protocol writes back what it reads, over TCP",
    unit="CPU us/request",
    cases=(
        case("64Bx1", size=64, connections=1),
        case("1KiBx1", size=KIB, connections=1),
        case("1KiBx50", size=KIB, connections=50),
        case("1KiBx1000", size=KIB, connections=1000),
        case("1KiBx10000", size=KIB, connections=10_000, default=False),
        case("10KiBx50", size=10 * KIB, connections=50, default=False),
        case("100KiBx50", size=100 * KIB, connections=50, default=False),
        case("1MiBx10", size=MIB, connections=10, default=False),
    ),
    serve=serve,
)
