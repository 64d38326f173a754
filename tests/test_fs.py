"""uringloop.fs against os: the same results, the same errors, on the ring and in other loops' executors."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, eventually, fence, open_files, soon

from uringloop import fs
from uringloop.operations import Operations


@pytest.fixture(autouse=True, params=["all operations", "no operation"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is done again where the kernel has none of the operations."""
    if request.param == "no operation":
        monkeypatch.setattr(Operations, "has", lambda operations, opcode: False)


async def error_of(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, ...]:
    """What the call fails with."""
    try:
        given = call(*arguments, **options)
        if isinstance(given, Awaitable):
            await given
    except OSError as exc:
        return type(exc), exc.errno, exc.filename, exc.filename2, str(exc)
    pytest.fail("it does not fail")


@pytest.mark.parametrize("follow_symlinks", [True, False])
async def test_stat(tmp_path: Path, follow_symlinks: bool) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for path in (tmp_path, tmp_path / "file", tmp_path / "link", "/dev/null"):
        expected, given = (
            os.stat(path, follow_symlinks=follow_symlinks),
            await fs.stat(path, follow_symlinks=follow_symlinks),
        )
        for name in (name for name in dir(expected) if name.startswith("st_")):
            assert getattr(given, name) == getattr(expected, name), name
    assert await fs.lstat(tmp_path / "link") == os.lstat(tmp_path / "link")


async def test_names_come_and_go(tmp_path: Path) -> None:
    await fs.mkdir(tmp_path / "folder", 0o700)
    assert os.stat(tmp_path / "folder").st_mode & 0o777 == 0o700
    fd = await fs.open(tmp_path / "folder" / "file", os.O_CREAT | os.O_WRONLY, 0o640)
    assert not os.get_inheritable(fd)
    await fs.close(fd)
    await fs.link(tmp_path / "folder" / "file", tmp_path / "linked")
    assert os.stat(tmp_path / "linked").st_nlink == 2
    await fs.symlink("linked", tmp_path / "symbolic")
    assert await fs.readlink(tmp_path / "symbolic") == "linked"
    await fs.rename(tmp_path / "linked", tmp_path / "renamed")
    await fs.replace(tmp_path / "renamed", tmp_path / "linked")
    await fs.unlink(tmp_path / "symbolic")
    await fs.remove(tmp_path / "linked")
    await fs.unlink(os.fsencode(tmp_path / "folder" / "file"))
    await fs.rmdir(tmp_path / "folder")
    assert await fs.listdir(tmp_path) == []


async def test_names_in_an_open_folder(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        await fs.mkdir("folder", dir_fd=folder)
        await fs.symlink("folder", "symbolic", dir_fd=folder)
        await fs.rename("symbolic", "renamed", src_dir_fd=folder, dst_dir_fd=folder)
        await fs.link("renamed", "linked", src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        assert (await fs.lstat(tmp_path / "linked")).st_nlink == 2
        assert (await fs.stat("renamed", dir_fd=folder)) == os.stat(tmp_path / "folder")
        await fs.unlink("renamed", dir_fd=folder)
        await fs.rmdir("folder", dir_fd=folder)
        assert os.listdir(folder) == ["linked"]
    finally:
        os.close(folder)


async def test_errors_are_those_of_os(tmp_path: Path) -> None:
    file, folder, none = tmp_path / "file", tmp_path / "folder", tmp_path / "none"
    file.write_bytes(b"")
    (folder / "full").mkdir(parents=True)
    for name, *arguments in [
        ("stat", none),
        ("lstat", none / "none"),
        ("mkdir", folder),
        ("rmdir", folder),
        ("rmdir", none),
        ("unlink", folder),
        ("unlink", none),
        ("rename", none, file),
        ("rename", file, folder),
        ("link", none, file),
        ("link", file, folder),
        ("symlink", "none", file),
        ("open", none, os.O_RDONLY),
        ("open", file, os.O_RDONLY | os.O_DIRECTORY),
        ("getxattr", file, "user.none"),
        ("setxattr", none, "user.none", b""),
        ("truncate", none, 0),
        ("fsync", 987654),
        ("ftruncate", 987654, 0),
    ]:
        expected = await error_of(getattr(os, name), *arguments)
        assert await error_of(getattr(fs, name), *arguments) == expected, name


async def test_what_is_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    await fs.truncate(path, 50)
    fd = os.open(path, os.O_RDWR)
    try:
        await fs.ftruncate(fd, 40)
        assert (await fs.stat(fd)).st_size == 40
        await fs.posix_fallocate(fd, 0, 10_000)
        await fs.fsync(fd)
        await fs.fdatasync(fd)
        assert os.fstat(fd).st_size == 10_000
        await fs.truncate(fd, 60)
    finally:
        os.close(fd)
    assert path.read_bytes() == b"x" * 40 + bytes(20)


@pytest.mark.parametrize("number", [1 << 63, 1 << 64, (1 << 64) + 3, -(1 << 64)])
async def test_number_that_is_no_offset_is_refused(tmp_path: Path, number: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    fd = os.open(path, os.O_RDWR)
    try:
        cases: list[tuple[Any, ...]] = [
            ("ftruncate", fd, number),
            ("truncate", fd, number),
            ("truncate", path, number),
            ("posix_fallocate", fd, number, 1),
            ("posix_fallocate", fd, 0, number),
        ]
        for name, *arguments in cases:
            with pytest.raises(OverflowError) as expected:
                getattr(os, name)(*arguments)
            with pytest.raises(OverflowError) as failure:
                await getattr(fs, name)(*arguments)
            assert str(failure.value) == str(expected.value), name
        with pytest.raises(OverflowError):
            await fs.fallocate(fd, 0, number, 1)
    finally:
        os.close(fd)
    assert path.read_bytes() == b"0123456789"


async def test_what_no_file_can_be_is_refused_as_of_os(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    fd, unwritable = os.open(tmp_path / "file", os.O_RDWR), os.open(tmp_path / "file", os.O_RDONLY)
    try:
        cases: list[tuple[Any, ...]] = [
            ("posix_fallocate", fd, 0, 0),
            ("posix_fallocate", fd, -1, 1),
            ("posix_fallocate", fd, 0, -1),
            ("posix_fallocate", unwritable, 0, 1),
            ("ftruncate", fd, -1),
            ("ftruncate", unwritable, 1),
            ("truncate", fd, -1),
            ("truncate", unwritable, 1),
            ("truncate", 987654, 1),
        ]
        for name, *arguments in cases:
            expected = await error_of(getattr(os, name), *arguments)
            assert await error_of(getattr(fs, name), *arguments) == expected, (name, arguments)
    finally:
        os.close(fd)
        os.close(unwritable)
    assert (tmp_path / "file").read_bytes() == b"0123456789"


async def test_sync_of_a_file_object(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        await fs.fsync(file)  # type: ignore[arg-type] # os takes them too
        await fs.fdatasync(file)  # type: ignore[arg-type]


@contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Path]:
    """A file system of this kind."""
    folder.mkdir()
    mount = ["mount", "-t", kind, kind, str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=PATIENCE)
    if done.returncode:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-R", str(folder)], check=True, timeout=PATIENCE)


async def test_space_where_the_file_system_cannot_allocate(tmp_path: Path) -> None:
    with mounted("ramfs", tmp_path / "ram") as folder:
        fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
        try:
            await fs.posix_fallocate(fd, 0, 100)
            assert os.fstat(fd).st_size == 100
        finally:
            os.close(fd)


async def test_stat_mounts_nothing(tmp_path: Path) -> None:
    with mounted("debugfs", tmp_path / "debug") as folder:
        if not (folder / "tracing").exists():
            pytest.skip("this kernel traces nothing, and has nothing else that mounts itself")
        await fs.stat(folder / "tracing")
        assert not os.path.ismount(folder / "tracing")  # noqa: ASYNC240 - it waits for nothing


async def test_extended_attributes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    await fs.setxattr(path, "user.one", b"1")
    fd = os.open(path, os.O_RDWR)
    try:
        await fs.setxattr(fd, b"user.two", b"22", os.XATTR_CREATE)
        assert await fs.getxattr(fd, "user.one") == b"1"
    finally:
        os.close(fd)
    assert await fs.getxattr(path, "user.two") == b"22"
    assert sorted(await fs.listxattr(path)) == ["user.one", "user.two"]
    await fs.removexattr(path, "user.one")
    assert os.listxattr(path) == ["user.two"]


@pytest.mark.parametrize("size", [0, 1, 3 << 20])
async def test_copy(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    source, target = tmp_path / "from", tmp_path / "to"
    source.write_bytes(content)
    target.write_bytes(b"something longer" * 10)
    before = open_files()
    assert await fs.copyfile(source, target) == target
    assert target.read_bytes() == content
    assert open_files() == before


async def test_copy_of_a_file_that_tells_no_size(tmp_path: Path) -> None:
    await fs.copyfile("/proc/self/status", tmp_path / "to")
    assert (tmp_path / "to").read_text().startswith("Name:")


async def test_copy_of_a_link(tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(b"content")
    (tmp_path / "link").symlink_to("from")
    await fs.copyfile(tmp_path / "link", tmp_path / "file")
    await fs.copyfile(tmp_path / "link", tmp_path / "another", follow_symlinks=False)
    assert (tmp_path / "file").read_bytes() == b"content"
    assert os.readlink(tmp_path / "another") == "from"
    (tmp_path / "from").unlink()
    await fs.copyfile(tmp_path / "link", tmp_path / "dangling", follow_symlinks=False)
    assert os.readlink(tmp_path / "dangling") == "from"


async def test_copy_fails_as_of_shutil(tmp_path: Path) -> None:
    file, folder, fifo = tmp_path / "file", tmp_path / "folder", tmp_path / "fifo"
    file.write_bytes(b"content")
    folder.mkdir()
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(file)
    before = open_files()
    for arguments in [
        (tmp_path / "none", tmp_path / "to"),
        (folder, tmp_path / "to"),
        (file, folder),
        (file, f"{tmp_path}/none/"),
        (file, tmp_path / "none" / "to"),
        (fifo, tmp_path / "to"),
        (file, fifo),
        (file, file),
        (file, tmp_path / "link"),
    ]:
        expected = await error_of(shutil.copyfile, *arguments)
        assert await error_of(fs.copyfile, *arguments) == expected, arguments
    with pytest.raises(OSError, match="No space"):
        await fs.copyfile(file, "/dev/full")
    assert open_files() == before


@pytest.mark.only_on("uringloop")
@pytest.mark.parametrize("turns", range(12))
async def test_cancelled_copy_leaves_no_file_open(tmp_path: Path, turns: int) -> None:
    (tmp_path / "from").write_bytes(os.urandom(3 << 20))
    before = open_files()
    copying = asyncio.create_task(fs.copyfile(tmp_path / "from", tmp_path / "to"))
    for _ in range(turns):
        await fence()
    copying.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await soon(copying)
    await eventually(lambda: open_files() == before)
