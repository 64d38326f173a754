"""What does it cost to answer a request over TCP?

The least that a server can do: a Protocol writes back what it reads. So the cost is the loop's and the kernel's own,
user and system time together, and what an application saves by changing its loop is the difference in this number.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from . import load
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample
from .serving import serve_tcp

KIB = 1024
MIB = 1024 * KIB


class Echo(asyncio.Protocol):
    """Knows nothing of messages and keeps nothing: bytes go back in the pieces in which the loop hands them over."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


async def serve_protocol(
    announce: Callable[[str], None], factory: Callable[[], asyncio.BaseProtocol], **options: Any
) -> None:
    """Over TCP; the options are those of `create_server`."""
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0, **options)
    await serve_tcp(announce, server)


async def serve(announce: Callable[[str], None]) -> None:
    await serve_protocol(announce, Echo)


def measure(run: Run, *, size: int, connections: int) -> Sample:
    with running_server("echo", run) as server:
        return load.generate(server, run, size=size, connections=connections).sample()


def case(name: str, *, size: int, connections: int, ratio: float | None = None) -> Case:
    target = None if ratio is None else Ratio(ratio)
    return Case(name, partial(measure, size=size, connections=connections), target is not None, target)


QUESTION = Question(
    title="an asyncio.Protocol writes back what it reads, over TCP",
    unit="CPU us/request",
    cases=(
        case("64Bx1", size=64, connections=1, ratio=1.0),
        case("1KiBx1", size=KIB, connections=1),
        case("1KiBx50", size=KIB, connections=50, ratio=1.1),
        case("1KiBx1000", size=KIB, connections=1000, ratio=1.1),
        case("1KiBx10000", size=KIB, connections=10_000, ratio=1.15),
        case("10KiBx50", size=10 * KIB, connections=50, ratio=1.05),
        case("100KiBx50", size=100 * KIB, connections=50, ratio=1.0),
        case("1MiBx10", size=MIB, connections=10, ratio=1.0),
    ),
    serve=serve,
)
