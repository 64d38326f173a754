"""A pipe of which both ends are transports of one loop, as in model.py: what goes in comes out, whole and in order."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine

from model_ends import size_of

Until = Callable[[Callable[[], object]], Coroutine[None, None, None]]
"""Waits for a condition, with patience."""


class Reader(asyncio.Protocol):
    """Writes down what comes."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.heard_eof = self.is_lost = False

    def data_received(self, data: bytes) -> None:
        self.received += data

    def eof_received(self) -> None:
        self.heard_eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None, exc
        self.is_lost = True


class Writer(asyncio.BaseProtocol):
    """Hears of its end."""

    is_lost = False

    def connection_lost(self, exc: Exception | None) -> None:
        assert exc is None, exc
        self.is_lost = True


class Pipe:
    """Made by `open`."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._sent = bytearray()

    async def open(self, loop: asyncio.AbstractEventLoop) -> None:
        reading_end, writing_end = os.pipe()
        self._reading, self._reader = await loop.connect_read_pipe(Reader, os.fdopen(reading_end, "rb", 0))
        self._writing, self._writer = await loop.connect_write_pipe(Writer, os.fdopen(writing_end, "wb", 0))

    async def use(self, writes: int) -> None:
        """Write so many times, and pause and go on with reading meanwhile."""
        for _ in range(writes):
            data = self._chance.randbytes(size_of(self._chance))
            self._sent += data
            self._writing.write(data)
            if self._chance.random() < 0.2:
                self._set_reading(self._chance.random() < 0.5)
            if self._chance.random() < 0.5:
                await asyncio.sleep(0)
        self._set_reading(True)

    def _set_reading(self, on: bool) -> None:
        if on != self._reading.is_reading():
            (self._reading.resume_reading if on else self._reading.pause_reading)()

    async def close(self, until: Until) -> None:
        """At the writing end, with what is still to be sent; all of it is to come, and then the end."""
        self._writing.close()
        await until(lambda: self._reader.is_lost and self._writer.is_lost)
        assert self._reader.heard_eof
        assert self._reader.received == self._sent, f"{len(self._reader.received)} of {len(self._sent)} bytes"
