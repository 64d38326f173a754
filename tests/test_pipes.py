"""Pipes as transports: asyncio's own, over the ring's readiness."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import PATIENCE, Recorder, eventually, soon

pytestmark = pytest.mark.tiny_ring


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    yield (ends := os.pipe())
    for fd in ends:
        with suppress(OSError):  # a transport had it
            os.close(fd)


async def test_reads_up_to_the_end(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    _, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, os.fdopen(read_end, "rb", 0))
    os.write(write_end, b"hello")
    assert await protocol.received(5) == b"hello"
    os.close(write_end)
    assert await protocol.lost() is None
    protocol.check_order()


async def test_writes_more_than_the_pipe_holds(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, os.fdopen(write_end, "wb", 0))
    data = bytes(range(256)) * (4 << 10)
    transport.write(data)
    await protocol.called("pause_writing")
    transport.close()

    def read_all() -> bytes:
        with open(read_end, "rb", closefd=False) as file:
            return file.read()

    assert await soon(asyncio.to_thread(read_all)) == data
    assert await protocol.lost() is None
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_writer_hears_that_the_reader_has_gone(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    _, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, os.fdopen(write_end, "wb", 0))
    os.close(read_end)
    await protocol.lost()


async def test_paused_reader_gets_nothing(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    transport, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, os.fdopen(read_end, "rb", 0))
    transport.pause_reading()
    os.write(write_end, b"hello")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not protocol.data
    transport.resume_reading()
    assert await protocol.received(5) == b"hello"
    transport.close()
    await protocol.lost()


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop takes it
async def test_regular_file_is_refused(tmp_path: Path) -> None:
    with (
        open(tmp_path / "file", "wb") as file,  # noqa: ASYNC230 - an open of a temporary file does not block
        pytest.raises(ValueError, match=r"Pipe transport is (only )?for pipes"),
    ):
        await asyncio.get_running_loop().connect_write_pipe(Recorder, file)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.only_on("uringloop")  # a child process of its own
def test_stdout_may_be_connected_again(again: bool) -> None:
    program = f"""if True:
        import asyncio, os, sys, uringloop

        async def main():
            loop = asyncio.get_running_loop()
            for text in (b"one", b"two")[: 1 + {again}]:
                copy = os.fdopen(os.dup(1), "wb", 0)
                transport, _ = await loop.connect_write_pipe(asyncio.Protocol, copy)
                transport.write(text)
                # and the same fd while the first is still open
                other, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout)
                other.write(b".")
                transport.close()
            await asyncio.sleep(0)

        uringloop.run(main())
        os._exit(0)
    """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE)
    assert ran.stdout == (b"one.two." if again else b"one.")


async def test_pseudo_terminal() -> None:
    near, far = os.openpty()
    transport, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, os.fdopen(near, "rb", 0))
    os.write(far, b"hello")
    await eventually(lambda: protocol.data == b"hello")
    transport.close()
    await protocol.lost()
    os.close(far)
