"""The floods: what each sends, and what a server may hold and use meanwhile."""

from __future__ import annotations

import errno
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import uringloop

from .victim import Told, Victim

KIB, MIB = 1 << 10, 1 << 20
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER
FOREVER = 3600.0


@dataclass(frozen=True)
class Size:
    """How much of everything: connections at once, seconds, and events a second."""

    connections: int
    seconds: float
    rate: int = 0


@dataclass(frozen=True)
class Outcome:
    """What was sent, in words, and what the server told while the flood was at its highest."""

    sent: str
    height: Told


Attack = Callable[[Victim, Size, random.Random], Outcome]


@dataclass(frozen=True)
class Flood:
    name: str
    attack: Attack
    whole: Size
    small: Size
    memory: Callable[[Size], int]  # bytes that the server may grow by
    did: Callable[[dict[str, int]], str]  # its counts, in words
    cpu: float | None = None  # of a core, that it may use on average
    patience: float = FOREVER  # seconds that the server gives a line
    files: int | None = None  # fds that the server may have
    fills_kernel: bool = (
        False  # memory that the kernel touches first costs CPU, whichever loop comes first: one run is for that
    )


def until_told_to_stop() -> int:
    """Bytes that the kernel receives of one connection after its protocol has paused reading: 64 KiB in the turn of the
    pause, and as much in the next; where a receive does not end by itself, the buffer pool of 1 MiB instead."""
    return 128 * KIB if uringloop.probe().limited_receives else 2 * MIB


def connect_all(stack: ExitStack, address: Any, count: int) -> list[socket.socket]:
    return [stack.enter_context(socket.create_connection(address, timeout=FOREVER)) for _ in range(count)]


def fill(sock: socket.socket) -> int:
    """Write until the socket takes no more; bytes."""
    sock.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(64 * KIB))
    return sent


def slowloris(victim: Victim, size: Size, chance: random.Random) -> Outcome:
    with ExitStack() as stack:
        sockets = connect_all(stack, victim.address("lines"), size.connections)
        began = time.monotonic()
        for second in range(int(size.seconds)):
            for sock in sockets:
                sock.send(b"x")
            time.sleep(max(0.0, began + second + 1 - time.monotonic()))
        height = victim.wait_until(lambda told: told.counts["lines_open"] >= size.connections)
    return Outcome(f"{size.connections:,} connections, a byte a second each, {size.seconds:.0f} s", height)


def never_reading(victim: Victim, size: Size, chance: random.Random) -> Outcome:
    with ExitStack() as stack:
        connect_all(stack, victim.address("source"), size.connections)
        victim.wait_until(lambda told: told.counts["sources_open"] == size.connections)
        time.sleep(size.seconds)  # whatever grows has the time to
        height = victim.tell()
    return Outcome(f"{size.connections:,} clients that read nothing for {size.seconds:.0f} s", height)


def never_stopping(victim: Victim, size: Size, chance: random.Random) -> Outcome:
    sent = 0
    with ExitStack() as stack:
        sockets = connect_all(stack, victim.address("deaf"), size.connections)
        until = time.monotonic() + size.seconds
        while time.monotonic() < until:
            sent += sum(map(fill, sockets))
        height = victim.tell()
        victim.tell("drop")  # whoever does not read does not hear of the end
    return Outcome(
        f"{size.connections:,} clients that write for {size.seconds:.0f} s all that fits: {sent / MIB:.0f} MiB", height
    )


def more_than_fds(victim: Victim, size: Size, chance: random.Random) -> Outcome:
    with ExitStack() as stack:
        for _ in range(size.connections):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            assert sock.connect_ex(victim.address("lines")) in (0, errno.EINPROGRESS)
        time.sleep(size.seconds)
        height = victim.tell()
    return Outcome(f"{size.connections:,} connections at once to a server of 256 fds, for {size.seconds:.0f} s", height)


def half_open(victim: Victim, size: Size, chance: random.Random) -> Outcome:
    with ExitStack() as stack:
        for number in range(size.connections):
            (sock,) = connect_all(stack, victim.address("lines"), 1)
            sock.send(b"half a li")  # each at once: the server gives up on those that have been open for a second
            if number % 3 == 1:
                sock.shutdown(socket.SHUT_WR)
            elif number % 3 == 2:
                sock.close()
        height = victim.tell()
        victim.wait_until(lambda told: told.counts["timed_out"] >= size.connections // 3)
        victim.wait_until(lambda told: told.counts["lines_open"] <= 1)  # the probe's
    return Outcome(
        f"Half a line on {size.connections:,} connections; a third falls silent, one shuts its side, one closes",
        height,
    )


def resets(victim: Victim, size: Size, chance: random.Random) -> Outcome:
    began, sent = time.monotonic(), 0
    for second in range(int(size.seconds)):
        for _ in range(size.rate):
            sock = socket.create_connection(victim.address(chance.choice(["lines", "source", "deaf"])))
            if chance.random() < 0.5:
                sock.send(b"some line\nhalf a li")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.close()
            sent += 1
        time.sleep(max(0.0, began + second + 1 - time.monotonic()))
    lasted = time.monotonic() - began
    return Outcome(f"{sent:,} connections that are reset, {sent / lasted:,.0f} a second", victim.tell())


def datagrams(victim: Victim, size: Size, chance: random.Random) -> Outcome:
    payloads = [b"!" + chance.randbytes(chance.randint(0, 1400)) for _ in range(64)]
    sent = 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(victim.address("datagrams"))
        until = time.monotonic() + size.seconds
        while time.monotonic() < until:
            for payload in payloads:
                sock.send(payload)
            sent += len(payloads)
        height = victim.tell()
        sock.settimeout(10)
        sock.send(b"?")  # and it still answers
        assert sock.recv(10) == b"?"
    return Outcome(f"{sent:,} datagrams of 1 to 1,401 bytes in {size.seconds:.0f} s", height)


FLOODS = [
    Flood(
        "slowloris",
        slowloris,
        Size(10_000, 20),
        Size(300, 2),
        memory=lambda size: 2 * MIB + 10 * KIB * size.connections,
        did=lambda counts: f"held {counts['lines_open'] - 1:,} connections",
    ),
    Flood(
        "a reader that never reads",
        never_reading,
        Size(500, 10),
        Size(50, 1),
        # The write limit, and the one write that goes over it; and what a connection costs.
        memory=lambda size: 2 * MIB + (64 + 16 + 10) * KIB * size.connections,
        did=lambda counts: f"wrote {counts['written'] / MIB:.0f} MiB, then waited",
        fills_kernel=True,
    ),
    Flood(
        "a writer that never stops",
        never_stopping,
        Size(500, 10),
        Size(50, 1),
        memory=lambda size: 2 * MIB + (until_told_to_stop() + 10 * KIB) * size.connections,
        did=lambda counts: f"held {counts['deaf_open']:,} connections, read no more",
        fills_kernel=True,
    ),
    Flood(
        "more connections than fds",
        more_than_fds,
        Size(2_000, 10),
        Size(600, 2),
        memory=lambda size: 4 * MIB,
        did=lambda counts: f"accepted {counts['lines_open'] - 1:,}; {counts['complaints']:,} complaints",
        cpu=0.25,
        files=256,
    ),
    Flood(
        "half-open connections",
        half_open,
        Size(3_000, 0),
        Size(150, 0),
        memory=lambda size: 2 * MIB + 10 * KIB * size.connections,
        did=lambda counts: f"gave up on {counts['timed_out']:,}",
        patience=1,
    ),
    Flood(
        "resets",
        resets,
        Size(1, 20, 1_000),
        Size(1, 2, 200),
        memory=lambda size: 8 * MIB,
        did=lambda counts: f"answered {counts['answered']:,} lines; {counts['complaints']:,} complaints",
    ),
    Flood(
        "datagrams",
        datagrams,
        Size(1, 10),
        Size(1, 1),
        memory=lambda size: 4 * MIB,
        did=lambda counts: f"received {counts['datagrams']:,}",
    ),
]
