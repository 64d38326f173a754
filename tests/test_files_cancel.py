"""Files: what a call took that is cancelled or fails is there for the next one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from support import fence, soon, taken, unread

import uringloop
from uringloop.files import descriptor

Call = Callable[[Any], Awaitable[Any]]

LINES = "".join(f"{number:07}\n" for number in range(20_000))
CALLS: dict[str, Call] = {
    "read some": lambda file: file.read(100_000),
    "read all": lambda file: file.read(),
    "readline": lambda file: file.readline(),
    "readlines": lambda file: file.readlines(),
}
INTO: dict[str, Call] = {"readinto": lambda file: file.readinto(bytearray(100_000))}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text(LINES)
    return path


@pytest.fixture
def by_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read in place."""
    monkeypatch.setattr(descriptor, "IN_PLACE_MAX", 0)


# ---------------------------------------------------------------------------------------------------------------------
# Reads
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CALLS, *INTO])
async def test_cancelled_read_of_a_pipe_gives_back_its_bytes(name: str) -> None:
    near, far = os.pipe()
    async with uringloop.open(near, "rb") as file:
        os.write(far, b"line\nha" if name == "readlines" else b"ha")
        reading = asyncio.ensure_future((CALLS | INTO)[name](file))
        await taken(near)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(reading)
        os.write(far, b"lf\n")
        os.close(far)
        assert await soon(file.read()) == (b"line\nhalf\n" if name == "readlines" else b"half\n")


@pytest.mark.parametrize("name", CALLS)
async def test_cancelled_read_of_a_pipe_gives_back_its_text(name: str) -> None:
    near, far = os.pipe()
    text = "\N{EURO SIGN}\r\nh\N{EURO SIGN}lf\n" if name == "readlines" else "h\N{EURO SIGN}lf\n"
    content = text.encode()
    async with uringloop.open(near, encoding="utf-8", newline="") as file:
        os.write(far, content[:-4])  # in the middle of a character
        reading = asyncio.ensure_future(CALLS[name](file))
        await taken(near)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(reading)
        os.write(far, content[-4:])
        os.close(far)
        assert await soon(file.read()) == text


@pytest.mark.parametrize("name", ["read some", "read all", "readlines", *INTO])
async def test_cancelled_read_of_a_file_moves_nothing(path: Path, name: str, by_request: None) -> None:
    content = LINES.encode()
    for turns in range(24):
        async with uringloop.open(path, "rb") as file:
            assert await file.read(8185) == content[:8185]  # near the end of the bytes that are read ahead
            reading = asyncio.ensure_future((CALLS | INTO)[name](file))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            if reading.cancelled():
                assert await file.tell() == 8185
                assert await file.read(20) == content[8185:8205]


@pytest.mark.parametrize("name", ["read some", "read all", "readlines"])
async def test_cancelled_read_of_a_text_file_moves_nothing(path: Path, name: str, by_request: None) -> None:
    for turns in range(24):
        async with uringloop.open(path, encoding="utf-8") as file:
            assert await file.read(5) == LINES[:5]
            reading = asyncio.ensure_future(CALLS[name](file))
            for _ in range(turns):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
            if reading.cancelled():
                assert await file.tell() == 5
                assert await file.read(20) == LINES[5:25]


def read_of_io(path: Path) -> list[str]:
    with open(path, encoding="utf-8") as file:
        line = file.readline()
        with pytest.raises(UnicodeDecodeError) as failure:
            file.read()
        return [line, str(failure.value), file.read()]


async def test_text_before_one_that_cannot_be_decoded_is_still_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one\ntwo\n" + b"x" * 40_000 + b"\xff\n")
    async with uringloop.open(path, encoding="utf-8") as file:
        line = await file.readline()
        with pytest.raises(UnicodeDecodeError) as failure:
            await file.read()
        given = [line, str(failure.value), (await file.read())]
    expected = read_of_io(path)
    assert given[0] == expected[0]
    for rest in (given[2], expected[2]):  # how many bytes are decoded at a time is each one's affair
        assert rest.startswith("two\nxxx")


# ---------------------------------------------------------------------------------------------------------------------
# Writes and closes
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
async def test_byte_order_mark_comes_with_the_first_write_that_is_not_cancelled(encoding: str) -> None:
    near, far = os.pipe()
    with contextlib.suppress(BlockingIOError):
        os.set_blocking(far, False)
        while True:
            os.write(far, bytes(4096))
    os.set_blocking(far, True)
    async with uringloop.open(far, "w", encoding=encoding) as file:
        writing = asyncio.create_task(file.write("x" * 100_000))
        await fence()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(writing)
        os.read(near, unread(near))
        await file.write("hello")
    with open(near, "rb") as end:  # noqa: ASYNC230 - all is there
        assert end.read() == "hello".encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
async def test_byte_order_mark_comes_with_the_first_write_that_does_not_fail(tmp_path: Path, encoding: str) -> None:
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    async with uringloop.open(tmp_path / "file", "w", encoding=encoding) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                await file.write("x" * 100_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
            signal.signal(signal.SIGXFSZ, handler)
        await file.write("hello")
    assert (tmp_path / "file").read_bytes() == "hello".encode(encoding)


async def test_cancelled_close_closes_when_nothing_uses_the_file_any_more(tmp_path: Path, by_request: None) -> None:
    content = os.urandom(1 << 20)
    (tmp_path / "file").write_bytes(content)
    for turns in range(1, 5):
        file = await uringloop.open(tmp_path / "file", "rb")
        reading = [asyncio.create_task(file.pread(len(content), 0)) for _ in range(20)]
        await asyncio.sleep(0)
        closing = asyncio.create_task(file.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert file.closed
        assert await asyncio.gather(*reading) == [content] * 20
