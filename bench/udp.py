"""What does it cost to answer a datagram?

The least that a server can do: a DatagramProtocol sends back what it is given, to where it came from. A client keeps a
window of datagrams in flight, so that a turn of the loop brings several, as it does to a busy server.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from . import load
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample
from .serving import for_ever

KIB = 1024


class Echo(asyncio.DatagramProtocol):
    """Keeps nothing."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:
        self._transport.sendto(data, addr)


async def serve(announce: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    host, port = transport.get_extra_info("sockname")
    announce(f"udp:{host}:{port}")
    await for_ever()


def measure(run: Run, *, size: int, clients: int, window: int) -> Sample:
    with running_server("udp", run) as server:
        return load.generate(server, run, size=size, connections=clients, depth=window).sample()


def case(name: str, *, size: int, clients: int, window: int, ratio: float | None = None) -> Case:
    target = None if ratio is None else Ratio(ratio)
    return Case(name, partial(measure, size=size, clients=clients, window=window), target is not None, target)


QUESTION = Question(
    title="an asyncio.DatagramProtocol sends back what it is given, over UDP",
    unit="CPU us/datagram",
    cases=(
        case("64Bx1", size=64, clients=1, window=1),
        case("64Bx32", size=64, clients=1, window=32, ratio=1.0),
        case("1KiBx32", size=KIB, clients=1, window=32, ratio=1.0),
        case("64Bx50 of 50", size=64, clients=50, window=1, ratio=1.0),
    ),
    serve=serve,
)
