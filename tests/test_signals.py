"""Signals: handlers that run in the loop, and a loop that waits for nothing else and is interrupted."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from support import LOOPS, LoopFactory, Recorder, eventually, fence, loop_kind, set_once, soon


@pytest.fixture(autouse=True)
def interrupts_as_usual() -> Iterator[None]:
    """pytest-asyncio's runner has a handler of its own for SIGINT; these tests are about Python's."""
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def kill_soon(number: int, delay: float = 0.02) -> threading.Timer:
    """Sends the process a signal from a thread, most likely when the loop sleeps; no matter if it does not."""
    timer = threading.Timer(delay, os.kill, (os.getpid(), number))
    timer.start()
    return timer


async def test_handler_runs_in_the_loop_with_its_arguments() -> None:
    loop = asyncio.get_running_loop()
    caught: list[tuple[Any, ...]] = []
    loop.add_signal_handler(signal.SIGUSR1, lambda *args: caught.append((threading.get_ident(), *args)), 1, "two")
    signal.raise_signal(signal.SIGUSR1)
    assert caught == []
    await eventually(lambda: caught)
    assert caught == [(threading.get_ident(), 1, "two")]
    assert loop.remove_signal_handler(signal.SIGUSR1)


async def test_signal_wakes_a_loop_that_waits() -> None:
    loop = asyncio.get_running_loop()
    caught: asyncio.Future[None] = loop.create_future()
    loop.add_signal_handler(signal.SIGUSR1, caught.set_result, None)
    timer = kill_soon(signal.SIGUSR1)
    await soon(caught)
    timer.join()
    loop.remove_signal_handler(signal.SIGUSR1)


async def test_later_handler_takes_the_place_of_the_earlier_one() -> None:
    loop = asyncio.get_running_loop()
    caught: list[str] = []
    loop.add_signal_handler(signal.SIGUSR1, caught.append, "first")
    loop.add_signal_handler(signal.SIGUSR1, caught.append, "second")
    signal.raise_signal(signal.SIGUSR1)
    await eventually(lambda: caught)
    assert caught == ["second"]
    loop.remove_signal_handler(signal.SIGUSR1)


async def test_removed_handler_gives_the_signal_back_to_the_system() -> None:
    loop = asyncio.get_running_loop()
    assert loop.remove_signal_handler(signal.SIGUSR2) is False
    loop.add_signal_handler(signal.SIGUSR2, print)
    assert loop.remove_signal_handler(signal.SIGUSR2) is True
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    assert loop.remove_signal_handler(signal.SIGUSR2) is False


# uvloop keeps SIGCHLD to itself.
@pytest.mark.only_on("asyncio", "uringloop")
async def test_end_of_a_child_can_be_a_signal_like_others() -> None:
    loop = asyncio.get_running_loop()
    caught: asyncio.Future[None] = loop.create_future()
    loop.add_signal_handler(signal.SIGCHLD, set_once, caught, None)
    child = os.posix_spawn("/bin/true", ["true"], {})  # noqa: ASYNC221 - asyncio's own way waits for the child itself
    await soon(caught)
    os.waitpid(child, 0)  # noqa: ASYNC222 - it has ended
    loop.remove_signal_handler(signal.SIGCHLD)


async def test_some_signals_cannot_be_handled() -> None:
    loop = asyncio.get_running_loop()

    async def coroutine() -> None: ...

    with pytest.raises(RuntimeError, match="cannot"):
        loop.add_signal_handler(signal.SIGKILL, print)
    with pytest.raises(ValueError, match=r"invalid signal number|out of range"):
        loop.add_signal_handler(1000, print)
    with pytest.raises(TypeError, match="coroutines cannot be used"):
        loop.add_signal_handler(signal.SIGUSR1, coroutine)


async def test_only_the_main_thread_can_add_a_handler() -> None:
    new_loop = LOOPS[loop_kind()]

    def add_from_a_thread() -> None:
        loop = new_loop()
        try:
            loop.add_signal_handler(signal.SIGUSR1, print)
        finally:
            loop.close()

    with pytest.raises((ValueError, RuntimeError), match="main thread"):
        await asyncio.to_thread(add_from_a_thread)


def test_interrupt_leaves_a_loop_that_waits_for_ever(new_loop: LoopFactory) -> None:
    loop = new_loop()
    timer = kill_soon(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    timer.join()
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_interrupt_inside_a_callback_leaves_the_loop(new_loop: LoopFactory) -> None:
    loop = new_loop()
    loop.call_soon(signal.raise_signal, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()


def test_interrupted_task_can_go_on_in_the_next_run(new_loop: LoopFactory) -> None:
    loop = new_loop()

    async def work() -> str:
        await asyncio.sleep(0.05)
        return "done"

    task = loop.create_task(work())
    timer = kill_soon(signal.SIGINT, 0.01)
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    timer.join()
    assert not task.done()
    assert loop.run_until_complete(task) == "done"


def test_interrupt_cancels_the_main_task_of_a_runner(new_loop: LoopFactory) -> None:
    cleaned_up = []

    async def main() -> None:
        kill_soon(signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            cleaned_up.append(True)

    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert cleaned_up == [True]


# uvloop hands what a protocol raises to the exception handler, whatever it is.
@pytest.mark.only_on("asyncio", "uringloop")
@pytest.mark.tiny_ring
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("count", [3, 300])
def test_exit_from_a_protocol_leaves_the_loop_and_loses_no_data(
    new_loop: LoopFactory, error: type[BaseException], count: int
) -> None:
    """Connections have data; the protocol of the first to be served answers and exits. Afterwards the loop goes on.
    That there are many is more than a small ring can be told of when it is left."""
    loop = new_loop()
    protocols: list[Recorder] = []
    exits: list[str] = []

    class Exiting(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            protocols.append(self)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not exits:
                exits.append("now")
                self.transport.write(b"answer")
                raise error

    async def connect() -> None:
        for near, _ in pairs:
            await loop.connect_accepted_socket(Exiting, near)
        await fence()  # all receive by now

    async def finish() -> None:
        await eventually(lambda: all(protocol.data == b"data" for protocol in protocols))
        for protocol in protocols:
            protocol.transport.abort()
            await protocol.lost()

    pairs = [socket.socketpair() for _ in range(count)]
    loop.run_until_complete(connect())
    for _, far in pairs:
        far.sendall(b"data")
    with pytest.raises(error):
        loop.run_forever()
    loop.run_until_complete(finish())
    for _, far in pairs:
        far.close()
    assert exits == ["now"]


@pytest.mark.only_on("asyncio", "uringloop")
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exit_from_a_protocol_that_is_given_what_came_in_a_pause_loses_no_data(
    new_loop: LoopFactory, error: type[BaseException]
) -> None:
    loop = new_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    exits: list[str] = []

    class Exiting(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if not exits:
                exits.append("now")
                raise error

    async def pause() -> tuple[asyncio.Transport, Exiting]:
        transport, protocol = await loop.create_connection(Exiting, sock=near)
        await fence()  # it receives by now
        transport.pause_reading()
        far.sendall(b"first")
        await fence()
        return transport, protocol

    async def finish() -> None:
        await eventually(lambda: protocol.data == b"first second")
        transport.abort()
        await protocol.lost()

    transport, protocol = loop.run_until_complete(pause())
    loop.call_soon(transport.resume_reading)
    with pytest.raises(error):
        loop.run_forever()
    far.sendall(b" second")
    loop.run_until_complete(finish())
    far.close()


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop's datagram transports cannot pause
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exit_from_a_datagram_protocol_that_is_given_what_came_in_a_pause_loses_none(
    new_loop: LoopFactory, error: type[BaseException]
) -> None:
    loop = new_loop()
    received: list[bytes] = []
    lost = asyncio.Event()

    class Exiting(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            received.append(data)
            if len(received) == 1:
                raise error

        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()

    async def pause() -> Any:
        transport: Any
        transport, _ = await loop.create_datagram_endpoint(Exiting, ("127.0.0.1", 0))
        await fence()
        transport.pause_reading()
        far.sendto(b"first", transport.get_extra_info("sockname"))
        await fence()
        return transport

    async def finish() -> None:
        await eventually(lambda: received == [b"first", b"second"])
        transport.abort()
        await soon(lost.wait())

    far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    transport = loop.run_until_complete(pause())
    loop.call_soon(transport.resume_reading)
    with pytest.raises(error):
        loop.run_forever()
    far.sendto(b"second", transport.get_extra_info("sockname"))
    loop.run_until_complete(finish())
    far.close()


# uvloop lets the interrupt out of the protocol that it calls next, and asyncio loses what it has received if the
# handler raises between that and the protocol.
@pytest.mark.only_on("uringloop")
@pytest.mark.parametrize("attempt", range(20))
def test_interrupt_of_a_loop_that_waits_loses_nothing(new_loop: LoopFactory, attempt: int) -> None:
    """What comes together with a signal whose handler raises is told in the next run; signals are heard then, too."""
    loop = new_loop()
    near, far = socket.socketpair()
    caught: list[int] = []

    def send_and_interrupt() -> None:
        far.send(b"data")
        os.kill(os.getpid(), signal.SIGINT)

    async def connect() -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection(sock=near)
        writers.append(writer)
        await fence()
        return reader

    async def finish() -> None:
        assert await soon(reader.readexactly(4)) == b"data"
        loop.add_signal_handler(signal.SIGUSR1, caught.append, 1)
        signal.raise_signal(signal.SIGUSR1)
        await eventually(lambda: caught)
        loop.remove_signal_handler(signal.SIGUSR1)
        writers[0].close()
        await writers[0].wait_closed()

    writers: list[asyncio.StreamWriter] = []
    reader = loop.run_until_complete(connect())
    timer = threading.Timer(0.003, send_and_interrupt)
    loop.call_soon(timer.start)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    timer.join()
    loop.run_until_complete(finish())
    far.close()
