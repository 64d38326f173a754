"""Buffered protocols: bytes arrive in memory that the protocol hands out."""

from __future__ import annotations

import array
import asyncio
import ctypes
import random
from collections.abc import Callable
from typing import Any

import pytest
from support import BufferedRecorder, Journal, OpenEnd, Recorder, Unhandled, eventually, fence, loop_kind

pytestmark = pytest.mark.tiny_ring


async def test_every_callback_comes_once_and_in_order(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(BufferedRecorder)
    await peer.send(b"hello")
    peer.send_fin()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "data_received", "eof_received", "connection_lost"]
    assert protocol.data == b"hello"


@pytest.mark.parametrize("size", [1, 7, 4096, 1 << 20])
async def test_buffer_of_any_size_gets_all_the_bytes_in_order(open_end: OpenEnd, size: int) -> None:
    class Sized(BufferedRecorder):
        buffer_size = size

    protocol, peer = await open_end(Sized)
    data = random.Random(size).randbytes(min(size * 5000, 3 << 20))
    sending = asyncio.create_task(peer.send(data))
    assert await protocol.received(len(data)) == data
    await sending


async def test_every_update_is_preceded_by_one_buffer_and_fits_it(open_end: OpenEnd) -> None:
    class Changing(Journal, asyncio.BufferedProtocol):
        """Hands out a buffer of another size each time."""

        def __init__(self) -> None:
            super().__init__()
            self.chance = random.Random(1)
            self.buffer: bytearray | None = None

        def get_buffer(self, sizehint: int) -> bytearray:
            assert isinstance(sizehint, int)
            self.buffer = bytearray(self.chance.randint(1, 10_000))
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            assert self.buffer is not None
            assert 0 < nbytes <= len(self.buffer)
            self.data += self.buffer[:nbytes]
            self.buffer = None
            self._write_down("data_received")

    protocol, peer = await open_end(Changing)
    data = random.Random(2).randbytes(1 << 20)
    sending = asyncio.create_task(peer.send(data))
    assert await protocol.received(len(data)) == data
    await sending


@pytest.mark.parametrize("view", [slice(None), slice(10, 20), slice(-1, None)])
async def test_buffer_may_be_a_part_of_a_larger_one(open_end: OpenEnd, view: slice) -> None:
    class Slicing(BufferedRecorder):
        buffer_size = 64

        def get_buffer(self, sizehint: int) -> memoryview:  # type: ignore[override]
            return memoryview(self.buffer)[view]

        def buffer_updated(self, nbytes: int) -> None:
            self.data += self.buffer[view][:nbytes]
            self._write_down("data_received")

    protocol, peer = await open_end(Slicing)
    await peer.send(b"0123456789" * 100)
    assert await protocol.received(1000) == b"0123456789" * 100
    untouched = bytearray(64)
    untouched[view] = protocol.buffer[view]
    assert protocol.buffer == untouched


async def test_buffer_may_be_resized_between_two_deliveries(open_end: OpenEnd) -> None:
    class Growing(BufferedRecorder):
        buffer_size = 1

        def get_buffer(self, sizehint: int) -> bytearray:
            self.buffer += b"\0"  # a BufferError if the transport still held on to it
            return self.buffer

    protocol, peer = await open_end(Growing)
    data = random.Random(3).randbytes(10_000)
    await peer.send(data)
    assert await protocol.received(len(data)) == data


class TenBytes(BufferedRecorder):
    """Asks for ten bytes at a time, in as many pieces as they come, and does something when it has them."""

    buffer_size = 10
    filled = 0

    def get_buffer(self, sizehint: int) -> memoryview:  # type: ignore[override]
        return memoryview(self.buffer)[self.filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[self.filled : self.filled + nbytes]
        self.filled = (self.filled + nbytes) % self.buffer_size
        self._write_down("data_received")
        if self.filled == 0:
            self.ten_received()

    def ten_received(self) -> None:
        raise NotImplementedError


async def test_no_buffer_is_filled_while_reading_is_paused(open_end: OpenEnd) -> None:
    class OneGulp(TenBytes):
        def ten_received(self) -> None:
            self.transport.pause_reading()

    protocol, peer = await open_end(OneGulp)
    await peer.send(b"a" * 10 + b"b" * 10)
    assert await protocol.received(10) == b"a" * 10
    await fence()
    assert not protocol.data
    assert protocol.buffer == b"a" * 10
    protocol.transport.resume_reading()
    assert await protocol.received(10) == b"b" * 10


async def test_no_buffer_is_filled_after_the_close(open_end: OpenEnd) -> None:
    class OneGulp(TenBytes):
        def ten_received(self) -> None:
            self.transport.close()

    protocol, peer = await open_end(OneGulp)
    await peer.send(b"a" * 10 + b"b" * 10)
    await protocol.lost()
    assert protocol.data == b"a" * 10
    assert protocol.buffer == b"a" * 10


async def test_what_follows_a_hand_over_in_buffer_updated_goes_to_the_successor(open_end: OpenEnd) -> None:
    successor = Recorder()

    class Header(TenBytes):
        def ten_received(self) -> None:
            self.transport.set_protocol(successor)

    protocol, peer = await open_end(Header)
    await peer.send(b"a" * 10 + b"b" * 10)
    assert await successor.received(10) == b"b" * 10
    assert protocol.data == b"a" * 10
    protocol.transport.set_protocol(protocol)


async def test_eof_can_leave_the_write_side_open(open_end: OpenEnd) -> None:
    class KeepOpen(BufferedRecorder):
        keep_open = True

    protocol, peer = await open_end(KeepOpen)
    peer.send_fin()
    await protocol.called("eof_received")
    protocol.transport.write(b"still here")
    assert await peer.receive(10) == b"still here"


def empty_buffer(protocol: BufferedRecorder, sizehint: int) -> Any:
    return bytearray()


def no_buffer(protocol: BufferedRecorder, sizehint: int) -> Any:
    return None


def readonly_buffer(protocol: BufferedRecorder, sizehint: int) -> Any:
    return b"cannot be written to"


def failing_buffer(protocol: BufferedRecorder, sizehint: int) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("get_buffer", "error"),
    [
        (empty_buffer, RuntimeError),
        (no_buffer, TypeError),
        (readonly_buffer, TypeError),
        (failing_buffer, ZeroDivisionError),
    ],
)
async def test_connection_without_a_usable_buffer_is_aborted(
    open_end: OpenEnd, unhandled: Unhandled, get_buffer: Any, error: type[Exception]
) -> None:
    class Unusable(BufferedRecorder):
        pass

    Unusable.get_buffer = get_buffer  # type: ignore[method-assign]
    protocol, peer = await open_end(Unusable)
    await peer.send(b"data")
    if loop_kind() == "uvloop":  # tells the same of every cause
        error = RuntimeError
    context = await unhandled.next()
    assert isinstance(context["exception"], error)
    assert context["protocol"] is protocol
    assert await protocol.lost() is context["exception"]
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_connection_is_aborted_when_buffer_updated_fails(open_end: OpenEnd, unhandled: Unhandled) -> None:
    class Failing(BufferedRecorder):
        def buffer_updated(self, nbytes: int) -> None:
            raise ZeroDivisionError

    protocol, peer = await open_end(Failing)
    await peer.send(b"data")
    context = await unhandled.next()
    assert isinstance(context["exception"], ZeroDivisionError)
    assert await protocol.lost() is context["exception"]


# asyncio wants a subclass of asyncio.BufferedProtocol, and would call data_received() here.
@pytest.mark.only_on("uvloop", "uringloop")
async def test_object_with_get_buffer_is_a_buffered_protocol_whatever_its_class(open_end: OpenEnd) -> None:
    class Duck(Journal):
        def __init__(self) -> None:
            super().__init__()
            self.buffer = bytearray(100)

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.data += self.buffer[:nbytes]
            self._write_down("data_received")

    protocol, peer = await open_end(Duck)
    await peer.send(b"quack")
    assert await protocol.received(5) == b"quack"


BUFFERS: dict[str, Callable[[], Any]] = {
    "array of int": lambda: array.array("i", range(100)),
    "array of char": lambda: array.array("b", range(100)),
    "ctypes array": (ctypes.c_int * 100),
    "view of int": lambda: memoryview(bytearray(400)).cast("i"),
    "view of char": lambda: memoryview(bytearray(400)).cast("c"),
    "view of two dimensions": lambda: memoryview(bytearray(400)).cast("B", (20, 20)),
}


@pytest.mark.parametrize("kind", BUFFERS)
async def test_buffer_may_be_of_whatever_items(open_end: OpenEnd, kind: str) -> None:
    class OfItems(Journal, asyncio.BufferedProtocol):
        def __init__(self) -> None:
            super().__init__()
            self.buffer = BUFFERS[kind]()
            self.got = b""

        def get_buffer(self, sizehint: int) -> Any:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.got += memoryview(self.buffer).tobytes()[:nbytes]

    protocol, peer = await open_end(OfItems)
    for message in (b"hello", bytes(range(200))):
        protocol.got = b""
        await peer.send(message)
        await eventually(lambda expected=message: len(protocol.got) >= len(expected))
        assert protocol.got == message


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop holds on to it
async def test_buffer_may_be_resized_when_it_is_filled(open_end: OpenEnd) -> None:
    class Resizing(Journal, asyncio.BufferedProtocol):
        def __init__(self) -> None:
            super().__init__()
            self.buffer = bytearray(1 << 20)
            self.count = 0

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.count += nbytes
            self.buffer += b"x"

    protocol, peer = await open_end(Resizing)
    for number in range(1, 11):
        await peer.send(bytes(50_000))  # large enough to be received straight into it
        await eventually(lambda expected=number: protocol.count == expected * 50_000)
