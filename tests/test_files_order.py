"""What is read ahead or not yet written is seen by all calls, whether they come one after the other or at once."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import pytest
from support import soon, unread

import uringloop


async def test_reads_at_an_offset_see_what_is_not_written_yet(tmp_path: Path) -> None:
    async with uringloop.open(tmp_path / "file", "w+b") as file:
        await file.write(b"hello")
        assert await file.pread(5, 0) == b"hello"
        await file.write(b" you")
        buffer = bytearray(9)
        assert await file.pread_into(buffer, 0) == 9
        assert buffer == b"hello you"
        await file.write(b"!")
        assert await file.preadv([bytearray(4), buffer], 0) == 10
        assert buffer[:6] == b"o you!"


@pytest.mark.parametrize("how", ["pwrite", "pwritev", "truncate"])
async def test_what_was_read_ahead_is_forgotten_when_it_changes(tmp_path: Path, how: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abcdef")
    async with uringloop.open(path, "r+b") as file:
        assert await file.read(1) == b"a"
        if how == "truncate":
            await file.truncate(3)
            assert await file.read() == b"bc"
            return
        await (file.pwrite(b"XY", 1) if how == "pwrite" else file.pwritev([b"X", b"Y"], 1))
        assert await file.read() == b"XYdef"


async def test_position_of_a_file_that_others_append_to(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    async with uringloop.open(path, "ab") as file:
        assert await file.tell() == 5
        await file.write(b"6")
        await file.flush()
        with open(path, "ab") as other:  # noqa: ASYNC230 - a few bytes
            other.write(b"789")
        await file.write(b"0")
        await file.flush()
        assert await file.tell() == 10
    assert path.read_bytes() == b"1234567890"


async def test_cancel_that_comes_with_the_bytes_of_a_pipe_loses_none() -> None:
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()

    def cancel_when_taken(task: asyncio.Task[bytes]) -> None:
        if unread(read_end):
            loop.call_soon(cancel_when_taken, task)
        else:
            task.cancel()

    async with uringloop.open(read_end, "rb") as file:
        for text in (b"first", b"second", b"third"):
            task = asyncio.ensure_future(file.read1(100))
            await asyncio.sleep(0.01)
            os.write(write_end, text)
            cancel_when_taken(task)
            with pytest.raises(asyncio.CancelledError):
                await soon(task)
            assert await soon(file.read1(100)) == text
    os.close(write_end)
    await loop.shutdown_default_executor()


@pytest.mark.parametrize("seed", range(5))
async def test_calls_at_once_are_as_one_after_the_other(tmp_path: Path, seed: int) -> None:
    """In the order in which they were made."""
    choose = random.Random(seed)
    lines = b"".join(b"%d" % choose.getrandbits(choose.randrange(1, 2000)) + b"\n" for _ in range(5000))
    paths = tmp_path / "ours", tmp_path / "theirs"
    for path in paths:
        path.write_bytes(lines)
    with open(paths[1], "r+b") as theirs:  # noqa: ASYNC230 - it is what the other is compared to
        async with uringloop.open(paths[0], "r+b") as ours:
            for _ in range(100):
                calls: list[tuple[str, Any]] = [
                    choose.choice(
                        [
                            ("read", choose.randrange(100_000)),
                            ("read", choose.randrange(1000)),
                            ("readline", -1),
                            ("write", b"x" * choose.randrange(100)),
                            ("write", b"y" * choose.randrange(100_000)),
                            ("seek", choose.randrange(500_000)),
                        ]
                    )
                    for _ in range(4)
                ]
                expected = [getattr(theirs, name)(argument) for name, argument in calls]
                assert (
                    await soon(asyncio.gather(*(getattr(ours, name)(argument) for name, argument in calls))) == expected
                )
    assert paths[0].read_bytes() == paths[1].read_bytes()
    await asyncio.get_running_loop().shutdown_default_executor()
