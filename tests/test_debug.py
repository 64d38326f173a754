"""Debug mode, and what is warned of even without it."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable

import pytest
from support import LOOPS, LoopFactory, OpenEnd, Recorder, fence

SLOW = 0.02  # seconds; in these tests a callback is slow when it takes half of that
SlowOnes = Callable[[str], list[str]]


@pytest.fixture
async def debug_loop() -> AsyncIterator[asyncio.AbstractEventLoop]:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = SLOW / 2
    yield loop
    loop.set_debug(False)


@pytest.fixture
def slow_ones(caplog: pytest.LogCaptureFixture) -> SlowOnes:
    """The warnings so far of slow callbacks that name this one; on a busy machine there may be others."""

    def slow_ones(name: str) -> list[str]:
        return [
            record.getMessage()
            for record in caplog.records
            if record.name == "asyncio"
            and record.levelno == logging.WARNING
            and re.match(f"Executing .*{name}.* took .* seconds", record.getMessage())
        ]

    return slow_ones


def be_slow(*args: object) -> None:
    time.sleep(SLOW)


async def test_debug_can_be_switched() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_debug()
    loop.set_debug(not before)
    assert loop.get_debug() is not before
    loop.set_debug(before)
    assert loop.get_debug() is before


def test_debug_can_be_switched_when_the_loop_is_closed(new_loop: LoopFactory) -> None:
    loop = new_loop()
    before = loop.get_debug()
    loop.close()
    loop.set_debug(not before)
    assert loop.get_debug() is not before


@pytest.mark.only_on("asyncio", "uringloop")  # on uvloop a handle keeps no traceback of this form
@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe"])
async def test_handle_remembers_who_scheduled_it_last(debug_loop: asyncio.AbstractEventLoop, method: str) -> None:
    handle = getattr(debug_loop, method)(int)
    assert handle._source_traceback[-1].name == "test_handle_remembers_who_scheduled_it_last"


@pytest.mark.parametrize(
    "schedule",
    [
        lambda loop: loop.call_soon(print),
        lambda loop: loop.call_later(0, print),
        lambda loop: loop.call_at(0, print),
    ],
    ids=["call_soon", "call_later", "call_at"],
)
async def test_call_from_another_thread_is_refused(
    debug_loop: asyncio.AbstractEventLoop, schedule: Callable[[asyncio.AbstractEventLoop], object]
) -> None:
    with pytest.raises(RuntimeError, match="Non-thread-safe operation"):
        await asyncio.to_thread(schedule, debug_loop)


# uvloop takes whatever can be called, and tells when it is called.
@pytest.mark.only_on("asyncio", "uringloop")
async def test_coroutine_is_not_a_callback(debug_loop: asyncio.AbstractEventLoop) -> None:
    async def coroutine() -> None: ...

    with pytest.raises(TypeError, match="coroutines cannot be used with call_soon"):
        debug_loop.call_soon(coroutine)
    with pytest.raises(TypeError, match="callable object was expected"):
        debug_loop.call_soon(7)  # type: ignore[arg-type]


async def test_slow_callback_is_logged(debug_loop: asyncio.AbstractEventLoop, slow_ones: SlowOnes) -> None:
    debug_loop.call_soon(be_slow)
    await asyncio.sleep(0)
    assert len(slow_ones("<Handle.*be_slow")) == 1


async def test_slow_step_of_a_task_is_logged(debug_loop: asyncio.AbstractEventLoop, slow_ones: SlowOnes) -> None:
    async def step() -> None:
        be_slow()

    await asyncio.create_task(step(), name="sluggish")
    assert len(slow_ones("<Task finished name='sluggish'")) == 1  # not the test, which waits for it


async def test_slow_callback_is_not_logged_without_debug(slow_ones: SlowOnes) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(False)
    loop.slow_callback_duration = SLOW / 2
    loop.call_soon(be_slow)
    await asyncio.sleep(0)
    assert slow_ones("") == []


# uvloop calls protocols from libuv's callbacks, and does not time those.
@pytest.mark.only_on("asyncio", "uringloop")
async def test_slow_data_received_is_logged(
    open_end: OpenEnd, debug_loop: asyncio.AbstractEventLoop, slow_ones: SlowOnes
) -> None:
    class Sluggish(Recorder):
        def data_received(self, data: bytes) -> None:
            be_slow()
            super().data_received(data)

    protocol, peer = await open_end(Sluggish)
    await peer.send(b"data")
    await protocol.received(4)
    await asyncio.sleep(0)
    assert len(slow_ones("Transport")) >= 1


async def test_everything_works_in_debug_mode(debug_loop: asyncio.AbstractEventLoop, open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.pause_reading()
    protocol.transport.resume_reading()
    await peer.send(b"ping")
    assert await protocol.received(4) == b"ping"
    protocol.transport.write(b"pong")
    protocol.transport.write_eof()
    assert await peer.receive_all() == b"pong"
    peer.send_fin()
    assert await protocol.lost() is None


# uringloop keeps a connection until it is closed, or the loop is.
@pytest.mark.only_on("asyncio", "uvloop")
async def test_transport_that_is_dropped_without_being_closed_is_warned_of() -> None:
    async def drop() -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        transport.pause_reading()  # while it reads, the loop keeps it
        far.close()

    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031 - it comes with the collection
        await drop()
        await fence()
        gc.collect()


# uvloop has an error of its own for this, and leaves its files open.
@pytest.mark.parametrize("kind", ["asyncio", "uringloop"])
def test_loop_that_is_dropped_without_being_closed_is_warned_of_and_closed(kind: str) -> None:
    with pytest.warns(ResourceWarning, match="unclosed event loop"):  # noqa: PT031 - it comes with the collection
        LOOPS[kind]()
        gc.collect()


@pytest.mark.skipif(bool(sys.flags.ignore_environment), reason="python runs with -E")
def test_debug_mode_can_be_asked_for_in_the_environment(new_loop: LoopFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    assert new_loop().get_debug()
    monkeypatch.delenv("PYTHONASYNCIODEBUG")
    assert new_loop().get_debug() is sys.flags.dev_mode
