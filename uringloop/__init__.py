"""uringloop: an asyncio event loop for Linux that runs on io_uring.

asyncio.run(main(), loop_factory=uringloop.new_event_loop)
"""

from typing import TYPE_CHECKING, Any

from uringloop import fs
from uringloop._version import __version__
from uringloop.files.opening import open
from uringloop.loop import Loop
from uringloop.policy import event_loop_policy_class, install, new_event_loop, run
from uringloop.probe import Probe, Unavailable, probe
from uringloop.stats import Stats

if TYPE_CHECKING:
    from asyncio import DefaultEventLoopPolicy as EventLoopPolicy

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
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
