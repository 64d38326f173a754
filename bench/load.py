"""The load: what the load generators in C give, for a server."""

from .launch import Server
from .native import Result, run_generator, time_options
from .question import Run

PIECE_BYTES = 64 * 1024
"""Of a stream."""


def generate(
    server: Server,
    run: Run,
    *,
    connections: int,
    size: int,
    depth: int = 1,
    idle: int = 0,
    lines: bool = False,
    tls: bool = False,
) -> Result:
    """Requests of this size over connections that last, `depth` in flight on each that is not idle."""
    arguments = ["-p", str(server.pid), "-c", str(connections), "-s", str(size), "-d", str(depth)]
    arguments += ["-i", str(idle)] if idle else []
    arguments += ["-l"] if lines else []
    return run_generator("load-tls" if tls else "load", run, [*arguments, *time_options(run), server.address])


def connect(server: Server, run: Run, *, at_once: int, size: int) -> Result:
    """Connections that last for one request."""
    arguments = ["-p", str(server.pid), "-c", str(at_once), "-s", str(size)]
    return run_generator("connects", run, [*arguments, *time_options(run), server.address])


def stream(server: Server, run: Run, *, pieces: int, from_server: bool) -> Result:
    """So many pieces in one direction, over one connection; a request is a piece."""
    arguments = ["-p", str(server.pid), "-n", str(pieces)] + (["-r"] if from_server else [])
    return run_generator("stream", run, [*arguments, server.address])
