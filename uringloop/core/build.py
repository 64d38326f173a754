"""The cffi build of the core: setup.py asks for `ffi`, setuptools compiles it.

URINGLOOP_CFLAGS and URINGLOOP_LDFLAGS in the environment add flags of the compiler and the linker, for sanitizers and
for -Werror. URINGLOOP_FAULTS=1 compiles faults in (ring_fault.h), and what sets them.
"""

import os
import pathlib
import shlex

import cffi

CORE = pathlib.Path(__file__).parent
SOURCES = sorted(path.name for path in CORE.glob("*.c") if path.name != "_core.c")

# cffi lets go of the GIL around every call, and saves errno, which we do not use. That costs 55 ns: as much again as
# what these calls do, which are made for every request or connection and make no system call, or one that is short: it
# takes what the socket has room for, or asks for its name. The code that cffi generates is told apart by the name of
# the function it is in, at compile time.
PREAMBLE = r"""
#include "reactor.h"
#include "names.h"
#include "sendfile.h"

#define UL_IN(function) (__builtin_strcmp(__func__, "_cffi_f_" function) == 0)
#define UL_KEEPS_GIL (UL_IN("ul_stream_write") || UL_IN("ul_stream_queued") || UL_IN("ul_stream_received") || \
                      UL_IN("ul_socket_names") || \
                      UL_IN("ul_endpoint_write") || UL_IN("ul_endpoint_queued") || \
                      UL_IN("ul_operation_start") || UL_IN("ul_operation_poll") || UL_IN("ul_reactor_set_deadline") || \
                      UL_IN("ul_reactor_glance"))

#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS { PyThreadState *ul_thread = UL_KEEPS_GIL ? NULL : PyEval_SaveThread();
#define Py_END_ALLOW_THREADS if (!UL_KEEPS_GIL) PyEval_RestoreThread(ul_thread); }

#undef _cffi_restore_errno
#undef _cffi_save_errno
#define _cffi_restore_errno() ((void)0)
#define _cffi_save_errno() ((void)0)
"""

FAULTS = os.environ.get("URINGLOOP_FAULTS", "") not in ("", "0")
FAULTS_CDEF = """
#define UL_FAULT_KINDS ...
const char *ul_fault_name(int kind);
void ul_fault_set_rate(int kind, uint32_t per_million);
void ul_fault_set_seed(uint64_t seed);
uint64_t ul_fault_count(int kind);
"""

ffi = cffi.FFI()
ffi.cdef((CORE / "cdef.h").read_text() + FAULTS * FAULTS_CDEF)
ffi.set_source(
    "uringloop.core._core",
    FAULTS * '#include "ring_fault.h"\n' + PREAMBLE,
    # Relative to the directory of setup.py, as setuptools wants them.
    sources=[f"uringloop/core/{source}" for source in SOURCES],
    depends=[f"uringloop/core/{header.name}" for header in sorted(CORE.glob("*.h"))],
    include_dirs=["uringloop/core"],
    extra_compile_args=[
        "-std=c11",
        "-D_GNU_SOURCE",
        "-O2",
        "-Wall",
        "-Wextra",
        *["-DUL_FAULTS"] * FAULTS,
        *shlex.split(os.environ.get("URINGLOOP_CFLAGS", "")),
    ],
    extra_link_args=shlex.split(os.environ.get("URINGLOOP_LDFLAGS", "")),
)
