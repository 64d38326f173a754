"""What does it cost to answer a request through asyncio's streams?

A task a connection reads, writes and drains. A request is whatever has arrived, with one in flight; or a line of 64
bytes, with ten in flight: a client that does not wait for each answer.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from . import load
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample
from .serving import serve_tcp

KIB = 1024
READ_BYTES = 64 * KIB
LINE_BYTES, LINES_IN_FLIGHT = 64, 10


async def answer_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.close()


async def answer_lines(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


ANSWERS = {"bytes": answer_bytes, "lines": answer_lines}


async def serve(announce: Callable[[str], None], kind: str) -> None:
    server = await asyncio.start_server(ANSWERS[kind], "127.0.0.1", 0)
    await serve_tcp(announce, server)


def measure_bytes(run: Run, *, size: int, connections: int) -> Sample:
    with running_server("streams", run, "bytes") as server:
        return load.generate(server, run, size=size, connections=connections).sample()


def measure_lines(run: Run, *, connections: int) -> Sample:
    with running_server("streams", run, "lines") as server:
        return load.generate(
            server, run, size=LINE_BYTES, connections=connections, depth=LINES_IN_FLIGHT, lines=True
        ).sample()


QUESTION = Question(
    title="a task reads, writes and drains asyncio's streams, over TCP",
    unit="CPU us/request",
    cases=(
        Case("1KiBx50", partial(measure_bytes, size=KIB, connections=50), target=Ratio(1.1)),
        Case("lines 64Bx50", partial(measure_lines, connections=50), target=Ratio(1.1)),
    ),
    serve=serve,
)
