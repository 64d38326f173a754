"""What asyncio promises of any loop, and no other file asks for: names, eager tasks, asynchronous generators, the
executor, the peer's credentials."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import os
import signal
import socket
import struct
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import LoopFactory, Recorder, Unhandled, eventually, loop_kind, soon

# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", b"localhost", None, ""])
@pytest.mark.parametrize("port", [80, "80", "http", None, 0])
@pytest.mark.parametrize("flags", [0, socket.AI_PASSIVE, socket.AI_CANONNAME])
async def test_getaddrinfo_gives_what_the_system_gives(host: Any, port: Any, flags: int) -> None:
    loop = asyncio.get_running_loop()
    for kind in (0, socket.SOCK_STREAM, socket.SOCK_DGRAM):
        try:
            expected: Any = socket.getaddrinfo(host, port, type=kind, flags=flags)
        except OSError as exc:
            expected = type(exc)
        try:
            found: Any = await soon(loop.getaddrinfo(host, port, type=kind, flags=flags))
        except OSError as exc:
            found = type(exc)
        if loop_kind() == "uvloop" and flags == socket.AI_CANONNAME and isinstance(found, list):
            continue  # it leaves the canonical name out of what needs no look-up
        assert found == expected
    await loop.shutdown_default_executor()


async def test_getaddrinfo_fails_as_the_system_does() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(socket.gaierror):
        await soon(loop.getaddrinfo("127.0.0.1", "no such service"))
    with pytest.raises(socket.gaierror):
        await soon(loop.getaddrinfo("127.0.0.1", 80, family=socket.AF_INET6))
    await loop.shutdown_default_executor()


async def test_getnameinfo_gives_what_the_system_gives() -> None:
    loop = asyncio.get_running_loop()
    for address in (("127.0.0.1", 80), ("::1", 80, 0, 0)):
        for flags in (socket.NI_NUMERICHOST | socket.NI_NUMERICSERV, socket.NI_NUMERICHOST, socket.NI_NUMERICSERV):
            assert await soon(loop.getnameinfo(address, flags)) == socket.getnameinfo(address, flags)
    await loop.shutdown_default_executor()


# ---------------------------------------------------------------------------------------------------------------------
# Eager tasks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has them since 3.12")
@pytest.mark.only_on("asyncio", "uringloop")  # uvloop gives every factory arguments that this one does not know
async def test_eager_tasks_run_up_to_their_first_wait() -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:
        order = []

        async def work(name: str, gate: asyncio.Event | None) -> str:
            order.append(f"{name} begins")
            assert asyncio.current_task() is not None
            if gate is not None:
                await gate.wait()
            order.append(f"{name} ends")
            return name

        gate = asyncio.Event()
        at_once, waits = asyncio.create_task(work("one", None)), asyncio.create_task(work("two", gate), name="named")
        order.append("created")
        assert at_once.done()
        assert not waits.done()
        assert waits.get_name() == "named"
        gate.set()
        assert await asyncio.gather(at_once, waits) == ["one", "two"]
        assert order == ["one begins", "one ends", "two begins", "created", "two ends"]

        async def fails() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await asyncio.create_task(fails())
    finally:
        loop.set_task_factory(None)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop gives it a context, too
async def test_task_factory_is_given_what_the_caller_gives() -> None:
    loop = asyncio.get_running_loop()
    given: list[dict[str, Any]] = []

    def factory(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[None]:
        given.append(options)
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(factory)
    try:
        context = contextvars.copy_context()
        await loop.create_task(asyncio.sleep(0))
        await asyncio.gather(asyncio.sleep(0), asyncio.sleep(0))
        await loop.create_task(asyncio.sleep(0), context=context)
        assert given == [{}, {}, {}, {"context": context}]
    finally:
        loop.set_task_factory(None)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio has them since 3.12")
@pytest.mark.only_on("asyncio", "uringloop")
async def test_eager_tasks_use_connections() -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    try:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.close()

        async def ask(number: int) -> bool:
            reader, writer = await asyncio.open_connection(*address)
            line = b"%d\n" % number
            writer.write(line)
            answered = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answered == line

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        assert all(await soon(asyncio.gather(*(ask(number) for number in range(20)))))
        server.close()
        await server.wait_closed()
        await eventually(lambda: len(asyncio.all_tasks()) == 1)
    finally:
        loop.set_task_factory(None)


# ---------------------------------------------------------------------------------------------------------------------
# The end of generators and threads
# ---------------------------------------------------------------------------------------------------------------------


def test_asynchronous_generators_are_closed_at_the_end(new_loop: LoopFactory, unhandled: Unhandled) -> None:
    loop = new_loop()
    closed = []

    async def numbers(name: str, fails: bool = False) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append(name)
            if fails:
                raise ZeroDivisionError

    kept = [numbers("one"), numbers("two"), numbers("failing", fails=True), numbers("finished")]

    async def use() -> None:
        for generator in kept:
            await anext(generator)
        async for _ in kept[3]:
            pass
        await asyncio.get_running_loop().shutdown_asyncgens()

    loop.run_until_complete(use())
    assert sorted(closed) == ["failing", "finished", "one", "two"]
    [context] = unhandled.contexts
    unhandled.contexts.clear()
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["asyncgen"] is kept[2]

    async def too_late() -> None:
        await anext(late := numbers("late"))
        await late.aclose()  # type: ignore[attr-defined]

    with pytest.warns(ResourceWarning, match="was scheduled after loop.shutdown_asyncgens"):
        loop.run_until_complete(too_late())


async def test_dropped_generator_is_closed_by_the_loop() -> None:
    closed = asyncio.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.set()

    await anext(numbers())
    await soon(closed.wait())


def test_shutdown_of_the_executor_waits_for_its_threads(new_loop: LoopFactory) -> None:
    loop = new_loop()
    gate = threading.Event()
    done = []

    async def main() -> None:
        running = asyncio.get_running_loop()
        work = running.run_in_executor(None, lambda: (gate.wait(), done.append(1)))
        running.call_later(0.01, gate.set)
        await running.shutdown_default_executor()
        assert done == [1]
        await work
        with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
            running.run_in_executor(None, print)

    loop.run_until_complete(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="3.12.1 has a limit, and waits all the same")
@pytest.mark.only_on("asyncio", "uringloop")  # uvloop waits
def test_shutdown_of_the_executor_does_not_wait_for_ever(new_loop: LoopFactory) -> None:
    loop = new_loop()
    gate = threading.Event()

    async def main() -> None:
        running = asyncio.get_running_loop()
        work = running.run_in_executor(None, gate.wait)
        with pytest.warns(RuntimeWarning, match="did not finishing joining its threads within"):
            await running.shutdown_default_executor(timeout=0.01)  # type: ignore[call-arg]
        gate.set()
        await work

    loop.run_until_complete(main())


def test_default_executor_is_ours_to_choose(new_loop: LoopFactory) -> None:
    loop = new_loop()
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="chosen") as executor:
        loop.set_default_executor(executor)
        name = loop.run_until_complete(loop.run_in_executor(None, lambda: threading.current_thread().name))
        assert name.startswith("chosen")
        loop.run_until_complete(loop.shutdown_default_executor())


# ---------------------------------------------------------------------------------------------------------------------
# Others
# ---------------------------------------------------------------------------------------------------------------------


async def test_peers_credentials(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    server = await loop.create_unix_server(factory, str(tmp_path / "socket"))
    transport, client = await loop.create_unix_connection(Recorder, str(tmp_path / "socket"))
    await eventually(lambda: made and made[0].calls)
    for end in (transport, made[0].transport):
        sock = end.get_extra_info("socket")
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        assert struct.unpack("3i", credentials) == (os.getpid(), os.getuid(), os.getgid())
    transport.close()
    await client.lost()
    await made[0].lost()
    server.close()
    await server.wait_closed()


def test_a_signal_handler_may_call_back(new_loop: LoopFactory) -> None:
    """One of Python's own, which runs between two of its instructions: also while the loop is about to sleep."""
    loop = new_loop()
    called = []

    def on_signal(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(called.append, len(called))

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:

        async def main() -> None:
            for count in range(1, 51):
                threading.Thread(target=lambda: (time.sleep(0.0005), os.kill(os.getpid(), signal.SIGUSR1))).start()
                await eventually(lambda count=count: len(called) == count)

        loop.run_until_complete(main())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert called == list(range(50))


def test_a_signal_handlers_call_ends_a_sleep(new_loop: LoopFactory) -> None:
    loop = new_loop()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: loop.call_soon_threadsafe(loop.stop))
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        loop.run_forever()  # nothing else wakes it
    finally:
        signal.signal(signal.SIGUSR1, before)
        timer.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.close()
