"""A file's bytes to a socket, within the kernel.

Facts: sendfile(2) to a socket that does not block still blocks on the disk, for what the page cache has not got. The
ring's SPLICE does not, since a worker thread of the kernel's waits; but it costs a change to that thread and back, and
a pipe between file and socket.
So: what the cache has goes by sendfile(2), the rest by SPLICE into a pipe and from there to the socket. Whether the
cache has a chunk is asked by reading a byte of each stretch that the kernel reads ahead as one.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from uringloop.files.requests import in_thread
from uringloop.reactor import OP_POLL_ADD, OP_READ, OP_SPLICE, address_of, pin

if TYPE_CHECKING:
    from uringloop.operations import Operations

CHUNK: Final = 512 * 1024  # bytes at a time: half of what a pipe may hold without privilege
_READ_AHEAD: Final = 128 * 1024  # the kernel's usual read-ahead, bytes
_NO_OFFSET: Final = 2**64 - 1
READ_BYTES: Final = 64 * 1024  # at a time, where bytes go through Python


def regular_file(file: Any) -> int:
    """The fd of a regular file. Raises SendfileNotAvailableError for anything else, as asyncio does."""
    try:
        fd: int = file.fileno()
        about = os.fstat(fd)
    except (AttributeError, OSError) as exc:
        raise asyncio.SendfileNotAvailableError("not a regular file") from exc
    if not stat.S_ISREG(about.st_mode):
        raise asyncio.SendfileNotAvailableError("not a regular file")
    return fd


async def send_file(operations: Operations, sock_fd: int, fd: int, offset: int, count: int | None) -> int:
    """Send `count` bytes from `offset`, or all to the end of the file; how many were sent. The fd's position is behind
    them when this returns or raises.

    Raises SendfileNotAvailableError if the file cannot be sent like this, before anything is.
    """
    sent = 0
    pipe: Pipe | None = None

    def account(done: int) -> None:
        nonlocal sent
        sent += done

    try:
        while count is None or sent < count:
            size = CHUNK if count is None else min(CHUNK, count - sent)
            if is_cached(fd, offset + sent, size):
                done = await _send_cached(operations, sock_fd, fd, offset + sent, size)
                account(done)
                await asyncio.sleep(0)  # a socket that always has room must not keep the loop to itself
            else:
                pipe = pipe or Pipe()
                done = await pipe.send(operations, sock_fd, fd, offset + sent, size, account)
            if not done:
                break
    except OSError as exc:
        if not sent and exc.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise asyncio.SendfileNotAvailableError("the file cannot be sent from within the kernel") from exc
        raise
    finally:
        if pipe is not None:
            pipe.close()
        if sent:
            os.lseek(fd, offset + sent, os.SEEK_SET)
    return sent


def is_cached(fd: int, offset: int, size: int) -> bool:
    """True if the page cache most likely has these bytes of the file."""
    byte = bytearray(1)
    try:
        for at in range(offset, offset + size, _READ_AHEAD):
            if not os.preadv(fd, (byte,), at, os.RWF_NOWAIT):
                break  # the end of the file
    except OSError:
        return False
    return True


async def _send_cached(operations: Operations, sock_fd: int, fd: int, offset: int, size: int) -> int:
    while True:
        try:
            return os.sendfile(sock_fd, fd, offset, size)
        except BlockingIOError:
            await _writable(operations, sock_fd)


async def _writable(operations: Operations, sock_fd: int) -> None:
    await operations.start(OP_POLL_ADD, sock_fd, flags=select.POLLOUT, patient=True)


class Pipe:
    """Where bytes are between file and socket."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with suppress(OSError):  # a smaller one does
            fcntl.fcntl(self._write_end, fcntl.F_SETPIPE_SZ, CHUNK)

    async def send(
        self, operations: Operations, sock_fd: int, fd: int, offset: int, size: int, account: Callable[[int], None]
    ) -> int:
        """Send one pipe's worth of the file, and tell `account` of the bytes as they go; how many, 0 at its end."""
        filled = await self._fill(operations, fd, offset, size)
        left = filled
        while left:
            try:
                done = os.splice(self._read_end, sock_fd, left, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await _writable(operations, sock_fd)
            else:
                left -= done
                account(done)
        return filled

    async def _fill(self, operations: Operations, fd: int, offset: int, size: int) -> int:
        if not operations.has(OP_SPLICE):
            return await in_thread(os.splice, fd, self._write_end, size, offset_src=offset)
        return await operations.start(
            OP_SPLICE,
            self._write_end,
            address=offset,  # of the file that is read
            length=size,
            offset=_NO_OFFSET,
            file_index=fd,
            patient=True,
        )

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


async def read(operations: Operations, fd: int, offset: int, size: int) -> bytes:
    """A read on the ring, for what must pass through Python, as under TLS."""
    buffer = bytearray(size)
    pinned = pin(buffer, writable=True)
    count = await operations.start(
        OP_READ, fd, address=address_of(pinned), length=size, offset=offset, keep=pinned, patient=True
    )
    return bytes(memoryview(buffer)[:count])
