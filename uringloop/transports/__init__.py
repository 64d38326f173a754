"""The transports, a module for each kind.

`transports.datagram` and the others named here are imported when they are first used: a server of plain connections
does without.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uringloop.transports import datagram, pipe, process, tls

__all__ = ["datagram", "pipe", "process", "tls"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
