"""The two ends of a connection, and what asyncio promises them: which bytes come, and which calls in which order.

Each `End` checks every call of its transport against what both sides have done. A connection is strict until it is
ended rudely, by an abort or a close with bytes under way: then the kernel may drop what was not read, and what has come
is still a beginning of what was sent.
"""

from __future__ import annotations

import asyncio
import random

# A prime, so that no two places that are a power of two apart have the same bytes.
PERIOD = 65_537
LARGEST = 300_000  # of one write


def size_of(chance: random.Random) -> int:
    """Of one write: mostly small; some are pinned, some more than a socket takes."""
    kind = chance.random()
    if kind < 0.80:
        return chance.randint(1, 300)
    if kind < 0.97:
        return chance.randint(300, 10_000)
    return chance.randint(32 * 1024, LARGEST)


class Bytes:
    """An endless sequence of which every piece says where it is from."""

    def __init__(self, chance: random.Random) -> None:
        once = chance.randbytes(PERIOD)
        self._repeated = memoryview(once * (LARGEST // PERIOD + 2))

    def piece(self, start: int, size: int) -> memoryview:
        start %= PERIOD
        return self._repeated[start : start + size]

    def begins(self, start: int, data: bytes) -> bool:
        """Whether these are the bytes from there on."""
        for at in range(0, len(data), LARGEST):
            part = data[at : at + LARGEST]
            if self.piece(start + at, len(part)) != part:
                return False
        return True


class End(asyncio.Protocol):
    """One side of a connection."""

    transport: asyncio.Transport
    other: End

    def __init__(self, name: str, source: Bytes) -> None:
        self.name = name
        self.source = source  # of what it writes
        self.written = self.received = 0
        self.stage = "new"  # -> "made" -> "lost"
        self.heard_eof = self.wrote_eof = self.closed = False
        self.may_write = True
        self.strict = True
        self.keep_open = False
        self.failure: BaseException | None = None

    def expect(self, condition: object, what: str) -> None:
        """The loop's exception handler is no place for a failed assertion: it is kept, and raised by the world."""
        if not condition and self.failure is None:
            self.failure = AssertionError(f"{self.name}: {what}: {vars(self)}")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.expect(self.stage == "new", "made twice")
        self.stage = "made"
        self.transport = transport  # type: ignore[assignment]

    def take(self, data: bytes | memoryview) -> None:
        self.expect(self.stage == "made" and not self.heard_eof, "bytes before the beginning or after the end")
        self.expect(not self.closed and self.transport.is_reading(), "bytes that were not asked for")
        self.expect(self.received + len(data) <= self.other.written, "more than was written")
        self.expect(self.other.source.begins(self.received, bytes(data)), f"wrong bytes, {len(data)} of them")
        self.received += len(data)

    def data_received(self, data: bytes) -> None:
        self.expect(data, "no bytes")
        self.take(data)

    def eof_received(self) -> bool:
        self.expect(self.stage == "made" and not self.heard_eof, "the end of the stream out of turn")
        self.expect(not self.closed and self.transport.is_reading(), "an end that was not asked for")
        self.expect(self.other.wrote_eof or self.other.closed, "an end that nobody made")
        if self.strict:
            self.expect(self.received == self.other.written, "the end of the stream before its last bytes")
        self.heard_eof = True
        if not self.keep_open:
            self.closed = True
        return self.keep_open

    def connection_lost(self, exc: BaseException | None) -> None:
        self.expect(self.stage == "made", "lost out of turn")
        self.expect(exc is None or not self.strict, f"lost to {exc!r}")
        self.stage = "lost"

    def pause_writing(self) -> None:
        self.expect(self.stage == "made" and self.may_write, "paused twice")
        self.may_write = False

    def resume_writing(self) -> None:
        self.expect(self.stage == "made" and not self.may_write, "resumed twice")
        low, _ = self.transport.get_write_buffer_limits()
        self.expect(self.transport.get_write_buffer_size() <= low, "resumed with a full buffer")
        self.may_write = True

    # What is done to it.

    @property
    def is_open(self) -> bool:
        return self.stage == "made" and not self.closed

    def write(self, size: int) -> None:
        if not self.is_open or self.wrote_eof or not self.may_write:
            return
        piece = bytes(self.source.piece(self.written, size))
        self.written += size
        self.transport.write(piece)
        _, high = self.transport.get_write_buffer_limits()
        too_much = self.transport.get_write_buffer_size() > high
        self.expect(too_much == (not self.may_write), "the write limits are not kept")

    def write_eof(self) -> None:
        if self.is_open and not self.wrote_eof:
            self.wrote_eof = True
            self.transport.write_eof()

    def set_reading(self, on: bool) -> None:
        if self.is_open and not self.heard_eof:
            (self.transport.resume_reading if on else self.transport.pause_reading)()

    def close(self) -> None:
        if self.is_open:
            self.closed = True
            self.transport.close()

    def abort(self) -> None:
        if self.stage == "made":
            self.closed = True
            self.transport.abort()


class BufferedEnd(End, asyncio.BufferedProtocol):
    """The same, with a buffer of its own."""

    def get_buffer(self, sizehint: int) -> bytearray:
        self._buffer = bytearray(1000)
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.expect(nbytes > 0, "no bytes")
        self.take(memoryview(self._buffer)[:nbytes])


class Connection:
    """Two ends. Rude once: what is under way may be lost."""

    def __init__(self, name: str, chance: random.Random) -> None:
        first, second = (
            (BufferedEnd if chance.random() < 0.2 else End)(f"{name}.{side}", Bytes(chance)) for side in range(2)
        )
        self.ends = (first, second)
        second.keep_open = chance.random() < 0.3
        first.other, second.other = second, first

    @property
    def strict(self) -> bool:
        return self.ends[0].strict

    def be_rude(self) -> None:
        for end in self.ends:
            end.strict = False

    def __repr__(self) -> str:
        return f"{[(vars(end), end.transport) for end in self.ends if end.stage == 'made']}\n"

    def is_settled(self) -> bool:
        """All that was written has come, and so has the end where there is one."""
        for end in self.ends:
            sent_all = end.received == end.other.written
            ended = end.heard_eof or not (end.other.wrote_eof or end.other.closed)
            if end.is_open and not (sent_all and ended and end.may_write):
                return False
        return all(end.stage == "lost" or not end.closed for end in self.ends)
