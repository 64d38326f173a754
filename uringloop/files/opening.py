"""`open`: the arguments of io.open, checked as there, and the file for them."""

from __future__ import annotations

import codecs
import errno
import io
import locale
import os
import stat
import sys
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Final, Generic, Literal, TypeVar, overload

from uringloop.files import requests
from uringloop.files.binary import BinaryFile
from uringloop.files.requests import Path
from uringloop.files.text import TextFile

TextMode = Literal[
    "r", "rt", "tr", "w", "wt", "tw", "a", "at", "ta", "x", "xt", "tx", "r+", "rt+", "r+t", "w+", "wt+", "w+t", "a+",
    "at+", "a+t", "x+", "xt+", "x+t",
]  # fmt: skip
BinaryMode = Literal[
    "rb", "br", "wb", "bw", "ab", "ba", "xb", "bx", "rb+", "r+b", "wb+", "w+b", "ab+", "a+b", "xb+", "x+b",
]  # fmt: skip
F = TypeVar("F", bound=BinaryFile | TextFile)
Opener = Callable[[Any, int], int]

_CREATED_WITH: Final = 0o666  # less the umask
_FLAGS: Final = {
    "r": 0,
    "w": os.O_CREAT | os.O_TRUNC,
    "a": os.O_CREAT | os.O_APPEND,
    "x": os.O_CREAT | os.O_EXCL,
}


class Opening(Generic[F]):
    """A file about to be opened: await it, or enter it with `async with`, which closes the file at the end."""

    def __init__(self, open_file: Callable[[], Coroutine[Any, Any, F]]) -> None:
        self._open_file = open_file
        self._file: F | None = None

    def __await__(self) -> Generator[Any, Any, F]:
        return self._open_file().__await__()

    async def __aenter__(self) -> F:
        self._file = await self._open_file()
        return self._file

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            await self._file.close()


@overload
def open(
    file: Path | int,
    mode: TextMode = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Opener | None = None,
) -> Opening[TextFile]: ...
@overload
def open(
    file: Path | int,
    mode: BinaryMode,
    buffering: int = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: Opener | None = None,
) -> Opening[BinaryFile]: ...
@overload
def open(
    file: Path | int,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Opener | None = None,
) -> Opening[Any]: ...
def open(
    file: Path | int,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Opener | None = None,
) -> Opening[Any]:
    """io.open, to be awaited or used as `async with`. An `opener` is called in the loop's executor.

    Raises ValueError or TypeError for arguments that io.open refuses; awaited, the OSError that io.open raises.
    """
    action, binary, updating = _parse(mode)
    if binary:
        if encoding is not None:
            raise ValueError("binary mode doesn't take an encoding argument")
        if errors is not None:
            raise ValueError("binary mode doesn't take an errors argument")
        if newline is not None:
            raise ValueError("binary mode doesn't take a newline argument")
    elif buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    if newline not in (None, "", "\n", "\r", "\r\n"):
        raise ValueError(f"illegal newline value: {newline!r}")
    if not isinstance(file, int):
        file = os.fspath(file)
        if not closefd:
            raise ValueError("Cannot use closefd=False with file name")
    elif file < 0:
        raise ValueError("negative file descriptor")
    if not binary:
        encoding = io.text_encoding(encoding)
        if encoding == "locale":
            encoding = "utf-8" if sys.flags.utf8_mode else locale.getencoding()
        if not codecs.lookup(encoding)._is_text_encoding:
            io.TextIOWrapper(io.BytesIO(), encoding)  # raises LookupError, in the words of this version of Python
        codecs.lookup_error(errors or "strict")

    async def opened() -> Any:
        access = os.O_RDWR if updating else os.O_RDONLY if action == "r" else os.O_WRONLY
        fd = await _fd_of(file, mode, access | _FLAGS[action], opener)
        try:
            about = os.fstat(fd)  # of a file that has just been opened: nothing to wait for
            if stat.S_ISDIR(about.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), file)
        except BaseException:
            if not isinstance(file, int):  # that of somebody else stays as it was, as of io
                os.close(fd)
            raise
        return _file_on(fd)

    def _file_on(fd: int) -> Any:
        binary_file = BinaryFile(
            fd,
            buffering=-1 if buffering == 1 else buffering,
            name=file,
            mode=mode,
            readable=updating or action == "r",
            writable=updating or action != "r",
            append=action == "a",
            closefd=closefd,
        )
        try:
            if updating and buffering and not binary_file.seekable():
                raise io.UnsupportedOperation("File or stream is not seekable.")
            if binary:
                return binary_file
            return TextFile(
                binary_file,
                encoding=encoding or "",
                errors=errors or "strict",
                newline=newline,
                line_buffering=buffering == 1 or (buffering < 0 and os.isatty(fd)),
                mode=mode,
            )
        except BaseException:
            binary_file._open = False  # closed here, and not again when it is freed
            if closefd:
                os.close(fd)
            raise

    return Opening(opened)


def _parse(mode: str) -> tuple[str, bool, bool]:
    """What is to be done (one of r, w, a, x), binary or not, updating or not. Raises ValueError as io.open."""
    if not isinstance(mode, str):
        raise TypeError(f"open() argument 'mode' must be str, not {type(mode).__name__}")
    if mode in ("r", "rb"):
        return "r", mode == "rb", False  # most of them
    letters = set(mode)
    if letters - set("rwaxbt+") or len(mode) > len(letters):
        raise ValueError(f"invalid mode: {mode!r}")
    if "b" in letters and "t" in letters:
        raise ValueError("can't have text and binary mode at once")
    actions = letters & set("rwax")
    if len(actions) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    return actions.pop(), "b" in letters, "+" in letters


async def _fd_of(file: Any, mode: str, flags: int, opener: Opener | None) -> int:
    if isinstance(file, int):
        return file
    sys.audit("open", file, mode, flags | os.O_CLOEXEC)
    if opener is None:
        return await requests.open_fd(file, flags, _CREATED_WITH, None)

    def opened() -> int:
        fd = opener(file, flags | os.O_CLOEXEC)
        if fd < 0:
            raise ValueError(f"opener returned {fd}")
        os.set_inheritable(fd, False)
        return fd

    return await requests.outcome(requests.Errand(opened, late=os.close), os.close)
