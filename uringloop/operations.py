"""One-shot requests of the ring as futures: what sockets, pipes, files and processes are made of.

Facts: the kernel may write to the memory of a request until its last completion, which also comes after a cancel. A
cancel may come too late, and then the request has done its work.
So: memory that a request needs is held here until its completion, whatever becomes of the future. A result that comes
after the future was cancelled goes to `late`, whose business it is to lose nothing: to keep the bytes, to close the fd.
An operation may also be patient: then its cancel asks the kernel, and the future is cancelled when the kernel is done.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from uringloop.reactor import raise_errno

if TYPE_CHECKING:
    from uringloop.reactor import Reactor
    from uringloop.selector import RingSelector


class Operation(asyncio.Future[int]):
    """A request in the kernel: its result is the completion's, or the OSError of a negative one. Cancelling it asks
    the kernel to end it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        reactor: Reactor,
        keep: object,
        late: Callable[[int], None] | None,
        patient: bool,
    ) -> None:
        super().__init__(loop=loop)
        self._reactor = reactor
        self._keep = keep
        self._late = late
        self._patient = patient
        self._cancelling = False
        self.token = -1

    def cancel(self, msg: Any | None = None) -> bool:
        if self._patient:
            if self.done():
                return False
            self._cancelling = True
        elif not super().cancel(msg):
            return False
        self._reactor.operation_cancel(self.token)
        return True

    def complete(self, result: int) -> None:
        """For the selector: the request is over. `result` is what the kernel said, -errno if it failed."""
        if self._cancelling:
            super().cancel()
        if self.done():
            if self._late is not None:
                self._late(result)
        elif result < 0:
            self.set_exception(OSError(-result, os.strerror(-result)))
        else:
            self.set_result(result)
        self._keep = self._late = None


class Operations:
    """Starts operations of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, selector: RingSelector, reactor: Reactor) -> None:
        self._loop: asyncio.AbstractEventLoop | None = loop
        self._selector = selector
        self._reactor = reactor
        self._known: dict[int, bool] = {}  # opcode -> whether it can be used

    def has(self, opcode: int) -> bool:
        """True if the kernel has this operation and this ring may do it."""
        known = self._known.get(opcode)
        if known is None:
            known = self._known[opcode] = self._reactor.has(opcode)
        return known

    def close(self) -> None:
        """No more are started. Lets go of the loop, which holds this: a closed loop is to be freed at once."""
        self._loop = None

    def _open_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            raise RuntimeError("Event loop is closed")
        return self._loop

    def start(
        self,
        opcode: int,
        fd: int,
        *,
        address: int = 0,
        length: int = 0,
        offset: int = 0,
        flags: int = 0,
        file_index: int = 0,
        address3: int = 0,
        sqe_flags: int = 0,
        keep: object = None,
        late: Callable[[int], None] | None = None,
        patient: bool = False,
    ) -> Operation:
        """Start a request with the next turn of the loop; the arguments up to `sqe_flags` are the SQE's fields.

        keep: what must not be freed before the completion, such as what `reactor.pin` gave for `address`.
        late: called with the result (or -errno) if the future was cancelled before it came.
        patient: the future is not cancelled before the kernel is done with the request; `late` is called then too.

        Raises OSError when memory is out, RuntimeError when the loop is closed.
        """
        operation = Operation(self._open_loop(), self._reactor, keep, late, patient)
        operation.token = self._reactor.operation_start(
            opcode | sqe_flags << 8, fd, address, length, offset, flags, file_index, address3
        )
        self._selector.operations[operation.token] = operation
        return operation

    async def ready(self, fd: int, mask: int, waiting: asyncio.Future[int] | None = None) -> None:
        """Wait until `fd` is ready for `mask` (poll(2)), or has failed. Takes nothing from it, also if cancelled.

        waiting: a new future to wait with, for whoever may end the wait with an exception.

        Raises OSError. A plain future and no `Operation`, which costs a good part of a socket's request.
        """
        if waiting is None:
            waiting = self._open_loop().create_future()
        token = self._reactor.poll_start(fd, mask)
        self._selector.waiting[token] = waiting
        try:
            result: int = await waiting
        except BaseException:
            self._reactor.operation_cancel(token)
            raise
        if result < 0:
            raise_errno(result)
