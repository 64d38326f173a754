"""The ways to get a loop: new_event_loop, run, install, EventLoopPolicy; and what happens where io_uring is missing."""

from __future__ import annotations

import asyncio
import sys
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from uringloop import environment
from uringloop.loop import Loop, choose_options
from uringloop.probe import Unavailable, explain, forget, probe

_T = TypeVar("_T")

_FALLBACKS = ("asyncio", None)
_warned_of_fallback = False


def new_event_loop(*, fallback: str | None = None, **options: Any) -> asyncio.AbstractEventLoop:
    """A new `Loop`; its options pass through (entries, buffers, buffer_size, datagram_buffers, files, hardened: see
    `reactor.Options`).

    fallback: "asyncio" for asyncio's own loop, with one RuntimeWarning, where io_uring cannot be used. The
    environment variable URINGLOOP_FALLBACK says the same for a whole program.

    Raises Unavailable (an OSError) where io_uring cannot be used and there is no fallback; ValueError or TypeError for
    options that cannot be, also where the fallback has no use for them.
    """
    fallback = fallback or environment.fallback()
    if fallback not in _FALLBACKS:
        raise ValueError(f"fallback must be 'asyncio' or None, not {fallback!r}")
    try:
        return _new_loop(options)
    except Unavailable as unavailable:
        if fallback is None:
            raise
        choose_options(**options).check()  # what is wrong where io_uring is there is wrong here too
        _warn_of_fallback(unavailable)
        return asyncio.SelectorEventLoop()


def _new_loop(options: dict[str, Any]) -> Loop:
    found = probe()
    if not found.available:
        forget()  # what is missing now may be there at the next try
        raise Unavailable(found)
    try:
        return Loop(**options)
    except OSError as exc:
        raise Unavailable(explain(exc)) from exc


def _warn_of_fallback(unavailable: Unavailable) -> None:
    global _warned_of_fallback
    if not _warned_of_fallback:
        _warned_of_fallback = True
        warnings.warn(f"uringloop runs on asyncio's own loop: {unavailable.strerror}", RuntimeWarning, stacklevel=3)


def run(
    main: Coroutine[Any, Any, _T],
    *,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = new_event_loop,
    debug: bool | None = None,
) -> _T:
    """asyncio.run on a new `Loop`.

    Raises TypeError if `loop_factory` makes a loop of another kind; the fallback of `new_event_loop` passes.
    """

    if asyncio._get_running_loop() is not None:
        raise RuntimeError("uringloop.run() cannot be called from a running event loop")
    if not asyncio.iscoroutine(main):
        raise ValueError(f"a coroutine was expected, got {main!r}")

    async def wrapper() -> _T:
        loop = asyncio.get_running_loop()
        if loop_factory is not new_event_loop and not isinstance(loop, Loop):
            main.close()
            raise TypeError(f"uringloop.run() uses a non-uringloop event loop: {loop!r}")
        return await main

    with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
        return runner.run(wrapper())


def install() -> None:
    """Make asyncio use this loop everywhere. `asyncio.run(..., loop_factory=uringloop.new_event_loop)` does it for
    one place, and lasts longer: policies go away in Python 3.16."""
    if sys.version_info >= (3, 12):
        warnings.warn(
            "uringloop.install() is deprecated since Python 3.12 in favor of uringloop.run() and loop_factory.",
            DeprecationWarning,
            stacklevel=2,
        )
    asyncio.set_event_loop_policy(event_loop_policy_class()())


def event_loop_policy_class() -> type[asyncio.AbstractEventLoopPolicy]:
    """The class `uringloop.EventLoopPolicy`; made when it is asked for, since looking at asyncio's policies warns
    from Python 3.14 on. Raises AttributeError where asyncio has no policies."""
    global _policy_class
    if _policy_class is None:

        class EventLoopPolicy(asyncio.DefaultEventLoopPolicy):
            """asyncio's default policy, with this loop."""

            def new_event_loop(self) -> asyncio.AbstractEventLoop:
                return new_event_loop()

        EventLoopPolicy.__module__ = "uringloop"
        EventLoopPolicy.__qualname__ = "EventLoopPolicy"
        _policy_class = EventLoopPolicy
    return _policy_class


_policy_class: type[asyncio.AbstractEventLoopPolicy] | None = None
