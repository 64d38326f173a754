"""Files that are closed: twice, while other calls wait, when opening fails; and files that change their loop."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import gc
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import LoopFactory, fence, soon

import uringloop

Call = Callable[[Any], Awaitable[Any]]


async def outcomes(*calls: Awaitable[Any]) -> list[Any]:
    """What each gives or raises."""
    return await soon(asyncio.gather(*calls, return_exceptions=True))


def are_refused(answers: list[Any]) -> bool:
    return all(isinstance(answer, ValueError) and "closed" in str(answer) for answer in answers)


# ---------------------------------------------------------------------------------------------------------------------
# What comes after a close
# ---------------------------------------------------------------------------------------------------------------------


async def test_second_close_does_nothing_where_the_first_could_not_write(tmp_path: Path) -> None:
    other, limit = tmp_path / "other", resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    file = await uringloop.open(tmp_path / "file", "wb")
    fd = file.fileno()
    await file.write(b"x" * 4000)
    taken: list[int] = []

    def take_the_fd(closing: asyncio.Task[None]) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        taken.append(os.open(other, os.O_RDWR | os.O_CREAT))
        if taken[0] != fd:
            os.dup2(taken[0], fd)

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limit[1]))
    try:
        first, second = asyncio.create_task(file.close()), asyncio.create_task(file.close())
        first.add_done_callback(take_the_fd)
        answers = await outcomes(first, second)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
        for one in {*taken, fd}:
            os.close(one)
    assert isinstance(answers[0], OSError)
    assert answers[1] is None
    assert other.read_bytes() == b""


READS: dict[str, Call] = {
    "read": lambda file: file.read(4),
    "read all": lambda file: file.read(),
    "read1": lambda file: file.read1(4),
    "readline": lambda file: file.readline(),
    "readlines": lambda file: file.readlines(),
    "readinto": lambda file: file.readinto(bytearray(4)),
    "peek": lambda file: file.peek(),
}


@pytest.mark.parametrize("name", READS)
async def test_read_that_waited_for_its_turn_while_the_file_was_closed(tmp_path: Path, name: str) -> None:
    near, far = os.pipe()
    (tmp_path / "other").write_bytes(b"secret\n" * 10)
    file = await uringloop.open(near, "rb")
    under_way = asyncio.create_task(file.read(4))
    closing = asyncio.create_task(file.close())
    waiting = asyncio.ensure_future(READS[name](file))
    closing.add_done_callback(lambda _: os.dup2(other, near))
    other = os.open(tmp_path / "other", os.O_RDONLY)
    try:
        await fence()
        os.write(far, b"abcd")
        assert await soon(under_way) == b"abcd"
        await soon(closing)
        assert are_refused(await outcomes(waiting))
    finally:
        for fd in (near, far, other):
            os.close(fd)


CALLS: dict[str, Call] = {
    "flush": lambda file: file.flush(),
    "seek": lambda file: file.seek(0, os.SEEK_END),
}


@pytest.mark.parametrize("name", CALLS)
async def test_call_that_waited_for_its_turn_while_the_file_was_closed(tmp_path: Path, name: str) -> None:
    (tmp_path / "other").write_bytes(b"other" * 10)
    other = os.open(tmp_path / "other", os.O_RDWR)
    file = await uringloop.open(tmp_path / "file", "wb")
    fd = file.fileno()
    writing = asyncio.create_task(file.write(bytes(200_000)))
    closing = asyncio.create_task(file.close())
    waiting = asyncio.ensure_future(CALLS[name](file))
    closing.add_done_callback(lambda _: os.dup2(other, fd))
    try:
        assert await soon(writing) == 200_000
        await soon(closing)
        assert are_refused(await outcomes(waiting))
    finally:
        for one in (other, fd):
            os.close(one)
    assert (tmp_path / "other").read_bytes() == b"other" * 10


TEXT_READS: dict[str, Call] = {
    "read": lambda file: file.read(2),
    "readline": lambda file: file.readline(),
}


@pytest.mark.parametrize("name", TEXT_READS)
async def test_closed_file_gives_no_text_that_was_decoded_before(name: str) -> None:
    near, far = os.pipe()
    file = await uringloop.open(near, encoding="utf-8")
    under_way = asyncio.create_task(file.read(4))
    closing = asyncio.create_task(file.close())
    waiting = asyncio.ensure_future(TEXT_READS[name](file))
    await fence()
    os.write(far, b"abcdef\n")
    assert await soon(under_way) == "abcd"
    await soon(closing)
    assert are_refused(await outcomes(waiting))
    os.close(far)


# ---------------------------------------------------------------------------------------------------------------------
# What a failure to open leaves
# ---------------------------------------------------------------------------------------------------------------------


def is_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        os.fstat(fd)
        return True
    return False


def opened_by_io(file: Any, mode: str, **options: Any) -> OSError | None:
    """What open() fails with."""
    try:
        open(file, mode, **options).close()
    except OSError as exc:
        return exc
    return None


@pytest.mark.parametrize("mode", ["r", "rb"])
async def test_fd_of_a_folder_is_left_open(tmp_path: Path, mode: str) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        expected = opened_by_io(fd, mode)
        assert is_open(fd)
        with pytest.raises(IsADirectoryError) as failure:
            await uringloop.open(fd, mode)
        assert str(failure.value) == str(expected)
        assert is_open(fd)
    finally:
        if is_open(fd):
            os.close(fd)


@pytest.mark.parametrize("closefd", [True, False])
@pytest.mark.parametrize("mode", ["r+", "r+b", "w+b", "a+"])
async def test_what_cannot_be_sought_cannot_be_updated(mode: str, closefd: bool) -> None:
    near, far = os.pipe()
    again = os.dup(near)
    try:
        expected = opened_by_io(near, mode, closefd=closefd)
        with pytest.raises(OSError, match="not seekable") as failure:
            await uringloop.open(again, mode, closefd=closefd)
        assert (type(failure.value), str(failure.value)) == (type(expected), str(expected))
        assert is_open(again) == is_open(near) == (not closefd)
    finally:
        for fd in (near, again, far):
            if is_open(fd):
                os.close(fd)


@pytest.fixture
def codec() -> Iterator[str]:
    """The name of an encoding that has nothing for files."""

    def search(name: str) -> codecs.CodecInfo | None:
        return codecs.CodecInfo(codecs.utf_8_encode, codecs.utf_8_decode, name=name) if name == "only_whole" else None

    codecs.register(search)
    yield "only_whole"
    codecs.unregister(search)


async def test_file_that_cannot_be_decoded_is_closed_once(tmp_path: Path, codec: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    opening: list[int] = []

    def opener(path: str, flags: int) -> int:
        opening.append(os.open(path, flags))
        return opening[0]

    with pytest.raises((LookupError, TypeError)) as failure:
        await uringloop.open(tmp_path / "file", encoding=codec, opener=opener)
    assert not is_open(opening[0])
    other = os.open(tmp_path / "file", os.O_RDONLY)
    os.dup2(other, opening[0])
    del failure  # its traceback holds the file
    gc.collect()
    assert is_open(opening[0])
    for fd in {other, opening[0]}:
        os.close(fd)


# ---------------------------------------------------------------------------------------------------------------------
# From loop to loop
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rb", "r"])
def test_calls_wait_for_each_other_in_one_loop_after_the_other(
    new_loop: LoopFactory, tmp_path: Path, mode: str
) -> None:
    (tmp_path / "file").write_bytes(b"x" * 500_000)

    async def opened() -> Any:
        return await uringloop.open(tmp_path / "file", mode)

    async def read(file: Any) -> list[int]:
        return [len(data) for data in await outcomes(*(file.read(70_000) for _ in range(3)))]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        file = runner.run(opened())
        assert runner.run(read(file)) == [70_000] * 3
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            assert runner.run(read(file)) == [70_000] * 3
        finally:
            runner.run(file.close())
