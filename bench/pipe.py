"""What does it cost to echo over two pipes, `connect_read_pipe` and `connect_write_pipe`?

The load is this harness itself, on its own core: it writes a message to each of some FIFOs, and reads them back from as
many others before it writes the next. With one, the server sleeps before each.
"""

import asyncio
import os
import select
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from .launch import Server, running_server
from .question import Case, Failed, Question, Ratio, Run, Sample
from .serving import for_ever

KIB = 1024
PIPE_BYTES = 64 * KIB
"""What a pipe holds: a message must fit, since the harness writes all of it before it reads."""
ANSWER_MS = 10_000
TO_SERVER, FROM_SERVER = "to", "from"


class Echo(asyncio.Protocol):
    def __init__(self, writer: asyncio.WriteTransport) -> None:
        self._writer = writer

    def data_received(self, data: bytes) -> None:
        self._writer.write(data)


async def serve(announce: Callable[[str], None], folder: str, pairs: str) -> None:
    loop = asyncio.get_running_loop()
    kept = []
    for number in range(int(pairs)):
        to_write = os.fdopen(os.open(Path(folder, f"{FROM_SERVER}{number}"), os.O_WRONLY), "wb", 0)
        writer, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, to_write)
        to_read = os.fdopen(os.open(Path(folder, f"{TO_SERVER}{number}"), os.O_RDONLY), "rb", 0)
        kept.append(await loop.connect_read_pipe(partial(Echo, writer), to_read))
    announce(folder)
    await for_ever()


@contextmanager
def fifos(folder: Path, number: int) -> Iterator[tuple[int, int]]:
    """The ends of the harness: to the server, and from it. The first can be opened, and neither end waits, before there
    is a server."""
    to_server, from_server = folder / f"{TO_SERVER}{number}", folder / f"{FROM_SERVER}{number}"
    for path in (to_server, from_server):
        os.mkfifo(path)
    ends = os.open(to_server, os.O_RDWR), os.open(from_server, os.O_RDONLY | os.O_NONBLOCK)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def cpu_ns(server: Server) -> int:
    """Its CPU time, all threads."""
    return time.clock_gettime_ns(~server.pid << 3 | 2)  # what clock_getcpuclockid(3) gives


class Load:
    """One message in flight over each pair."""

    def __init__(self, pairs: list[tuple[int, int]], size: int) -> None:
        self._pairs = [(to_server, from_server, select.poll()) for to_server, from_server in pairs]
        for _, from_server, poll in self._pairs:
            poll.register(from_server, select.POLLIN)
        self._message = os.urandom(size)

    def exchange(self) -> None:
        for to_server, _, _ in self._pairs:
            os.write(to_server, self._message)
        for _, from_server, poll in self._pairs:
            if self._answer(from_server, poll) != self._message:
                raise Failed("the answer is another than what was sent")

    def _answer(self, from_server: int, poll: select.poll) -> bytes:
        answer = b""
        while len(answer) < len(self._message):
            if not poll.poll(ANSWER_MS):
                raise Failed(f"no answer within {ANSWER_MS // 1000} s")
            piece = os.read(from_server, PIPE_BYTES)
            if not piece:
                raise Failed("the server has closed the pipe")
            answer = answer + piece if answer else piece
        return answer

    def run(self, seconds: float) -> int:
        """How many messages were exchanged."""
        count, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.exchange()
            count += len(self._pairs)
        return count


def measure(run: Run, *, size: int, pairs: int) -> Sample:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        load = Load([stack.enter_context(fifos(Path(folder), number)) for number in range(pairs)], size)
        server = stack.enter_context(running_server("pipe", run, folder, str(pairs)))
        load.run(run.warm_up_seconds)
        began, before = time.perf_counter(), cpu_ns(server)
        count = load.run(run.seconds)
        used, took = cpu_ns(server) - before, time.perf_counter() - began
    return Sample(used / count / 1e3, {"requests/s": count / took, "CPU %": used / took / 1e7})


def case(name: str, *, size: int, pairs: int) -> Case:
    return Case(name, partial(measure, size=size, pairs=pairs), target=Ratio(1.0, against=("uvloop",)))


QUESTION = Question(
    title="a protocol writes back to one pipe what it reads from another",
    unit="CPU us/request",
    cases=(
        case("64Bx1", size=64, pairs=1),
        case("64Bx10", size=64, pairs=10),
        case("64KiBx1", size=PIPE_BYTES, pairs=1),
        case("64KiBx10", size=PIPE_BYTES, pairs=10),
    ),
    serve=serve,
)
