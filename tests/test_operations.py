"""One-shot requests as futures: results, errors, cancels, and memory that outlives whoever asked for it."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Iterator

import pytest
from support import PATIENCE, eventually, in_use, soon

import uringloop
from uringloop import environment
from uringloop.operations import Operations
from uringloop.reactor import OP_READ, address_of, pin

pytestmark = [
    pytest.mark.only_on("uringloop"),
    pytest.mark.tiny_ring,
    pytest.mark.skipif(environment.hardened(), reason="a hardened ring may not read"),
]

AT_THE_FILE_POSITION = 2**64 - 1


class Memory(bytearray):
    """Of which it can be seen that it was freed."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def operations() -> Operations:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, uringloop.Loop)
    return loop._operations


def start_read(fd: int, memory: Memory, late: list[int] | None = None) -> asyncio.Future[int]:
    pinned = pin(memory, writable=True)
    return operations().start(
        OP_READ,
        fd,
        address=address_of(pinned),
        length=len(memory),
        offset=AT_THE_FILE_POSITION,
        keep=pinned,
        late=None if late is None else late.append,
    )


async def test_result_is_that_of_the_system_call(pipe: tuple[int, int]) -> None:
    memory = Memory(100)
    read = start_read(pipe[0], memory)
    os.write(pipe[1], b"hello")
    assert await soon(read) == 5
    assert memory[:5] == b"hello"


async def test_failure_is_the_oserror_of_its_errno() -> None:
    with pytest.raises(OSError, match="Bad file descriptor") as failure:
        await soon(start_read(987654, Memory(1)))
    assert failure.value.errno == errno.EBADF


async def test_cancelled_request_ends_in_the_kernel_too(pipe: tuple[int, int]) -> None:
    late: list[int] = []
    read = start_read(pipe[0], Memory(100), late)
    await asyncio.sleep(0)
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    await eventually(lambda: late == [-errno.ECANCELED])
    os.write(pipe[1], b"not taken")
    assert os.read(pipe[0], 100) == b"not taken"


async def test_cancelled_task_cancels_what_it_waits_for(pipe: tuple[int, int]) -> None:
    async def wait() -> int:
        return await start_read(pipe[0], Memory(100))

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    before = in_use(asyncio.get_running_loop())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: in_use(asyncio.get_running_loop()) != before)


async def test_cancel_that_comes_too_late_tells_what_was_done(pipe: tuple[int, int]) -> None:
    late: list[int] = []
    os.write(pipe[1], b"taken")
    memory = Memory(100)
    read = start_read(pipe[0], memory, late)
    asyncio.get_running_loop()._reactor.flush()  # type: ignore[attr-defined]
    read.cancel()
    with pytest.raises(asyncio.CancelledError):
        await read
    await eventually(lambda: late == [5])
    assert memory[:5] == b"taken"


async def test_memory_stays_until_the_completion_and_goes_then(pipe: tuple[int, int]) -> None:
    late: list[int] = []
    memory = Memory(100)
    gone = weakref.ref(memory)
    read = start_read(pipe[0], memory, late)
    await asyncio.sleep(0)
    read.cancel()
    del memory, read
    gc.collect()
    assert gone() is not None
    await eventually(lambda: late)
    gc.collect()
    assert gone() is None


def test_what_a_lost_ring_may_still_touch_is_never_freed() -> None:
    """A ring that is closed by a thread that does not own it cannot be emptied: its requests run on for a while."""
    program = """
        import asyncio, gc, os, socket, threading, weakref
        import uringloop
        from uringloop import reactor

        class Memory(bytearray):
            pass

        loop = uringloop.new_event_loop()
        if not loop.stats().defer_taskrun:
            print("done")
            raise SystemExit

        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        ours.setblocking(False)
        QUEUED = 8 << 20
        memory = Memory(100)
        kept = weakref.ref(memory)

        async def leave_a_send_and_a_read_in_the_kernel():
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            transport.write(bytes(QUEUED))
            pinned = reactor.pin(globals().pop("memory"), writable=True)
            at = reactor.address_of(pinned)
            loop._operations.start(reactor.OP_READ, read_end, address=at, length=100, offset=2**64 - 1, keep=pinned)
            while loop.stats().operations_in_flight < 3:  # a receive, the read, and a send that waits for room
                await asyncio.sleep(0)
            assert transport.get_write_buffer_size() > QUEUED // 2
            return weakref.ref(transport)

        def run():
            global transport
            transport = loop.run_until_complete(leave_a_send_and_a_read_in_the_kernel())

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        queue = transport().pinned
        assert len(queue) == 1
        loop.close()
        del loop
        gc.collect()
        assert transport() is None
        assert any(memory is queue for left in reactor._left_to_kernel for memory in left)
        assert kept() is not None
        assert reactor.leaked_bytes() > QUEUED // 2
        print("done", flush=True)
        os._exit(0)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (ran.stdout, ran.stderr) == ("done\n", "")
