"""Not a byte is lost, doubled, changed or moved: random streams in random pieces, with random pauses, compared by hash.

A failing test prints its seed; `INTEGRITY_SEED=that pytest ...` repeats the same choices.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from support import Address, Journal, address_of, connect, eventually, listen, soon

KIB, MIB = 1 << 10, 1 << 20
tiny_ring = pytest.mark.tiny_ring
every_kind = pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("INTEGRITY_SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"INTEGRITY_SEED={seed}")  # pytest shows it if the test fails
    return random.Random(seed)


class Source:
    """A random stream of `size` bytes, given in pieces of random sizes and types."""

    def __init__(self, size: int, chance: random.Random) -> None:
        self.left = size
        self.hash = hashlib.blake2b()
        self._chance = chance
        # Pieces are cut from this block at random places: as good as fresh bytes for telling one place from another.
        self._block = memoryview(chance.randbytes(min(size, MIB) + 1))

    def piece(self, largest: int) -> bytes | bytearray | memoryview:
        size = min(self.left, self._chance.choice([1, 100, 5_000, largest]), len(self._block) - 1)
        size = self._chance.randint(1, size)
        start = self._chance.randint(0, len(self._block) - size)
        piece = self._block[start : start + size]
        self.hash.update(piece)
        self.left -= size
        kinds: list[Callable[[memoryview], bytes | bytearray | memoryview]] = [bytes, bytearray, memoryview]
        return self._chance.choice(kinds)(piece)


class Talker(Journal, asyncio.Protocol):
    """Sends a stream while it receives one, and stops reading every now and then."""

    def __init__(self, source: Source, expected: int, chance: random.Random) -> None:
        super().__init__()
        self.source = source
        self.hash = hashlib.blake2b()
        self.missing = expected
        self._chance = chance
        self._may_write = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._talk()

    def _talk(self) -> None:
        while self._may_write and self.source.left:
            if self._chance.random() < 0.1:
                self.transport.writelines([self.source.piece(64 * KIB) for _ in range(3) if self.source.left])
            else:
                self.transport.write(self.source.piece(256 * KIB))
            if self._chance.random() < 0.2:
                asyncio.get_running_loop().call_soon(self._talk)
                return

    def pause_writing(self) -> None:
        super().pause_writing()
        self._may_write = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._may_write = True
        self._talk()

    def data_received(self, data: bytes) -> None:
        assert self.transport.is_reading()
        self._write_down("data_received")
        self.take(data)
        if self._chance.random() < 0.05:
            self.transport.pause_reading()
            delay = self._chance.choice([0, 0, 0.0001, 0.001])
            asyncio.get_running_loop().call_later(delay, self.transport.resume_reading)

    def take(self, data: bytes) -> None:
        self.hash.update(data)
        self.missing -= len(data)
        assert self.missing >= 0

    async def heard_all(self) -> str:
        await self.until(lambda: not self.missing)
        return self.hash.hexdigest()


class Echoer(Talker):
    """Sends back what it receives. Its stream is the other side's, so it has no source of its own."""

    def take(self, data: bytes) -> None:
        super().take(data)
        self.transport.write(data)

    def pause_writing(self) -> None:
        Journal.pause_writing(self)
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        Journal.resume_writing(self)
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._write_down("data_received")
        self.take(data)


class TalkingStreams:
    """Servers and clients of one kind."""

    def __init__(self, kind: str, directory: Path, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
        self._family = "unix" if kind == "unix" else "tcp"
        self._directory = directory
        tls = kind == "tls"
        self._server_options = {"ssl": server_tls} if tls else {}
        self._client_options = {"ssl": client_tls, "server_hostname": "localhost"} if tls else {}

    @asynccontextmanager
    async def listening(self, factory: Callable[[], Talker]) -> AsyncIterator[Address]:
        """A server that is done when all its connections are."""
        accepted: list[Talker] = []

        def remember() -> Talker:
            accepted.append(factory())
            return accepted[-1]

        server = await listen(self._family, remember, self._directory, backlog=500, **self._server_options)
        yield address_of(server)
        server.close()
        for protocol in accepted:
            assert await protocol.lost() is None
            protocol.check_order()
        await soon(server.wait_closed())

    async def connect(self, factory: Callable[[], Talker], address: Address) -> Talker:
        return await connect(factory, address, **self._client_options)


@pytest.fixture
def streams(kind: str, tmp_path: Path, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> TalkingStreams:
    return TalkingStreams(kind, tmp_path, server_tls, client_tls)


async def exchange(streams: TalkingStreams, size: int, chance: random.Random) -> None:
    """Both sides send a stream of their own at the same time."""
    protocols: list[Talker] = []

    def factory() -> Talker:
        protocols.append(Talker(Source(size, chance), size, chance))
        return protocols[-1]

    async with streams.listening(factory) as address:
        client = await streams.connect(factory, address)
        await eventually(lambda: len(protocols) == 2)
        one, other = protocols
        heard = [await one.heard_all(), await other.heard_all()]
        assert heard == [other.source.hash.hexdigest(), one.source.hash.hexdigest()]
        client.transport.close()
        assert await client.lost() is None
        client.check_order()


async def echo(streams: TalkingStreams, address: Address, size: int, chance: random.Random) -> None:
    """The other side sends back what it receives, while more is being sent to it."""
    client = await streams.connect(lambda: Talker(Source(size, chance), size, chance), address)
    assert await client.heard_all() == client.source.hash.hexdigest()
    client.transport.close()
    assert await client.lost() is None
    client.check_order()


@every_kind
@pytest.mark.parametrize("size", [1, 2, 1000, 65_536, 1_000_003])
@tiny_ring
async def test_two_streams_at_once_arrive_as_they_were_sent(
    streams: TalkingStreams, size: int, chance: random.Random
) -> None:
    await exchange(streams, size, chance)


@every_kind
@pytest.mark.parametrize("size", [1, 2, 1000, 65_536, 1_000_003])
@tiny_ring
async def test_echo_is_what_was_sent(streams: TalkingStreams, size: int, chance: random.Random) -> None:
    async with streams.listening(lambda: Echoer(Source(0, chance), size, chance)) as address:
        await echo(streams, address, size, chance)


@every_kind
@tiny_ring
async def test_64_mib_each_way_arrive_as_they_were_sent(streams: TalkingStreams, chance: random.Random) -> None:
    await exchange(streams, 64 * MIB, chance)


@every_kind
@tiny_ring
async def test_200_connections_at_once_get_each_their_own(streams: TalkingStreams, chance: random.Random) -> None:
    biggest = 256 * KIB
    sizes = [chance.randint(1, chance.choice([10, 10_000, biggest])) for _ in range(200)]
    echoing = streams.listening(lambda: Echoer(Source(0, chance), biggest, chance))
    async with echoing as address, asyncio.TaskGroup() as group:
        for size in sizes:
            group.create_task(echo(streams, address, size, chance))
