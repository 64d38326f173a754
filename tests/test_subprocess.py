"""Processes: their output, their end, and that nothing of them is left; in any thread, with any SIGCHLD handler."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import suppress

import pytest
from support import PATIENCE, LoopFactory, children, eventually, fence, loop_kind, soon

pytestmark = [pytest.mark.tiny_ring, pytest.mark.usefixtures("no_zombies")]


async def run(*command: str, data: bytes | None = None) -> tuple[int | None, bytes]:
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL if data is None else PIPE, stdout=PIPE)
    out, _ = await soon(process.communicate(data))
    return process.returncode, out


async def test_exit_status_and_output() -> None:
    process = await asyncio.create_subprocess_shell("echo out; echo err >&2; exit 3", stdout=PIPE, stderr=PIPE)
    assert await soon(process.communicate()) == (b"out\n", b"err\n")
    assert process.returncode == 3


async def test_killed_by_a_signal() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "1000")
    process.terminate()
    assert await soon(process.wait()) == -signal.SIGTERM


@pytest.mark.parametrize("call", ["kill", "terminate"])
async def test_kill_after_the_end(call: str) -> None:
    process = await asyncio.create_subprocess_exec("true")
    await soon(process.wait())
    await fence()  # wait() may be over before connection_lost() has been called
    with pytest.raises(ProcessLookupError):
        getattr(process, call)()


async def test_kill_between_the_end_and_the_last_output() -> None:
    """The process is over and reaped, but a child of its own holds the pipe: its number may be another's by now."""
    process = await asyncio.create_subprocess_shell("sleep 1000 & echo $!", stdout=PIPE)
    assert process.stdout is not None
    left = int(await soon(process.stdout.readline()))
    await eventually(lambda: process.returncode is not None)
    if loop_kind() != "asyncio":  # which in some versions signals the number all the same
        with suppress(ProcessLookupError):  # uvloop tells
            process.kill()
    os.kill(left, signal.SIGKILL)
    assert await soon(process.stdout.read()) == b""
    assert await soon(process.wait()) == 0
    await fence()


async def test_over_before_anybody_waits() -> None:
    process = await asyncio.create_subprocess_exec("true")
    with suppress(ChildProcessError):  # the loop was early
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - so that the loop is late
    assert await soon(process.wait()) == 0


async def test_stdin_can_be_opened_by_its_name() -> None:
    if loop_kind() == "uvloop":
        pytest.skip("its stdin is a socket, which cannot be opened")
    assert await run("cat", "/dev/stdin", data=b"hello") == (0, b"hello")


async def test_large_input_and_output() -> None:
    data = bytes(range(256)) * (4 << 10)
    assert await run("cat", data=data) == (0, data)


async def test_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        await asyncio.create_subprocess_exec("/nowhere/to/be/found")


@pytest.mark.only_on("asyncio", "uringloop")  # under such a load uvloop's fork hook warns, which fails the test
async def test_many_at_a_time() -> None:
    """A thousand, fifty at a time, each with output of its own."""
    gate = asyncio.Semaphore(50)

    async def one(number: int) -> tuple[int | None, bytes]:
        async with gate:
            process = await asyncio.create_subprocess_exec("echo", str(number), stdin=DEVNULL, stdout=PIPE)
            out, _ = await process.communicate()
            return process.returncode, out

    async with asyncio.timeout(6 * PATIENCE):
        results = await asyncio.gather(*map(one, range(1000)))
    assert results == [(0, b"%d\n" % number) for number in range(1000)]


async def test_cancelled_wait_leaves_the_process() -> None:
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    waiting = asyncio.ensure_future(process.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert process.returncode is None
    assert process.stdin is not None
    process.stdin.close()
    assert await soon(process.wait()) == 0


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop refuses the handler
async def test_handler_of_sigchld_is_called_too() -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGCHLD, told.set)
    try:
        assert await run("echo", "x") == (0, b"x\n")
        await soon(told.wait())
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)


@pytest.mark.only_on("asyncio", "uringloop")
async def test_child_that_the_kernel_reaps() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        assert process.stdin is not None
        process.stdin.close()
        assert await soon(process.wait()) == 255
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.only_on("uringloop")  # asyncio leaves the process behind
async def test_no_fd_left_for_the_pidfd() -> None:
    before = children()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pidfd_open", _no_more_fds)
        with pytest.raises(OSError, match="Too many open files"):
            await soon(asyncio.create_subprocess_exec("sleep", "1000"))
    assert children() == before


def _no_more_fds(pid: int) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_in_another_thread(new_loop: LoopFactory) -> None:
    if loop_kind(loop := new_loop()) == "uvloop":
        pytest.skip("it runs processes in the main thread only")
    results: list[tuple[int | None, bytes]] = []

    def run_loop() -> None:
        results.append(loop.run_until_complete(run("echo", "x")))
        loop.close()

    thread = threading.Thread(target=run_loop)
    thread.start()
    thread.join(PATIENCE)
    assert results == [(0, b"x\n")]


@pytest.mark.only_on("uringloop")  # asyncio leaves the pidfd open
def test_loop_closed_before_the_process_is_over(new_loop: LoopFactory) -> None:
    """The fixtures see that no fd is left."""
    loop = new_loop()

    async def spawn() -> tuple[asyncio.SubprocessTransport, int]:
        transport, _ = await loop.subprocess_exec(asyncio.SubprocessProtocol, "sleep", "1000", stdin=None, stdout=None)
        return transport, transport.get_pid()

    transport, pid = loop.run_until_complete(spawn())
    stderr = transport.get_pipe_transport(2)
    assert stderr is not None
    stderr.close()
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    os.kill(pid, 0)
    transport.get_extra_info("subprocess").kill()
    transport.get_extra_info("subprocess").wait()
    transport.close()


def test_no_thread_and_no_handler() -> None:
    program = """if True:
        import asyncio, signal, threading, uringloop

        async def main():
            process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
            print(threading.active_count(), signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL)
            await process.communicate(b"")

        uringloop.run(main())
    """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE)
    assert (ran.stdout, ran.stderr) == ("1 True\n", "")


@pytest.mark.only_on("uringloop")  # asyncio leaves its process to the collector
def test_closed_loop_leaves_no_process(new_loop: LoopFactory) -> None:
    """It is not known before the process runs that nobody will hear of its end."""
    loop = new_loop()
    loop.close()
    before = children()
    starting = loop.subprocess_exec(asyncio.SubprocessProtocol, "sleep", "1000", stdin=None, stdout=None, stderr=None)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        starting.send(None)  # type: ignore[attr-defined]
    left = children() - before
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert left == set()
