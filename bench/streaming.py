"""What does it cost to send or to receive a lot? One connection, 1 GiB in one direction, in writes of 64 KiB.

The server writes until its transport says that it has enough, and goes on when that has room again. The amount is what
is given: a measurement of half the time moves half of it.
"""

import asyncio
import struct
from collections.abc import Callable
from functools import partial
from typing import cast

from . import load
from .echo import serve_protocol
from .launch import running_server
from .question import DEFAULT_SECONDS, Case, Question, Ratio, Run, Sample

PIECE = bytes(range(256)) * 256
PIECES_A_SECOND = 1024**3 / len(PIECE) / DEFAULT_SECONDS
REQUEST = struct.Struct("!cQ")
"""`S` or `R`, the server is to send or to receive; and how many bytes. See `native/stream.c`."""


class Stream(asyncio.Protocol):
    """Serves one request after another."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._head = b""
        self._asked = self._received = self._to_send = 0
        self._paused = False

    def data_received(self, data: bytes) -> None:
        if self._asked == 0:
            self._begin(self._head + data)
        else:
            self._count(len(data))

    def _begin(self, head: bytes) -> None:
        self._head = head
        if len(head) < REQUEST.size:
            return
        direction, count = REQUEST.unpack_from(head)
        self._head = b""
        if direction == b"S":
            self._to_send = count
            self._send()
        else:
            self._asked, self._received = count, 0
            self._count(len(head) - REQUEST.size)

    def _count(self, received: int) -> None:
        self._received += received
        if self._received >= self._asked:
            self._transport.write(struct.pack("!Q", self._received))
            self._asked = 0

    def _send(self) -> None:
        while self._to_send > 0 and not self._paused:
            self._to_send -= len(PIECE)
            self._transport.write(PIECE)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()


async def serve(announce: Callable[[str], None]) -> None:
    await serve_protocol(announce, Stream)


def measure(run: Run, *, from_server: bool) -> Sample:
    pieces = max(16, round(PIECES_A_SECOND * run.seconds))
    with running_server("streaming", run) as server:
        result = load.stream(server, run, pieces=pieces, from_server=from_server)
    took, mib = result.seconds, pieces * len(PIECE) / 1024**2
    details = {"MiB/s": mib / took, "CPU %": result.cpu_ns / took / 1e7, "preempted/s": result.preempted / took}
    return Sample(result.cpu_ns / mib / 1e3, details)


QUESTION = Question(
    title="1 GiB in one direction over one connection, in writes of 64 KiB",
    unit="CPU us/MiB",
    cases=(
        Case("to the server", partial(measure, from_server=False), target=Ratio(1.0)),
        Case("from the server", partial(measure, from_server=True), target=Ratio(1.0)),
    ),
    serve=serve,
)
