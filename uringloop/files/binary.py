"""Binary files with a position and a buffer: io.BufferedReader, BufferedWriter and BufferedRandom in one, awaited.

Either there are bytes read ahead (`_ahead`, from `_at` on), or bytes not yet written (`_dirty`), never both.
`_position` is where the next read or write of the file itself goes; it belongs to this object, not to the fd, so a
cancelled read moves nothing, and a write says how far it came, also when it is cancelled (`_moved`).

Calls that move the position take turns by `_lock`; what is in the buffer is given without.
"""

from __future__ import annotations

import errno
import os
import stat
from operator import index
from types import TracebackType
from typing import Any, Final, Self

from uringloop import compat
from uringloop.files import requests
from uringloop.files.descriptor import IN_PLACE_MAX, Descriptor

AHEAD_MIN: Final = 8 * 1024  # bytes read ahead after a seek; doubled with each read in sequence, up to IN_PLACE_MAX
DIRTY_MAX: Final = 64 * 1024  # bytes kept back from writing
_WHENCE: Final = (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_DATA, os.SEEK_HOLE)


class BinaryFile(Descriptor):
    """What `uringloop.open` gives for a binary mode."""

    def __init__(self, fd: int, *, buffering: int, **about: Any) -> None:
        super().__init__(fd, **about)
        self._position = self._start
        self._ahead = b""
        self._at = 0
        self._ahead_size = min(AHEAD_MIN, buffering) if buffering > 0 else AHEAD_MIN
        self._dirty = bytearray()
        self._dirty_max = DIRTY_MAX if buffering < 0 else buffering
        self._buffered = buffering != 0
        self._lock = compat.LoopFreeLock()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    # --- reading -----------------------------------------------------------------------------------------------------

    async def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes, fewer only at the end of the file; all that is left if it is negative or None."""
        self._check_readable()
        if size is None or size < 0:
            async with self._lock:
                self._check_open()
                return await self._read_all()
        stop = self._at + size
        if stop <= len(self._ahead) and not self._lock.locked():
            data = self._ahead[self._at : stop]
            self._at = stop
            return data
        async with self._lock:
            self._check_open()  # not closed while this waited: the fd may be somebody else's
            return await self._read(size)

    async def read1(self, size: int = -1, /) -> bytes:
        """What is in the buffer, or else what one read of the file gives."""
        self._check_readable()
        async with self._lock:
            self._check_open()
            if self._at == len(self._ahead):
                await self._read_ahead()
            return self._take(len(self._ahead) - self._at if size < 0 else size)

    async def readinto(self, buffer: Any, /) -> int:
        """Fill the caller's buffer; the bytes read, fewer only at the end of the file. The buffer is the caller's
        again when this returns or raises."""
        self._check_readable()
        view = memoryview(buffer).cast("B")
        async with self._lock:
            self._check_open()
            kept = self._take(len(view))
            done = len(kept)
            try:
                view[:done] = kept
                while done < len(view) and (self._buffered or not done):
                    count = await self._read_file(view[done:])
                    if not count:
                        break
                    done += count
            except BaseException:
                self._give_back(bytes(view[:done]) if done > len(kept) else kept)
                raise
            return done

    async def peek(self, size: int = 0, /) -> bytes:
        """The bytes in the buffer, one read of the file if there are none; the position stays."""
        self._check_readable()
        async with self._lock:
            self._check_open()
            if self._at == len(self._ahead):
                await self._read_ahead()
            return self._ahead[self._at :]

    async def readline(self, size: int | None = -1, /) -> bytes:
        """A line with its end; b"" at the end of the file."""
        if size == 0:  # as of io, whose file need not be readable then
            self._check_open()
            return b""
        self._check_readable()
        limit = -1 if size is None else size
        if limit < 0 and not self._lock.locked():
            stop = self._ahead.find(b"\n", self._at) + 1
            if stop:
                line = self._ahead[self._at : stop]
                self._at = stop
                return line
        async with self._lock:
            self._check_open()
            return await self._read_line(limit)

    async def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        """The lines that are left, or about `hint` bytes of them."""
        self._check_readable()
        lines: list[bytes] = []
        total = 0
        async with self._lock:
            self._check_open()
            try:
                while line := await self._read_line(-1):
                    lines.append(line)
                    total += len(line)
                    if hint is not None and 0 < hint < total:
                        break
            except BaseException:
                self._give_back(b"".join(lines))
                raise
        return lines

    def _take(self, size: int) -> bytes:
        data = self._ahead[self._at : self._at + size]
        self._at += len(data)
        return data

    def _give_back(self, data: bytes) -> None:
        """What was taken for a call that then failed or was cancelled: the next one gets it."""
        if not data:
            return
        if self._seekable:
            self._position -= len(data) + len(self._ahead) - self._at
            self._ahead, self._at = b"", 0
        else:
            self._ahead, self._at = data + self._ahead[self._at :], 0

    async def _read(self, size: int) -> bytes:
        data = self._take(size)
        missing = size - len(data)
        if not missing:
            return data
        if not self._buffered:
            return data or await self._read_new(missing)
        parts = [data] if data else []
        try:
            while missing:
                if missing >= self._ahead_size:
                    data = await self._read_new(missing)
                else:
                    await self._read_ahead()
                    data = self._take(missing)
                if not data:
                    break
                parts.append(data)
                missing -= len(data)
        except BaseException:
            self._give_back(b"".join(parts))
            raise
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_all(self) -> bytes:
        parts = [self._take(len(self._ahead))]
        try:
            while True:
                left = os.fstat(self._fd).st_size - self._position if self._seekable else 0
                data = await self._read_new(max(left + 1, self._ahead_size))  # one more: a full read is not the last
                if data:
                    parts.append(data)
                if not data or len(data) == left:
                    return b"".join(parts)
        except BaseException:
            self._give_back(b"".join(parts))
            raise

    async def _read_line(self, limit: int) -> bytes:
        parts: list[bytes] = []
        total = 0
        while limit < 0 or total < limit:
            if self._at == len(self._ahead):
                try:
                    await self._read_ahead()
                except BaseException:
                    self._give_back(b"".join(parts))
                    raise
                if not self._ahead:
                    break
            stop = self._ahead.find(b"\n", self._at) + 1
            size = (stop or len(self._ahead)) - self._at
            if limit >= 0:
                size = min(size, limit - total)
            part = self._take(size)
            parts.append(part)
            total += size
            if part.endswith(b"\n"):
                break
        return b"".join(parts)

    async def _read_ahead(self) -> None:
        """Replace the bytes read ahead, all of which have been taken."""
        data = await self._read_new(self._ahead_size)
        self._ahead, self._at = data, 0
        self._ahead_size = min(self._ahead_size * 2, IN_PLACE_MAX)

    async def _read_new(self, size: int) -> bytes:
        """One read of the file."""
        buffer = bytearray(size)
        count = await self._read_file(memoryview(buffer))
        return bytes(buffer) if count == size else bytes(memoryview(buffer)[:count])

    async def _read_file(self, view: memoryview) -> int:
        if self._dirty:
            await self._flush()
        if self._seekable:
            count = await self._read_some(view, self._position)
            self._ahead, self._at = b"", 0
        else:

            def late(count: int) -> None:
                # Bytes of a pipe are there once: what a cancelled read took is for the next one.
                if count > 0:
                    self._ahead, self._at = bytes(view[:count]), 0

            count = await self._read_some(view, requests.AT_FILE_POSITION, late)
        self._position += count
        return count

    # --- writing -----------------------------------------------------------------------------------------------------

    async def write(self, data: Any, /) -> int:
        """Take all of `data`, which reaches the file with `flush`, `close`, or when enough has gathered."""
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        self._check_writable()
        view = memoryview(data)
        size = view.nbytes
        if not self._ahead and len(self._dirty) + size <= self._dirty_max and not self._lock.locked():
            self._dirty += view.cast("B") if size else b""
            return size
        async with self._lock:
            self._check_open()
            self._forget_ahead()
            if len(self._dirty) + size > self._dirty_max:
                await self._flush()
            if size > self._dirty_max:
                await self._write_all(view.cast("B"))
            elif size:
                self._dirty += view.cast("B")
            return size

    async def writelines(self, lines: Any, /) -> None:
        """Write each of the lines, which bring their own ends."""
        for line in lines:
            await self.write(line)

    async def flush(self) -> None:
        """Write what has gathered. After a cancel or an error, what has not been written is still there."""
        self._check_open()
        async with self._lock:
            self._check_open()
            await self._flush()

    async def fsync(self) -> None:
        """Flush, and wait until the file and what is known of it is on the disk."""
        await self.flush()
        await self._sync(0)

    async def fdatasync(self) -> None:
        """Flush, and wait until the bytes of the file are on the disk."""
        await self.flush()
        await self._sync(requests.FSYNC_DATASYNC)

    async def _flush(self) -> None:
        while self._dirty:
            await self._write_file(bytes(self._dirty), self._drop_dirty)

    def _drop_dirty(self, count: int) -> None:
        del self._dirty[:count]

    async def _write_all(self, view: memoryview) -> None:
        done = 0

        def account(count: int) -> None:
            nonlocal done
            done += count

        while done < len(view):
            await self._write_file(view[done:], account)

    async def _write_file(self, data: Any, account: Any) -> None:
        def wrote(count: int) -> None:
            if count > 0:
                account(count)
                self._moved(count)

        anywhere = self._append or not self._seekable
        offset = requests.AT_FILE_POSITION if anywhere else self._position
        wrote(await requests.write(self._fd, data, offset, wrote))

    def _moved(self, count: int) -> None:
        self._position += count
        if self._append and self._seekable:
            self._position = os.lseek(self._fd, 0, os.SEEK_CUR)  # others may append as well

    def _forget_ahead(self) -> None:
        # What was read ahead may be about to change.
        if self._ahead and self._seekable:  # of a pipe, it cannot be read again
            self._position -= len(self._ahead) - self._at
            self._ahead, self._at = b"", 0

    # --- the position ------------------------------------------------------------------------------------------------

    async def tell(self) -> int:
        """The position."""
        self._check_seekable()
        return self._tell()

    def _tell(self) -> int:
        return self._position - (len(self._ahead) - self._at) + len(self._dirty)

    async def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Move the position; the new one."""
        self._check_seekable()
        offset = index(offset)
        if whence not in _WHENCE:
            raise ValueError(f"whence value {whence} unsupported")
        if not -requests.OFFSET_MAX - 1 <= offset <= requests.OFFSET_MAX:
            raise ValueError("cannot fit 'int' into an offset-sized integer")
        if self._dirty or whence not in (os.SEEK_SET, os.SEEK_CUR) or self._lock.locked():
            async with self._lock:
                self._check_open()
                await self._flush()
                return await self._seek(offset, whence)
        return await self._seek(offset, whence)

    async def _seek(self, offset: int, whence: int) -> int:
        if whence == os.SEEK_CUR:
            offset += self._tell()
        elif whence == os.SEEK_END:
            offset += await self._size()
        elif whence != os.SEEK_SET:
            offset = await requests.in_thread(os.lseek, self._fd, offset, whence)
        if not 0 <= offset <= requests.OFFSET_MAX:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        start = self._position - len(self._ahead)
        if self._ahead and start <= offset <= self._position:
            self._at = offset - start
        else:
            self._ahead, self._at = b"", 0
            self._position = offset
            self._ahead_size = min(self._ahead_size, AHEAD_MIN)
        return offset

    async def _size(self) -> int:
        about = os.fstat(self._fd)
        if stat.S_ISREG(about.st_mode):
            return about.st_size
        return await requests.in_thread(os.lseek, self._fd, 0, os.SEEK_END)  # of a disk, say

    async def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file to `size` bytes, or to the position; the position stays."""
        self._check_writable()
        async with self._lock:
            self._check_open()
            await self._flush()
            self._forget_ahead()
            if size is None:
                size = self._position
            elif size < 0:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            elif size > requests.OFFSET_MAX:
                raise OverflowError("Python int too large to convert to C long")
            await self._truncate(size)
            return size

    async def _settle(self, *, writing: bool) -> None:
        if self._dirty or (writing and self._ahead):
            async with self._lock:
                self._check_open()
                await self._flush()
                if writing:
                    self._forget_ahead()

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what has gathered and close; again is nothing. It waits for calls that are under way. The file is
        closed also if writing fails."""
        if not self._open:
            return
        async with self._lock:
            if not self._open:
                return  # another close came first, and what it could not write is lost
            try:
                if self._dirty:
                    await self._flush()
            finally:
                await self._close_fd()
