"""What do callbacks, tasks, timers and threads cost? No I/O: the loop's own machinery.

A request over a connection is answered once an operation has been done many times, so often that what the request
itself costs does not show.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from . import load
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample
from .serving import serve_tcp

REQUEST_BYTES = 64
BATCH = 1000
TASKS = 100
TIMER_SECONDS = 60
THREAD_SECONDS = 10
"""In which a callback is run, or something hangs."""


async def chain(count: int) -> None:
    """Each callback schedules the next."""
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def call(left: int) -> None:
        if left > 0:
            loop.call_soon(call, left - 1)
        else:
            done.set_result(None)

    loop.call_soon(call, count)
    await done


async def batches(count: int) -> None:
    """1,000 callbacks in one turn of the loop."""
    loop = asyncio.get_running_loop()

    def nothing() -> None:
        pass

    for _ in range(count):
        done = loop.create_future()
        for _ in range(BATCH - 1):
            loop.call_soon(nothing)
        loop.call_soon(done.set_result, None)
        await done


async def sleeps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def gathers(count: int) -> None:
    """100 tasks that give way once each."""
    for _ in range(count):
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(TASKS)))


async def timers(count: int) -> None:
    """A timer that is cancelled long before it is due, as timeouts are."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        loop.call_later(TIMER_SECONDS, print).cancel()


async def executor(count: int) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.run_in_executor(None, int)


async def wakes(count: int) -> None:
    """A thread has the loop call it back, and waits for that before it goes on."""
    loop = asyncio.get_running_loop()
    called = threading.Semaphore(0)

    def ask() -> None:
        for _ in range(count):
            loop.call_soon_threadsafe(called.release)
            if not called.acquire(timeout=THREAD_SECONDS):
                raise TimeoutError("the callback was not called")

    await loop.run_in_executor(None, ask)


@dataclass(frozen=True)
class Operation:
    do: Callable[[int], Awaitable[None]]
    count: int
    """How many of them a request asks for: some milliseconds' worth."""


OPERATIONS: Mapping[str, Operation] = {
    "call_soon, a chain": Operation(chain, 10_000),
    "call_soon, 1,000 in a turn": Operation(batches, 20),
    "sleep(0)": Operation(sleeps, 10_000),
    "gather of 100 tasks": Operation(gathers, 50),
    "call_later and cancel": Operation(timers, 10_000),
    "run_in_executor": Operation(executor, 200),
    "call_soon_threadsafe": Operation(wakes, 200),
}


async def serve(announce: Callable[[str], None], name: str) -> None:
    operation = OPERATIONS[name]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readexactly(REQUEST_BYTES)
                await operation.do(operation.count)
                writer.write(request)
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    await serve_tcp(announce, server)


def measure(run: Run, *, name: str) -> Sample:
    with running_server("schedule", run, name) as server:
        result = load.generate(server, run, size=REQUEST_BYTES, connections=1)
        return result.sample_of_many(OPERATIONS[name].count)


QUESTION = Question(
    title="callbacks, tasks, timers and threads",
    unit="CPU us/operation",
    cases=tuple(Case(name, partial(measure, name=name), target=Ratio(1.0, against=("uvloop",))) for name in OPERATIONS),
    serve=serve,
)
