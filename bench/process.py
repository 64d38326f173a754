"""What does it cost to run a program, read what it says and wait for its end?

Each request over a connection is answered once a program has been run for it. The cost is the loop's process's own:
the spawn, which is CPython's on all loops but uvloop, the pipe, and the hearing of the end. What the program itself
costs is not counted.
"""

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable
from functools import partial

from . import load
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample
from .serving import serve_tcp

REQUEST_BYTES = 64


async def run_program() -> None:
    process = await asyncio.create_subprocess_exec("echo", "hello", stdin=DEVNULL, stdout=PIPE)
    output, _ = await process.communicate()
    if output != b"hello\n" or process.returncode != 0:
        raise RuntimeError(f"{output!r}, {process.returncode}")


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            request = await reader.readexactly(REQUEST_BYTES)
            await run_program()
            writer.write(request)
    except asyncio.IncompleteReadError:
        writer.close()


async def serve(announce: Callable[[str], None]) -> None:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    await serve_tcp(announce, server)


def measure(run: Run, *, connections: int) -> Sample:
    with running_server("process", run) as server:
        return load.generate(server, run, size=REQUEST_BYTES, connections=connections).sample()


QUESTION = Question(
    title="a program is spawned, read and waited for",
    unit="CPU us/process",
    cases=(
        Case("x1", partial(measure, connections=1), default=False),
        Case("x10", partial(measure, connections=10), target=Ratio(1.0)),
    ),
    serve=serve,
)
