"""What does a connection cost that is made for one request? Connect, 64 bytes there and back, close."""

from collections.abc import Callable
from functools import partial

from . import load
from .echo import Echo, serve_protocol
from .launch import running_server
from .question import Case, Question, Ratio, Run, Sample

REQUEST_BYTES = 64
BACKLOG = 1024
"""More than there are connections: a SYN that finds the backlog full is repeated a second later."""


async def serve(announce: Callable[[str], None]) -> None:
    await serve_protocol(announce, Echo, backlog=BACKLOG)


def measure(run: Run, *, at_once: int) -> Sample:
    with running_server("connections", run) as server:
        return load.connect(server, run, at_once=at_once, size=REQUEST_BYTES).sample()


QUESTION = Question(
    title="connect, 64 B there and back, close; over TCP",
    unit="CPU us/connection",
    cases=(
        Case("20 at a time", partial(measure, at_once=20), target=Ratio(1.1)),
        Case("200 at a time", partial(measure, at_once=200), target=Ratio(1.1)),
    ),
    serve=serve,
)
