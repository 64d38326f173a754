"""What the selector's events call: types of what `RingSelector` keeps by token. Imported by type checkers only, since a
protocol class takes some KiB of every process."""

from __future__ import annotations

import contextvars
import socket
from collections.abc import Callable
from typing import Protocol


class StreamOwner(Protocol):
    """What a stream's events call; the transport."""

    # Not for whoever owns the transport, who may have attributes of these names.
    @property
    def _sink(self) -> Callable[[bytes], object]:
        """What takes the bytes that arrive, in `_context`. It is changed to pause or drop them."""

    @property
    def _context(self) -> contextvars.Context: ...
    @property
    def pinned(self) -> object:
        """What the kernel may still read."""

    def on_loop_closed(self) -> None: ...
    def on_readable(self, room: int) -> None: ...
    def on_eof(self) -> None: ...
    def on_lost(self, error: int) -> None: ...
    def on_drained(self, released: int) -> None: ...
    def on_receive_failed(self, exc: BaseException) -> None: ...


class EndpointOwner(Protocol):
    """What a datagram endpoint's events call; the transport."""

    def on_datagram(self, start: int, lengths: int, behind: bool) -> None: ...
    def on_error(self, error: int) -> None: ...
    def on_drained(self) -> None: ...
    def on_lost(self) -> None: ...
    def on_loop_closed(self) -> None: ...


class ListenerOwner(Protocol):
    """What a listening socket's connections go to."""

    @property
    def sock(self) -> socket.socket: ...
    def on_accepted(self, fd: int, stopped: int) -> None: ...
    def close(self) -> None: ...


class ProcessOwner(Protocol):
    """What hears of the end of a process."""

    def on_loop_closed(self) -> None: ...


class Completing(Protocol):
    """What a one-shot request's completion calls: a future, or the one who waits for it."""

    def complete(self, result: int) -> None:
        """`result` is what the kernel said, -errno if it failed."""
