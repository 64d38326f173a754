"""The loops by name, and how to make one of them the loop of everything that asks asyncio for one."""

from __future__ import annotations

import asyncio
import importlib
import typing

LOOPS: typing.Final = {
    "uringloop": "uringloop:Loop",
    "asyncio": "asyncio:SelectorEventLoop",
    "uvloop": "uvloop:Loop",
}


def loop_class(name: str) -> type[asyncio.AbstractEventLoop]:
    """The class behind a name of the table, or behind `module:Class`."""
    module_name, _, class_name = LOOPS.get(name, name).partition(":")
    found = getattr(importlib.import_module(module_name), class_name)
    if not (isinstance(found, type) and issubclass(found, asyncio.AbstractEventLoop)):
        raise TypeError(f"{name!r} is not a loop class: {found!r}")
    return found


def make_default(cls: type[asyncio.AbstractEventLoop]) -> None:
    """From now on `asyncio.run`, `new_event_loop`, `Runner` and `SelectorEventLoop()` give `cls`.

    The policy's class is patched, rather than a policy set, because test modules set the policy back to None.
    """
    from asyncio import unix_events

    for module in (asyncio, unix_events):
        for alias in ("SelectorEventLoop", "EventLoop"):  # EventLoop: 3.13 and newer
            if hasattr(module, alias):
                setattr(module, alias, cls)
    unix_events._UnixDefaultEventLoopPolicy._loop_factory = cls  # type: ignore[attr-defined]
