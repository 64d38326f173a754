"""The loop's socket coroutines: `sock_recv` and its kin.

Facts: a request that receives takes bytes when it completes, and a cancel may come after that; a caller's buffer that
the kernel writes to may not be given back before. A poll takes nothing, whenever it is cancelled.
So: the system call is made at once, as on asyncio; if it would block, one poll on the ring waits for the socket, and
then the task that waited makes the call again, with no await behind it. A call has taken nothing, or it returns.
A receive from a stream that the last one had to wait for, and emptied, will most likely wait too, and polls first.
Polls are known by token and never by fd, so the number of a closed socket may be reused at any time; at worst a call
on it polls first.
Cost: two system calls for a receive that has to wait, which a receive through the ring would not need.

While a call waits its socket's fd is kept, as on uvloop: one that is closed in the meantime is closed when the call
is over, or the loop is closed. On asyncio such a call never returns.
"""

from __future__ import annotations

import _socket
import asyncio
import select
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from uringloop import compat
from uringloop.reactor import raise_errno

if TYPE_CHECKING:
    from uringloop.operations import Operations
    from uringloop.reactor import Reactor
    from uringloop.selector import RingSelector

_T = TypeVar("_T")
_WOULD_BLOCK = (BlockingIOError, InterruptedError)
_SOCKET: Final = socket.socket  # programs put other things in its place, tests above all
_kind_of = _socket.socket.type.__get__  # without the enum that socket.socket makes of it
_STREAM = int(socket.SOCK_STREAM)
_POLLIN = select.POLLIN


class KeptSockets:
    """The sockets that calls wait for, by call, which are not closed while they are here; and the fds of those that
    calls have emptied."""

    def __init__(self) -> None:
        self._socks: dict[object, socket.socket] = {}
        self.emptied: set[int] = set()  # a call had to wait, and then received all that there was

    def keep(self, call: object, sock: socket.socket) -> None:
        # socket.socket counts its users so. What only stands for a socket may show the count, but not let it be set; a
        # mock says by its __class__ that it is one, so its type is asked.
        if type(sock) is _SOCKET or issubclass(type(sock), _SOCKET):
            sock._io_refs += 1  # type: ignore[attr-defined]
            self._socks[call] = sock

    def release(self, call: object) -> None:
        sock = self._socks.pop(call, None)  # None after close()
        if type(sock) is _SOCKET and not sock._closed:  # type: ignore[attr-defined]
            sock._io_refs -= 1  # type: ignore[attr-defined]  # as the next does, without a frame
        elif sock is not None:
            sock._decref_socketios()  # type: ignore[attr-defined]

    def close(self) -> None:
        while self._socks:
            self._socks.popitem()[1]._decref_socketios()  # type: ignore[attr-defined]


class SocketCoroutines(asyncio.SelectorEventLoop):
    """The part of the loop that does without transports. Semantics and errors are asyncio's."""

    _debug: bool
    _kept: KeptSockets
    _transports: Mapping[int, Any]  # asyncio's own
    _operations: Operations
    _reactor: Reactor
    _selector: RingSelector

    async def sock_recv(self, sock: socket.socket, n: int) -> bytes:
        # The one that servers live on is in one frame, with what `_when_ready` and `_remember_emptied` do: an eighth of
        # a request.
        if type(sock) is not _SOCKET or self._debug:
            self._check_socket(sock)
        fd, emptied = sock.fileno(), self._kept.emptied
        if fd in emptied and n > 0:  # what needs no bytes, or fails, does not wait for any
            emptied.remove(fd)
        else:
            try:
                return sock.recv(n)
            except _WOULD_BLOCK:
                pass
        selector, reactor = self._selector, self._reactor
        if selector is None or selector.by_fd or self._transports:
            self._ensure_fd_no_transport(fd)
        first = waiting = self.create_future()
        self._kept.keep(first, sock)
        try:
            while True:
                token = reactor.operation_poll(fd, _POLLIN)
                if token < 0:
                    raise_errno(token)
                selector.waiting[token] = waiting
                try:
                    result = await waiting
                except BaseException:
                    reactor.operation_cancel(token)
                    raise
                if result < 0:
                    raise_errno(result)
                try:
                    data = sock.recv(n)
                    break
                except _WOULD_BLOCK:
                    waiting = self.create_future()
        finally:
            self._kept.release(first)
        if len(data) < n and type(sock) is _SOCKET and _kind_of(sock) == _STREAM:
            emptied.add(sock.fileno())
        return data

    async def sock_recv_into(self, sock: socket.socket, buf: Any) -> int:
        self._check_socket(sock)
        if not self._was_emptied(sock) or not _takes_bytes(buf):
            try:
                return sock.recv_into(buf)
            except _WOULD_BLOCK:
                pass
        count = await self._when_ready(sock, select.POLLIN, lambda: sock.recv_into(buf))
        if count < memoryview(buf).nbytes:
            self._remember_emptied(sock)
        return count

    async def sock_recvfrom(self, sock: socket.socket, bufsize: int) -> tuple[bytes, Any]:
        self._check_socket(sock)
        try:
            return sock.recvfrom(bufsize)
        except _WOULD_BLOCK:
            pass
        return await self._when_ready(sock, select.POLLIN, lambda: sock.recvfrom(bufsize))

    async def sock_recvfrom_into(self, sock: socket.socket, buf: Any, nbytes: int = 0) -> tuple[int, Any]:
        self._check_socket(sock)
        if not nbytes:
            nbytes = len(buf)
        try:
            return sock.recvfrom_into(buf, nbytes)
        except _WOULD_BLOCK:
            pass
        return await self._when_ready(sock, select.POLLIN, lambda: sock.recvfrom_into(buf, nbytes))

    async def sock_sendall(self, sock: socket.socket, data: Any) -> None:
        if type(sock) is not _SOCKET or self._debug:
            self._check_socket(sock)
        try:
            sent = sock.send(data)
        except _WOULD_BLOCK:
            sent = 0
        if type(data) is bytes and sent == len(data):
            return
        with memoryview(data) as items, items.cast("B") as view:
            while sent < len(view):
                rest = view[sent:]
                sent += await self._when_ready(sock, select.POLLOUT, partial(sock.send, rest))

    async def sock_sendto(self, sock: socket.socket, data: Any, address: Any) -> int:
        self._check_socket(sock)
        try:
            return sock.sendto(data, address)
        except _WOULD_BLOCK:
            pass
        return await self._when_ready(sock, select.POLLOUT, lambda: sock.sendto(data, address))

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        self._check_socket(sock)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            resolved = await self._ensure_resolved(  # type: ignore[attr-defined]
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self
            )
            address = resolved[0][4]
        try:
            sock.connect(address)
        except _WOULD_BLOCK:
            pass
        else:
            return
        error = await self._when_ready(
            sock, select.POLLOUT, lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        )
        if error:
            raise OSError(error, f"Connect call failed {address}")

    async def sock_accept(self, sock: socket.socket) -> tuple[socket.socket, Any]:
        self._check_socket(sock)
        try:
            connection, address = sock.accept()
        except _WOULD_BLOCK:
            connection, address = await self._when_ready(sock, select.POLLIN, sock.accept)
        connection.setblocking(False)
        return connection, address

    def _was_emptied(self, sock: socket.socket) -> bool:
        fd = sock.fileno()
        if fd not in self._kept.emptied:
            return False
        self._kept.emptied.discard(fd)
        return True

    def _remember_emptied(self, sock: socket.socket) -> None:
        # Of a datagram socket each receive brings less than it might.
        if type(sock) is _SOCKET and _kind_of(sock) == _STREAM:
            self._kept.emptied.add(sock.fileno())

    def _ensure_fd_no_transport(self, fd: Any) -> None:
        # Called with a number or a socket; asyncio looks at its own transports, of which there are few.
        selector: RingSelector | None = self._selector  # None once the loop is closed, as its caller finds next
        if selector is not None and selector.by_fd:
            number = fd if isinstance(fd, int) else selector.fileno(fd)
            transport = selector.by_fd.get(number)
            if transport is not None and not transport.is_closing():
                raise RuntimeError(f"File descriptor {fd!r} is used by transport {transport!r}")
        if self._transports:
            super()._ensure_fd_no_transport(fd)  # type: ignore[misc]

    async def _sock_sendfile_native(self, sock: socket.socket, file: Any, offset: int, count: int | None) -> int:
        # asyncio has checked the arguments, and makes up for what cannot be sent so.
        from uringloop import splice  # when it is needed, as in loop.py

        fd = splice.regular_file(file)
        return await splice.send_file(self._operations, _Target(self, sock), fd, offset, count, any_error=True)

    def _check_socket(self, sock: socket.socket) -> None:
        if type(sock) is not _SOCKET:
            compat.check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")

    async def _when_ready(self, sock: socket.socket, mask: int, call: Callable[[], _T]) -> _T:
        """The result of the call, made as soon as the socket is ready and again each time it would still block."""
        fd = sock.fileno()
        self._ensure_fd_no_transport(fd)
        first = waiting = self.create_future()
        self._kept.keep(first, sock)
        try:
            while True:
                # As in Operations.ready, without the cost of one more coroutine.
                token = self._reactor.poll_start(fd, mask)
                self._selector.waiting[token] = waiting
                try:
                    result = await waiting
                except BaseException:
                    self._reactor.operation_cancel(token)
                    raise
                if result < 0:
                    raise_errno(result)
                try:
                    return call()
                except _WOULD_BLOCK:
                    waiting = self.create_future()
        finally:
            self._kept.release(first)


def _takes_bytes(buf: Any) -> bool:
    with memoryview(buf) as view:
        return view.nbytes > 0 and not view.readonly


class _Target:
    """A socket that a file is sent to (`splice.Target`)."""

    def __init__(self, loop: SocketCoroutines, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    async def room(self) -> None:
        await self._loop._when_ready(self._sock, select.POLLOUT, lambda: None)
