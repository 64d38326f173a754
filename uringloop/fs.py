"""What os does to files and folders, awaited: names, arguments and errors are os's.

Each function's docstring names the kernel's operation that it is on the ring. Where it names none, where the kernel has
not got it, and on other loops, os's function is called in the loop's executor.
"""

from __future__ import annotations

import errno
import os
import shutil
import struct
import sys
from collections.abc import Callable
from operator import index
from stat import S_ISDIR, S_ISFIFO, S_ISLNK
from typing import TYPE_CHECKING, Any, Final, TypeVar

from uringloop.files import requests
from uringloop.files.requests import (
    AT_FDCWD,
    AT_FILE_POSITION,
    FSYNC_DATASYNC,
    Path,
    close_fd,
    in_thread,
    named,
    open_fd,
    pinned_path,
    ring_with,
)
from uringloop.reactor import (
    OP_FALLOCATE,
    OP_FGETXATTR,
    OP_FSETXATTR,
    OP_FSYNC,
    OP_FTRUNCATE,
    OP_GETXATTR,
    OP_LINKAT,
    OP_MKDIRAT,
    OP_RENAMEAT,
    OP_SETXATTR,
    OP_SPLICE,
    OP_STATX,
    OP_SYMLINKAT,
    OP_UNLINKAT,
    address_of,
    pin,
)
from uringloop.splice import copy_file

if TYPE_CHECKING:
    from uringloop.operations import Operations

T = TypeVar("T")

_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_REMOVEDIR: Final = 0x200
_AT_SYMLINK_FOLLOW: Final = 0x400
_AT_NO_AUTOMOUNT: Final = 0x800  # stat(2) mounts nothing, statx(2) may
_STATX_BASIC_STATS: Final = 0x7FF
_STATX_BYTES: Final = 256
_XATTR_SIZE_MAX: Final = 65536  # the kernel's limit for a value
_COPY_BYTES: Final = 64 * 1024  # at a time, where bytes go through Python


def _at(dir_fd: int | None) -> int:
    return AT_FDCWD if dir_fd is None else dir_fd


def _off_t(value: int) -> int:
    """A file's offset as a field of a request. Raises OverflowError and TypeError as os does."""
    value = index(value)
    if not -(2**63) <= value < 2**63:
        raise OverflowError("Python int too large to convert to C long")
    return value & (2**64 - 1)


def _audit_fd(dir_fd: int | None) -> int:
    return -1 if dir_fd is None else dir_fd


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


async def open(path: Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    """os.open: OPENAT. If it is cancelled, no fd is left open."""
    sys.audit("open", path, None, flags | os.O_CLOEXEC)
    return await open_fd(path, flags, mode, dir_fd)


async def close(fd: int) -> None:
    """os.close: CLOSE."""
    await close_fd(fd)


async def rename(src: Path, dst: Path, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
    """os.rename: RENAMEAT."""
    ring = ring_with(OP_RENAMEAT)
    if ring is None:
        return await in_thread(os.rename, src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
    sys.audit("os.rename", src, dst, _audit_fd(src_dir_fd), _audit_fd(dst_dir_fd))
    old, new = pinned_path(src), pinned_path(dst)
    request = ring.start(
        OP_RENAMEAT,
        _at(src_dir_fd),
        address=address_of(old),
        length=_at(dst_dir_fd) & 0xFFFFFFFF,
        offset=address_of(new),
        keep=(old, new),
        patient=True,
    )
    await named(request, src, dst)
    return None


async def replace(src: Path, dst: Path, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
    """os.replace: RENAMEAT."""
    await rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


async def unlink(path: Path, *, dir_fd: int | None = None) -> None:
    """os.unlink: UNLINKAT."""
    await _unlink(os.unlink, "os.remove", path, dir_fd, 0)


remove = unlink


async def rmdir(path: Path, *, dir_fd: int | None = None) -> None:
    """os.rmdir: UNLINKAT."""
    await _unlink(os.rmdir, "os.rmdir", path, dir_fd, _AT_REMOVEDIR)


async def _unlink(otherwise: Callable[..., None], event: str, path: Path, dir_fd: int | None, flags: int) -> None:
    ring = ring_with(OP_UNLINKAT)
    if ring is None:
        return await in_thread(otherwise, path, dir_fd=dir_fd)
    sys.audit(event, path, _audit_fd(dir_fd))
    name = pinned_path(path)
    request = ring.start(OP_UNLINKAT, _at(dir_fd), address=address_of(name), flags=flags, keep=name, patient=True)
    await named(request, path)
    return None


async def mkdir(path: Path, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
    """os.mkdir: MKDIRAT."""
    ring = ring_with(OP_MKDIRAT)
    if ring is None:
        return await in_thread(os.mkdir, path, mode, dir_fd=dir_fd)
    sys.audit("os.mkdir", path, mode, _audit_fd(dir_fd))
    name = pinned_path(path)
    request = ring.start(OP_MKDIRAT, _at(dir_fd), address=address_of(name), length=mode, keep=name, patient=True)
    await named(request, path)
    return None


async def makedirs(name: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
    """os.makedirs, in the executor."""
    await in_thread(os.makedirs, name, mode, exist_ok)


async def link(
    src: Path,
    dst: Path,
    *,
    src_dir_fd: int | None = None,
    dst_dir_fd: int | None = None,
    follow_symlinks: bool = True,
) -> None:
    """os.link: LINKAT. As os.link on Linux it does not follow a link unless it is given folders; see os.link."""
    ring = ring_with(OP_LINKAT)
    at_folders = src_dir_fd is not None or dst_dir_fd is not None
    if ring is None:
        options: dict[str, Any] = {"src_dir_fd": src_dir_fd, "dst_dir_fd": dst_dir_fd} if at_folders else {}
        return await in_thread(os.link, src, dst, follow_symlinks=follow_symlinks, **options)
    sys.audit("os.link", src, dst, _audit_fd(src_dir_fd), _audit_fd(dst_dir_fd))
    old, new = pinned_path(src), pinned_path(dst)
    request = ring.start(
        OP_LINKAT,
        _at(src_dir_fd),
        address=address_of(old),
        length=_at(dst_dir_fd) & 0xFFFFFFFF,
        offset=address_of(new),
        flags=_AT_SYMLINK_FOLLOW if follow_symlinks and at_folders else 0,
        keep=(old, new),
        patient=True,
    )
    await named(request, src, dst)
    return None


async def symlink(src: Path, dst: Path, target_is_directory: bool = False, *, dir_fd: int | None = None) -> None:
    """os.symlink: SYMLINKAT."""
    ring = ring_with(OP_SYMLINKAT)
    if ring is None:
        return await in_thread(os.symlink, src, dst, target_is_directory, dir_fd=dir_fd)
    sys.audit("os.symlink", src, dst, _audit_fd(dir_fd))
    target, name = pinned_path(src), pinned_path(dst)
    request = ring.start(
        OP_SYMLINKAT,
        _at(dir_fd),
        address=address_of(target),
        offset=address_of(name),
        keep=(target, name),
        patient=True,
    )
    await named(request, src, dst)
    return None


async def readlink(path: Path, *, dir_fd: int | None = None) -> str | bytes:
    """os.readlink, in the executor."""
    return await in_thread(os.readlink, path, dir_fd=dir_fd)


async def listdir(path: Any = ".") -> list[Any]:
    """os.listdir, in the executor."""
    return await in_thread(os.listdir, path)


async def chmod(path: Path | int, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
    """os.chmod, in the executor."""
    options = {} if follow_symlinks else {"follow_symlinks": False}
    await in_thread(os.chmod, path, mode, dir_fd=dir_fd, **options)


# ---------------------------------------------------------------------------------------------------------------------
# What is known of a file
# ---------------------------------------------------------------------------------------------------------------------


async def stat(path: Path | int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
    """os.stat: STATX. Of an fd, os.fstat is called at once: it waits for nothing."""
    if isinstance(path, int):
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    ring = ring_with(OP_STATX)
    if ring is None:
        return await in_thread(os.stat, path, dir_fd=dir_fd, follow_symlinks=follow_symlinks)
    name, found = pinned_path(path), bytearray(_STATX_BYTES)
    room = pin(found, writable=True)
    request = ring.start(
        OP_STATX,
        _at(dir_fd),
        address=address_of(name),
        length=_STATX_BASIC_STATS,
        offset=address_of(room),
        flags=_AT_NO_AUTOMOUNT | (0 if follow_symlinks else _AT_SYMLINK_NOFOLLOW),
        keep=(name, room),
        patient=True,
    )
    await named(request, path)
    return _stat_result(found)


async def lstat(path: Path, *, dir_fd: int | None = None) -> os.stat_result:
    """os.lstat: STATX."""
    return await stat(path, dir_fd=dir_fd, follow_symlinks=False)


# struct statx (linux/stat.h): mask, blksize, attributes, nlink, uid, gid, mode, -, ino, size, blocks, attributes_mask;
# atime, btime, ctime, mtime: seconds, nanoseconds, -; rdev and dev: major, minor.
_STATX: Final = struct.Struct("=IIQIIIHHQQQQ" + "qIi" * 4 + "IIII")


def _stat_result(found: bytearray) -> os.stat_result:
    fields = _STATX.unpack_from(found)
    _, block_size, _, links, uid, gid, mode, _, inode, size, blocks, _ = fields[:12]
    atime, _btime, ctime, mtime = ((fields[i], fields[i + 1]) for i in range(12, 24, 3))
    device_kind, device = os.makedev(fields[24], fields[25]), os.makedev(fields[26], fields[27])
    times: dict[str, Any] = {}
    for kind, (seconds, nanoseconds) in (("a", atime), ("m", mtime), ("c", ctime)):
        times[f"st_{kind}time"] = seconds + 1e-9 * nanoseconds
        times[f"st_{kind}time_ns"] = seconds * 1_000_000_000 + nanoseconds
    whole = (mode, inode, device, links, uid, gid, size, atime[0], mtime[0], ctime[0])
    return os.stat_result(whole, {**times, "st_blksize": block_size, "st_blocks": blocks, "st_rdev": device_kind})


async def getxattr(path: Path | int, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
    """os.getxattr: GETXATTR, or FGETXATTR of an fd; in the executor if links are not to be followed."""
    ring = ring_with(OP_FGETXATTR if isinstance(path, int) else OP_GETXATTR)
    if ring is None or not follow_symlinks:
        return await in_thread(os.getxattr, path, attribute, follow_symlinks=follow_symlinks)
    sys.audit("os.getxattr", path, attribute)
    value = bytearray(_XATTR_SIZE_MAX)
    size = await _xattr(ring, OP_GETXATTR, OP_FGETXATTR, path, attribute, pin(value, writable=True), 0)
    return bytes(memoryview(value)[:size])


async def setxattr(
    path: Path | int, attribute: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
) -> None:
    """os.setxattr: SETXATTR, or FSETXATTR of an fd; in the executor if links are not to be followed."""
    ring = ring_with(OP_FSETXATTR if isinstance(path, int) else OP_SETXATTR)
    if ring is None or not follow_symlinks:
        await in_thread(os.setxattr, path, attribute, value, flags, follow_symlinks=follow_symlinks)
        return
    sys.audit("os.setxattr", path, attribute, value, flags)
    await _xattr(ring, OP_SETXATTR, OP_FSETXATTR, path, attribute, pin(value), flags)


async def _xattr(
    ring: Any, of_path: int, of_fd: int, path: Path | int, attribute: str | bytes, value: Any, flags: int
) -> int:
    key = pinned_path(attribute)
    name = None if isinstance(path, int) else pinned_path(path)
    request = ring.start(
        of_fd if isinstance(path, int) else of_path,
        path if isinstance(path, int) else -1,
        address=address_of(key),
        length=len(value),
        offset=address_of(value),
        address3=address_of(name) if name is not None else 0,
        flags=flags,
        keep=(key, name, value),
        patient=True,
    )
    return await named(request, path)


async def listxattr(path: Path | int | None = None, *, follow_symlinks: bool = True) -> list[str]:
    """os.listxattr, in the executor."""
    return await in_thread(os.listxattr, path, follow_symlinks=follow_symlinks)


async def removexattr(path: Path | int, attribute: str | bytes, *, follow_symlinks: bool = True) -> None:
    """os.removexattr, in the executor."""
    await in_thread(os.removexattr, path, attribute, follow_symlinks=follow_symlinks)


# ---------------------------------------------------------------------------------------------------------------------
# What is in a file
# ---------------------------------------------------------------------------------------------------------------------


async def fsync(fd: int) -> None:
    """os.fsync: FSYNC."""
    await _fsync(os.fsync, fd, 0)


async def fdatasync(fd: int) -> None:
    """os.fdatasync: FSYNC."""
    await _fsync(os.fdatasync, fd, FSYNC_DATASYNC)


async def _fsync(otherwise: Callable[[int], None], fd: int, flags: int) -> None:
    ring = ring_with(OP_FSYNC)
    if ring is None:
        await in_thread(otherwise, fd)
    else:
        if not isinstance(fd, int):
            fd = fd.fileno()  # as os, it takes files too
        await ring.start(OP_FSYNC, fd, flags=flags, patient=True)


async def truncate(path: Path | int, length: int) -> None:
    """os.truncate: FTRUNCATE (Linux 6.9) of an fd; in the executor of a path."""
    ring = ring_with(OP_FTRUNCATE)
    if ring is None or not isinstance(path, int):
        await in_thread(os.truncate, path, length)
        return
    sys.audit("os.truncate", path, length)
    await ring.start(OP_FTRUNCATE, path, offset=_off_t(length), patient=True)  # errors have no name here, as of os


async def ftruncate(fd: int, length: int) -> None:
    """os.ftruncate: FTRUNCATE (Linux 6.9)."""
    ring = ring_with(OP_FTRUNCATE)
    if ring is None:
        await in_thread(os.ftruncate, fd, length)
        return
    sys.audit("os.truncate", fd, length)
    await ring.start(OP_FTRUNCATE, fd, offset=_off_t(length), patient=True)


async def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), with its mode; os has only `posix_fallocate`: FALLOCATE. Elsewhere os.posix_fallocate, which has no
    mode but 0: NotImplementedError for others."""
    ring = ring_with(OP_FALLOCATE)
    if ring is not None:
        await ring.start(OP_FALLOCATE, fd, address=_off_t(length), length=mode, offset=_off_t(offset), patient=True)
    elif mode:
        raise NotImplementedError("fallocate with a mode needs io_uring")
    else:
        await in_thread(os.posix_fallocate, fd, offset, length)


async def posix_fallocate(fd: int, offset: int, length: int) -> None:
    """os.posix_fallocate: FALLOCATE; in the executor where the file system cannot, for which libc writes zeros."""
    try:
        await fallocate(fd, 0, offset, length)
    except OSError as exc:
        if exc.errno != errno.EOPNOTSUPP:
            raise
        await in_thread(os.posix_fallocate, fd, offset, length)


# ---------------------------------------------------------------------------------------------------------------------
# Copying
# ---------------------------------------------------------------------------------------------------------------------


async def copyfile(src: Path, dst: Path, *, follow_symlinks: bool = True) -> Path:
    """shutil.copyfile: SPLICE into a pipe and out of it. The copy shares no bytes with the original, where
    shutil.copyfile's may (Python 3.14)."""
    ring = ring_with(OP_SPLICE)
    if ring is None:
        return await in_thread(shutil.copyfile, src, dst, follow_symlinks=follow_symlinks)
    sys.audit("shutil.copyfile", src, dst)
    if not follow_symlinks and S_ISLNK((await lstat(src)).st_mode):
        _check_copy(src, await _stat_or_none(src), dst, await _stat_or_none(dst))
        await symlink(await readlink(src), dst)
        return dst
    source_fd = await open(src, os.O_RDONLY | os.O_NONBLOCK)  # of a FIFO it does not wait for the other end
    try:
        target = await _stat_or_none(dst)
        _check_copy(src, os.fstat(source_fd), dst, target)
        try:
            target_fd = await open(dst, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        except IsADirectoryError as exc:
            if target is None:  # a name with a slash at its end
                raise FileNotFoundError(f"Directory does not exist: {os.fsdecode(dst)}") from exc
            raise
        try:
            await named(_copy_bytes(ring, source_fd, target_fd), src, dst)
        finally:
            await close(target_fd)
    finally:
        os.close(source_fd)  # it was only read: nothing to wait for
    return dst


async def _stat_or_none(path: Path) -> os.stat_result | None:
    try:
        return await stat(path)
    except OSError:
        return None


def _check_copy(src: Path, source: os.stat_result | None, dst: Path, target: os.stat_result | None) -> None:
    """Raise as shutil.copyfile for what is not to be copied."""
    if source and target and os.path.samestat(source, target):
        raise shutil.SameFileError(f"{src!r} and {dst!r} are the same file")
    for path, found in ((src, source), (dst, target)):
        if found and S_ISFIFO(found.st_mode):
            raise shutil.SpecialFileError(f"`{os.fsdecode(path)}` is a named pipe")
    if source and S_ISDIR(source.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(src))


async def _copy_bytes(ring: Operations, source_fd: int, target_fd: int) -> None:
    try:
        await copy_file(ring, source_fd, target_fd)
        return
    except OSError as exc:
        if exc.errno != errno.EINVAL or os.fstat(target_fd).st_size:
            raise
    # A file system that cannot splice, such as /proc.
    buffer = bytearray(_COPY_BYTES)
    while count := await requests.read(source_fd, buffer, AT_FILE_POSITION):
        with memoryview(buffer)[:count] as left:
            done = 0
            while done < count:
                done += await requests.write(target_fd, left[done:], AT_FILE_POSITION)
