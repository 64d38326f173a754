"""Pipe transports on what is special: FIFOs without a writer, terminals, devices, packets, standard streams."""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support import PATIENCE, BufferedRecorder, LoopFactory, Recorder, Unhandled, eventually, fence, loop_kind, soon

pytestmark = pytest.mark.tiny_ring


async def test_fifo_waits_for_its_first_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    read_end = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    _, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, os.fdopen(read_end, "rb", 0))
    await fence()
    assert protocol.calls == ["connection_made"]
    for text in (b"first", b"second"):
        write_end = os.open(tmp_path / "fifo", os.O_WRONLY)
        os.write(write_end, text)
        assert await protocol.received(len(text)) == text
        if text == b"second":
            os.close(write_end)
        else:
            first = write_end
    os.close(first)
    assert await protocol.lost() is None


@pytest.mark.only_on("uringloop")  # the others take its own bytes for the end of its reader
async def test_fifo_that_is_open_both_ways(tmp_path: Path) -> None:
    """Whoever keeps it open has no reader but himself, and no end."""
    os.mkfifo(tmp_path / "fifo")
    fd = os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK)
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, os.fdopen(os.dup(fd), "wb", 0))
    transport.write(b"hello")
    await fence()
    assert os.read(fd, 10) == b"hello"
    assert not transport.is_closing()
    transport.close()
    await protocol.lost()
    os.close(fd)


@pytest.mark.only_on("uringloop")  # asyncio watches an fd once, uvloop takes bytes for the end of the reader
async def test_socket_may_be_connected_both_ways() -> None:
    """What comes in is no reason to close what goes out."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with theirs:
        reader, reader_protocol = await loop.connect_read_pipe(Recorder, ours)
        writer, writer_protocol = await loop.connect_write_pipe(Recorder, ours.dup())
        theirs.send(b"question")
        assert await reader_protocol.received(8) == b"question"
        writer.write(b"answer")
        theirs.settimeout(PATIENCE)
        assert await asyncio.to_thread(theirs.recv, 100) == b"answer"
        await loop.shutdown_default_executor()
    await writer_protocol.lost()
    await reader_protocol.lost()
    assert reader.is_closing()
    ours.close()


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
async def test_packets_come_whole(kind: socket.SocketKind) -> None:
    if loop_kind() == "uvloop" and kind == socket.SOCK_DGRAM:
        pytest.skip("uvloop takes no datagram sockets for pipes")
    ours, theirs = socket.socketpair(type=kind)
    with theirs:
        transport, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, ours)
        for size in (100, 50_000, 100, 50_000):
            theirs.send(bytes(size))
            assert len(await protocol.received(size)) == size
        transport.close()
        await protocol.lost()


async def test_packet_mode_loses_nothing() -> None:
    read_end, write_end = os.pipe2(os.O_DIRECT)
    transport, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, os.fdopen(read_end, "rb", 0))
    for i in range(200):
        packet = bytes([i]) * (1 + i * 20)
        os.write(write_end, packet)
        assert await protocol.received(len(packet)) == packet
    transport.close()
    await protocol.lost()
    os.close(write_end)


async def test_pseudo_terminal() -> None:
    loop = asyncio.get_running_loop()
    near, far = os.openpty()
    transport, protocol = await loop.connect_read_pipe(Recorder, os.fdopen(near, "rb", 0))
    os.write(far, b"hello")
    await eventually(lambda: protocol.data == b"hello")
    transport.close()
    await protocol.lost()
    os.close(far)


async def test_hang_up_of_a_terminal_ends_it(unhandled: Unhandled) -> None:
    near, far = os.openpty()
    _, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, os.fdopen(near, "rb", 0))
    os.write(far, b"hello")
    await eventually(lambda: protocol.data == b"hello")
    os.close(far)
    exc = await protocol.lost()
    if loop_kind() != "uvloop":  # for which it is the end of the file
        assert isinstance(exc, OSError)
        assert exc.errno == 5  # EIO
    assert unhandled.contexts == []


async def test_terminal_is_written_to() -> None:
    if loop_kind() == "uvloop":
        pytest.skip("uvloop fails with FileExistsError, uvloop#262")
    near, far = os.openpty()
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, os.fdopen(far, "wb", 0))
    transport.write(b"hello")
    assert await soon(asyncio.to_thread(os.read, near, 100)) == b"hello"
    await asyncio.get_running_loop().shutdown_default_executor()
    transport.close()
    await protocol.lost()
    os.close(near)


@pytest.mark.only_on("uringloop")  # epoll refuses it, and on asyncio nothing more is heard
async def test_dev_null_ends() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    _, protocol = await asyncio.get_running_loop().connect_read_pipe(Recorder, os.fdopen(fd, "rb", 0))
    assert await protocol.lost() is None
    assert "eof_received" in protocol.calls


@pytest.mark.only_on("asyncio", "uringloop")  # libuv aborts the process
async def test_dev_null_takes_all() -> None:
    fd = os.open("/dev/null", os.O_WRONLY)
    transport, protocol = await asyncio.get_running_loop().connect_write_pipe(Recorder, os.fdopen(fd, "wb", 0))
    transport.write(bytes(1 << 20))
    assert transport.get_write_buffer_size() == 0
    transport.close()
    await protocol.lost()


@pytest.mark.only_on("uringloop")  # asyncio's run in the context of whoever last paused or closed
async def test_callbacks_run_in_the_context_of_the_connect() -> None:
    variable = contextvars.ContextVar("variable", default="outside")
    seen = {}

    class Seeing(Recorder):
        def _write_down(self, call: str) -> None:
            seen.setdefault(call, variable.get())
            super()._write_down(call)

    async def connect() -> None:
        variable.set("inside")
        loop = asyncio.get_running_loop()
        read_end, write_end = os.pipe()
        _, reader = await loop.connect_read_pipe(Seeing, os.fdopen(read_end, "rb", 0))
        transport, writer = await loop.connect_write_pipe(Seeing, os.fdopen(write_end, "wb", 0))
        protocols.extend([reader, writer])
        transports.append(transport)

    protocols: list[Recorder] = []
    transports: list[asyncio.WriteTransport] = []
    await asyncio.create_task(connect())
    transports[0].write(bytes(1 << 20))
    await protocols[1].called("resume_writing")
    transports[0].close()
    for protocol in protocols:
        await protocol.lost()
    calls = {"connection_made", "data_received", "pause_writing", "resume_writing", "eof_received", "connection_lost"}
    assert seen == dict.fromkeys(calls, "inside")


@pytest.mark.only_on("uringloop")  # the others have nothing that belongs to a thread
def test_another_thread_goes_on(new_loop: LoopFactory) -> None:
    loop = new_loop()
    read_end, write_end = os.pipe()
    transport, reader = loop.run_until_complete(loop.connect_read_pipe(Recorder, os.fdopen(read_end, "rb", 0)))
    writer, _ = loop.run_until_complete(loop.connect_write_pipe(Recorder, os.fdopen(write_end, "wb", 0)))

    async def exchange(text: bytes) -> None:
        writer.write(text)
        assert await reader.received(len(text)) == text

    for text in (b"first", b"second", b"third"):
        loop.run_until_complete(exchange(text))
        thread = threading.Thread(target=loop.run_until_complete, args=(exchange(text * 2),))
        thread.start()
        thread.join()
    writer.write(bytes(1 << 20))
    writer.close()

    async def end() -> None:
        assert len(await reader.received(1 << 20)) == 1 << 20
        await reader.lost()

    thread = threading.Thread(target=loop.run_until_complete, args=(end(),))
    thread.start()
    thread.join()
    assert transport.is_closing()


@pytest.mark.only_on("uringloop")
def test_paused_pipe_costs_no_turns(new_loop: LoopFactory) -> None:
    loop = new_loop()
    read_end, write_end = os.pipe()
    transport, reader = loop.run_until_complete(loop.connect_read_pipe(Recorder, os.fdopen(read_end, "rb", 0)))

    async def idle() -> None:
        transport.pause_reading()
        os.write(write_end, bytes(60_000))
        await fence()
        before = loop.stats().ticks  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        assert loop.stats().ticks - before <= 3  # type: ignore[attr-defined]
        os.close(write_end)
        transport.resume_reading()
        await reader.lost()
        assert len(reader.data) == 60_000

    loop.run_until_complete(idle())


@pytest.mark.only_on("uringloop")  # asyncio's pipes know no buffered protocols
@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
async def test_buffered_protocol_that_has_failed_goes_on(unhandled: Unhandled, method: str) -> None:
    class FailingOnce(BufferedRecorder):
        failed = False

        def get_buffer(self, sizehint: int) -> bytearray:
            self.fail("get_buffer")
            return super().get_buffer(sizehint)

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.fail("buffer_updated")

        def fail(self, where: str) -> None:
            if where == method and not self.failed:
                self.failed = True
                raise ZeroDivisionError

    read_end, write_end = os.pipe()
    _, protocol = await asyncio.get_running_loop().connect_read_pipe(FailingOnce, os.fdopen(read_end, "rb", 0))
    os.write(write_end, b"hello")
    context = await unhandled.next()
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["message"] == f"Exception in protocol.{method}()"
    assert await protocol.received(5) == b"hello"
    os.write(write_end, b"more")
    assert await protocol.received(4) == b"more"
    os.close(write_end)
    await protocol.lost()


# ---------------------------------------------------------------------------------------------------------------------
# Processes
# ---------------------------------------------------------------------------------------------------------------------


async def test_child_may_open_its_standard_input() -> None:
    if loop_kind() == "uvloop":
        pytest.skip("uvloop gives it a socket, which cannot be opened")
    process = await asyncio.create_subprocess_exec("cat", "/dev/stdin", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    output, _ = await soon(process.communicate(b"hello" * 50_000))
    assert output == b"hello" * 50_000
    assert process.returncode == 0


async def test_reader_limit_holds_the_child_back() -> None:
    """A StreamReader that is full pauses the pipe, and nothing is lost by it."""
    script = "import sys; [sys.stdout.buffer.write(bytes([i % 251]) * 4096) for i in range(256)]"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE, limit=1024)
    assert process.stdout is not None
    await asyncio.sleep(0.05)
    for i in range(256):
        assert await soon(process.stdout.readexactly(4096)) == bytes([i % 251]) * 4096
    assert await soon(process.stdout.read()) == b""
    assert await soon(process.wait()) == 0


def has_exited(pid: int) -> bool:
    """It is not reaped by this, but the loop may have done so."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


async def test_end_of_standard_input_reaches_the_child_at_once() -> None:
    """Whoever blocks the loop after connection_lost still finds that the child has seen the end."""
    process = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.close()
    if loop_kind() != "uvloop":
        await soon(process.stdin.wait_closed())
        deadline = time.monotonic() + PATIENCE
        while not has_exited(process.pid):
            assert time.monotonic() < deadline
    assert await soon(process.wait()) == 0


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.only_on("uringloop")  # a child process of its own
def test_stdout_may_be_connected_again(again: bool) -> None:
    program = f"""if True:
        import asyncio, os, sys, uringloop

        async def main():
            loop = asyncio.get_running_loop()
            for text in (b"one", b"two")[: 1 + {again}]:
                copy = os.fdopen(os.dup(1), "wb", 0)
                transport, _ = await loop.connect_write_pipe(asyncio.Protocol, copy)
                transport.write(text)
                # and the same fd while the first is still open
                other, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout)
                other.write(b".")
                transport.close()
            await asyncio.sleep(0)

        uringloop.run(main())
        os._exit(0)
    """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE)
    assert ran.stdout == (b"one.two." if again else b"one.")
