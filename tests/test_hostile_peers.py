"""Peers that take what they can get: what a server holds for them is bounded, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import ctypes
import resource
import socket
import sys
from asyncio.subprocess import PIPE
from contextlib import ExitStack, suppress
from pathlib import Path

from datagrams import Datagrams, Make, name_of
from support import Address, Journal, address_of, connect_plainly, eventually, listen, soon

KIB, MIB = 1 << 10, 1 << 20


def resident(*, trimmed: bool = False) -> int:
    """Memory of this process, bytes; if trimmed, without what the C library keeps of what was freed."""
    if trimmed:
        ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ---------------------------------------------------------------------------------------------------------------------
# Peers that never read
# ---------------------------------------------------------------------------------------------------------------------

PEERS = 100
CHUNK = 64 * KIB
LIMIT = 512 * KIB


class Careless(Journal, asyncio.Protocol):
    """Writes in every turn, whatever pause_writing says, and cuts off the peer for which more than LIMIT waits."""

    def __init__(self, cut_off: list[int]) -> None:
        super().__init__()
        self._cut_off = cut_off

    def write_more(self) -> None:
        if "connection_lost" in self.calls:
            return
        self.transport.write(b"x" * CHUNK)
        assert self.transport.get_write_buffer_size() <= LIMIT + CHUNK
        if self.transport.get_write_buffer_size() > LIMIT:
            self._cut_off.append(resident())
            self.transport.abort()
        else:
            asyncio.get_running_loop().call_soon(self.write_more)


async def test_server_that_cuts_off_who_never_reads_holds_no_more_than_its_limit(tmp_path: Path) -> None:
    """And what it held for one wave of them serves for the next: it does not add up."""
    cut_off: list[int] = []  # what was resident at the time, for each peer
    protocols: list[Careless] = []

    def careless() -> Careless:
        protocols.append(Careless(cut_off))
        return protocols[-1]

    server = await listen("tcp", careless, tmp_path)
    # What the kernel keeps for a peer is little, so that what waits, waits in this process.
    server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * KIB)
    before = resident(trimmed=True)
    peaks = []
    for _ in range(4):
        with ExitStack() as stack:
            for _ in range(PEERS):
                stack.enter_context(connect_plainly(address_of(server)))
            await eventually(lambda: len(protocols) == PEERS)
            for protocol in protocols:
                await protocol.called("connection_made")
            for protocol in protocols:
                protocol.write_more()
            for protocol in protocols:
                await protocol.lost()
        assert len(cut_off) == len(protocols) == PEERS
        peaks.append(max(cut_off) - before)
        protocols.clear()
        cut_off.clear()
    assert PEERS * LIMIT // 2 < max(peaks) < PEERS * (LIMIT + CHUNK) + 16 * MIB
    # The first wave finds memory of the C library's that nothing else lies between.
    assert max(peaks[2:]) - max(peaks[:2]) < 8 * MIB
    server.close()
    await soon(server.wait_closed())


# ---------------------------------------------------------------------------------------------------------------------
# Datagrams faster than they are taken
# ---------------------------------------------------------------------------------------------------------------------

ANSWERS = 50

# Sends until its standard input ends, and tells how many it was.
FLOODER = """
import select, socket, sys
sent, sock = 0, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("127.0.0.1", int(sys.argv[1])))
while not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(100):
        sock.send(b"!" * 1000)
    if not sent:
        print("begun", flush=True)
    sent += 100
print(sent)
"""


class Answering(Datagrams):
    """Answers questions, and counts all else."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if data.startswith(b"?"):
            self.transport.sendto(data, addr)
        else:
            self.count += 1


def ask(address: Address, questions: int) -> None:
    """Until so many are answered. One that is dropped, since the socket was full of the flood, is repeated."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0.02)
        sock.connect(address)
        for number in range(questions):
            question = b"?%d" % number
            answer = b""
            while answer != question:
                with suppress(TimeoutError):
                    sock.send(question)
                    answer = sock.recv(100)


async def test_flood_of_datagrams_keeps_nobody_from_an_answer(endpoint: Make) -> None:
    server = await endpoint(Answering, local_addr=("127.0.0.1", 0))
    before = resident(trimmed=True)
    port = str(name_of(server)[1])
    flooder = await asyncio.create_subprocess_exec(sys.executable, "-c", FLOODER, port, stdin=PIPE, stdout=PIPE)
    assert flooder.stdout is not None
    try:
        assert await soon(flooder.stdout.readline()) == b"begun\n"
        await soon(asyncio.to_thread(ask, name_of(server), ANSWERS))
    finally:
        told, _ = await soon(flooder.communicate(b""))  # 3.11 closes the pipe only then
    assert 0 < server.count <= int(told)
    assert resident(trimmed=True) - before < 4 * MIB
    await soon(asyncio.to_thread(ask, name_of(server), 1))
