"""An open file without a position: reads and writes at an offset, several at once.

What the page cache has is read in place, by preadv2 with RWF_NOWAIT: that takes a microsecond, and a turn of the loop
takes several. `_Turn` sees to it that the loop gets its turn all the same.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final

from uringloop.files import requests
from uringloop.reactor import OP_FSYNC, OP_FTRUNCATE

# Bytes that are read in place at the most: copying so many takes some tens of microseconds.
IN_PLACE_MAX: Final = 256 * 1024
# Bytes that are read in place before the loop gets a turn, and what a read counts for beside its bytes.
_TURN_BYTES: Final = 128 * 1024
_TURN_READ_BYTES: Final = 8 * 1024


class _Turn:
    """Bytes that may still be read in place in this turn of the loop. Shared by all files, as is the loop."""

    left = _TURN_BYTES

    @classmethod
    def is_over(cls, size: int) -> bool:
        cls.left -= size + _TURN_READ_BYTES
        if cls.left >= 0:
            return False
        cls.left = _TURN_BYTES
        return True


class Descriptor:
    """An open file, with what can be done at an offset."""

    def __init__(
        self, fd: int, *, name: Any, mode: str, readable: bool, writable: bool, append: bool, closefd: bool
    ) -> None:
        self._fd = fd
        self._open = True
        self.name = name
        self.mode = mode
        self._readable = readable
        self._writable = writable
        self._append = append
        self._closefd = closefd
        self._in_place = True  # until the file system says that it cannot
        self._requests = 0  # under way
        self._idle: asyncio.Future[None] | None = None  # the wait of `_close_fd` for the last of them
        try:
            self._start = os.lseek(fd, 0, os.SEEK_END if append else os.SEEK_CUR)
            self._seekable = True
        except OSError:
            self._start = 0
            self._seekable = self._in_place = False

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        return not self._open

    def fileno(self) -> int:
        self._check_open()
        return self._fd

    def isatty(self) -> bool:
        self._check_open()
        return os.isatty(self._fd)

    def readable(self) -> bool:
        self._check_open()
        return self._readable

    def writable(self) -> bool:
        self._check_open()
        return self._writable

    def seekable(self) -> bool:
        self._check_open()
        return self._seekable

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} mode={self.mode!r}{'' if self._open else ' closed'}>"

    def __del__(self, _warn: Callable[..., None] = warnings.warn) -> None:
        if getattr(self, "_open", False) and self._closefd:
            _warn(f"unclosed file {self!r}", ResourceWarning, source=self)
            os.close(self._fd)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("I/O operation on closed file")

    def _check_readable(self) -> None:
        if not self._open or not self._readable:
            self._check_open()
            raise io.UnsupportedOperation("not readable")

    def _check_writable(self) -> None:
        if not self._open or not self._writable:
            self._check_open()
            raise io.UnsupportedOperation("not writable")

    def _check_seekable(self) -> None:
        self._check_open()
        if not self._seekable:
            raise io.UnsupportedOperation("underlying stream is not seekable")

    # --- one request -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A call is under way, until `_end`: closing waits for it."""
        self._check_open()
        self._requests += 1

    def _end(self) -> None:
        self._requests -= 1
        if self._idle is not None and not self._requests and not self._idle.done():
            self._idle.set_result(None)

    async def _read_some(self, buffer: Any, offset: int, late: Callable[[int], None] | None = None) -> int:
        """One read, in place if that can be."""
        size = len(buffer)
        if self._in_place and offset >= 0 and 0 < size <= IN_PLACE_MAX:
            if _Turn.is_over(size):
                await asyncio.sleep(0)
            try:
                return os.preadv(self._fd, (buffer,), offset, os.RWF_NOWAIT)
            except BlockingIOError:
                pass  # the cache has not got it
            except OSError as exc:
                if exc.errno != errno.EOPNOTSUPP:
                    raise
                self._in_place = False
        return await requests.read(self._fd, buffer, offset, late)

    async def _fill(self, view: memoryview, offset: int) -> int:
        """Read until the buffer is full or the file ends."""
        done = 0
        while done < len(view):
            count = await self._read_some(view[done:] if done else view, offset + done)
            if not count:
                break
            done += count
        return done

    # --- at an offset ------------------------------------------------------------------------------------------------

    async def pread(self, size: int, offset: int, /) -> bytes:
        """os.pread: `size` bytes at `offset`, fewer only at the end of the file."""
        self._check_readable()
        self._check_offset(offset)
        await self._settle(writing=False)
        buffer = bytearray(size)
        self._begin()
        try:
            count = await self._fill(memoryview(buffer), offset)
        finally:
            self._end()
        return bytes(buffer) if count == size else bytes(memoryview(buffer)[:count])

    async def pread_into(self, buffer: Any, offset: int, /) -> int:
        """Fill the caller's writable buffer from `offset`; the bytes read, fewer only at the end of the file. The
        buffer is the caller's again when this returns or raises."""
        self._check_readable()
        self._check_offset(offset)
        await self._settle(writing=False)
        self._begin()
        try:
            return await self._fill(memoryview(buffer).cast("B"), offset)
        finally:
            self._end()

    async def pwrite(self, data: Any, offset: int, /) -> int:
        """os.pwrite, of all the data."""
        self._check_writable()
        self._check_offset(offset)
        await self._settle(writing=True)
        view = memoryview(data).cast("B")
        done = 0
        self._begin()
        try:
            while done < len(view):
                done += await requests.write(self._fd, view[done:], offset + done)
        finally:
            self._end()
        return done

    async def preadv(self, buffers: Sequence[Any], offset: int, flags: int = 0, /) -> int:
        """os.preadv: one request, which may read less than there is room for."""
        self._check_readable()
        self._check_offset(offset)
        await self._settle(writing=False)
        self._begin()
        try:
            return await requests.read_vector(self._fd, buffers, offset, flags)
        finally:
            self._end()

    async def pwritev(self, buffers: Sequence[Any], offset: int, flags: int = 0, /) -> int:
        """os.pwritev: one request, which may write less than there is."""
        self._check_writable()
        self._check_offset(offset)
        await self._settle(writing=True)
        self._begin()
        try:
            return await requests.write_vector(self._fd, buffers, offset, flags)
        finally:
            self._end()

    async def _settle(self, *, writing: bool) -> None:
        """Before something happens at an offset: what a buffer holds back must be in the file."""

    def _check_offset(self, offset: int) -> None:
        self._check_seekable()
        if offset < 0:
            raise ValueError(f"negative offset {offset}")
        if offset > requests.OFFSET_MAX:
            raise OverflowError("Python int too large to convert to C long")

    # --- the whole file ----------------------------------------------------------------------------------------------

    async def _sync(self, flags: int) -> None:
        self._begin()
        try:
            ring = requests.ring_with(OP_FSYNC)
            if ring is None:
                await requests.in_thread(os.fdatasync if flags else os.fsync, self._fd)
            else:
                await ring.start(OP_FSYNC, self._fd, flags=flags, patient=True)
        finally:
            self._end()

    async def _truncate(self, size: int) -> None:
        self._begin()
        try:
            ring = requests.ring_with(OP_FTRUNCATE)
            if ring is None:
                await requests.in_thread(os.ftruncate, self._fd, size)
            else:
                await ring.start(OP_FTRUNCATE, self._fd, offset=size, patient=True)
        finally:
            self._end()

    async def _close_fd(self) -> None:
        """Wait for the requests that are under way, and close."""
        if not self._open:
            return
        self._open = False
        cancelled: asyncio.CancelledError | None = None
        while self._requests:
            self._idle = asyncio.get_running_loop().create_future()
            try:
                await self._idle
            except asyncio.CancelledError as exc:
                cancelled = exc  # the file is closed all the same, when nothing uses it any more
        try:
            if self._closefd:
                if self._writable:
                    await requests.close_fd(self._fd)
                else:
                    os.close(self._fd)  # nothing to write back: nothing to wait for
            if cancelled is not None:
                raise cancelled
        finally:
            del cancelled
