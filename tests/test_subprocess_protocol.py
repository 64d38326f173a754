"""Processes at the level of transport and protocol: what the protocol hears and in which order, what it may raise, and
what becomes of a process that cannot be heard of."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
from typing import Any

import pytest
from support import LoopFactory, Unhandled, eventually, fence, soon

pytestmark = [pytest.mark.tiny_ring, pytest.mark.usefixtures("no_zombies")]


class Heard(asyncio.SubprocessProtocol):
    """Writes down the calls of its transport, and raises `error` in those that `failing` names."""

    transport: Any

    def __init__(self, *failing: str, error: type[BaseException] = RuntimeError) -> None:
        self.calls: list[str] = []
        self.output: dict[int, bytes] = {1: b"", 2: b""}
        self.over = asyncio.Event()
        self._failing = failing
        self._error = error

    def _write_down(self, call: str) -> None:
        if not (call.startswith("pipe_data_received") and call in self.calls):  # it may come in pieces
            self.calls.append(call)
        if call.partition(" ")[0] in self._failing:
            raise self._error(call)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._write_down("connection_made")

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.output[fd] += data
        self._write_down(f"pipe_data_received {fd}")

    def pipe_connection_lost(self, fd: int, exc: BaseException | None) -> None:
        self._write_down(f"pipe_connection_lost {fd}")

    def process_exited(self) -> None:
        self._write_down("process_exited")

    def pause_writing(self) -> None:
        self._write_down("pause_writing")

    def resume_writing(self) -> None:
        self._write_down("resume_writing")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.over.set()
        self._write_down("connection_lost")

    async def finished(self) -> None:
        await soon(self.over.wait())
        self.transport.close()


async def spawn(protocol: Heard, script: str, **options: Any) -> Heard:
    await soon(asyncio.get_running_loop().subprocess_shell(lambda: protocol, script, **options))
    return protocol


async def test_protocol_hears_all_in_order() -> None:
    protocol = await spawn(Heard(), "read line; echo $line; echo error >&2; exit 3")
    assert protocol.calls == ["connection_made"]
    transport = protocol.transport
    assert transport.get_protocol() is protocol
    assert transport.get_returncode() is None
    assert transport.get_pid() > 0
    assert not transport.is_closing()
    transport.get_pipe_transport(0).write(b"hello\n")
    await protocol.finished()
    assert protocol.output == {1: b"hello\n", 2: b"error\n"}
    assert transport.get_returncode() == 3
    assert protocol.calls[0] == "connection_made"
    assert protocol.calls[-1] == "connection_lost"
    assert sorted(protocol.calls[1:-1]) == [
        "pipe_connection_lost 0",
        "pipe_connection_lost 1",
        "pipe_connection_lost 2",
        "pipe_data_received 1",
        "pipe_data_received 2",
        "process_exited",
    ]
    for fd in (1, 2):
        assert protocol.calls.index(f"pipe_data_received {fd}") < protocol.calls.index(f"pipe_connection_lost {fd}")


async def test_pipes_that_are_not_asked_for_are_not_there() -> None:
    protocol = await spawn(Heard(), "exit 0", stdin=None, stdout=None, stderr=subprocess.DEVNULL)
    assert [protocol.transport.get_pipe_transport(fd) for fd in (0, 1, 2, 3)] == [None] * 4
    await protocol.finished()
    assert protocol.calls == ["connection_made", "process_exited", "connection_lost"]


async def test_protocol_that_takes_the_place_of_another_hears_the_rest() -> None:
    first, second = await spawn(Heard(), "read line; echo $line"), Heard()
    transport = second.transport = first.transport
    transport.set_protocol(second)
    assert transport.get_protocol() is second
    transport.get_pipe_transport(0).write(b"hello\n")
    await second.finished()
    assert first.calls == ["connection_made"]
    assert second.output[1] == b"hello\n"
    assert second.calls[-1] == "connection_lost"


async def test_protocol_is_told_to_pause_while_the_process_does_not_read() -> None:
    protocol = await spawn(Heard(), "read line; exec cat >/dev/null")
    stdin = protocol.transport.get_pipe_transport(0)
    stdin.write(bytes(1 << 20))
    assert protocol.calls == ["connection_made", "pause_writing"]
    stdin.write(b"\n")
    await eventually(lambda: protocol.calls[-1] == "resume_writing")
    stdin.write_eof()
    await protocol.finished()


async def test_output_that_nobody_reads_waits_in_the_process() -> None:
    size = 8 << 20
    process = await asyncio.create_subprocess_shell(f"head -c {size} /dev/zero", stdout=subprocess.PIPE, limit=1 << 16)
    assert process.stdout is not None
    pipe: Any = process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
    await eventually(lambda: not pipe.is_reading())
    assert len(process.stdout._buffer) < size // 4  # type: ignore[attr-defined]
    assert process.returncode is None
    out, _ = await soon(process.communicate())
    assert out == bytes(size)


CALLS = ("connection_made", "pipe_data_received", "pipe_connection_lost", "process_exited", "connection_lost")


@pytest.mark.only_on("asyncio", "uringloop")  # on uvloop what connection_made raises fails the spawn
@pytest.mark.parametrize("call", CALLS)
async def test_protocol_that_raises_hears_the_rest(unhandled: Unhandled, call: str) -> None:
    protocol = await spawn(Heard(call), "echo hello", stdin=None, stderr=None)
    waiting = asyncio.ensure_future(protocol.transport._wait())
    await protocol.finished()
    assert await soon(waiting) == 0
    context = await unhandled.next()
    assert isinstance(context["exception"], RuntimeError)
    assert [told.partition(" ")[0] for told in protocol.calls if told != "process_exited"] == [
        told for told in CALLS if told != "process_exited"
    ]
    assert "process_exited" in protocol.calls


# uvloop hands what a protocol raises to the exception handler, whatever it is.
@pytest.mark.only_on("asyncio", "uringloop")
@pytest.mark.parametrize("call", CALLS)
def test_exit_from_a_protocol_leaves_the_loop_and_the_rest_is_heard(new_loop: LoopFactory, call: str) -> None:
    loop = new_loop()
    protocol = Heard(call, error=KeyboardInterrupt)
    stdout = None if call == "process_exited" else subprocess.PIPE  # else the pipe's end may be what the rest hangs on

    async def spawn_and_hear_all() -> None:
        await spawn(protocol, "echo hello", stdin=None, stdout=stdout, stderr=None)
        await protocol.finished()

    task = loop.create_task(spawn_and_hear_all())
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    loop.run_until_complete(task)
    assert protocol.calls[0] == "connection_made"
    assert protocol.calls[-1] == "connection_lost"
    assert "process_exited" in protocol.calls


async def test_close_kills_and_is_heard_of_as_an_end() -> None:
    protocol = await spawn(Heard(), "exec sleep 1000")
    protocol.transport.close()
    await protocol.finished()
    assert protocol.transport.get_returncode() == -signal.SIGKILL
    assert protocol.calls[-1] == "connection_lost"


async def test_close_by_the_protocol_as_soon_as_the_connection_is_made() -> None:
    class Closing(Heard):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            transport.close()

    protocol = await spawn(Closing(), "exec sleep 1000")
    await protocol.finished()
    assert protocol.transport.get_returncode() == -signal.SIGKILL


async def test_cancelled_spawn_leaves_no_process() -> None:
    """The fixture sees that none is left."""
    protocol = Heard()
    spawning = asyncio.ensure_future(spawn(protocol, "exec sleep 1000"))
    await asyncio.sleep(0)
    spawning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(spawning)
    await protocol.finished()


# ---------------------------------------------------------------------------------------------------------------------
# Ours alone
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is over before its pidfd is opened, and its end comes with the next turn: before connection_made."""
    open_pidfd = os.pidfd_open

    def open_late(pid: int) -> int:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return open_pidfd(pid)

    monkeypatch.setattr(os, "pidfd_open", open_late)


@pytest.mark.only_on("uringloop")
@pytest.mark.usefixtures("over_at_once")
async def test_process_that_is_over_before_the_loop_looks() -> None:
    protocol = await spawn(Heard(), "echo hello", stdin=None, stderr=None)
    await protocol.finished()
    assert protocol.calls[0] == "connection_made"
    assert protocol.calls[-1] == "connection_lost"
    assert protocol.output[1] == b"hello\n"


@pytest.mark.only_on("uringloop")  # on asyncio the second raises ProcessLookupError, uvloop needs SIGCHLD
@pytest.mark.parametrize("gone", [False, True])
async def test_process_that_the_kernel_reaps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gone: bool
) -> None:
    """As it does where SIGCHLD is ignored. Its status is unknown, also if it is gone before its pidfd is opened."""
    open_pidfd = os.pidfd_open

    def open_late(pid: int) -> int:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)  # returns when it is gone
        return open_pidfd(pid)

    if gone:
        monkeypatch.setattr(os, "pidfd_open", open_late)
    handler = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        protocol = await spawn(Heard(), "echo hello", stdin=None, stderr=None)
        await protocol.finished()
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert protocol.output[1] == b"hello\n"
    assert protocol.transport.get_returncode() == 255
    assert protocol.calls.count("process_exited") == 1
    assert "exit status already read" in caplog.text


@pytest.mark.only_on("uringloop")  # asyncio of 3.13 signals the number, whoever's it is
async def test_process_that_is_over_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look at whether it is over reaps it; what it ended with is not lost by that."""

    def kill(pid: int, number: int) -> None:
        raise AssertionError("it is over")

    protocol = await spawn(Heard(), "read line; exit 3", stdout=None, stderr=None)
    protocol.transport.get_pipe_transport(0).write(b"\n")
    os.waitid(os.P_PID, protocol.transport.get_pid(), os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - it ends at once
    monkeypatch.setattr(os, "kill", kill)
    protocol.transport.terminate()
    await protocol.finished()
    assert protocol.transport.get_returncode() == 3
    with pytest.raises(ProcessLookupError):
        protocol.transport.kill()


async def fail_to_spawn(program: str, failing: str) -> None:
    """As when memory is out. The fixtures see that no process and no fd is left."""
    protocol = Heard()
    reactor: Any = asyncio.get_running_loop()._reactor  # type: ignore[attr-defined]

    def fail(*_: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reactor, failing, fail)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            await spawn(protocol, program)
    await fence()
    assert protocol.calls == []


@pytest.mark.only_on("uringloop")
@pytest.mark.parametrize("failing", ["stream_open_pipe", "operation_start"])
async def test_process_that_cannot_be_heard_of_is_ended(failing: str) -> None:
    await fail_to_spawn("exec sleep 1000", failing)


@pytest.mark.only_on("uringloop")
@pytest.mark.usefixtures("over_at_once")
async def test_process_that_is_over_before_its_pipes_fail_is_not_waited_for() -> None:
    await fail_to_spawn("exit 0", "stream_open_pipe")


@pytest.mark.only_on("asyncio", "uringloop")
async def test_transport_describes_itself() -> None:
    protocol = await spawn(Heard(), "read line", stderr=None)
    pid = protocol.transport.get_pid()
    assert f" pid={pid} running stdin=<" in repr(protocol.transport)
    assert " stdout=<" in repr(protocol.transport)
    protocol.transport.get_pipe_transport(0).write(b"\n")
    await protocol.finished()
    assert f" closed pid={pid} returncode=0" in repr(protocol.transport)


@pytest.mark.only_on("uringloop")  # asyncio leaves the pidfd open
def test_transport_that_is_left_open_warns_and_ends_its_process(new_loop: LoopFactory) -> None:
    loop = new_loop()
    protocol = loop.run_until_complete(spawn(Heard(), "exec sleep 1000", stdin=None, stdout=None, stderr=None))
    process = protocol.transport.get_extra_info("subprocess")
    loop.close()
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        protocol.transport.__del__()
    assert process.wait() == -signal.SIGKILL
