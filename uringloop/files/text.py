"""Text files: io.TextIOWrapper, awaited, over a `BinaryFile`. The codecs are the standard library's.

The position of a text file is a cookie, as in io: where in the bytes the decoder was last without memory, and what to
give it from there. `_snapshot` is that place for the characters that are decoded and not yet given (`_text`, from `_at`
on).
"""

from __future__ import annotations

import asyncio
import codecs
import io
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Final, Self

from uringloop import compat
from uringloop.files.binary import BinaryFile

CHUNK: Final = 32 * 1024  # bytes decoded at a time
_CODEC_BITS: Final = 64  # of each part of a cookie

_Place = tuple[str, int, tuple[int, bytes] | None, Any]  # `_text`, `_at`, `_snapshot`, and the decoder's state


class TextFile:
    """What `uringloop.open` gives for a text mode. `buffer` is the binary file below."""

    def __init__(
        self, buffer: BinaryFile, *, encoding: str, errors: str, newline: str | None, line_buffering: bool, mode: str
    ) -> None:
        self.buffer = buffer
        self.mode = mode
        self.encoding = encoding
        self.errors = errors
        self.line_buffering = line_buffering
        self._newline = newline
        self._write_newline = os.linesep if newline is None else newline or "\n"
        self._text = ""
        self._at = 0
        self._snapshot: tuple[int, bytes] | None = None  # decoder flags, and the bytes given to it since
        self._lock = compat.LoopFreeLock()
        self._decoder: Any = codecs.getincrementaldecoder(encoding)(errors)
        if not newline:
            self._decoder = io.IncrementalNewlineDecoder(self._decoder, translate=newline is None)
        self._encoder = codecs.getincrementalencoder(encoding)(errors)
        if buffer._writable and buffer._seekable and buffer._start:
            self._encoder.setstate(0)  # no byte order mark in the middle of a file

    # --- what it is --------------------------------------------------------------------------------------------------

    @property
    def name(self) -> Any:
        return self.buffer.name

    @property
    def closed(self) -> bool:
        return self.buffer.closed

    @property
    def newlines(self) -> Any:
        return getattr(self._decoder, "newlines", None)

    def fileno(self) -> int:
        return self.buffer.fileno()

    def isatty(self) -> bool:
        return self.buffer.isatty()

    def readable(self) -> bool:
        return self.buffer.readable()

    def writable(self) -> bool:
        return self.buffer.writable()

    def seekable(self) -> bool:
        return self.buffer.seekable()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name!r} mode={self.mode!r} encoding={self.encoding!r}>"

    async def __aenter__(self) -> Self:
        self.buffer._check_open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line

    # --- reading -----------------------------------------------------------------------------------------------------

    async def read(self, size: int | None = -1, /) -> str:
        """Up to `size` characters, fewer only at the end of the file; all that is left if it is negative or None."""
        self.buffer._check_readable()
        async with self._lock:
            self.buffer._check_open()
            if size is None or size < 0:
                decoded = self._decoder.decode(await self.buffer.read(), final=True)
                text: str = self._take(len(self._text)) + decoded
                self._forget_text()
                return text
            place, chunks = self._place(), list[bytes]()
            try:
                parts = [self._take(size)]
                missing = size - len(parts[0])
                while missing and await self._read_chunk(chunks):
                    parts.append(self._take(missing))
                    missing -= len(parts[-1])
                return "".join(parts)
            except (asyncio.CancelledError, OSError):
                self._give_back(place, chunks)
                raise

    async def readline(self, size: int | None = -1, /) -> str:
        """A line with its end; "" at the end of the file."""
        self.buffer._check_readable()
        limit = -1 if size is None else size
        if limit < 0 and not self._lock.locked():
            stop = self._line_stop(self._at)
            if stop:
                line = self._text[self._at : stop]
                self._at = stop
                return line
        async with self._lock:
            self.buffer._check_open()
            place, chunks = self._place(), list[bytes]()
            try:
                return await self._read_line(limit, chunks)
            except (asyncio.CancelledError, OSError):
                self._give_back(place, chunks)
                raise

    async def readlines(self, hint: int | None = -1, /) -> list[str]:
        """The lines that are left, or about `hint` characters of them."""
        self.buffer._check_readable()
        lines: list[str] = []
        total = 0
        async with self._lock:
            self.buffer._check_open()
            place, chunks = self._place(), list[bytes]()
            try:
                while line := await self._read_line(-1, chunks):
                    lines.append(line)
                    total += len(line)
                    if hint is not None and 0 < hint < total:
                        break
            except (asyncio.CancelledError, OSError):
                self._give_back(place, chunks)
                raise
        return lines

    async def _read_line(self, limit: int, chunks: list[bytes]) -> str:
        parts: list[str] = []
        missing = limit
        while True:
            stop = self._line_stop(self._at)
            if self._newline == "\r\n" and self._text.startswith("\n", self._at) and parts and parts[-1][-1:] == "\r":
                stop = self._at + 1  # the end of the line lies across two chunks
            size = (stop or len(self._text)) - self._at
            if limit >= 0:
                size = min(size, missing)
                missing -= size
            if part := self._take(size):
                parts.append(part)
            if (stop and self._at == stop) or missing == 0:
                return "".join(parts)
            if not await self._read_chunk(chunks):
                self._forget_text()  # the end of the file is a place where the decoder has no memory
                return "".join(parts)

    def _line_stop(self, start: int) -> int:
        """Where the line ends that goes on at `start`; 0 if its end is not there."""
        if self._newline is None:
            return self._text.find("\n", start) + 1
        if self._newline:
            found = self._text.find(self._newline, start)
            return 0 if found < 0 else found + len(self._newline)
        feed, carriage = self._text.find("\n", start), self._text.find("\r", start)
        if carriage < 0 or 0 <= feed < carriage:
            return feed + 1
        return carriage + (2 if feed == carriage + 1 else 1)

    def _take(self, size: int) -> str:
        text = self._text[self._at : self._at + size]
        self._at += len(text)
        return text

    async def _read_chunk(self, chunks: list[bytes]) -> bool:
        """Decode the next bytes, once all characters have been given; False at the end of the file. `chunks` gets the
        bytes, for `_give_back`."""
        memory, flags = self._decoder.getstate()
        chunk = await self.buffer.read1(CHUNK)
        chunks.append(chunk)
        self._text, self._at = self._decoder.decode(chunk, final=not chunk), 0
        self._snapshot = (flags, memory + chunk)
        return bool(chunk or self._text)

    def _place(self) -> _Place:
        return self._text, self._at, self._snapshot, self._decoder.getstate()

    def _give_back(self, place: _Place, chunks: list[bytes]) -> None:
        """What was taken for a call that then failed or was cancelled: the next one gets it. `chunks` have been read
        since it was at `place`."""
        self._text, self._at, self._snapshot, state = place
        self._decoder.setstate(state)
        self.buffer._give_back(b"".join(chunks))

    def _forget_text(self) -> None:
        self._text, self._at, self._snapshot = "", 0, None

    # --- writing -----------------------------------------------------------------------------------------------------

    async def write(self, text: str, /) -> int:
        """Take all of `text`; the number of characters."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.buffer._check_writable()
        ends_line = self.line_buffering and ("\n" in text or "\r" in text)
        state = self._encoder.getstate()
        if self._write_newline != "\n" and "\n" in text and self._newline != "":
            encoded = self._encoder.encode(text.replace("\n", self._write_newline))
        else:
            encoded = self._encoder.encode(text)
        if self._snapshot is not None:
            self._forget_text()
            self._decoder.reset()
        before = self.buffer._tell()
        try:
            await self.buffer.write(encoded)
        except BaseException:
            if self.buffer._tell() == before:
                self._encoder.setstate(state)  # nothing was written, and the byte order mark is yet to come
            raise
        if ends_line:
            await self.buffer.flush()
        return len(text)

    async def writelines(self, lines: Iterable[str], /) -> None:
        """Write each of the lines, which bring their own ends."""
        for line in lines:
            await self.write(line)

    async def flush(self) -> None:
        """Write what has gathered."""
        await self.buffer.flush()

    async def fsync(self) -> None:
        """Flush, and wait until the file and what is known of it is on the disk."""
        await self.buffer.fsync()

    async def fdatasync(self) -> None:
        """Flush, and wait until the bytes of the file are on the disk."""
        await self.buffer.fdatasync()

    async def truncate(self, size: int | None = None, /) -> int:
        """Cut or extend the file to `size` bytes, or to the position."""
        await self.flush()
        if size is None:
            cookie = await self.tell()
            part = (1 << _CODEC_BITS) - 1
            size = (cookie & part) + (cookie >> 2 * _CODEC_BITS & part)  # behind what the decoder is to be given
        return await self.buffer.truncate(size)

    # --- the position ------------------------------------------------------------------------------------------------

    async def tell(self) -> int:
        """A cookie for `seek`: the position in bytes, and above its 64 bits what the decoder must know."""
        self.buffer._check_seekable()
        async with self._lock:
            await self.buffer.flush()
            position = await self.buffer.tell()
            if self._snapshot is None:
                return position
            flags, given = self._snapshot
            position -= len(given)
            if not self._at:
                return position | flags << _CODEC_BITS
            state = self._decoder.getstate()
            try:
                return self._cookie(position, flags, given)
            finally:
                self._decoder.setstate(state)

    def _cookie(self, position: int, flags: int, given: bytes) -> int:
        # Give the decoder its bytes again, one by one, and remember each place where it had no memory: from the last
        # of them before the position, little or nothing is to be decoded again.
        decoder = self._decoder
        decoder.setstate((b"", flags))
        start, start_flags, characters, start_characters = 0, flags, 0, 0
        final = 0
        fed = 0
        for fed in range(1, len(given) + 1):
            characters += len(decoder.decode(given[fed - 1 : fed]))
            memory, now = decoder.getstate()
            if not memory and characters <= self._at:
                start, start_flags, start_characters = fed, now, characters
            if characters >= self._at:
                break
        else:
            characters += len(decoder.decode(b"", final=True))
            final = 1
        skip = self._at - start_characters
        if not skip:
            return position + start | start_flags << _CODEC_BITS
        parts = (position + start, start_flags, fed - start, skip, final)
        return sum(part << _CODEC_BITS * index for index, part in enumerate(parts))

    async def seek(self, cookie: int, whence: int = os.SEEK_SET, /) -> int:
        """Go to what `tell` gave, to the start or the end of the file."""
        self.buffer._check_seekable()
        if whence == os.SEEK_CUR:
            if cookie:
                raise io.UnsupportedOperation("can't do nonzero cur-relative seeks")
            cookie = await self.tell()
        elif whence == os.SEEK_END and cookie:
            raise io.UnsupportedOperation("can't do nonzero end-relative seeks")
        elif whence not in (os.SEEK_SET, os.SEEK_END):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if cookie < 0:
            raise ValueError(f"negative seek position {cookie!r}")
        if cookie >> 5 * _CODEC_BITS:
            raise OverflowError("int too big to convert")
        async with self._lock:
            if whence == os.SEEK_END:
                cookie = await self.buffer.seek(0, os.SEEK_END)
                self._forget_text()
                self._decoder.reset()
            else:
                await self._go_to(cookie)
            self._reset_encoder(cookie)
            return cookie

    async def _go_to(self, cookie: int) -> None:
        part = (1 << _CODEC_BITS) - 1
        position, flags, feed, skip, final = (cookie >> _CODEC_BITS * index & part for index in range(5))
        await self.buffer.seek(position)
        self._forget_text()
        if cookie == 0:
            self._decoder.reset()
        else:
            self._decoder.setstate((b"", flags))
            self._snapshot = (flags, b"")
        if skip:
            given = await self.buffer.read(feed)
            self._text = self._decoder.decode(given, final=bool(final))
            self._snapshot = (flags, given)
            if len(self._text) < skip:
                raise OSError("can't restore logical file position")
            self._at = skip

    def _reset_encoder(self, position: int) -> None:
        if position:
            self._encoder.setstate(0)
        else:
            self._encoder.reset()

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Write what has gathered and close; again is nothing. The file is closed also if writing fails."""
        await self.buffer.close()
