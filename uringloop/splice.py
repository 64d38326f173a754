"""A file's bytes to a socket or to another file, within the kernel.

Facts: sendfile(2) to a socket that does not block still blocks on the disk, for what the page cache has not got. The
ring's SPLICE does not, since a worker thread of the kernel's waits; but it costs a change to that thread and back, and
a pipe between file and socket.
So: what the cache has goes by sendfile(2) (core/sendfile.h), the rest by SPLICE into a pipe and from there to the
socket. A copy is two SPLICEs for each piece, file to pipe and pipe to file.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from uringloop.files.requests import in_thread
from uringloop.reactor import OP_READ, OP_SPLICE, address_of, pin, raise_errno, sendfile_cached

if TYPE_CHECKING:
    from uringloop.operations import Operations

SEND_BYTES: Final = 1024 * 1024  # of what is cached, in a turn of the loop: a tenth of a millisecond
PIPE_BYTES: Final = 512 * 1024  # half of what a pipe may hold without privilege
READ_BYTES: Final = 64 * 1024  # at a time, where bytes go through Python
_NO_OFFSET: Final = 2**64 - 1


class Target(Protocol):
    """Where a file is sent: a socket that does not block."""

    def fileno(self) -> int:
        """To be asked again after each wait. Raises OSError when it is gone."""
        ...

    async def room(self) -> None:
        """Wait until it takes more."""
        ...


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


async def send_file(
    operations: Operations, target: Target, fd: int, offset: int, count: int | None, *, any_error: bool = False
) -> int:
    """Send `count` bytes from `offset`, or all to the end of the file; how many were sent. The fd's position is behind
    them when this returns or raises.

    Raises SendfileNotAvailableError if the file cannot be sent like this, before anything is; with `any_error`,
    whatever fails before anything is sent is taken for that.
    """
    sent = 0
    pipe: Pipe | None = None

    def account(done: int) -> None:
        nonlocal sent
        sent += done

    try:
        while count is None or sent < count:
            size = SEND_BYTES if count is None else min(SEND_BYTES, count - sent)
            done = sendfile_cached(target.fileno(), fd, offset + sent, size)
            if done > 0:
                sent += done
                # A socket that always has room must not keep the loop to itself. Also after the last piece: what comes
                # next, such as closing files in threads, is cheaper if all connections do it in one turn.
                await (asyncio.sleep(0) if done == size else target.room())
            elif done == -errno.EAGAIN:
                await target.room()
            elif done == -errno.ENODATA:
                pipe = pipe or Pipe()
                if not await pipe.send(operations, target, fd, offset + sent, min(size, PIPE_BYTES), account):
                    break
            elif done:
                raise_errno(done)
            else:
                break
    except OSError as exc:
        if not sent and (any_error or exc.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)):
            raise asyncio.SendfileNotAvailableError("the file cannot be sent from within the kernel") from exc
        raise
    finally:
        if pipe is not None:
            pipe.close()
        os.lseek(fd, offset + sent, os.SEEK_SET)  # also if nothing was sent, as from Python 3.14 on
    return sent


async def copy_file(operations: Operations, source: int, target: int) -> None:
    """Copy all of one file, an fd, to another that is empty."""
    pipe = Pipe()
    offset = 0
    try:
        while filled := await pipe.fill(operations, source, offset, PIPE_BYTES):
            await pipe.empty(operations, target, offset, filled)
            offset += filled
            if offset == os.fstat(source).st_size:
                break  # most likely, and then the end need not be asked for
    finally:
        pipe.close()


class Pipe:
    """Where bytes are between a file and what they are for."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with suppress(OSError):  # a smaller one does
            fcntl.fcntl(self._write_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    async def fill(self, operations: Operations, fd: int, offset: int, size: int) -> int:
        """Take one pipe's worth of the file; how many bytes, 0 at its end."""
        if not operations.has(OP_SPLICE):  # a locked ring
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

    async def empty(self, operations: Operations, fd: int, offset: int, size: int) -> None:
        """Write so many bytes to a file."""
        while size:
            done = await operations.start(
                OP_SPLICE,
                fd,
                address=_NO_OFFSET,
                length=size,
                offset=offset,  # of the file that is written
                file_index=self._read_end,
                patient=True,
            )
            offset += done
            size -= done

    async def send(
        self, operations: Operations, target: Target, fd: int, offset: int, size: int, account: Callable[[int], None]
    ) -> int:
        """Send one pipe's worth of the file, and tell `account` of the bytes as they go; how many, 0 at its end."""
        filled = await self.fill(operations, fd, offset, size)
        left = filled
        while left:
            try:
                done = os.splice(self._read_end, target.fileno(), left, flags=os.SPLICE_F_NONBLOCK)
            except BlockingIOError:
                await target.room()
            else:
                left -= done
                account(done)
        return filled

    def close(self) -> None:
        os.close(self._read_end)
        os.close(self._write_end)


async def read(operations: Operations, fd: int, offset: int, size: int) -> bytes:
    """Bytes that must pass through Python, as under TLS: read by the ring, or by a thread where that may not."""
    if not operations.has(OP_READ):  # a locked ring
        return await in_thread(os.pread, fd, size, offset)
    buffer = bytearray(size)
    pinned = pin(buffer, writable=True)
    count = await operations.start(
        OP_READ, fd, address=address_of(pinned), length=size, offset=offset, keep=pinned, patient=True
    )
    return bytes(memoryview(buffer)[:count])
