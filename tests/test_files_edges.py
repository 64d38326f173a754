"""Files at the edges of what open() and io can do, beside them."""

from __future__ import annotations

import asyncio
import os
import pty
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import soon, taken

import uringloop
from uringloop.files import text

Call = Callable[[Any], Any]
CONTENT = b"hello\nworld\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def of_io(path: Path | int, mode: str, *calls: Call, **options: Any) -> list[Any]:
    """What the calls of open()'s file give; the class of the error at the end if one fails."""
    given: list[Any] = []
    with open(path, mode, **options) as file:
        try:
            given.extend(call(file) for call in calls)
        except Exception as exc:
            given.append(type(exc))
    return given


async def of_ours(path: Path | int, mode: str, *calls: Call, **options: Any) -> list[Any]:
    """The same of ours."""
    given: list[Any] = []
    async with uringloop.open(path, mode, **options) as file:
        try:
            for call in calls:
                given.append(await soon(call(file)))
        except Exception as exc:
            given.append(type(exc))
    return given


# ---------------------------------------------------------------------------------------------------------------------
# Without a buffer
# ---------------------------------------------------------------------------------------------------------------------


async def test_unbuffered_read_reads_once() -> None:
    near, far = socket.socketpair()
    with near, far:
        calls: list[Call] = [lambda file: file.read(10), lambda file: file.readinto(bytearray(10))]
        for call in calls:
            far.send(b"abc")
            async with uringloop.open(near.fileno(), "rb", buffering=0, closefd=False) as file:
                assert await soon(call(file)) in (3, b"abc")


async def test_unbuffered_read_after_a_line(path: Path) -> None:
    calls: list[Call] = [lambda file: file.readline(), lambda file: file.read(100), lambda file: file.tell()]
    assert await of_ours(path, "rb", *calls, buffering=0) == of_io(path, "rb", *calls, buffering=0)


async def test_unbuffered_file_that_is_read_and_written_and_cannot_be_sought_keeps_what_it_has_read() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.send(b"one\ntwo\n")
        async with uringloop.open(near.fileno(), "r+b", buffering=0, closefd=False) as file:
            assert await soon(file.readline()) == b"one\n"
            await soon(file.write(b"answer"))
            assert far.recv(10) == b"answer"
            assert await soon(file.readline()) == b"two\n"


# ---------------------------------------------------------------------------------------------------------------------
# Positions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [1 << 63, 1 << 64, (1 << 64) + 3, -(1 << 64)])
async def test_position_that_no_file_has(path: Path, position: int) -> None:
    calls: list[Call] = [lambda file: file.seek(position)]
    assert await of_ours(path, "r+b", *calls) == of_io(path, "r+b", *calls)
    async with uringloop.open(path, "r+b") as file:
        if position > 0:
            for call in (
                lambda: file.pread(5, position),
                lambda: file.pread_into(bytearray(5), position),
                lambda: file.preadv([bytearray(5)], position),
                lambda: file.pwrite(b"X", position),
                lambda: file.pwritev([b"X"], position),
            ):
                with pytest.raises(OverflowError):
                    await call()
                with pytest.raises(OverflowError):
                    os.pread(file.fileno(), 5, position)
        assert await file.tell() == 0
        await file.write(b"Y")
    assert content_of(path) == b"Y" + CONTENT[1:]


@pytest.mark.parametrize(
    ("mode", "arguments"),
    [
        ("rb", (0, 7)),
        ("rb", (0, -1)),
        ("rb", (1.0,)),
        ("r", (1 << 330,)),
    ],
)
async def test_arguments_of_seek(path: Path, mode: str, arguments: tuple[Any, ...]) -> None:
    calls: list[Call] = [lambda file: file.seek(*arguments)]
    assert await of_ours(path, mode, *calls) == of_io(path, mode, *calls)


async def test_size_that_no_file_has(path: Path) -> None:
    calls: list[Call] = [lambda file: file.truncate(1 << 63)]
    assert await of_ours(path, "r+b", *calls) == of_io(path, "r+b", *calls)
    assert content_of(path) == CONTENT


@pytest.mark.parametrize("encoding", ["iso2022_jp", "iso2022_kr"])
@pytest.mark.parametrize("newline", [None, "", "\n"])
async def test_truncate_cuts_behind_what_was_read(path: Path, encoding: str, newline: str | None) -> None:
    content = "ab\r\ncd\N{HIRAGANA LETTER A}\r\n".encode(encoding)
    stop = content.index(b"cd")
    put(path, content)
    async with uringloop.open(path, "r+", encoding=encoding, newline=newline) as file:
        await file.read(3 if newline is None else 4)
        assert await file.truncate() == stop
    assert content_of(path) == content[:stop]


async def test_truncate_where_the_decoder_has_a_memory(path: Path) -> None:
    put(path, b"ab\r\ncd\r\n")
    async with uringloop.open(path, "r+", newline="") as file:
        assert await file.read(3) == "ab\r"
        assert await file.truncate() == 4
    assert content_of(path) == b"ab\r\n"


@pytest.mark.parametrize(
    ("encoding", "content", "lines"),
    [
        ("utf-8-sig", b"", 1),
        ("utf-16", b"", 1),
        ("utf-32", b"", 1),
        ("utf-16", "\ufeffab\n".encode("utf-16-be"), 2),
        ("utf-32", "\ufeffab\n".encode("utf-32-be"), 2),
    ],
)
async def test_position_at_the_end_of_a_text_file(path: Path, encoding: str, content: bytes, lines: int) -> None:
    put(path, content)
    calls: list[Call] = [lambda file: file.readline()] * lines + [
        lambda file: file.tell(),
        lambda file: file.truncate(),
    ]
    assert await of_ours(path, "r+", *calls, encoding=encoding) == of_io(path, "r+", *calls, encoding=encoding)


# ---------------------------------------------------------------------------------------------------------------------
# Text
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["rot13", "hex", "base64", "zlib"])
def test_encoding_that_is_not_of_text(path: Path, encoding: str) -> None:
    with pytest.raises(LookupError) as expected:
        open(path, encoding=encoding).close()
    with pytest.raises(LookupError) as failure:
        uringloop.open(path, encoding=encoding)
    assert str(failure.value) == str(expected.value)


async def test_end_of_a_line_that_comes_in_pieces() -> None:
    near, far = os.pipe()
    async with uringloop.open(near, encoding="utf-16-le", newline="\r\n") as file:
        reading = asyncio.create_task(file.readlines())
        for piece in (b"a\0\r\0", b"\n", b"\0", b"b\0\r\0\n\0"):
            os.write(far, piece)
            await taken(near)
        os.close(far)
        assert await soon(reading) == ["a\r\n", "b\r\n"]


async def test_end_of_a_line_that_lies_across_what_is_decoded_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "CHUNK", 1)
    put(path, "ab\r\n\r\nc\r\r\n".encode("utf-16-le"))
    calls: list[Call] = [lambda file: file.readlines()]
    options = {"encoding": "utf-16-le", "newline": "\r\n"}
    assert await of_ours(path, "r", *calls, **options) == of_io(path, "r", *calls, **options)


async def test_terminal_with_a_buffer_of_some_size_is_not_flushed_with_each_line() -> None:
    master, terminal = pty.openpty()
    try:
        expected = of_io(terminal, "w", lambda file: file.line_buffering, buffering=100, closefd=False)
        async with uringloop.open(terminal, "w", 100, closefd=False) as file:
            assert [file.line_buffering] == expected == [False]
    finally:
        os.close(master)
        os.close(terminal)


# ---------------------------------------------------------------------------------------------------------------------
# Files of the kernel
# ---------------------------------------------------------------------------------------------------------------------


async def test_file_that_can_be_sought_and_not_written_at_an_offset() -> None:
    comm = Path("/proc/self/comm")
    name = content_of(comm)
    try:
        async with uringloop.open("/proc/self/comm", "w") as file:
            await file.write("another")
        assert content_of(comm) == b"another\n"
    finally:
        put(comm, name)
