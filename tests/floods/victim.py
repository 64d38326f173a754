"""A server to flood, from outside: its process, what it tells, and a client that behaves beside the flood."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PATIENCE = 60.0  # seconds that the server may take to tell, or to be as it was before
REST = 15.0  # seconds in which it must be at rest again
LOOK = 0.02  # between two looks at whether it is
AFTER_LINES = 200  # lines that are sent when the flood is over

OPEN = ("lines_open", "sources_open", "deaf_open")


@dataclass(frozen=True)
class Told:
    """What the server says: bytes, seconds, and numbers by name."""

    rss: int
    peak: int
    cpu: float
    held: dict[str, int]
    counts: dict[str, int]


@dataclass(frozen=True)
class Service:
    """How long a line took to come back, seconds."""

    middle: float
    longest: float

    @classmethod
    def of(cls, took: list[float]) -> Service:
        return cls(statistics.median(took), max(took))


class Victim:
    def __init__(self, control: socket.socket) -> None:
        self._control = control.makefile("rwb")
        self.ports: dict[str, int] = json.loads(self._control.readline())

    def tell(self, command: str = "tell") -> Told:
        self._control.write(command.encode() + b"\n")
        self._control.flush()
        line = self._control.readline()
        if not line:
            raise ConnectionError("the server is gone")
        return Told(**json.loads(line))

    def address(self, name: str) -> tuple[str, int]:
        return ("127.0.0.1", self.ports[name])

    def wait_until(self, is_so: Callable[[Told], bool], seconds: float = PATIENCE) -> Told:
        until = time.monotonic() + seconds
        while True:
            told = self.tell()
            if is_so(told):
                return told
            if time.monotonic() > until:
                raise TimeoutError(f"after {seconds} s the server still tells {told}")
            time.sleep(LOOK)

    def at_rest(self, before: Told) -> Told:
        """What it holds once it holds no more than before; after a time, what it holds then."""

        def is_over(told: Told) -> bool:
            return not left(before, told)

        try:
            return self.wait_until(is_over, REST)
        except TimeoutError:
            return self.tell()

    def serve_after(self) -> Service:
        """Lines over a new connection."""
        took = []
        with socket.create_connection(self.address("lines"), timeout=PATIENCE) as sock, sock.makefile("rb") as answers:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(AFTER_LINES):
                began = time.perf_counter()
                sock.sendall(b"a line\n")
                assert answers.readline() == b"a line\n"
                took.append(time.perf_counter() - began)
        return Service.of(took)


def left(before: Told, after: Told) -> dict[str, int]:
    """What the server holds more than before."""
    more = {name: number - before.held[name] for name, number in after.held.items() if number > before.held[name]}
    return more | {name: after.counts[name] for name in OPEN if after.counts[name] > before.counts[name]}


@contextmanager
def victim(loop: str, patience: float, files: int | None) -> Iterator[Victim]:
    """A server on the loop that gives up on lines after `patience` seconds, and may have so many fds."""
    ours, its = socket.socketpair()
    environment: dict[str, Any] = os.environ | ({"FLOODS_FILES": str(files)} if files else {})
    command = [sys.executable, "-m", "tests.floods.server", loop, str(its.fileno()), str(patience)]
    process = subprocess.Popen(command, pass_fds=[its.fileno()], env=environment)
    its.close()
    ours.settimeout(PATIENCE)
    try:
        yield Victim(ours)
    finally:
        process.kill()
        process.wait()
        ours.close()


@contextmanager
def probe(server: Victim) -> Iterator[list[float]]:
    """A client that behaves, beside what is done within; what it has seen is in the list afterwards."""
    took: list[float] = []
    command = [sys.executable, "-m", "tests.floods.probe", str(server.ports["lines"])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "connected\n"
            yield took
            took += json.loads(process.communicate(timeout=PATIENCE)[0])
        finally:
            process.kill()
