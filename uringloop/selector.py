"""The ring as the loop's selector.

The events of a tick go straight to the transports that they are for. The loop takes the tick, hands out the most
frequent events itself (`Loop._run_once`), and asks here for the others and for the file objects that are ready
(`take_ready`), for the seams of asyncio that still want readiness (add_reader, signals). `select` is all that in one
call, as of any selector; the loop does not call it.

Facts: asyncio promises level-triggered readiness; a multishot poll reports edges, and the kernel has no
level-triggered poll through the ring. A poll on the ring holds its file open until it is cancelled.
So: one oneshot poll an fd, for both directions, armed again at the turn after its callbacks have run; it then reports
at once what is still there. Arming rides in the tick's one system call. A change of interest cancels and arms again.
Cost: a request a readiness event, where epoll needs none.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import weakref
from collections.abc import Callable, Iterator
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey, _BaseSelectorImpl
from typing import TYPE_CHECKING, Any

from uringloop.reactor import (
    EVENT_ACCEPTED,
    EVENT_DATA,
    EVENT_DATAGRAM,
    EVENT_DONE,
    EVENT_DRAINED,
    EVENT_ENDPOINT_DRAINED,
    EVENT_ENDPOINT_ERROR,
    EVENT_ENDPOINT_LOST,
    EVENT_EOF,
    EVENT_LOST,
    EVENT_READABLE,
    NANOSECONDS,
    Event,
    leave_to_kernel,
    raise_tick_error,
)

if TYPE_CHECKING:
    import asyncio

    from uringloop.owners import Completing, EndpointOwner, ListenerOwner, ProcessOwner, StreamOwner
    from uringloop.reactor import Reactor

# About 292 years in nanoseconds fit an int64; a longer wait is no wait that anyone will see the end of.
TIMEOUT_MAX_NS = 2**62
_OF_ENDPOINTS = (EVENT_DATAGRAM, EVENT_ENDPOINT_ERROR, EVENT_ENDPOINT_DRAINED, EVENT_ENDPOINT_LOST)


class RingSelector(_BaseSelectorImpl):
    """Waits on a `Reactor` and hands its events out."""

    _fd_to_key: dict[int, SelectorKey]  # the base class's

    def __init__(self, reactor: Reactor) -> None:
        super().__init__()
        self._reactor = reactor
        self.events = reactor.events  # for the loop's turn, and in reach of it without another step
        self.behind = False  # there is something for `catch_up`
        # Who hears of what, by token.
        self.streams: dict[int, StreamOwner] = {}
        self.listeners: dict[int, ListenerOwner] = {}
        # Sockets that servers were given: other processes may have them too, as of uvicorn --workers and gunicorn.
        self.given: weakref.WeakSet[Any] = weakref.WeakSet()
        self.endpoints: dict[int, EndpointOwner] = {}
        self.operations: dict[int, Completing] = {}
        self.by_fd: dict[int, asyncio.BaseTransport] = {}  # transports that are native to the ring, until they are lost
        self.processes: set[ProcessOwner] = set()  # whose end is waited for
        self.waiting: dict[int, asyncio.Future[int]] = {}  # for one poll each, which no selector key stands for
        self._polls: dict[int, int] = {}  # token of an armed poll -> fd
        self._poll_tokens: dict[int, int] = {}  # fd -> token of its armed poll
        self._fired: list[int] = []  # fds whose poll has fired since the last turn: to be armed again
        self.ready: list[tuple[SelectorKey, int]] = []
        # Events that are still to be handed out because a callback let KeyboardInterrupt or SystemExit out.
        self._events: list[Event] = []
        # Called around each event in debug mode, to find slow callbacks.
        self.watch: Callable[[Callable[[Event], None], Event], None] | None = None

    # --- readiness ---------------------------------------------------------------------------------------------------

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key: SelectorKey = super().register(fileobj, events, data)
        try:
            _check_pollable(key.fd)
            self._arm(key)
        except BaseException:
            super().unregister(fileobj)
            raise
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        key: SelectorKey = super().unregister(fileobj)
        self._disarm(key.fd)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        key: SelectorKey = super().get_key(fileobj)
        if events != key.events:
            self._disarm(key.fd)
            key = key._replace(events=events, data=data)
            self._arm(key)
        elif data is not key.data:
            key = key._replace(data=data)
        self._fd_to_key[key.fd] = key
        return key

    def fileno(self, fileobj: Any) -> int:
        """The fd of a file object. Raises ValueError for what has none."""
        fd: int = self._fileobj_lookup(fileobj)  # type: ignore[attr-defined]
        return fd

    def is_armed(self, fd: int) -> bool:
        """True while a poll for this fd is in the kernel."""
        return fd in self._poll_tokens

    def _arm(self, key: SelectorKey) -> None:
        mask = (select.POLLIN if key.events & EVENT_READ else 0) | (select.POLLOUT if key.events & EVENT_WRITE else 0)
        token = self._reactor.poll_start(key.fd, mask)
        self._polls[token] = key.fd
        self._poll_tokens[key.fd] = token

    def _disarm(self, fd: int) -> None:
        token = self._poll_tokens.pop(fd, None)
        if token is not None:
            del self._polls[token]
            self._reactor.operation_cancel(token)

    def _arm_fired(self) -> None:
        fired, self._fired = self._fired, []
        for fd in fired:
            key = self._fd_to_key.get(fd)
            if key is not None and fd not in self._poll_tokens:
                self._arm(key)

    def _on_poll(self, token: int, result: int) -> None:
        fd = self._polls.pop(token, None)
        if fd is None:
            return  # disarmed in the meantime
        del self._poll_tokens[fd]
        key = self._fd_to_key[fd]
        if result == -errno.ENOMEM:  # the ring of another thread had no room for it: it is asked for again
            self._fired.append(fd)
            self.behind = True
            return
        if result < 0:
            return  # the fd was closed under us; like epoll, forget it in silence
        self._fired.append(fd)
        self.behind = True
        # An error or a hang-up concerns both directions, as in selectors.EpollSelector.
        mask = (EVENT_READ if result & ~select.POLLOUT else 0) | (EVENT_WRITE if result & ~select.POLLIN else 0)
        if mask & key.events:
            self.ready.append((key, mask & key.events))

    # --- the turn ----------------------------------------------------------------------------------------------------

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Submit, wait at most `timeout` seconds (None: no limit), hand the events out; the file objects that are
        ready. Raises RuntimeError when it is closed."""
        timeout_ns = -1 if timeout is None else min(max(int(timeout * NANOSECONDS), 0), TIMEOUT_MAX_NS)
        if self.behind:
            self.catch_up()
        self.hand_out(self._reactor.tick(self._reactor.pointer, timeout_ns))
        return self.take_ready()

    def take_ready(self) -> list[tuple[SelectorKey, int]]:
        """The file objects that have become ready, but for those whose interest has changed since: by a protocol that
        heard of another event of the same tick. They are polled anew."""
        ready = [entry for entry in self.ready if self._fd_to_key.get(entry[0].fd) is entry[0]]
        self.ready.clear()  # the loop's turn knows this list
        return ready

    def catch_up(self) -> None:
        """Do what the last turn left: events after one whose callback let KeyboardInterrupt or SystemExit out, and
        polls that have fired."""
        self.behind = False
        events, self._events = self._events, []
        if events:
            self._hand_out_all(iter(events))
        if self._fired:
            self._arm_fired()

    def leave(self, events: Iterator[Event]) -> None:
        """Leave the rest of these events to the next turn."""
        self._events = list(events)  # where they are, the end of the run may put others
        self.behind = True

    def hand_out(self, count: int) -> None:
        """Hand out the events of a tick that returned this. The loop does it by itself, but for debug mode. Raises
        what a failed tick means."""
        if count < 0:
            raise_tick_error(count)
        self._hand_out_all(self.events(count))

    def _hand_out_all(self, events: Iterator[Event]) -> None:
        try:
            for event in events:
                if self.watch is not None:
                    self.watch(self._hand_out_one, event)
                else:
                    self._hand_out_one(event)
        except BaseException:
            self.leave(events)
            raise

    def _hand_out_one(self, event: Event) -> None:
        kind, token, start, stop = event
        if kind != EVENT_DATA:
            self.hand_out_other(kind, token, start, stop)
            return
        try:
            stream = self.streams[token]
            stream._context.run(stream._sink, self._reactor.pool[start:stop])
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.streams[token].on_receive_failed(exc)

    def hand_out_other(self, kind: int, token: int, a: int, b: int) -> None:
        """Hand out an event that is not DATA; core/engine.h tells what its values are."""
        if kind == EVENT_DONE:
            waiting = self.waiting.pop(token, None)
            if waiting is None:
                self._on_done(token, a)
            elif not waiting.done():
                waiting.set_result(a)
        elif kind == EVENT_ACCEPTED:
            self._on_accepted(token, a, b)
        elif kind == EVENT_EOF:
            self.streams[token].on_eof()
        elif kind == EVENT_LOST:
            self.streams.pop(token).on_lost(a)
        elif kind == EVENT_DRAINED:
            self.streams[token].on_drained(a)
        elif kind == EVENT_READABLE:  # the loop does this one itself, and the next, of which it knows better
            self.streams[token].on_readable(a)
        elif kind == EVENT_DATAGRAM:
            self.endpoints[token].on_datagram(a, b, True)
        elif kind == EVENT_ENDPOINT_ERROR:
            self.endpoints[token].on_error(a)
        elif kind == EVENT_ENDPOINT_DRAINED:
            self.endpoints[token].on_drained()
        elif kind == EVENT_ENDPOINT_LOST:
            self.endpoints.pop(token).on_lost()

    def owner_of(self, event: Event) -> object:
        """The transport that an event is for, if it is for one."""
        if event[0] in _OF_ENDPOINTS:
            return self.endpoints.get(event[1])
        return self.streams.get(event[1])

    def _on_done(self, token: int, result: int) -> None:
        operation = self.operations.pop(token, None)
        if operation is not None:
            operation.complete(result)
        else:
            self._on_poll(token, result)

    def _on_accepted(self, token: int, fd: int, stopped: int) -> None:
        listener = self.listeners.get(token)
        if listener is not None:
            listener.on_accepted(fd, stopped)
        elif fd >= 0:
            os.close(fd)  # accepted in the tick in which its server was closed

    # --- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the reactor and drop everything that is registered; transports that are still open say so as they
        go."""
        for kind, _token, fd, _ in self._events:
            if kind == EVENT_ACCEPTED and fd >= 0:
                os.close(fd)
        super().close()
        for stream in self.streams.values():
            stream.on_loop_closed()
        for endpoint in self.endpoints.values():
            endpoint.on_loop_closed()
        for process in self.processes:
            process.on_loop_closed()
        if self._reactor.close():
            leave_to_kernel([*self.operations.values(), *(stream.pinned for stream in self.streams.values())])
        for table in (self.streams, self.listeners, self.endpoints, self.operations, self.waiting):
            table.clear()
        self.by_fd.clear()
        self.processes.clear()
        self._polls.clear()
        self._poll_tokens.clear()
        self._fired.clear()
        self.ready.clear()
        self.watch = None


def _check_pollable(fd: int) -> None:
    # epoll refuses what is always ready, and asyncio's users rely on that PermissionError; a poll through the ring
    # would report it ready forever. Which files and devices are so, only epoll knows.
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        with select.epoll(1) as epoll:
            epoll.register(fd, 0)
