"""What files ask of the system, on whatever loop is running: requests of the ring, or functions in the loop's executor.

Facts: a request on a file can often not be ended once it has begun, and it uses its fd and the caller's memory until it
has ended. A regular file is never "not ready", so only a thread can wait for it where there is no ring.
So: whatever is asked for here is over when the call returns or raises, also when it raises CancelledError. Then the
caller's memory is its own again, the fd may be closed, and it is known what has been done.
Cost: a cancel waits for a disk that is slow.
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import select
import stat
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from uringloop.operations import Operations
from uringloop.reactor import (
    OP_CLOSE,
    OP_OPENAT,
    OP_READ,
    OP_READV,
    OP_WRITE,
    OP_WRITEV,
    SQE_ASYNC,
    address_of,
    pin,
)

T = TypeVar("T")
Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

AT_FDCWD: Final = -100
FSYNC_DATASYNC: Final = 1
AT_FILE_POSITION: Final = -1  # as offset: where the file is, which then moves on
REQUEST_MAX: Final = 1 << 30  # bytes; the kernel's limit for one read or write is a little below 2 GiB
OFFSET_MAX: Final = (1 << 63) - 1
_OPENED_IN_PLACE: Final = os.O_CREAT | os.O_TRUNC | os.O_ACCMODE | os.O_PATH  # none of these: maybe without waiting
_UINT64: Final = (1 << 64) - 1


def ring_with(opcode: int) -> Operations | None:
    """The operations of the running loop, if it is a ring on a kernel that has this one."""
    operations = getattr(asyncio.get_running_loop(), "_operations", None)
    return operations if isinstance(operations, Operations) and operations.has(opcode) else None


class Errand(asyncio.Future[T]):
    """What a function gives, called in the loop's executor; on a ring, `Operation` takes this place.

    patient: a cancel waits for the function's end. late: called with its result if it was cancelled.
    """

    def __init__(
        self, function: Callable[[], T], *, late: Callable[[T], None] | None = None, patient: bool = True
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(loop=loop)
        self._late = late
        self._patient = patient
        self._cancelling = False
        loop.run_in_executor(None, function).add_done_callback(self._complete)

    def cancel(self, msg: Any | None = None) -> bool:
        if self.done():
            return False
        self._cancelling = True
        return self._patient or super().cancel(msg)

    def _complete(self, work: asyncio.Future[T]) -> None:
        failure = None if work.cancelled() else work.exception()
        if self._cancelling or work.cancelled():
            super().cancel()
            if self._late is not None and failure is None and not work.cancelled():
                self._late(work.result())
        elif failure is not None:
            self.set_exception(failure)
        else:
            self.set_result(work.result())


def in_thread(function: Callable[..., T], *args: Any, **kwargs: Any) -> Errand[T]:
    """The function's result, from the loop's executor."""
    return Errand(partial(function, *args, **kwargs))


async def outcome(request: asyncio.Future[T], late: Callable[[T], None] | None) -> T:
    """The request's result. If the waiting task is cancelled when the result is already there, `late` hears of it, as
    it does from the request itself if the cancel comes before."""
    try:
        return await request
    except asyncio.CancelledError:
        if request.done() and not request.cancelled() and request.exception() is None and late is not None:
            late(request.result())
        raise
    finally:
        del request  # its exception's traceback holds this frame


async def named(request: Awaitable[T], path: Any, path2: Any = None) -> T:
    """The request's result; if it fails, its OSError names the files, as those of os do."""
    try:
        return await request
    except OSError as exc:
        exc.filename = path if isinstance(path, int) else os.fspath(path)
        if path2 is not None:
            exc.filename2 = os.fspath(path2)
        raise
    finally:
        del request  # see outcome


def pinned_path(path: Path) -> Any:
    """What `address_of` takes for a path. Raises ValueError or TypeError for what is none."""
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return pin(encoded + b"\0")


# ---------------------------------------------------------------------------------------------------------------------
# Opening and closing
# ---------------------------------------------------------------------------------------------------------------------


async def open_fd(path: Path, flags: int, mode: int, dir_fd: int | None) -> int:
    """os.open. An fd that comes after a cancel is closed."""
    ring = ring_with(OP_OPENAT)
    if ring is None:
        opened = partial(os.open, path, flags, mode, dir_fd=dir_fd)
        return await outcome(Errand(opened, late=os.close, patient=False), os.close)
    flags |= os.O_CLOEXEC
    if flags & os.O_NONBLOCK:
        return await _open_on(ring, path, flags, mode, dir_fd, 0)
    try:
        fd = await _open_on(ring, path, flags, mode, dir_fd, 0)
    except OSError as exc:
        if exc.errno == errno.ENXIO:  # a FIFO without a reader: wait for one
            return await _open_on(ring, path, flags, mode, dir_fd, SQE_ASYNC)
        raise
    if flags & _OPENED_IN_PLACE == 0 and stat.S_ISFIFO(os.fstat(fd).st_mode):
        # The kernel's attempt in place opens a FIFO without waiting for its writer.
        try:
            return await _open_on(ring, path, flags, mode, dir_fd, SQE_ASYNC)
        finally:
            os.close(fd)
    return fd


async def _open_on(ring: Operations, path: Path, flags: int, mode: int, dir_fd: int | None, sqe_flags: int) -> int:
    name = pinned_path(path)
    request = ring.start(
        OP_OPENAT,
        AT_FDCWD if dir_fd is None else dir_fd,
        address=address_of(name),
        length=mode,
        flags=flags,
        sqe_flags=sqe_flags,
        keep=name,
        late=_close_late,
        patient=True,
    )
    try:
        return await outcome(request, _close_late)
    except OSError as exc:
        exc.filename = os.fspath(path)
        raise


def _close_late(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


async def close_fd(fd: int) -> None:
    """os.close. The fd is closed whatever happens."""
    ring = ring_with(OP_CLOSE)
    if ring is None:
        await in_thread(os.close, fd)
        return

    def late(result: int) -> None:
        if result == -errno.ECANCELED:
            os.close(fd)

    await ring.start(OP_CLOSE, fd, late=late, patient=True)


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing
# ---------------------------------------------------------------------------------------------------------------------


async def read(fd: int, buffer: Any, offset: int, late: Callable[[int], None] | None = None) -> int:
    """One pread into the buffer, which may give less than there is room for; `late` hears what a cancelled one gave."""
    ring = ring_with(OP_READ)
    if ring is not None:
        return await _transfer(ring, OP_READ, fd, pin(buffer, writable=True), offset, late)
    if offset == AT_FILE_POSITION:
        await _ready(fd, select.POLLIN)
        return await outcome(Errand(partial(os.readv, fd, (buffer,)), late=late), late)
    return await outcome(Errand(partial(os.preadv, fd, (buffer,), offset), late=late), late)


async def write(fd: int, data: Any, offset: int, late: Callable[[int], None] | None = None) -> int:
    """One pwrite, which may take less than all; `late` hears what a cancelled one took."""
    ring = ring_with(OP_WRITE)
    if ring is not None:
        return await _transfer(ring, OP_WRITE, fd, pin(data), offset, late)
    if offset != AT_FILE_POSITION:
        return await outcome(Errand(partial(_pwrite, fd, data, offset), late=late), late)
    if await _ready(fd, select.POLLOUT):
        data = memoryview(data).cast("B")[: select.PIPE_BUF]  # for so much there is room
    return await outcome(Errand(partial(os.write, fd, data), late=late), late)


def _pwrite(fd: int, data: Any, offset: int) -> int:
    try:
        return os.pwrite(fd, data, offset)
    except OSError as exc:
        if exc.errno != errno.ESPIPE:
            raise
    os.lseek(fd, offset, os.SEEK_SET)  # some files of /proc can be sought, but not written at an offset
    return os.write(fd, data)


async def _transfer(
    ring: Operations, opcode: int, fd: int, pinned: Any, offset: int, late: Callable[[int], None] | None
) -> int:
    try:
        request = ring.start(
            opcode,
            fd,
            address=address_of(pinned),
            length=min(len(pinned), REQUEST_MAX),
            offset=offset & _UINT64,
            keep=pinned,
            late=late,
            patient=True,
        )
    finally:
        # A traceback holds this frame, and a pinned memoryview that the collector finds in a cycle crashes CPython
        # 3.11 and 3.12.
        del pinned
    try:
        return await outcome(request, late)
    finally:
        del request


async def read_vector(fd: int, buffers: Sequence[Any], offset: int, flags: int) -> int:
    """os.preadv."""
    ring = ring_with(OP_READV)
    if ring is None:
        return await in_thread(os.preadv, fd, buffers, offset, flags)
    pinned = (pin(buffer, writable=True) for buffer in buffers)
    return await outcome(_start_vector(ring, OP_READV, fd, list(pinned), offset, flags), None)


async def write_vector(fd: int, buffers: Sequence[Any], offset: int, flags: int) -> int:
    """os.pwritev."""
    ring = ring_with(OP_WRITEV)
    if ring is None:
        return await in_thread(os.pwritev, fd, buffers, offset, flags)
    return await outcome(_start_vector(ring, OP_WRITEV, fd, list(map(pin, buffers)), offset, flags), None)


def _start_vector(
    ring: Operations, opcode: int, fd: int, pinned: list[Any], offset: int, flags: int
) -> asyncio.Future[int]:
    # struct iovec: address and length, both of a pointer's size.
    iovecs = array.array("L", (word for one in pinned for word in (address_of(one), len(one))))
    table = pin(iovecs)
    return ring.start(
        opcode,
        fd,
        address=address_of(table),
        length=len(pinned),
        offset=offset & _UINT64,
        flags=flags,
        keep=(table, pinned),
        patient=True,
    )


async def _ready(fd: int, mask: int) -> bool:
    """Wait until a thread that reads or writes this fd need not wait, as it could not be cancelled. False if it is
    nothing that one can wait for."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    add, remove = (
        (loop.add_reader, loop.remove_reader) if mask == select.POLLIN else (loop.add_writer, loop.remove_writer)
    )
    try:
        add(fd, _set, ready)
    except PermissionError:
        return False
    try:
        await ready
    finally:
        remove(fd)
    return True


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
