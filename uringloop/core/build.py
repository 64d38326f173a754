"""The cffi build of the core: setup.py asks for `ffi`, setuptools compiles it.

URINGLOOP_CFLAGS in the environment adds compiler flags, for sanitizers and for -Werror.
"""

import os
import pathlib
import shlex

import cffi

CORE = pathlib.Path(__file__).parent
SOURCES = sorted(path.name for path in CORE.glob("*.c") if path.name != "_core.c")

ffi = cffi.FFI()
ffi.cdef((CORE / "cdef.h").read_text())
ffi.set_source(
    "uringloop.core._core",
    '#include "reactor.h"',
    # Relative to the directory of setup.py, as setuptools wants them.
    sources=[f"uringloop/core/{source}" for source in SOURCES],
    include_dirs=["uringloop/core"],
    extra_compile_args=[
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O2",
        "-Wall",
        "-Wextra",
        *shlex.split(os.environ.get("URINGLOOP_CFLAGS", "")),
    ],
    extra_link_args=shlex.split(os.environ.get("URINGLOOP_LDFLAGS", "")),
)
