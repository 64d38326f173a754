"""Edges of transports: what is told of errors, what is refused, and what is freed when it is over."""

from __future__ import annotations

import asyncio
import os
import socket
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datagrams import NATIVE
from support import Peer, Recorder, Unhandled, address_of, connect_plainly, fence


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Any, Any]]:
    """The same one, in binary and in text mode."""
    (tmp_path / "file").write_bytes(b"0123456789")
    with open(tmp_path / "file", "rb") as file, open(tmp_path / "file") as text:
        yield file, text


async def test_error_of_a_read_pipes_protocol_is_told_and_not_its_cause(unhandled: Unhandled) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise RuntimeError("outer") from ValueError("inner")

    reading_end, writing_end = os.pipe()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(Failing, os.fdopen(reading_end, "rb", 0))
    os.write(writing_end, b"x")
    context = await unhandled.next()
    assert repr(context["exception"]) == "RuntimeError('outer')"
    os.close(writing_end)
    transport.close()
    await fence()


async def test_empty_write_to_a_pipe_that_is_a_datagram_socket_sends_nothing() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    far.setblocking(False)
    transport, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, near)
    transport.write(b"")
    transport.write(b"data")
    await fence()
    with far:
        assert far.recv(100) == b"data"
        transport.close()
        await fence()


@pytest.mark.usefixtures("no_collection")
async def test_write_pipe_whose_reader_has_gone_is_freed_at_once() -> None:
    async def lose() -> weakref.ref[Any]:
        reading_end, writing_end = os.pipe()
        transport, protocol = await asyncio.get_running_loop().connect_write_pipe(
            Recorder, os.fdopen(writing_end, "wb", 0)
        )
        transport.write(bytes(100_000))  # more than it holds
        await fence()
        os.close(reading_end)
        await protocol.lost()
        del protocol.transport
        return weakref.ref(transport)

    transport = await lose()
    await fence()
    assert transport() is None


@pytest.mark.usefixtures("no_collection")
async def test_server_that_is_closed_is_freed_at_once() -> None:
    async def serve_and_close() -> weakref.ref[Any]:
        server = await asyncio.get_running_loop().create_server(Recorder, "127.0.0.1", 0)
        server.close()
        await server.wait_closed()
        return weakref.ref(server)

    server = await serve_and_close()
    await fence()
    assert server() is None


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no sendfile
async def test_sendfile_refuses_what_cannot_be(files: tuple[Any, Any]) -> None:
    file, text = files
    loop = asyncio.get_running_loop()
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*address_of(server))
        for arguments, error in (
            ((text, 0, None), ValueError),
            ((file, 0, 0), ValueError),
            ((file, 0, -1), ValueError),
            ((file, -1, None), ValueError),
            ((file, 1.5, None), TypeError),
            ((file, 0, 1.5), TypeError),
        ):
            with pytest.raises(error):
                await loop.sendfile(writer.transport, *arguments)
        writer.close()
        await writer.wait_closed()


@pytest.mark.only_on("uringloop")  # asyncio, too, but it leaves half of a transport behind; uvloop refuses only None
@pytest.mark.parametrize("what", [None, object()], ids=["None", "object"])
async def test_factory_that_gives_no_protocol_is_told_to_whoever_connects(what: Any, unhandled: Unhandled) -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    reading_end, writing_end = os.pipe()
    with near, far, endpoint, os.fdopen(reading_end, "rb", 0) as reader, os.fdopen(writing_end, "wb", 0) as writer:
        connections: list[Any] = [
            loop.create_connection(lambda: what, sock=near),
            loop.connect_read_pipe(lambda: what, reader),
            loop.connect_write_pipe(lambda: what, writer),
        ]
        if NATIVE:  # asyncio's own transport does not ask
            connections.append(loop.create_datagram_endpoint(lambda: what, sock=endpoint))
        for connecting in connections:
            with pytest.raises(AttributeError, match="has no attribute 'connection_made'"):
                await connecting


@pytest.mark.only_on("uringloop")  # asyncio tells it in debug mode only
async def test_server_whose_factory_gives_no_protocol_ends_the_connection(unhandled: Unhandled) -> None:
    factory: Any = lambda: None  # noqa: E731
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
    with connect_plainly(address_of(server)) as client:
        context = await unhandled.next()
        assert context["message"] == "Error on transport creation for incoming connection"
        assert await Peer(client).sees_the_end()
    server.close()
    await server.wait_closed()


@pytest.mark.only_on("uringloop")  # asyncio, too, but it leaves half of its transport to the collector
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["stream", "datagram"])
async def test_fd_that_somebody_has_closed_is_an_error_of_its_transport_only(
    kind: socket.SocketKind, unhandled: Unhandled
) -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    if kind == socket.SOCK_STREAM:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
    else:
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=near)
    os.close(near.fileno())
    transport.abort()
    context = await unhandled.next()
    assert repr(context["exception"]) == "OSError(9, 'Bad file descriptor')"
    far.close()
    await fence()
