"""Callbacks, timers, threads, signals and watched file descriptors: what runs when."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
import random
import socket
import sys
import threading
import time

import pytest
from support import PATIENCE, LoopFactory, Unhandled, eventually, loop_kind, per_loop, soon

from uringloop import scheduling

# ---------------------------------------------------------------------------------------------------------------------
# call_soon
# ---------------------------------------------------------------------------------------------------------------------


async def test_callbacks_run_in_the_order_they_were_scheduled() -> None:
    loop = asyncio.get_running_loop()
    ran: list[int] = []
    for number in range(1000):
        loop.call_soon(ran.append, number)
    await asyncio.sleep(0)
    assert ran == list(range(1000))


async def test_callback_scheduled_by_a_callback_waits_for_those_already_there() -> None:
    loop = asyncio.get_running_loop()
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        loop.call_soon(ran.append, "scheduled by the first")

    loop.call_soon(first)
    loop.call_soon(ran.append, "second")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert ran == ["first", "second", "scheduled by the first"]


async def test_cancelled_callback_does_not_run() -> None:
    loop = asyncio.get_running_loop()
    ran: list[str] = []
    handle = loop.call_soon(ran.append, "cancelled")
    loop.call_soon(ran.append, "kept")
    assert not handle.cancelled()
    handle.cancel()
    assert handle.cancelled()
    await asyncio.sleep(0)
    assert ran == ["kept"]


async def test_endless_chain_of_callbacks_does_not_starve_timers_and_sockets() -> None:
    loop = asyncio.get_running_loop()
    going = True

    def again() -> None:
        if going:
            loop.call_soon(again)

    again()
    await soon(asyncio.sleep(0.001))
    reader, writer = await soon(asyncio.open_connection(sock=_echoing_socket()))
    writer.write(b"x")
    assert await soon(reader.readexactly(1)) == b"x"
    going = False
    writer.close()
    await soon(writer.wait_closed())


def _echoing_socket() -> socket.socket:
    near, far = socket.socketpair()

    def echo() -> None:
        with far:
            while data := far.recv(100):
                far.sendall(data)

    threading.Thread(target=echo).start()
    return near


def test_stop_runs_the_callbacks_that_are_ready_and_no_more(new_loop: LoopFactory) -> None:
    loop = new_loop()
    ran: list[str] = []

    def stop() -> None:
        loop.stop()
        loop.call_soon(ran.append, "scheduled after the stop")

    loop.call_soon(stop)
    loop.call_soon(ran.append, "ready")
    loop.run_forever()
    assert ran[0] == "ready"
    if loop_kind(loop) != "uvloop":  # runs some more before it looks
        assert ran == ["ready"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["ready", "scheduled after the stop"]


def test_stop_before_the_run_makes_one_turn_of_it(new_loop: LoopFactory) -> None:
    loop = new_loop()
    ran: list[int] = []
    loop.call_soon(ran.append, 1)
    loop.stop()
    loop.run_forever()
    assert ran == [1]


# ---------------------------------------------------------------------------------------------------------------------
# Timers
# ---------------------------------------------------------------------------------------------------------------------


async def test_timers_fire_in_the_order_of_their_times_and_never_early() -> None:
    loop = asyncio.get_running_loop()
    fired: list[tuple[float, float]] = []

    def fire(due: float) -> None:
        fired.append((due, loop.time()))

    chance = random.Random(1)
    now = loop.time()
    for _ in range(200):
        due = now + chance.uniform(0, 0.05)
        loop.call_at(due, fire, due)
    await eventually(lambda: len(fired) == 200)
    # uvloop counts in whole milliseconds, rounded, and fires in any order within one.
    granularity = per_loop(asyncio=time.get_clock_info("monotonic").resolution, uvloop=0.002, uringloop=1e-6)
    assert all(at >= due - granularity for due, at in fired)
    assert all(later >= sooner - granularity for (sooner, _), (later, _) in itertools.pairwise(fired))


async def test_timers_of_one_time_fire_in_the_order_they_were_set() -> None:
    loop = asyncio.get_running_loop()
    fired: list[int] = []
    for number in range(3):
        loop.call_later(0, fired.append, number)
    await eventually(lambda: len(fired) == 3)
    assert fired == [0, 1, 2]


@pytest.mark.parametrize("delay", [-1, 0, 0.001, 3600, 10**9])
async def test_timer_is_a_timer_handle_whatever_its_delay(delay: float) -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    handle = loop.call_later(delay, print)
    if loop_kind() == "uvloop":  # has a class of its own, and a plain Handle if there is no delay
        assert not isinstance(handle, asyncio.TimerHandle)
    else:
        assert isinstance(handle, asyncio.TimerHandle)
        assert handle.when() == pytest.approx(before + delay, abs=0.5)
    handle.cancel()


@pytest.mark.only_on("asyncio", "uringloop")  # the clock of uvloop is not for subclasses
def test_clock_may_be_put_forward(new_loop: LoopFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = new_loop()
    clock, forward = loop.time, [0]
    monkeypatch.setattr(loop, "time", lambda: clock() + forward[0])
    fired = loop.create_future()
    loop.call_later(3600, fired.set_result, None)
    loop.call_soon(forward.append, 3600)
    loop.call_soon(forward.pop, 0)
    started = time.monotonic()
    loop.run_until_complete(fired)
    assert time.monotonic() - started < 10
    loop.close()


@pytest.mark.parametrize("delay", [float("inf"), 1e300, 2.0**62])
async def test_timer_that_never_comes_does_no_harm(delay: float) -> None:
    handle = asyncio.get_running_loop().call_later(delay, print)
    await asyncio.sleep(0.001)
    handle.cancel()


async def test_timer_that_is_cancelled_when_due_leaves_the_others_alone() -> None:
    loop = asyncio.get_running_loop()
    fired: list[int] = []
    timers = [loop.call_later(0.001, lambda: timers[1].cancel()), loop.call_later(0.001, fired.append, 1)]
    time.sleep(0.01)  # noqa: ASYNC251 - both are due, and become ready, in one turn
    loop.call_later(0.01, fired.append, 2)
    await eventually(lambda: fired)
    assert fired == [2]


async def test_cancelled_timer_does_not_fire() -> None:
    loop = asyncio.get_running_loop()
    fired: list[int] = []
    handles = [loop.call_later(0.001, fired.append, number) for number in range(1000)]
    for handle in handles[:-1]:
        handle.cancel()
    await eventually(lambda: fired)
    assert fired == [999]
    assert handles[0].cancelled()


async def test_timer_set_while_the_loop_waits_for_a_later_one_is_on_time() -> None:
    loop = asyncio.get_running_loop()
    fired: asyncio.Future[float] = loop.create_future()
    much_later = loop.call_later(60, print)

    def set_timer() -> None:
        due = loop.time() + 0.01
        loop.call_at(due, lambda: fired.set_result(loop.time() - due))

    threading.Timer(0.02, loop.call_soon_threadsafe, (set_timer,)).start()
    assert -0.002 <= await soon(fired) < 5  # uvloop's may be early by a part of a millisecond
    much_later.cancel()


async def test_time_is_the_monotonic_clock() -> None:
    assert asyncio.get_running_loop().time() == pytest.approx(time.monotonic(), abs=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# Threads
# ---------------------------------------------------------------------------------------------------------------------


async def test_call_from_a_thread_wakes_a_loop_that_waits() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(20):
        woken: asyncio.Future[None] = loop.create_future()
        threading.Timer(0.002, loop.call_soon_threadsafe, (woken.set_result, None)).start()
        await soon(woken)


async def test_storm_of_calls_from_threads_arrives_whole_and_in_order() -> None:
    loop = asyncio.get_running_loop()
    each, threads = 10_000, 4
    arrived: list[list[int]] = [[] for _ in range(threads)]

    def storm(number: int) -> None:
        for count in range(each):
            loop.call_soon_threadsafe(arrived[number].append, count)

    workers = [threading.Thread(target=storm, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    await eventually(lambda: sum(map(len, arrived)) == each * threads)
    assert arrived == [list(range(each))] * threads
    for worker in workers:
        worker.join()


async def test_last_call_of_a_burst_is_not_left_waiting() -> None:
    """The wake-ups are joined together; the one that matters must not be."""
    loop = asyncio.get_running_loop()
    chance = random.Random(2)
    turn: asyncio.Event = asyncio.Event()
    go = threading.Semaphore(0)

    def caller() -> None:
        for pause in pauses:
            go.acquire()
            for _ in range(pause):
                pass
            loop.call_soon_threadsafe(turn.set)

    pauses = [chance.randrange(2000) for _ in range(2000)]
    thread = threading.Thread(target=caller)
    thread.start()
    for _ in pauses:
        turn.clear()
        go.release()
        await soon(turn.wait())
    thread.join()


async def test_work_can_be_given_to_threads() -> None:
    loop = asyncio.get_running_loop()
    results = await asyncio.gather(*(loop.run_in_executor(None, pow, 2, number) for number in range(100)))
    assert results == [2**number for number in range(100)]
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(None, lambda: 1 // 0)
    assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()


def test_call_from_a_thread_to_a_closed_loop_is_an_error(new_loop: LoopFactory) -> None:
    loop = new_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon_threadsafe(print)


def test_call_from_a_thread_before_the_run_is_not_lost(new_loop: LoopFactory) -> None:
    loop = new_loop()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(loop.stop,))
    thread.start()
    thread.join()
    loop.run_forever()


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 14), reason="new in Python 3.14")
@pytest.mark.only_on("uringloop", "asyncio")
def test_cancel_by_another_thread_waits_for_the_callback_that_is_running(new_loop: LoopFactory) -> None:
    loop = new_loop()
    running, cancelled, over = threading.Event(), threading.Event(), threading.Event()
    waited: list[bool] = []

    def callback() -> None:
        running.set()
        assert not cancelled.wait(0.1)
        over.set()

    def cancel() -> None:
        handle = loop.call_soon_threadsafe(callback)
        running.wait(PATIENCE)
        handle.cancel()
        cancelled.set()
        waited.append(over.is_set())
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=cancel)
    thread.start()
    loop.run_forever()
    thread.join(PATIENCE)
    assert waited == [True]


def test_loop_cannot_be_run_while_it_runs(new_loop: LoopFactory) -> None:
    loop = new_loop()

    async def run_again() -> None:
        with pytest.raises(RuntimeError, match="running"):
            loop.close()
        other = new_loop()
        with pytest.raises(RuntimeError, match="while another loop is running"):
            other.run_forever()
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_forever()

    loop.run_until_complete(run_again())


def test_stopped_run_until_complete_says_so(new_loop: LoopFactory) -> None:
    loop = new_loop()
    never = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        loop.run_until_complete(never)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exit_leaves_the_loop_at_once_and_the_rest_runs_next_time(
    new_loop: LoopFactory, error: type[BaseException]
) -> None:
    loop = new_loop()
    ran: list[str] = []

    def leave() -> None:
        raise error

    loop.call_soon(leave)
    loop.call_soon(ran.append, "the rest")
    with pytest.raises(error):
        loop.run_forever()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["the rest"]


def test_other_exceptions_go_to_the_handler_and_the_loop_goes_on(new_loop: LoopFactory, unhandled: Unhandled) -> None:
    loop = new_loop()

    def fail_last() -> None:
        loop.call_soon(loop.stop)
        raise IndexError

    loop.call_soon(lambda: 1 // 0)
    loop.call_later(0.01, fail_last)
    loop.run_forever()
    assert {type(context["exception"]) for context in unhandled.contexts} == {ZeroDivisionError, IndexError}
    unhandled.contexts.clear()


@pytest.mark.only_on("uringloop", "asyncio")  # the clock of uvloop cannot be replaced
async def test_clock_may_be_replaced_while_the_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    now, ran = loop.time(), list[str]()
    loop.call_at(now + 1800, ran.append, "due")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "time", lambda: now + 3600)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert ran == ["due"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio's create_task has it from 3.13.3 on")
async def test_task_may_start_at_once() -> None:
    loop = asyncio.get_running_loop()
    if loop_kind() == "asyncio" and "kwargs" not in inspect.signature(loop.create_task).parameters:
        pytest.skip("an older 3.13")
    ran: list[str] = []

    async def run() -> str:
        ran.append("run")
        return "result"

    task = loop.create_task(run(), name="eager", eager_start=True)  # type: ignore[call-arg]
    assert ran == ["run"]
    assert task.get_name() == "eager"
    assert await task == "result"


@pytest.mark.only_on("uringloop")
async def test_attributes_of_the_loop_are_few_enough_to_be_found_by_their_place() -> None:
    assert len(vars(asyncio.get_running_loop())) <= 30  # CPython's SHARED_KEYS_MAX_SIZE


@pytest.mark.only_on("uringloop")  # uvloop refuses it at once, and what asyncio does depends on its version
def test_timer_of_no_number_is_refused_and_not_waited_for(new_loop: LoopFactory) -> None:
    loop = new_loop()
    timer = loop.call_later(math.nan, int)
    loop.call_later(0.01, loop.stop)
    with pytest.raises(ValueError, match="NaN"):
        loop.run_forever()
    timer.cancel()
    loop.run_forever()


@pytest.mark.only_on("uringloop")
def test_clock_that_is_frozen_in_all_modules_freezes_no_timer(
    new_loop: LoopFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As freezegun does it, but for asyncio's own clock."""
    loop = new_loop()
    real = time.monotonic
    monkeypatch.setattr(loop, "time", lambda: real())
    for name in ("monotonic", "monotonic_ns"):
        monkeypatch.setattr(scheduling, name, lambda: 1_700_000_000_000_000_000)
    loop.run_until_complete(asyncio.wait_for(asyncio.sleep(0.01), PATIENCE))
