"""How fast could a callback be on a loop that is written in Python? `python -m bench.floor`, in nanoseconds a callback.

Each line does what the one before it does and one step more, until the last has done all that `call_soon` and the turn
that runs the callback must: a handle that can be cancelled, the caller's context, the order of the calls. Nothing else
is in it: no check for a closed loop or for debug mode, no look at the kernel, no error that is caught. What whole loops
take for a callback, in batches of the same size, is below.
"""

import asyncio
import importlib.util
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from . import loops

CALLBACKS = 1000
"""In a turn, as in `bench schedule`."""
TURNS = 30
ROUNDS = 15
LOOPS = (loops.OURS, "uvloop", "rloop", "asyncio")


class Handle:
    """The four fields of an asyncio.Handle that differ from one to the next."""

    __slots__ = ("_args", "_callback", "_context", "_loop")

    _args: tuple[Any, ...]
    _callback: Callable[..., object]
    _context: Context
    _loop: object


ready: deque[Handle] = deque()


def nothing() -> None:
    pass


def called(callback: Callable[..., object], *args: object, context: Context | None = None) -> None:
    pass


def with_context(callback: Callable[..., object], *args: object, context: Context | None = None) -> None:
    copy_context() if context is None else context


def with_handle(callback: Callable[..., object], *args: object, context: Context | None = None) -> Handle:
    copy_context() if context is None else context
    return Handle()


def with_fields(callback: Callable[..., object], *args: object, context: Context | None = None) -> Handle:
    handle = Handle()
    handle._context = copy_context() if context is None else context
    handle._loop = ready
    handle._callback = callback
    handle._args = args
    return handle


def queued(callback: Callable[..., object], *args: object, context: Context | None = None) -> Handle:
    handle = Handle()
    handle._context = copy_context() if context is None else context
    handle._loop = ready
    handle._callback = callback
    handle._args = args
    ready.append(handle)
    return handle


def batch(call_soon: Callable[..., object]) -> None:
    for _ in range(CALLBACKS):
        call_soon(nothing)


def drop() -> None:
    ready.clear()


def run() -> None:
    for _ in range(len(ready)):
        handle = ready.popleft()
        if not handle._args:
            handle._context.run(handle._callback)


STEPS: dict[str, tuple[Callable[..., object], Callable[[], None]]] = {
    "a call of a function in Python": (called, nothing),
    "the caller's context": (with_context, nothing),
    "an object of a class in Python": (with_handle, nothing),
    "its four fields": (with_fields, nothing),
    "a place in the queue": (queued, drop),
    "taken from it, and run in its context": (queued, run),
}


def least(turn: Callable[[], None]) -> float:
    """Nanoseconds a callback: the median of the rounds."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time_ns()
        for _ in range(TURNS):
            turn()
        rounds.append((time.process_time_ns() - start) / TURNS / CALLBACKS)
    return statistics.median(rounds)


def step(call_soon: Callable[..., object], finish: Callable[[], None]) -> float:
    def turn() -> None:
        batch(call_soon)
        finish()

    return least(turn)


def whole(name: str) -> float:
    """Of a loop, with its turn."""
    loop = loops.new_event_loop(name)

    async def one_turn() -> None:
        batch(loop.call_soon)
        await asyncio.sleep(0)

    async def turns() -> float:
        rounds = []
        for _ in range(ROUNDS):
            start = time.process_time_ns()
            for _ in range(TURNS):
                await one_turn()
            rounds.append((time.process_time_ns() - start) / TURNS / CALLBACKS)
        return statistics.median(rounds)

    try:
        return loop.run_until_complete(turns())
    finally:
        loop.close()


def main() -> None:
    print("| in Python, at the least | ns | together |\n| --- | --: | --: |")
    before = 0.0
    for name, (call_soon, finish) in STEPS.items():
        together = step(call_soon, finish)
        print(f"| {name} | {together - before:.0f} | {together:.0f} |")
        before = together
    print("\n| a whole loop | ns |\n| --- | --: |")
    for name in LOOPS:
        if importlib.util.find_spec(name) is not None:
            print(f"| {name} | {whole(name):.0f} |")


if __name__ == "__main__":
    main()
