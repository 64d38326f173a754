"""Protocols that raise, and a process without a file descriptor left: heard of, survived, harmless to others."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import (
    BufferedRecorder,
    Echo,
    Journal,
    OpenEnd,
    Peer,
    Recorder,
    Stopwatch,
    Unhandled,
    address_of,
    connect,
    connect_plainly,
    fence,
    listen,
    loop_kind,
    open_files,
    soon,
)

MORE_THAN_THE_KERNEL_TAKES = 16 << 20
NoneLeft = Callable[[], AbstractContextManager[None]]


async def others_are_served(tmp_path: Path) -> bool:
    directory = tmp_path / "others"
    directory.mkdir()
    server = await listen("unix", Echo, directory)
    client = await connect(Recorder, address_of(server))
    client.transport.write(b"?")
    answer = await client.received(1)
    client.transport.close()
    await client.lost()
    server.close()
    await soon(server.wait_closed())
    return answer == b"?"


# ---------------------------------------------------------------------------------------------------------------------
# Protocols that raise
# ---------------------------------------------------------------------------------------------------------------------


def failing(method: str, base: type[Journal]) -> type[Journal]:
    """A protocol whose method does what it should, and then raises."""

    def fail(self: Journal, *args: Any) -> None:
        getattr(base, method)(self, *args)
        raise ZeroDivisionError(method)

    return type("Failing", (base,), {method: fail})


@pytest.mark.parametrize(
    ("method", "base"),
    [
        ("data_received", Recorder),
        ("eof_received", Recorder),
        ("get_buffer", BufferedRecorder),
        ("buffer_updated", BufferedRecorder),
    ],
)
async def test_protocol_that_raises_while_it_receives_loses_its_connection(
    open_end: OpenEnd, unhandled: Unhandled, tmp_path: Path, method: str, base: type[Journal]
) -> None:
    protocol, peer = await open_end(failing(method, base))
    peer.sock.sendall(b"data")
    peer.send_fin()
    context = await unhandled.next()
    # uvloop reports every unusable buffer as a RuntimeError.
    expected = RuntimeError if method == "get_buffer" and loop_kind() == "uvloop" else ZeroDivisionError
    assert isinstance(context["exception"], expected)
    assert context["protocol"] is protocol
    assert context["transport"] is protocol.transport
    assert await protocol.lost() is context["exception"]
    assert await peer.sees_the_end()
    assert await others_are_served(tmp_path)


async def test_protocol_that_raises_in_connection_lost_is_heard_of(
    open_end: OpenEnd, unhandled: Unhandled, tmp_path: Path
) -> None:
    protocol, peer = await open_end(failing("connection_lost", Recorder))
    protocol.transport.close()
    assert isinstance((await unhandled.next())["exception"], ZeroDivisionError)
    assert await peer.receive_all() == b""
    assert await others_are_served(tmp_path)


async def test_protocol_that_raises_in_connection_made(open_end: OpenEnd, unhandled: Unhandled, tmp_path: Path) -> None:
    protocol, peer = await open_end(failing("connection_made", Recorder))
    assert isinstance((await unhandled.next())["exception"], ZeroDivisionError)
    await peer.send(b"data")
    if loop_kind() == "uvloop":  # keeps the connection, and never reads from it
        await fence()
        assert protocol.calls == ["connection_made"]
    else:  # goes on as if nothing had happened
        assert await protocol.received(4) == b"data"
    assert await others_are_served(tmp_path)


@pytest.mark.parametrize("method", ["pause_writing", "resume_writing"])
async def test_protocol_that_raises_in_a_flow_control_call_keeps_its_connection(
    open_end: OpenEnd, unhandled: Unhandled, tmp_path: Path, method: str
) -> None:
    protocol, peer = await open_end(failing(method, Recorder))
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    assert len(await peer.receive(MORE_THAN_THE_KERNEL_TAKES)) == MORE_THAN_THE_KERNEL_TAKES
    context = await unhandled.next()
    assert isinstance(context["exception"], ZeroDivisionError)
    assert method in context["message"]
    protocol.transport.write(b"goes on")
    assert await peer.receive(7) == b"goes on"
    assert await others_are_served(tmp_path)


# asyncio tells nobody, outside of debug mode, and leaves the socket to the garbage collector. uvloop leaves it waiting
# to be accepted, and so gives the third connection the second one's place.
@pytest.mark.only_on("uringloop")
async def test_protocol_factory_that_raises_costs_one_connection(
    family: str, tmp_path: Path, unhandled: Unhandled
) -> None:
    results: Iterator[type[Echo] | None] = iter([Echo, None, Echo])

    def factory() -> Echo:
        result = next(results)
        if result is None:
            raise ZeroDivisionError
        return result()

    server = await listen(family, factory, tmp_path)
    first, second, third = (Peer(connect_plainly(address_of(server))) for _ in range(3))
    assert isinstance((await unhandled.next())["exception"], ZeroDivisionError)
    assert await second.receive_all() == b""
    second.close()
    for peer in (first, third):
        await peer.send(b"?")
        assert await peer.receive(1) == b"?"
        peer.close()
    await fence()
    server.close()
    await soon(server.wait_closed())


# ---------------------------------------------------------------------------------------------------------------------
# No file descriptor left
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def few_file_descriptors() -> Iterator[NoneLeft]:
    """Lowers the process's limit, and gives what uses all that is left of it up.

    The limit comes first, since an accept that the kernel has at hand goes by the limit of when it was asked for.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(open_files()) + 50, hard))

    @contextmanager
    def none_left() -> Iterator[None]:
        fillers: list[int] = []
        try:
            with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012 - sooner or later
                while True:
                    fillers.append(os.dup(0))
            yield
        finally:
            for filler in fillers:
                os.close(filler)

    yield none_left
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# libuv spends a descriptor that it keeps for this, to accept the connections and to close them at once.
@pytest.mark.only_on("asyncio", "uringloop")
async def test_server_waits_for_file_descriptors_without_spinning_and_then_goes_on(
    family: str, tmp_path: Path, unhandled: Unhandled, few_file_descriptors: NoneLeft
) -> None:
    server = await listen(family, Echo, tmp_path)
    await fence()
    peers = [Peer(socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX)) for _ in range(3)]
    with few_file_descriptors():
        for peer in peers:
            peer.sock.connect(address_of(server))
        context = await unhandled.next()
        assert context["message"] == "socket.accept() out of system resource"
        assert context["exception"].errno == errno.EMFILE
        with Stopwatch() as watch:
            await asyncio.sleep(0.4)
        assert watch.processor < 0.2
        assert server.is_serving()
    for peer in peers:
        await peer.send(b"at last")
        assert await peer.receive(7) == b"at last"
        peer.close()
    await fence()
    server.close()
    await soon(server.wait_closed())
    # asyncio tries as often as the backlog is long before it waits, and reports each failure.
    assert {context["message"] for context in unhandled.contexts} <= {"socket.accept() out of system resource"}
    unhandled.contexts.clear()


# asyncio's timers try to listen again on the closed socket.
@pytest.mark.only_on("uringloop")
async def test_server_that_waits_for_file_descriptors_can_be_closed(
    family: str, tmp_path: Path, unhandled: Unhandled, few_file_descriptors: NoneLeft
) -> None:
    server = await listen(family, Echo, tmp_path)
    await fence()
    peer = Peer(socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX))
    with few_file_descriptors():
        peer.sock.connect(address_of(server))
        await unhandled.next()
        server.close()
    await soon(server.wait_closed())
    assert await peer.sees_the_end()
    peer.close()


async def test_connection_that_cannot_be_opened_is_an_error(
    family: str, tmp_path: Path, few_file_descriptors: NoneLeft
) -> None:
    server = await listen(family, Echo, tmp_path)
    address: Any = address_of(server)
    with few_file_descriptors(), pytest.raises(OSError, match=r"[Tt]oo many open files"):
        await connect(Recorder, address)
    client = await connect(Recorder, address)
    client.transport.write(b"?")
    assert await client.received(1) == b"?"
    client.transport.close()
    await client.lost()
    server.close()
    await soon(server.wait_closed())
