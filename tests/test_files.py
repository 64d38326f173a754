"""Files: what they give, how they fail, and what a cancel leaves; on the ring and in other loops' executors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import mmap
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PATIENCE, eventually, fence, open_files, soon

import uringloop
from uringloop import environment
from uringloop.files import descriptor


@pytest.fixture(params=["in place", "by request"])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of what is cached are done in place, and then again by requests."""
    if request.param == "by request":
        monkeypatch.setattr(descriptor, "IN_PLACE_MAX", 0)


CONTENT = bytes(range(256)) * 400


def let_go_of(buffer: bytearray) -> bool:
    """True if nobody holds the buffer; an executor's thread does for a moment."""
    try:
        buffer.clear()
    except BufferError:
        return False
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# At an offset
# ---------------------------------------------------------------------------------------------------------------------


async def test_many_reads_at_once_of_one_file(path: Path, reads: None) -> None:
    content = CONTENT
    async with uringloop.open(path, "rb") as file:
        pieces = await asyncio.gather(*(file.pread(1000, at) for at in range(0, len(content), 1000)))
        assert b"".join(pieces) == content
        assert await file.tell() == 0
        assert await file.pread(10, len(content) + 5) == b""


async def test_many_writes_at_once_to_one_file(tmp_path: Path) -> None:
    async with uringloop.open(tmp_path / "file", "w+b") as file:
        assert await asyncio.gather(*(file.pwrite(bytes([i]) * 100, i * 100) for i in range(64))) == [100] * 64
        assert await file.read() == b"".join(bytes([i]) * 100 for i in range(64))


async def test_caller_brings_the_buffer(path: Path, reads: None) -> None:
    content = CONTENT
    buffer = bytearray(5000)
    async with uringloop.open(path, "rb") as file:
        assert await file.readinto(buffer) == 5000
        assert buffer == content[:5000]
        assert await file.pread_into(memoryview(buffer)[:10], 7) == 10
        assert buffer[:10] == content[7:17]
        assert await file.pread_into(buffer, len(content) - 3) == 3
        await eventually(lambda: let_go_of(buffer))


async def test_vectors(tmp_path: Path) -> None:
    async with uringloop.open(tmp_path / "file", "w+b") as file:
        assert await file.pwritev([b"one", bytearray(b"two"), b"three"], 2) == 11
        into = [bytearray(4), bytearray(3), bytearray(100)]
        assert await file.preadv(into, 1) == 12
        assert b"".join(into)[:12] == b"\0onetwothree"


async def test_offset_sees_what_was_written_before(tmp_path: Path) -> None:
    async with uringloop.open(tmp_path / "file", "w+b") as file:
        await file.write(b"hello")
        assert await file.pread(100, 1) == b"ello"
        await file.write(b" world")
        await file.pwrite(b"W", 6)
        await file.seek(0)
        assert await file.read() == b"hello World"


async def test_reading_in_place_does_not_keep_the_loop(path: Path) -> None:
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    async with uringloop.open(path, "rb") as file:
        for _ in range(2000):
            await file.pread(4096, 0)
    counting.cancel()
    assert turns > 10


# ---------------------------------------------------------------------------------------------------------------------
# Failures
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rb", "r+b", "w", "a", "xb"])
async def test_failure_to_open_is_that_of_io(mode: str, tmp_path: Path) -> None:
    for name in (tmp_path, tmp_path / "none" / "file", f"{tmp_path}/file/beyond", "a" * 300, tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "file").chmod(0o600)
        try:
            open(name, mode).close()  # noqa: ASYNC230 - the one to compare with
            expected = None
            if "x" in mode:
                (tmp_path / "file").unlink()
        except OSError as exc:
            expected = exc
        if expected is None:
            continue
        with pytest.raises(type(expected)) as failure:
            await uringloop.open(name, mode)
        assert (failure.value.errno, str(failure.value)) == (expected.errno, str(expected))
        assert failure.value.filename == (os.fspath(name))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("/dev/null", "rw"), "exactly one"),
        (("/dev/null", "rbt"), "text and binary"),
        (("/dev/null", "q"), "invalid mode"),
        (("/dev/null", "r", 0), "unbuffered"),
        (("/dev/null", "rb", -1, "utf-8"), "encoding"),
        (("/dev/null", "r", -1, None, None, "x"), "newline"),
        ((-5, "rb"), "negative"),
    ],
)
async def test_arguments_that_io_refuses(arguments: tuple[object, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        uringloop.open(*arguments)  # type: ignore[call-overload]
    with pytest.raises(ValueError):  # noqa: PT011 - the same
        open(*arguments).close()  # type: ignore[call-overload]  # noqa: ASYNC230


async def test_path_with_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="null"):
        await uringloop.open("a\0b")


async def test_closed_file_does_nothing(path: Path) -> None:
    file = await uringloop.open(path, "r+b")
    await file.close()
    await file.close()
    assert file.closed
    for call in (
        file.read, file.readline, file.tell, file.flush, file.fsync, lambda: file.seek(0), lambda: file.write(b"x"),
        lambda: file.pread(1, 0), lambda: file.pwrite(b"", 0), file.truncate, lambda: file.readinto(bytearray(1)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="closed"):
            await call()
    with pytest.raises(ValueError, match="closed"):
        file.fileno()


async def test_direction_that_was_not_asked_for(path: Path) -> None:
    async with uringloop.open(path, "rb") as file:
        with pytest.raises(OSError, match="not writable"):
            await file.write(b"")
    async with uringloop.open(path, "ab") as file:
        with pytest.raises(OSError, match="not readable"):
            await file.read()


async def test_file_that_shrinks_while_it_is_read_just_ends(path: Path, reads: None) -> None:
    async with uringloop.open(path, "rb") as file:
        assert len(await file.read(50_000)) == 50_000
        os.truncate(path, 60_000)
        rest = await file.read()
        assert len(await file.read()) == 0
        assert 10_000 <= len(rest) < 52_400
        os.truncate(path, 10)
        assert await file.pread(100, 50) == b""


async def test_misaligned_direct_read_is_refused_and_an_aligned_one_is_not(path: Path) -> None:
    try:
        file = await uringloop.open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_DIRECT))
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise
        return  # this file system has none
    async with file:
        with pytest.raises(OSError, match="Invalid argument"):
            await file.pread(100, 1)
        with mmap.mmap(-1, 8192) as aligned:
            assert await file.pread_into(aligned, 4096) == 8192
            assert aligned[:] == CONTENT[4096 : 4096 + 8192]


@pytest.fixture
def small_disk() -> Iterator[int]:
    """Files of this process may not pass 100,000 bytes."""
    limit = 100_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


async def test_file_that_may_not_grow(tmp_path: Path, small_disk: int) -> None:
    file = await uringloop.open(tmp_path / "file", "wb")
    with pytest.raises(OSError, match="too large") as failure:
        await file.write(b"x" * 150_000)
    assert failure.value.errno == errno.EFBIG
    assert await file.tell() == small_disk
    await file.write(b"y")
    with pytest.raises(OSError, match="too large"):
        await file.close()
    assert file.closed
    assert (tmp_path / "file").read_bytes() == b"x" * small_disk


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=PATIENCE)


async def test_full_disk(full_disk: Path) -> None:
    file = await uringloop.open(full_disk / "file", "wb")
    with pytest.raises(OSError, match="No space left") as failure:
        await file.write(b"x" * 300_000)
    assert failure.value.errno == errno.ENOSPC
    taken = await file.tell()
    assert 0 < taken <= 256 * 1024
    await file.write(b"y")
    with pytest.raises(OSError, match="No space left"):
        await file.close()
    assert file.closed
    assert (full_disk / "file").read_bytes() == b"x" * taken


async def test_dev_full() -> None:
    file = await uringloop.open("/dev/full", "wb")
    await file.write(b"x")
    with pytest.raises(OSError, match="No space left"):
        await file.flush()
    with pytest.raises(OSError, match="No space left"):
        await file.close()


# ---------------------------------------------------------------------------------------------------------------------
# FIFOs, and cancels
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("uringloop")
async def test_fifo_is_opened_when_its_writer_comes(fifo: Path) -> None:
    opening = asyncio.ensure_future(_opened(fifo, "rb"))
    await fence()
    assert not opening.done()
    writer = await soon(_opened(fifo, "wb"))
    reader = await soon(opening)
    await writer.write(b"hello\nworld")
    await writer.close()
    assert await soon(reader.readline()) == b"hello\n"
    assert await soon(reader.read()) == b"world"
    await reader.close()


async def _opened(path: Path, mode: str) -> uringloop.files.binary.BinaryFile:  # type: ignore[name-defined]
    return await uringloop.open(path, mode)  # type: ignore[no-any-return]


@pytest.mark.only_on("uringloop")
@pytest.mark.skipif(environment.hardened(), reason="a hardened ring opens no files: a thread waits on, cancelled")
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
async def test_cancelled_wait_for_the_other_end_of_a_fifo_leaves_nothing(fifo: Path, flags: int) -> None:
    before = open_files()
    for _ in range(5):
        opening = asyncio.create_task(uringloop.fs.open(fifo, flags))
        await fence()
        assert not opening.done()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(opening)
    assert open_files() == before


async def test_cancelled_read_of_a_fifo_loses_nothing(fifo: Path) -> None:
    keep = os.open(fifo, os.O_RDWR)
    try:
        async with uringloop.open(fifo, "rb") as file:
            for round in range(20):
                reading = asyncio.create_task(file.readline())
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                if round % 2:
                    os.write(keep, b"line\n")  # the read may have taken it when the cancel comes
                reading.cancel()
                try:
                    line = await soon(reading)
                except asyncio.CancelledError:
                    if not round % 2:
                        continue
                    line = await soon(file.readline())
                assert line == b"line\n"
    finally:
        os.close(keep)


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_open_leaves_no_file_open(path: Path, turns: int) -> None:
    before = open_files()
    opening = asyncio.create_task(uringloop.fs.open(path, os.O_RDONLY | os.O_CREAT))
    for _ in range(turns):
        await asyncio.sleep(0)
    opening.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        os.close(await soon(opening))
    async with asyncio.timeout(PATIENCE):
        while open_files() != before:  # noqa: ASYNC110 - a thread of the executor may still open and close it
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_write_has_written_as_much_as_it_says(tmp_path: Path, turns: int) -> None:
    content = os.urandom(1 << 20)
    async with uringloop.open(tmp_path / "file", "wb") as file:
        writing = asyncio.create_task(file.write(content))
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        position = await file.tell()
        assert os.stat(tmp_path / "file").st_size == position
        await file.write(content[position:])
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("mode", ["wb", "ab"])
@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_flush_writes_all_once(tmp_path: Path, turns: int, mode: str) -> None:
    async with uringloop.open(tmp_path / "file", mode) as file:
        for number in range(50):
            await file.write(b"%d\n" % number)
            flushing = asyncio.create_task(file.flush())
            for _ in range(turns):
                await asyncio.sleep(0)
            flushing.cancel()
            await asyncio.wait([flushing])
    assert (tmp_path / "file").read_bytes() == b"".join(b"%d\n" % number for number in range(50))


async def test_buffer_is_the_callers_again_after_a_cancel(path: Path, reads: None) -> None:
    buffer = bytearray(100_000)
    async with uringloop.open(path, "rb") as file:
        reading = asyncio.create_task(file.pread_into(buffer, 0))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        del reading  # its traceback holds the frame that had the buffer
        gc.collect()
        await eventually(lambda: let_go_of(buffer))


async def test_close_waits_for_what_is_under_way(path: Path, reads: None) -> None:
    content = CONTENT
    file = await uringloop.open(path, "rb")
    reading = [asyncio.create_task(file.pread(1000, at)) for at in range(0, 50_000, 1000)]
    await asyncio.sleep(0)
    await soon(file.close())
    for at, piece in zip(range(0, 50_000, 1000), await asyncio.gather(*reading), strict=True):
        assert piece == content[at : at + 1000]


async def test_forgotten_file_warns_and_is_closed(path: Path) -> None:
    file = await uringloop.open(path, "rb")
    fd = file.fileno()
    with pytest.warns(ResourceWarning, match="unclosed file"):
        del file
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


async def test_fd_of_somebody_else_is_left_open(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, 10, os.SEEK_SET)
    async with uringloop.open(fd, "rb", closefd=False) as file:
        assert await file.tell() == 10
        assert await file.read(2) == b"\x0a\x0b"
    os.close(fd)


def test_file_goes_from_loop_to_loop(path: Path) -> None:
    file = asyncio.run(_opened(path, "rb"))
    with asyncio.Runner(loop_factory=uringloop.new_event_loop) as runner:
        assert runner.run(file.read(3)) == b"\0\1\2"
    assert asyncio.run(file.read(2)) == b"\3\4"
    asyncio.run(file.close())


# ---------------------------------------------------------------------------------------------------------------------
# What fsync has confirmed
# ---------------------------------------------------------------------------------------------------------------------


def test_what_fsync_confirmed_is_there_after_a_kill(tmp_path: Path) -> None:
    program = """
        import sys
        import uringloop

        async def main():
            async with uringloop.open(sys.argv[1], "ab") as file:
                for number in range(1_000_000):
                    await file.write(b"%d\\n" % number)
                    await file.fsync()
                    print(number, flush=True)

        uringloop.run(main())
    """
    journal = tmp_path / "journal"
    command = [sys.executable, "-c", textwrap.dedent(program), str(journal)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        deadline = threading.Timer(PATIENCE, process.kill)
        deadline.start()
        for _ in range(50):
            confirmed = int(process.stdout.readline())
        process.kill()
        confirmed = max([confirmed, *map(int, process.stdout.read().split(b"\n")[:-1])])
        deadline.cancel()
    lines = journal.read_bytes().split(b"\n")[:-1]
    assert confirmed >= 49
    assert lines[: confirmed + 1] == [b"%d" % number for number in range(confirmed + 1)]
