"""The file descriptor that signals write to: the loop has it while it runs, and the application before and after."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from support import PATIENCE, LoopFactory, soon

INTERVAL = 0.0005
BLOCKED = 0.5  # seconds; a socket pair holds some 280 bytes of one each


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGUSR1)
    before = signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(before)
    signal.signal(signal.SIGUSR1, handler)


@pytest.fixture
def applications() -> Iterator[socket.socket]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield near


def test_signals_that_come_while_a_callback_blocks_say_nothing(
    new_loop: LoopFactory, capfd: pytest.CaptureFixture[str]
) -> None:
    loop = new_loop()
    ticks: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: ticks.append(number))

    async def block() -> None:
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
        until = time.monotonic() + BLOCKED
        while time.monotonic() < until:
            pass
        signal.setitimer(signal.ITIMER_REAL, 0)

    loop.run_until_complete(block())
    signal.signal(signal.SIGALRM, before)
    assert len(ticks) > BLOCKED / INTERVAL / 4
    assert capfd.readouterr().err == ""


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop takes it away
def test_one_that_the_application_sets_while_the_loop_runs_stays(
    new_loop: LoopFactory, applications: socket.socket
) -> None:
    loop = new_loop()
    loop.call_soon(signal.set_wakeup_fd, applications.fileno())
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert signal.set_wakeup_fd(-1) == applications.fileno()


def test_one_that_the_application_had_set_stays(new_loop: LoopFactory, applications: socket.socket) -> None:
    loop = new_loop()
    signal.set_wakeup_fd(applications.fileno(), warn_on_full_buffer=False)
    loop.run_until_complete(asyncio.sleep(0))
    assert signal.set_wakeup_fd(-1) == applications.fileno()


@pytest.mark.parametrize("handled", [False, True])
def test_none_is_left_behind(new_loop: LoopFactory, handled: bool) -> None:
    loop = new_loop()
    loop.run_until_complete(asyncio.sleep(0))
    if handled:
        loop.add_signal_handler(signal.SIGUSR1, int)
        loop.run_until_complete(asyncio.sleep(0))
        loop.remove_signal_handler(signal.SIGUSR1)
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop handles none between its runs
def test_signal_between_two_runs_is_handled_in_the_second(new_loop: LoopFactory) -> None:
    loop = new_loop()

    async def start() -> asyncio.Event:
        handled = asyncio.Event()
        loop.add_signal_handler(signal.SIGUSR1, handled.set)
        return handled

    handled = loop.run_until_complete(start())
    signal.raise_signal(signal.SIGUSR1)
    loop.run_until_complete(soon(handled.wait()))
    loop.remove_signal_handler(signal.SIGUSR1)


@pytest.mark.only_on("asyncio", "uringloop")
def test_one_that_is_set_and_closed_while_the_loop_runs_does_no_harm(new_loop: LoopFactory) -> None:
    loop = new_loop()

    async def set_and_close() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        with near, far:
            signal.set_wakeup_fd(near.fileno())

    for _ in range(2):
        loop.run_until_complete(set_and_close())


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop cannot run then
def test_one_that_is_closed_does_no_harm(new_loop: LoopFactory) -> None:
    loop = new_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    signal.set_wakeup_fd(near.fileno())
    near.close()
    far.close()
    for _ in range(2):
        loop.run_until_complete(asyncio.sleep(0))


@pytest.mark.only_on("uvloop", "uringloop")  # on asyncio only those with a handler of the loop end a sleep
def test_signal_ends_the_sleep_after_the_last_handler_is_removed(new_loop: LoopFactory) -> None:
    loop = new_loop()

    def add_and_remove() -> None:
        loop.add_signal_handler(signal.SIGUSR2, int)
        loop.remove_signal_handler(signal.SIGUSR2)

    def interrupt() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # this thread takes it, and the main one does not

    signal.signal(signal.SIGUSR1, lambda number, frame: loop.stop())
    loop.call_soon(add_and_remove)
    timer = threading.Timer(0.1, interrupt)
    loop.call_soon(timer.start)
    late = loop.call_later(PATIENCE, loop.stop)
    began = time.monotonic()
    loop.run_forever()
    late.cancel()
    timer.join()
    assert time.monotonic() - began < PATIENCE / 2
