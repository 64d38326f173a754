"""Handles without overhead: asyncio's, made and run with as few steps as Python allows."""

from __future__ import annotations

import asyncio
import contextvars
from asyncio import format_helpers
from collections.abc import Callable
from typing import Any


class Handle(asyncio.Handle):
    """An asyncio.Handle that is made outside debug mode: no look at the loop, no traceback."""

    __slots__ = ()

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._context = contextvars.copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


def run_handle(handle: Any) -> None:
    """Run a handle, like Handle._run."""
    if type(handle) is not Handle:
        handle._run()
        return
    try:
        handle._context.run(handle._callback, *handle._args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:
        callback = format_helpers._format_callback_source(handle._callback, handle._args)
        handle._loop.call_exception_handler(
            {"message": f"Exception in callback {callback}", "exception": exc, "handle": handle}
        )
    # A task that failed holds its traceback, which holds this frame: without this the cycle waits for the collector.
    handle = None
