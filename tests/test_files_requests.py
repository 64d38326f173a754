"""What the files' requests become when a cancel comes together with their end, or their thread never comes."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import PATIENCE, soon

from uringloop import environment
from uringloop.files.requests import Errand, in_thread, outcome
from uringloop.reactor import OP_READ, address_of, pin


async def cancelled_at_its_end(request: asyncio.Future[int], late: Callable[[int], None] | None = None) -> None:
    """The task that waits for the request is cancelled when it is over, and before the task runs."""
    request.add_done_callback(lambda _: task.cancel())
    task = asyncio.ensure_future(outcome(request, late))
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_cancel_with_the_end_is_not_lost() -> None:
    got: list[int] = []
    await cancelled_at_its_end(in_thread(int, 5), got.append)
    assert got == [5]


async def test_cancel_with_a_failure_is_not_lost() -> None:
    got: list[int] = []
    await cancelled_at_its_end(in_thread(int, "no number"), got.append)
    assert got == []


@pytest.mark.only_on("uringloop")
@pytest.mark.skipif(environment.hardened(), reason="a hardened ring may not read")
@pytest.mark.parametrize("patient", [False, True])
async def test_cancel_with_the_end_of_an_operation_is_not_lost(patient: bool) -> None:
    loop: Any = asyncio.get_running_loop()
    got: list[int] = []
    read_end, write_end = os.pipe()
    room = pin(bytearray(10), writable=True)
    request = loop._operations.start(OP_READ, read_end, address=address_of(room), length=10, keep=room, patient=patient)
    loop.call_later(0.01, os.write, write_end, b"hello")
    await cancelled_at_its_end(request, got.append)
    assert got == [5]
    os.close(read_end)
    os.close(write_end)


async def test_executor_that_shuts_down_cancels_what_waits() -> None:
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(1)
    loop.set_default_executor(executor)
    go_on = threading.Event()
    got: list[int] = []
    first, second = in_thread(go_on.wait, PATIENCE), Errand(lambda: 1, late=got.append)
    executor.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    assert await soon(first)
    with pytest.raises(asyncio.CancelledError):
        await soon(second)
    assert got == []
    await loop.shutdown_default_executor()
