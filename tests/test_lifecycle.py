"""Loops are made, run, closed and forked: in any thread, in any number, and without leaving anything behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import LOOPS, PATIENCE, Address, Echo, LoopFactory, address_of, connect_plainly, eventually, open_files

from uringloop.reactor import leaked_bytes


async def echo_once() -> None:
    """A server and a client, a thread, and a timer: something of everything that a loop holds on to."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*address_of(server))
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    await asyncio.to_thread(time.monotonic)
    await asyncio.sleep(0)
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


def run_echo(new_loop: LoopFactory) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(echo_once())


def in_threads(count: int, work: Callable[[], None]) -> None:
    """Does the work in so many threads at once; raises what one of them raised."""
    failures: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    for failure in failures:
        raise failure


# ---------------------------------------------------------------------------------------------------------------------
# Many loops, many threads
# ---------------------------------------------------------------------------------------------------------------------


def test_loop_made_in_one_thread_runs_in_another(new_loop: LoopFactory) -> None:
    loop = new_loop()

    def work() -> None:
        for _ in range(3):
            loop.run_until_complete(echo_once())
        loop.run_until_complete(loop.shutdown_default_executor())

    in_threads(1, work)


def test_loop_can_be_run_by_two_threads_in_turn(new_loop: LoopFactory) -> None:
    loop = new_loop()
    near, far = socket.socketpair()
    received: list[bytes] = []

    def receive() -> None:
        received.append(near.recv(1))
        loop.stop()

    with near, far:
        loop.add_reader(near, receive)
        for byte in (b"1", b"2", b"3", b"4"):
            loop.call_soon(far.send, byte)
            if byte in b"13":
                loop.run_forever()
            else:
                in_threads(1, loop.run_forever)
        loop.remove_reader(near)
    assert received == [b"1", b"2", b"3", b"4"]


def test_connection_goes_on_when_another_thread_runs_the_loop(new_loop: LoopFactory) -> None:
    loop = new_loop()
    accepted = Echo()

    async def start() -> tuple[asyncio.Server, asyncio.StreamReader, asyncio.StreamWriter]:
        server = await loop.create_server(lambda: accepted, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*address_of(server))
        return server, reader, writer

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"

    async def finish(server: asyncio.Server, writer: asyncio.StreamWriter) -> None:
        writer.close()
        await writer.wait_closed()
        await accepted.lost()
        server.close()
        await server.wait_closed()

    server, reader, writer = loop.run_until_complete(start())
    loop.run_until_complete(talk(reader, writer))
    in_threads(1, lambda: loop.run_until_complete(talk(reader, writer)))
    loop.run_until_complete(talk(reader, writer))
    loop.run_until_complete(finish(server, writer))


def test_40_loops_in_turn_in_one_thread(new_loop: LoopFactory) -> None:
    run_echo(new_loop)
    before = open_files()
    for _ in range(40):
        run_echo(new_loop)
    assert len(open_files()) == len(before)


def test_20_loops_at_once_in_one_thread(new_loop: LoopFactory) -> None:
    loops = [new_loop() for _ in range(20)]
    for _ in range(2):
        for loop in loops:
            loop.run_until_complete(echo_once())
    for loop in loops:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


def test_a_loop_in_each_of_8_threads(new_loop: LoopFactory) -> None:
    def work() -> None:
        for _ in range(5):
            run_echo(new_loop)

    in_threads(8, work)


def test_100_runs_open_no_more_files_than_one(new_loop: LoopFactory) -> None:
    async def main() -> None:
        await asyncio.sleep(0)

    before = open_files()
    for _ in range(100):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
        assert len(open_files()) <= len(before)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run() takes a loop factory from Python 3.12 on")
def test_asyncio_run_takes_the_loop(new_loop: LoopFactory) -> None:
    for _ in range(100):
        asyncio.run(asyncio.sleep(0), loop_factory=new_loop)  # type: ignore[call-arg, unused-ignore]


# ---------------------------------------------------------------------------------------------------------------------
# Closing
# ---------------------------------------------------------------------------------------------------------------------


def test_closed_loop_can_be_closed_again_and_does_nothing_else(new_loop: LoopFactory) -> None:
    loop = new_loop()
    assert not loop.is_closed()
    loop.close()
    loop.close()
    assert loop.is_closed()
    assert not loop.is_running()
    for use in (
        loop.run_forever,
        lambda: loop.call_soon(print),
        lambda: loop.call_later(1, print),
        lambda: loop.call_soon_threadsafe(print),
        lambda: loop.add_reader(0, print),
        lambda: loop.run_in_executor(None, print),
    ):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            use()


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no selector
def test_selector_of_a_closed_loop_refuses_to_select(new_loop: LoopFactory) -> None:
    loop: Any = new_loop()
    selector = loop._selector
    loop.close()
    with pytest.raises((RuntimeError, ValueError), match="closed"):
        selector.select(0)


@pytest.mark.parametrize("name", ["asyncio", "uringloop"])  # libuv's handles keep uvloop's until the collector comes
def test_closed_loop_is_freed_without_the_collector(name: str) -> None:
    loop = LOOPS[name]()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    gone = weakref.ref(loop)
    gc.disable()
    try:
        del loop
        assert gone() is None
    finally:
        gc.enable()


def test_close_drops_what_is_scheduled(new_loop: LoopFactory) -> None:
    loop = new_loop()
    ran: list[str] = []
    loop.call_soon(ran.append, "soon")
    loop.call_later(0, ran.append, "later")
    loop.close()
    assert ran == []


# asyncio's __del__ fails there, and its fds go with their objects; uvloop closes nothing of a loop that is dropped.
def test_unclosed_loop_that_is_dropped_leaves_no_fd_in_whatever_order_it_is_collected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = socket.socketpair

    def make_after_a_collection(*arguments: Any) -> Any:
        gc.collect(0)  # one may be due there: the sockets are of a younger generation then, and are taken first
        return pair(*arguments)

    before = open_files()
    monkeypatch.setattr(socket, "socketpair", make_after_a_collection)
    loop = LOOPS["uringloop"]()
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031 - they come with the collection
        del loop
        gc.collect()
    assert open_files() == before


# asyncio, too, closes them when they are collected. uvloop may wait for ever in close().
@pytest.mark.only_on("asyncio", "uringloop")
def test_servers_and_connections_end_when_their_loop_is_closed_and_they_are_dropped(new_loop: LoopFactory) -> None:
    loop = new_loop()
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031 - they come with the collection
        address, peer = loop.run_until_complete(serve_and_connect())
        loop.close()
        gc.collect()
    with peer:
        assert within(0.1, lambda: can_listen(address))
        assert peer.recv(1) == b""


async def serve_and_connect() -> tuple[Address, socket.socket]:
    """Leaves a server, a connection to it, and something in flight."""
    accepted: list[Echo] = []

    class Remembered(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            accepted.append(self)

    server = await asyncio.get_running_loop().create_server(Remembered, "127.0.0.1", 0)
    peer = connect_plainly(address_of(server))
    await eventually(lambda: accepted)
    return address_of(server), peer


def can_listen(address: Address) -> bool:
    with contextlib.suppress(OSError):
        socket.create_server(address).close()
        return True
    return False


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The end of the process, and forks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("leave", ["sys.exit(7)", "os._exit(7)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_port_is_free_when_the_process_is_gone_however_it_went(kind: str, leave: str) -> None:
    script = f"""
        import asyncio, os, signal, sys
        import uringloop, uvloop
        loops = {{"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop,
                 "uringloop": uringloop.new_event_loop}}

        async def main():
            server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
            print(*server.sockets[0].getsockname(), flush=True)
            asyncio.get_running_loop().call_later(0.01, leave)
            await server.serve_forever()

        def leave():
            {leave}

        with asyncio.Runner(loop_factory=loops["{kind}"]) as runner:
            runner.run(main())
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, timeout=PATIENCE, check=False
    )
    assert process.returncode in (7, -signal.SIGKILL)
    host, port = process.stdout.split()
    assert within(0.1, lambda: can_listen((host.decode(), int(port))))


def in_a_child(work: Callable[[], None]) -> int:
    """Forks; the child does the work and exits with 0, or with 1 if it raises. Gives the exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # the executor's threads are idle


@forks
def test_child_can_make_a_loop_of_its_own_while_its_parents_runs(new_loop: LoopFactory) -> None:
    loop = new_loop()

    async def fork() -> int:
        await echo_once()
        return await asyncio.sleep(0, in_a_child(work))

    def work() -> None:
        asyncio._set_running_loop(None)  # as asyncio does by itself from 3.12 on
        run_echo(new_loop)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(fork()) == 0
        runner.run(echo_once())


# On other loops the child would take the parent's events away, or wait for ever.
@forks
@pytest.mark.only_on("uringloop")
@pytest.mark.parametrize(
    "touch",
    [
        lambda loop: loop.call_soon_threadsafe(print),
        lambda loop: loop.run_until_complete(asyncio.sleep(0)),
        lambda loop: loop.run_forever(),
    ],
    ids=["call_soon_threadsafe", "run_until_complete", "run_forever"],
)
def test_child_that_touches_its_parents_loop_is_told_so(
    new_loop: LoopFactory, touch: Callable[[asyncio.AbstractEventLoop], object]
) -> None:
    loop = new_loop()
    loop.run_until_complete(echo_once())

    def work() -> None:
        with pytest.raises(RuntimeError, match="fork"):
            touch(loop)

    assert in_a_child(work) == 0
    loop.run_until_complete(echo_once())
    loop.run_until_complete(loop.shutdown_default_executor())


@forks
@pytest.mark.only_on("uringloop")
def test_child_that_closes_its_parents_loop_leaves_the_parent_alone(new_loop: LoopFactory, tmp_path: Path) -> None:
    loop = new_loop()
    loop.run_until_complete(echo_once())
    assert in_a_child(loop.close) == 0
    loop.run_until_complete(echo_once())
    loop.run_until_complete(loop.shutdown_default_executor())


@forks
@pytest.mark.only_on("asyncio", "uringloop")  # uvloop's child shares the parent's epoll
def test_child_that_aborts_its_parents_transports_sends_nothing_twice(new_loop: LoopFactory) -> None:
    loop = new_loop()
    near, far = socket.socketpair()
    receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    async def write_and_fork() -> int:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        endpoint, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=receiver.getsockname())
        transport.write(b"once")
        endpoint.sendto(b"once")

        def abort() -> None:
            transport.abort()
            endpoint.abort()

        status = in_a_child(abort)
        transport.close()
        endpoint.close()
        await asyncio.sleep(0)
        return status

    with far, receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        assert loop.run_until_complete(write_and_fork()) == 0
        loop.run_until_complete(asyncio.sleep(0))
        assert far.makefile("rb").read() == b"once"
        assert receiver.recv(100) == b"once"
        with pytest.raises(BlockingIOError):
            receiver.recv(100)


@pytest.mark.only_on("asyncio", "uringloop")
def test_transport_that_outlives_its_loop_does_no_harm(new_loop: LoopFactory) -> None:
    loop = new_loop()
    near, far = socket.socketpair()
    near.setblocking(False)

    async def connect() -> asyncio.Transport:
        return (await loop.create_connection(asyncio.Protocol, sock=near))[0]

    transport = loop.run_until_complete(connect())
    loop.close()
    repr(transport)
    assert transport.get_write_buffer_size() == 0
    for write in (b"small", bytes(100_000)):
        transport.write(write)
    for method in (transport.pause_reading, transport.resume_reading, transport.close, transport.abort):
        with contextlib.suppress(RuntimeError):  # asyncio's: the loop is closed
            method()
    kept = [transport]
    del transport, method

    def drop() -> None:
        kept.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        drop()
    far.close()


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop says nothing of transports that are left open
@pytest.mark.parametrize("closed_by", ["its thread", "another thread"])
def test_what_is_written_behind_a_run_goes_when_the_loop_is_closed(new_loop: LoopFactory, closed_by: str) -> None:
    loop = new_loop()
    near, far = socket.socketpair()
    kept: list[Any] = []

    async def open_both() -> None:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        kept.append(transport)
        endpoint, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=receiver.getsockname())
        kept.append(endpoint)

    def run_and_write() -> None:
        loop.run_until_complete(open_both())
        transport, endpoint = kept
        transport.write(b"bye")
        endpoint.sendto(b"bye")

    def drop() -> None:
        kept.clear()
        gc.collect()

    with far, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(PATIENCE)
        if closed_by == "its thread":
            run_and_write()
        else:
            in_threads(1, run_and_write)
        left = leaked_bytes()
        loop.close()
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            drop()
        assert far.recv(100) == b"bye"
        assert receiver.recv(100) == b"bye"
        assert leaked_bytes() == left  # nothing, of the loop that has it
