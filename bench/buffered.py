"""What does it cost to answer a request by a `BufferedProtocol`?

The loop receives into the protocol's own buffer, and so the protocol has to copy what it sends: the buffer is the next
receive's.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import cast

from . import load
from .echo import serve_protocol
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample

KIB = 1024
BUFFER_BYTES = 256 * KIB


class BufferedEcho(asyncio.BufferedProtocol):
    """Has one buffer for all its life."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._transport.write(bytes(self._buffer[:nbytes]))


async def serve(announce: Callable[[str], None]) -> None:
    await serve_protocol(announce, BufferedEcho)


def measure(run: Run, *, size: int, connections: int) -> Sample:
    with running_server("buffered", run) as server:
        return load.generate(server, run, size=size, connections=connections).sample()


QUESTION = Question(
    title="an asyncio.BufferedProtocol writes back what it reads, over TCP",
    unit="CPU us/request",
    cases=(
        Case("1KiBx50", partial(measure, size=KIB, connections=50), target=Ratio(1.1)),
        Case("100KiBx50", partial(measure, size=100 * KIB, connections=50), target=Ratio(1.0)),
    ),
    serve=serve,
)
