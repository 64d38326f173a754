"""Runs a command where io_uring is refused, as container runtimes do it: `python seccomp.py EPERM COMMAND ...`.

EPERM is what Docker and Kubernetes answer; ENOSYS is what some older runtimes do, and kernels without io_uring. The
filter is the classic BPF program below, put on this process by prctl(2), and kept over exec by all that it starts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

PR_SET_NO_NEW_PRIVS = 38  # what lets a process without privileges put on a filter
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ALLOW = 0x7FFF0000
SECCOMP_RET_ERRNO = 0x00050000  # plus the errno

BPF_LD_W_ABS = 0x20
BPF_JMP_JEQ_K = 0x15
BPF_RET_K = 0x06

OFFSET_NR, OFFSET_ARCH = 0, 4  # in struct seccomp_data
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # a system call number means something in its ABI only
IO_URING_SETUP = 425  # the same on every architecture


class SockFprog(ctypes.Structure):
    """struct sock_fprog: a BPF program and how many instructions it has."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def instruction(code: int, k: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """struct sock_filter. The jumps say how many instructions to leave out."""
    return struct.pack("HBBI", code, if_true, if_false, k)


def program(error: int) -> list[bytes]:
    return [
        instruction(BPF_LD_W_ABS, OFFSET_ARCH),
        instruction(BPF_JMP_JEQ_K, AUDIT_ARCH[platform.machine()], if_false=3),
        instruction(BPF_LD_W_ABS, OFFSET_NR),
        instruction(BPF_JMP_JEQ_K, IO_URING_SETUP, if_false=1),
        instruction(BPF_RET_K, SECCOMP_RET_ERRNO | error),
        instruction(BPF_RET_K, SECCOMP_RET_ALLOW),
    ]


def refuse_io_uring(error: int) -> None:
    """From now on io_uring_setup(2) fails with `error` in this process and its children. There is no way back."""
    instructions = program(error)
    # c_char_p would end at the first NUL if it were copied; the kernel gets the address of this very object.
    code = b"".join(instructions)
    prog = SockFprog(len(instructions), code)
    prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), ctypes.c_ulong(0))
    prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(prog))


def prctl(option: int, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zeros = [ctypes.c_ulong(0)] * (4 - len(arguments))
    if libc.prctl(option, *arguments, *zeros) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    refuse_io_uring(getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
