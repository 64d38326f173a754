"""How much memory does a loop take, and how much a connection?

Memory is what is resident (RSS) of the measured process. That of an idle loop is the whole process's, interpreter and
imports included. That of a connection is the growth from ten connections to 10,000, each of which has had one message
answered. Memory of the kernel's, as socket buffers are, is the same for all and not counted.
"""

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from . import machine
from .echo import Echo, serve_protocol
from .launch import Server, running_server
from .question import Case, Failed, Question, Ratio, Run, Sample
from .serving import for_ever

KIB = 1024
FEW = 10
MESSAGE = bytes(range(64))
PATIENCE_SECONDS = 10
PORTS_OF_AN_ADDRESS = 20_000
"""Fewer than there are (28,232 by default)."""


async def serve(announce: Callable[[str], None], kind: str) -> None:
    if kind == "echo":
        await serve_protocol(announce, Echo)
    announce("nowhere")
    await for_ever()


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * KIB
    raise Failed("the server is gone")


def of_a_loop(run: Run) -> Sample:
    with running_server("memory", run, "idle") as server:
        return Sample(resident_bytes(server.pid) / KIB)


def connect(server: Server) -> Iterator[socket.socket]:
    """Opens one connection after the other, and waits for the answer to a message on each.

    They come from addresses of their own: the ports of others may be in TIME_WAIT.
    """
    host, _, port = server.address.partition(":")
    for number in itertools.count():
        source = f"127.{1 + server.pid // 256 % 254}.{server.pid % 256}.{1 + number // PORTS_OF_AN_ADDRESS}"
        connection = socket.create_connection((host, int(port)), PATIENCE_SECONDS, (source, 0))
        connection.sendall(MESSAGE)
        if connection.recv(len(MESSAGE), socket.MSG_WAITALL) != MESSAGE:
            raise Failed(f"connection {number} got another answer")
        yield connection


def of_a_connection(run: Run, *, connections: int) -> Sample:
    machine.raise_file_limit()
    with running_server("memory", run, "echo") as server, ExitStack() as opened:
        try:
            made = connect(server)
            for connection in itertools.islice(made, FEW):
                opened.enter_context(connection)
            before = resident_bytes(server.pid)
            for connection in itertools.islice(made, connections):
                opened.enter_context(connection)
        except OSError as error:
            raise Failed(f"a connection failed: {error}") from None
        return Sample((resident_bytes(server.pid) - before) / connections / KIB)


QUESTION = Question(
    title="resident memory of an idle loop, and of each of 10,000 idle connections",
    unit="KiB",
    cases=(
        Case("idle loop", of_a_loop, target=Ratio(1.0)),
        Case("a connection", partial(of_a_connection, connections=10_000), target=Ratio(1.0)),
    ),
    serve=serve,
)
