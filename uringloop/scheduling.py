"""Callbacks, timers and tasks: what asyncio's loop does for them, with as few steps as Python allows.

Facts: a callback that is made, queued and run costs asyncio some 600 ns, of which the callback is a tenth: handles are
filled slot by slot, each call of a method is a frame, `f(x, *args)` builds a list and a tuple (140 ns more than
`f(x, y)`). A heap of TimerHandles compares by a method in Python.
So: outside debug mode handles are made without a constructor in Python, and run in one frame for the whole turn, the
steps of tasks and the callbacks of futures without a `*`; the heap holds tuples, which C compares.
Cost: six methods of asyncio's are here again.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import math
from asyncio import format_helpers, tasks
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from heapq import heappush
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any, TypeVarTuple

from uringloop import compat
from uringloop.reactor import NANOSECONDS, Reactor

_Ts = TypeVarTuple("_Ts")

NO_DEADLINE = -1
NO_TIMER = -1  # in the place of a timer's number
UNKNOWN_TIMER = -2
FAR_SECONDS = 2**62 // NANOSECONDS  # about 146 years, in nanoseconds an int64: nobody will see the end of a longer wait

_next_timer: Callable[[], int] = itertools.count().__next__  # a timer's number, of all loops: the older has the smaller

_NO_ARGUMENTS: tuple[Any, ...] = ()  # CPython has one empty tuple; were there others, `*args` would do for them


class Handle(asyncio.Handle):
    """An asyncio.Handle that is made outside debug mode: it has no traceback, and no memory of what was cancelled.
    Whoever makes it fills its slots."""

    __slots__ = ()
    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        __init__ = object.__init__  # one in Python takes 80 ns, longer than all else
    # These are slots of asyncio.Handle. What never differs need not be stored in each.
    _source_traceback = None
    _repr = None
    # The others. `_args` is None once it is cancelled.
    _args: tuple[Any, ...] | None  # type: ignore[assignment]
    _callback: Callable[..., object] | None
    _context: contextvars.Context
    _loop: Scheduling

    @property
    def _cancelled(self) -> bool:  # type: ignore[override]
        return self._args is None

    def cancel(self) -> None:
        self._callback = self._args = None


class TimerHandle(Handle, asyncio.TimerHandle):
    """An asyncio.TimerHandle that is made outside debug mode."""

    __slots__ = ()
    if TYPE_CHECKING:

        def __init__(self) -> None: ...
    else:
        __init__ = object.__init__
    _when: float
    _scheduled: bool  # it is in the heap

    def cancel(self) -> None:
        if self._args is not None:
            if self._scheduled:
                self._loop._timer_cancelled_count += 1
            self._callback = self._args = None


def _nanoseconds(seconds: float) -> int:
    # Rounded up: a timer is never early. In this order a NaN stays one, and raises ValueError as on asyncio.
    return math.ceil(min(max(seconds, 0), FAR_SECONDS) * NANOSECONDS)


Timer = tuple[float, int, asyncio.TimerHandle]
"""When it is due; its number, so that of two the older is first; and itself."""


class Scheduling(asyncio.SelectorEventLoop):
    """The part of the loop that hears of nothing but time."""

    _closed: bool
    _debug: bool
    _ready: deque[asyncio.Handle]
    _scheduled: list[Timer]
    _timer_cancelled_count: int  # of those in the heap
    _clock_resolution: float
    _task_factory: Any
    _reactor: Reactor

    # The function itself, which no call of a method stands before. And so it is seen at once if the loop's clock is
    # not the system's: a subclass has its own, or a test has put one in its place.
    time: Callable[[], float] = monotonic
    # Here and not as the module's: freezegun replaces what modules have, and the core counts by the clock itself.
    _core_time: Callable[[], int] = monotonic_ns

    # --- callbacks ---------------------------------------------------------------------------------------------------

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._debug:
            in_debug = super().call_soon(callback, *args, context=context)
            del in_debug._source_traceback[-1]  # type: ignore[attr-defined]  # this frame
            return in_debug
        if self._closed:
            self._check_closed()  # type: ignore[attr-defined]
        handle = Handle()
        handle._context = copy_context() if context is None else context
        handle._loop = self
        handle._callback = callback
        handle._args = args
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        if self._debug:
            in_debug = super().call_soon_threadsafe(callback, *args, context=context)
            del in_debug._source_traceback[-1]  # type: ignore[attr-defined]  # this frame
            return in_debug
        if self._closed:
            self._check_closed()  # type: ignore[attr-defined]
        if compat.ThreadSafeHandle is None:
            handle = Scheduling.call_soon(self, callback, *args, context=context)
        else:
            handle = compat.ThreadSafeHandle(callback, args, self, context)
            # Its lock is held by its own _run, which enters its own context: another one must be around it.
            Scheduling.call_soon(self, handle._run, context=contextvars.Context())
        self._write_to_self()  # type: ignore[attr-defined]
        return handle

    def _run_ready(self) -> None:
        """Run what is ready now. What these callbacks schedule runs after the next look at the kernel."""
        ready = self._ready
        if self._debug:
            for _ in range(len(ready)):
                self._run_in_debug(ready.popleft())
            return
        for _ in range(len(ready)):
            handle: Any = ready.popleft()
            args = handle._args
            try:
                if args is _NO_ARGUMENTS:
                    handle._context.run(handle._callback)
                elif args is None:  # it was cancelled
                    continue
                elif len(args) == 1:
                    handle._context.run(handle._callback, args[0])
                else:
                    handle._context.run(handle._callback, *args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._report_failed(handle, exc)
        # A task that failed holds its traceback, which holds this frame: else the cycle waits for the collector.
        handle = args = None

    def _report_failed(self, handle: Any, exc: BaseException) -> None:
        callback = format_helpers._format_callback_source(handle._callback, handle._args)
        report = {"message": f"Exception in callback {callback}", "exception": exc, "handle": handle}
        if handle._source_traceback:  # debug mode has ended since it was made
            report["source_traceback"] = handle._source_traceback
        self.call_exception_handler(report)

    def _run_in_debug(self, handle: asyncio.Handle) -> None:
        if handle._cancelled:
            return
        self._current_handle = handle
        try:
            start = self.time()
            handle._run()
            self._report_slow(handle, self.time() - start)
        finally:
            self._current_handle = None  # type: ignore[assignment]
            del handle  # see _run_ready

    def _report_slow(self, what: object, seconds: float) -> None:
        if seconds >= self.slow_callback_duration:
            compat.log_slow(what, seconds)

    # --- timers ------------------------------------------------------------------------------------------------------

    def call_later(
        self,
        delay: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        if delay is None:
            raise TypeError("delay must not be None")
        if self._debug:
            return self._timer_in_debug(self.time() + delay, callback, args, context)
        if self._closed:
            self._check_closed()  # type: ignore[attr-defined]
        when = self.time() + delay
        timer = TimerHandle()
        timer._context = copy_context() if context is None else context
        timer._loop = self
        timer._callback = callback
        timer._args = args
        timer._when = when
        timer._scheduled = True
        heappush(self._scheduled, (when, _next_timer(), timer))
        return timer

    def call_at(
        self,
        when: float,
        callback: Callable[[*_Ts], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        if when is None:
            raise TypeError("when cannot be None")
        if self._debug:
            return self._timer_in_debug(when, callback, args, context)
        if self._closed:
            self._check_closed()  # type: ignore[attr-defined]
        # As in call_later: a function for both is a frame more, 40 ns, a twentieth of a timer.
        timer = TimerHandle()
        timer._context = copy_context() if context is None else context
        timer._loop = self
        timer._callback = callback
        timer._args = args
        timer._when = when
        timer._scheduled = True
        heappush(self._scheduled, (when, _next_timer(), timer))
        return timer

    def _timer_in_debug(
        self, when: float, callback: Any, args: tuple[Any, ...], context: contextvars.Context | None
    ) -> asyncio.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        self._check_thread()  # type: ignore[attr-defined]
        self._check_callback(callback, "call_at")  # type: ignore[attr-defined]
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        del timer._source_traceback[-2:]  # type: ignore[attr-defined]  # this frame, and that of call_at or call_later
        heappush(self._scheduled, (when, _next_timer(), timer))
        timer._scheduled = True  # type: ignore[attr-defined]
        return timer

    def _set_deadline(self) -> int:
        """Have the ring wait no longer than until the first timer is due; the timer's number."""
        if not self._scheduled:
            self._reactor.set_deadline(NO_DEADLINE)
            return NO_TIMER
        when, number, _ = self._scheduled[0]
        if self.time is not monotonic:
            self._reactor.set_deadline(self._core_time() + _nanoseconds(when - self.time()))
            return UNKNOWN_TIMER  # it is to be asked again
        self._reactor.set_deadline(_nanoseconds(when))
        return number

    def _sweep_cancelled_timers(self) -> None:
        scheduled = self._scheduled
        count = len(scheduled)
        if (
            count > compat.MIN_SCHEDULED_TIMER_HANDLES
            and self._timer_cancelled_count / count > compat.MIN_CANCELLED_TIMER_HANDLES_FRACTION
        ):
            # In place: a callback of this turn may be adding to it.
            scheduled[:] = [entry for entry in scheduled if entry[2]._args is not None]
            heapq.heapify(scheduled)
            self._timer_cancelled_count = 0
            return
        while scheduled and scheduled[0][2]._args is None:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)

    def _collect_due_timers(self) -> None:
        scheduled = self._scheduled
        end = self.time() + self._clock_resolution
        while scheduled and scheduled[0][0] < end:
            timer = heapq.heappop(scheduled)[2]
            if timer._args is None:
                self._timer_cancelled_count -= 1
            timer._scheduled = False  # type: ignore[attr-defined]
            self._ready.append(timer)

    # --- tasks -------------------------------------------------------------------------------------------------------

    def create_task(self, coro: Any, **options: Any) -> Any:
        """As from Python 3.13.3 on: what is not asyncio's business is the task's, `eager_start` above all."""
        if self._task_factory is not None:
            return super().create_task(coro, **options)
        if self._closed:
            self._check_closed()  # type: ignore[attr-defined]
        # `**` makes a dict and a tuple, even of nothing.
        task = tasks.Task(coro, loop=self, **options) if options else tasks.Task(coro, loop=self)
        if self._debug and task._source_traceback:  # type: ignore[attr-defined]  # none if it was eager, and is done
            del task._source_traceback[-1]  # type: ignore[attr-defined]  # this frame
        try:
            return task
        finally:
            del task  # the traceback of one that was eager and failed holds this frame
