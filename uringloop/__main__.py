"""python -m uringloop: run an unchanged program on the loop, or tell what this kernel offers."""

from __future__ import annotations

import argparse
import asyncio
import importlib.machinery
import importlib.util
import io
import os
import runpy
import sys
import types
import zipfile
from collections.abc import Sequence

from uringloop import Probe, Unavailable, _version, compat, environment, new_event_loop, probe
from uringloop.policy import event_loop_policy_class

_USAGE_ERROR = 2

_EPILOG = """\
examples:
  python -m uringloop server.py --port 8080
  python -m uringloop -m aiohttp.web -H localhost package.module:init
  python -m uringloop --check
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code, unless the program that is run exits itself."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    # Everything behind the script or the module is the program's own, also what looks like an option of ours.
    options, program = _split(arguments)
    chosen = parser.parse_args(options)
    if chosen.hardened:
        os.environ[environment.HARDENED] = "1"  # the program's own processes inherit it
    try:
        environment.fallback()
        environment.hardened()
        probe()
    except ValueError as wrong:
        print(f"uringloop: {wrong}", file=sys.stderr)
        return _USAGE_ERROR
    if chosen.check:
        return _check()
    if not chosen.module and not program:
        parser.print_usage(sys.stderr)
        print("uringloop: give a script, a module with -m, or --check", file=sys.stderr)
        return _USAGE_ERROR
    try:
        new_event_loop().close()
    except Unavailable as unavailable:
        print(f"uringloop: {unavailable.strerror}", file=sys.stderr)
        return 1
    _use_the_loop()
    if chosen.module:
        return _run_module(chosen.module, program)
    return _run_script(program[0], program[1:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uringloop",
        usage="python -m uringloop [--check] [--hardened] [-m module | script] [arguments ...]",
        description="Run an asyncio program on io_uring, unchanged.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-m", dest="module", metavar="module", help="run a module, as python -m does")
    parser.add_argument(
        "--check", action="store_true", help="print what io_uring offers here; exit 1 if it cannot be used"
    )
    parser.add_argument(
        "--hardened", action="store_true", help="let the kernel refuse whatever the loop does not need of io_uring"
    )
    parser.add_argument("--version", action="version", version=f"uringloop {_version.__version__}")
    return parser


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Our options, and the program's arguments (with the script first)."""
    for index, argument in enumerate(arguments):
        if argument == "-m":
            return arguments[: index + 2], arguments[index + 2 :]
        if argument.startswith("-m"):
            return arguments[: index + 1], arguments[index + 1 :]
        if not argument.startswith("-"):
            return arguments[:index], arguments[index:]
    return arguments, []


def _use_the_loop() -> None:
    if sys.version_info < (3, 14):
        asyncio.set_event_loop_policy(event_loop_policy_class()())
    else:
        compat.make_everywhere(new_event_loop)


def _run_script(script: str, arguments: list[str]) -> int:
    folder = os.path.isdir(script)
    if not os.path.exists(script) or (folder and not os.path.exists(os.path.join(script, "__main__.py"))):
        what = "no __main__.py in it" if folder else "no such file"
        print(f"uringloop: cannot run {script!r}: {what}", file=sys.stderr)
        return _USAGE_ERROR
    sys.argv = [script, *arguments]
    if folder or zipfile.is_zipfile(script):
        runpy.run_path(script, run_name="__main__")
    else:
        _put_first_in_path(os.path.dirname(os.path.realpath(script)))  # the interpreter follows links, too
        _execute(os.path.abspath(script))
    return 0


def _put_first_in_path(folder: str) -> None:
    if not sys.flags.safe_path:  # there would be no folder of ours to put it in the place of
        sys.path[0] = folder


def _execute(path: str) -> None:
    # Like the interpreter, and unlike runpy.run_path: __file__ is absolute, there is no __package__, and the module
    # stays in sys.modules until the end, where pickle and multiprocessing look for it.
    loader = importlib.machinery.SourceFileLoader("__main__", path)
    module = types.ModuleType("__main__")
    module.__file__ = path
    module.__loader__ = loader
    module.__package__ = None
    with io.open_code(path) as source:
        code = compile(source.read(), path, "exec", dont_inherit=True)  # else the __future__ of this file
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


def _run_module(module: str, arguments: list[str]) -> int:
    _put_first_in_path(os.getcwd())
    sys.argv = ["-m", *arguments]  # as under python, while packages are imported; then the module's file
    if not _exists(module):
        print(f"uringloop: no module named {module!r}", file=sys.stderr)
        return 1
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError as exc:
        if exc.name is not None and f"{module}.".startswith(f"{exc.name}."):
            return False
        raise


def _check() -> int:
    found = probe()
    print(f"uringloop {_version.__version__} on Linux {os.uname().release}")
    if not found.available:
        print(f"io_uring cannot be used: {found.reason}.\n{found.remedy}.")
        return 1
    print("io_uring can be used.")
    for has, feature, without in _features(found):
        print(f"  {'yes' if has else 'no '}  {feature}{'' if has else f': {without}'}")
    return 0


def _features(found: Probe) -> list[tuple[bool, str, str]]:
    return [
        (found.multishot_recv, "multishot receive into provided buffers (Linux 6.0)", "needed"),
        (found.defer_taskrun, "deferred completions (Linux 6.1)", "completions interrupt the loop; somewhat slower"),
        (
            found.registered_ring,
            "registered ring fd (Linux 5.18)",
            "each system call looks the ring up; slightly slower",
        ),
        (found.inline_sends, "sends that complete while submitted (Linux 6.1)", "each send has a completion; slower"),
        (found.datagrams, "multishot receive of datagrams (Linux 6.1)", "they are received by readiness; slower"),
        (found.no_sqarray, "submission queue without an index (Linux 6.6)", "nothing to speak of"),
        (found.incremental_buffers, "incremental buffers (Linux 6.12)", "a receive takes a whole buffer; more memory"),
        (
            found.rewound_buffers and found.incremental_buffers and found.defer_taskrun,
            "incremental buffers that begin anew (Linux 6.12)",
            "a message at the end of a buffer comes in two; some slower with 10 KiB",
        ),
        (
            found.limited_receives,
            "multishot receives that end after so many bytes (Linux 6.17)",
            "a peer that never stops can fill the buffer pool, and as much memory, in one turn",
        ),
        (found.fixed_files, "fixed files that are freed at once (Linux 6.13)", "sockets are looked up at each request"),
    ]


if __name__ == "__main__":
    sys.exit(main())
