"""What concerns the whole process: runs that come and go, other processes, its end, and its idleness."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import LOOPS, PATIENCE, loop_kind, soon

WHOLE = os.environ.get("URINGLOOP_STORMS") == "whole"
RUNS = 1000 if WHOLE else 200
IDLE_SECONDS = 10 if WHOLE else 2

MAKE = {
    "asyncio": "import asyncio; new_event_loop = asyncio.SelectorEventLoop",
    "uvloop": "from uvloop import new_event_loop",
    "uringloop": "from uringloop import new_event_loop",
}
each_loop = pytest.mark.parametrize("loop", LOOPS)


def run(program: str, *, timeout: float = 6 * PATIENCE) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "faulthandler", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------

MANY_RUNS = """
import asyncio, gc, os, sys
{make}

async def answer(reader, writer):
    writer.write(await reader.readline())
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    assert await reader.read() == b"hello\\n"
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()
    await asyncio.get_running_loop().run_in_executor(None, int)

def run(times):
    for _ in range(times):
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
    gc.collect()
    resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(open("/proc/self/maps").readlines()), len(os.listdir("/proc/self/fd"))

run(20)
before = run(20)
after = run({runs})
print(*before, *after)
"""


@each_loop
def test_runs_leave_nothing_behind(loop: str) -> None:
    ran = run(MANY_RUNS.format(make=MAKE[loop], runs=RUNS))
    assert ran.returncode == 0, ran.stderr
    resident, mappings, files, resident_after, mappings_after, files_after = map(int, ran.stdout.split())
    assert files_after == files
    assert mappings_after <= mappings + 8  # arenas of malloc's
    # A tenth of what the smallest leak of a run could be, a page; malloc's own wobble is within it.
    assert resident_after - resident < (1 << 20) + RUNS * 400


# ---------------------------------------------------------------------------------------------------------------------
# Other processes
# ---------------------------------------------------------------------------------------------------------------------


def in_child(name: str, connection: multiprocessing.connection.Connection) -> None:
    """A loop of its own, in a process that multiprocessing has made."""

    async def main() -> str:
        process = await asyncio.create_subprocess_exec("echo", name, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return output.decode().strip()

    with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        connection.send(runner.run(main()))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_multiprocessing_from_under_a_running_loop(method: str) -> None:
    loop = asyncio.get_running_loop()
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    kind = loop_kind()
    child = context.Process(target=in_child, args=(kind, theirs))
    child.start()
    try:
        theirs.close()
        readable = asyncio.Event()
        loop.add_reader(ours.fileno(), readable.set)
        async with asyncio.timeout(6 * PATIENCE):  # a new interpreter imports all of this
            await readable.wait()
        loop.remove_reader(ours.fileno())
        assert ours.recv() == kind
    finally:
        await soon(asyncio.to_thread(child.join))
        await loop.shutdown_default_executor()
        ours.close()
        exit_code = child.exitcode
        child.close()
    assert exit_code == 0
    stop_helpers()


def stop_helpers() -> None:
    """The processes that multiprocessing keeps for later; they hold files of this one."""
    from multiprocessing import forkserver, resource_tracker

    forkserver._forkserver._stop()  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------------------------------------------------

EXIT = """
import asyncio, os, sys, tempfile, threading
{make}
if {files}:
    import uringloop

loop = new_event_loop()
kept = []

async def main():
    server = await asyncio.start_server(lambda reader, writer: kept.append((reader, writer)), "127.0.0.1", 0)
    kept.append(server)
    kept.append(await asyncio.open_connection(*server.sockets[0].getsockname()))
    kept[-1][1].write(bytes(1 << 22))
    read_end, write_end = os.pipe()
    kept.append(await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(read_end, "rb", 0)))
    kept.append(await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(write_end, "wb", 0)))
    kept[-1][0].write(bytes(1 << 22))
    kept.append(await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0)))
    kept.append(await asyncio.create_subprocess_exec("sleep", "0.2", stdin=-1, stdout=-1))
    kept.append(loop.call_later(1000, print))
    kept.append(loop.create_task(asyncio.sleep(1000)))
    kept.append(loop.run_in_executor(None, int))
    if {files}:
        kept.append(await uringloop.open(sys.executable, "rb"))
    loop.add_signal_handler(10, print)

loop.run_until_complete(main())
if {close}:
    loop.close()
"""
# What asyncio says of what is left open; its messages go over several lines.
EXPECTED = re.compile(
    r"ResourceWarning|Task was destroyed|task: <Task pending|Event loop is closed|Exception ignored|Traceback|  File |"
    r"^    |Enable tracemalloc|^$|^  |unclosed|Loop that handles pid|_warn\("
)


@each_loop
@pytest.mark.parametrize("closes", [False, True])
def test_interpreter_ends_with_everything_open(loop: str, closes: bool) -> None:
    """It ends, in time and well, and says no more than asyncio does of what was left open."""
    program = EXIT.format(make=MAKE[loop], files=loop == "uringloop", close=closes)
    ran = run(program)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    if loop != "uvloop":
        unexpected = [line for line in ran.stderr.splitlines() if not EXPECTED.search(line)]
        assert unexpected == []


# ---------------------------------------------------------------------------------------------------------------------
# Idleness
# ---------------------------------------------------------------------------------------------------------------------

IDLE = """
import asyncio
{make}
loop = new_event_loop()
kept = []

async def main():
    server = await asyncio.start_server(lambda reader, writer: kept.append((reader, writer)), "127.0.0.1", 0)
    kept.append(server)
    kept.append(await asyncio.open_connection(*server.sockets[0].getsockname()))
    loop.call_later(100_000, print)
    await loop.run_in_executor(None, int)
    await asyncio.sleep(0.1)
    print("idle", flush=True)
    await asyncio.Event().wait()

loop.run_until_complete(main())
"""


@each_loop
def test_idle_loop_makes_no_system_call(loop: str, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    child = subprocess.Popen([sys.executable, "-c", IDLE.format(make=MAKE[loop])], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "idle\n"
        time.sleep(0.2)  # it falls asleep
        log = tmp_path / "calls"
        command = ["strace", "-f", "-qq", "-o", str(log), "-p", str(child.pid)]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        time.sleep(IDLE_SECONDS)
        tracer.terminate()
        assert tracer.stderr is not None
        said = tracer.stderr.read()
        tracer.stderr.close()
        tracer.wait(PATIENCE)
        if "Operation not permitted" in said:
            pytest.skip("strace may not attach")
        # What each thread is in is told when strace finds it, once, and when it is let go.
        calls = [line for line in log.read_text().splitlines() if "resumed" not in line and "restart" not in line]
        threads = {line.split()[0] for line in calls}
        assert threads
        assert len(calls) == len(threads), calls
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
