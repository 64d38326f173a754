"""uringloop: an asyncio event loop for Linux that runs on io_uring.

asyncio.run(main(), loop_factory=uringloop.new_event_loop)
"""

import importlib
from typing import TYPE_CHECKING, Any

from uringloop._version import __version__
from uringloop.loop import Loop
from uringloop.policy import event_loop_policy_class, install, new_event_loop, run
from uringloop.probe import Probe, Unavailable, probe

if TYPE_CHECKING:
    from asyncio import DefaultEventLoopPolicy as EventLoopPolicy

    from uringloop import fs
    from uringloop.files.opening import open
    from uringloop.stats import Stats

__all__ = [
    "EventLoopPolicy",
    "Loop",
    "Probe",
    "Stats",
    "Unavailable",
    "__version__",
    "fs",
    "install",
    "new_event_loop",
    "open",
    "probe",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "EventLoopPolicy":
        return event_loop_policy_class()
    # Imported when they are first used: two megabytes that a server may not need.
    if name == "Stats":
        return importlib.import_module("uringloop.stats").Stats
    if name == "fs":
        return importlib.import_module("uringloop.fs")
    if name == "open":
        return importlib.import_module("uringloop.files.opening").open
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
