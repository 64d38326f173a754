"""uringloop: an asyncio event loop for Linux that runs on io_uring.

asyncio.run(main(), loop_factory=uringloop.new_event_loop)
"""

import importlib
from typing import TYPE_CHECKING, Any

from uringloop._version import __version__
from uringloop.loop import Loop
from uringloop.policy import event_loop_policy_class, install, new_event_loop, run
from uringloop.probe import Probe, Unavailable, probe
from uringloop.stats import Stats

if TYPE_CHECKING:
    from asyncio import DefaultEventLoopPolicy as EventLoopPolicy

    from uringloop import fs
    from uringloop.files.opening import open

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


_IMPORTED_WHEN_USED = {"fs": "uringloop.fs", "open": "uringloop.files.opening"}  # a megabyte that a server may not need


def __getattr__(name: str) -> Any:
    if name == "EventLoopPolicy":
        return event_loop_policy_class()
    if name in _IMPORTED_WHEN_USED:
        module = importlib.import_module(_IMPORTED_WHEN_USED[name])
        globals()[name] = value = getattr(module, name, module)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
