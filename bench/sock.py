"""What does it cost to answer a request over TCP with `sock_recv` and `sock_sendall`?

No transport, no protocol: a task a connection awaits the loop's socket methods. So the cost is theirs, with that of
the futures and tasks that they stand on.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial

from . import load
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample

KIB = 1024
RECEIVE_BYTES = 64 * KIB


async def answer(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with connection:
        while data := await loop.sock_recv(connection, RECEIVE_BYTES):
            await loop.sock_sendall(connection, data)


async def serve(announce: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    host, port = listener.getsockname()
    announce(f"{host}:{port}")
    answering = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        answering.add(asyncio.create_task(answer(connection)))


def measure(run: Run, *, size: int, connections: int) -> Sample:
    with running_server("sock", run) as server:
        return load.generate(server, run, size=size, connections=connections).sample()


def case(name: str, *, size: int, connections: int, ratio: float | None = None) -> Case:
    target = None if ratio is None else Ratio(ratio)
    return Case(name, partial(measure, size=size, connections=connections), target is not None, target)


QUESTION = Question(
    title="a task awaits sock_recv and sock_sendall, over TCP",
    unit="CPU us/request",
    cases=(
        case("1KiBx1", size=KIB, connections=1),
        case("1KiBx50", size=KIB, connections=50, ratio=1.1),
        case("100KiBx50", size=100 * KIB, connections=50),
    ),
    serve=serve,
)
