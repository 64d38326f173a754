"""Starts a measured process, waits until it is ready, and makes sure that it goes away.

Nothing here trusts the process: it may crash, hang or print nonsense, and each of these becomes a `Failed` with a
reason within a bounded time.
"""

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO

from .question import Failed, Run
from .server import READY

READY_SECONDS = 20
"""From exec to `ready`: a fraction of a second, unless the machine is busy or its caches are cold."""

KILL_SECONDS = 10
"""A killed process is gone at once, unless the kernel is stuck in it. Then the run goes on without it."""

ANNOUNCEMENT_BYTES = 4096
"""More than any announcement; what is longer is not one."""

NOT_INHERITED = {
    "PYTHONASYNCIODEBUG": "debug mode slows the loops, each in its own measure",
    "PYTHONDEVMODE": "implies debug mode",
    "PYTHONDONTWRITEBYTECODE": "a loop in Python would be compiled at each start, which takes memory that is kept",
    "URINGLOOP_FALLBACK": "a loop that cannot run must fail",
}
"""Environment variables that the measured process must not see, and why."""


when_ready: Callable[[int], None] | None = None
"""Called with the process id of each server, for whoever wants to watch it."""


@dataclass(frozen=True)
class Server:
    address: str
    pid: int


@contextmanager
def running_server(question: str, run: Run, *arguments: str) -> Iterator[Server]:
    """The question's server on the run's loop."""
    command = [sys.executable, "-m", f"{__package__}.server", question, *arguments]
    with running([*command, "--loop", run.loop, "--core", str(run.cores.server)]) as server:
        yield server


@contextmanager
def running(command: Sequence[str]) -> Iterator[Server]:
    """What the command serves. If the body fails and the server has died, its last words are kept."""
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, env=environment, process_group=0
        )
        try:
            server = Server(_wait_ready(process), process.pid)
            if when_ready is not None:
                when_ready(server.pid)
            yield server
        except Failed as failure:
            raise Failed(_blame(failure, process, stderr)) from failure
        finally:
            _kill(process)


def _wait_ready(process: subprocess.Popen[bytes]) -> str:
    """Reads the announcement. A line may come in pieces and need not end, so a `readline` could wait forever."""
    assert process.stdout is not None
    deadline = time.monotonic() + READY_SECONDS
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise Failed(f"the server was not ready within {READY_SECONDS} s")
        piece = os.read(process.stdout.fileno(), ANNOUNCEMENT_BYTES)
        line += piece
        if not piece:
            raise Failed("the server ended before it was ready")
        if len(line) > ANNOUNCEMENT_BYTES:
            break
    text = line.decode(errors="replace").strip()
    if not text.startswith(READY):
        raise Failed(f"the server said {text[:80]!r}")
    return text.removeprefix(READY)


def _blame(failure: Failed, process: subprocess.Popen[bytes], stderr: IO[bytes]) -> str:
    """What failed, and how the server ended if it did."""
    try:
        # A server that crashed may still be on its way out when its client sees the connections go.
        status = process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        return str(failure)
    end = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    stderr.seek(0)
    words = stderr.read().decode(errors="replace").strip().splitlines()
    return f"{failure} (server: {': '.join([end, *words[-1:]])})"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and whatever it started."""
    with suppress(ProcessLookupError):  # already reaped, and alone
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    try:
        process.wait(timeout=KILL_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed("the server cannot be killed") from None
