"""loop.sock_sendfile: the file's bytes in order, whatever the socket takes; its errors, and the file's position."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from support import eventually, fence, loop_kind, soon

from uringloop import splice

CONTENT = os.urandom(3 << 20)
SMALL = 64 << 10  # of buffers: the file does not fit
Pair = tuple[socket.socket, socket.socket]

pytestmark = pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no sendfile


@pytest.fixture(params=["cached", "not cached"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    (tmp_path / "file").write_bytes(CONTENT)
    if request.param == "not cached":
        monkeypatch.setattr(splice, "sendfile_cached", lambda sock, fd, offset, size: -errno.ENODATA)
    with open(tmp_path / "file", "rb") as file:
        yield file


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == "unix":
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


async def receive(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await soon(asyncio.get_running_loop().sock_recv(sock, 1 << 18))
        assert piece
        data += piece
    return bytes(data)


@pytest.mark.parametrize(("offset", "count"), [(0, None), (0, 1), (7, 100_000), (1_000_003, 1_500_001), (100, 1 << 30)])
async def test_what_is_asked_for_arrives(file: BinaryIO, pair: Pair, offset: int, count: int | None) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    expected = CONTENT[offset:] if count is None else CONTENT[offset : offset + count]
    task = asyncio.create_task(loop.sock_sendfile(near, file, offset, count, fallback=False))
    assert await receive(far, len(expected)) == expected
    assert await soon(task) == len(expected)
    assert file.tell() == offset + len(expected)
    await soon(loop.sock_sendall(near, b"after"))
    assert await receive(far, 5) == b"after"


async def test_empty_file_sends_nothing(tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "empty").touch()
    with open(tmp_path / "empty", "rb") as file:  # noqa: ASYNC230
        assert await soon(asyncio.get_running_loop().sock_sendfile(pair[0], file)) == 0
        assert file.tell() == 0


async def test_behind_the_end_nothing_is_sent(file: BinaryIO, pair: Pair) -> None:
    assert await soon(asyncio.get_running_loop().sock_sendfile(pair[0], file, len(CONTENT) + 10)) == 0


async def test_what_is_no_file_goes_another_way(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(asyncio.SendfileNotAvailableError):
        await loop.sock_sendfile(pair[0], io.BytesIO(CONTENT), fallback=False)
    memory = io.BytesIO(CONTENT)
    task = asyncio.create_task(loop.sock_sendfile(pair[0], memory, 5, 1_000_000))
    assert await receive(pair[1], 1_000_000) == CONTENT[5:1_000_005]
    assert await soon(task) == 1_000_000
    assert memory.tell() == 1_000_005
    await loop.shutdown_default_executor()


async def test_arguments_are_checked(file: BinaryIO, pair: Pair, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    wrong: list[tuple[type[Exception], str, Any, Any]] = [
        (TypeError, "offset must be a non-negative integer", "1", None),
        (ValueError, "offset must be a non-negative integer", -1, None),
        (TypeError, "count must be a positive integer", 0, 1.5),
        (ValueError, "count must be a positive integer", 0, 0),
        (ValueError, "count must be a positive integer", 0, -1),
    ]
    for error, text, offset, count in wrong:
        with pytest.raises(error, match=text):
            await loop.sock_sendfile(pair[0], file, offset, count)
    (tmp_path / "text").write_text("text")
    with open(tmp_path / "text") as text_file, pytest.raises(ValueError, match="binary mode"):  # noqa: ASYNC230
        await loop.sock_sendfile(pair[0], text_file)  # type: ignore[arg-type]
    with (
        socket.socket(type=socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as datagrams,
        pytest.raises(ValueError, match="only SOCK_STREAM"),
    ):
        await loop.sock_sendfile(datagrams, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    with context.wrap_socket(socket.socket(), do_handshake_on_connect=False) as wrapped:
        wrapped.setblocking(False)
        with pytest.raises(TypeError, match="SSL"):
            await loop.sock_sendfile(wrapped, file)
    pair[0].setblocking(True)
    loop.set_debug(True)
    with pytest.raises(ValueError, match="the socket must be non-blocking"):
        await loop.sock_sendfile(pair[0], file)
    loop.set_debug(False)


async def test_socket_that_is_not_connected(file: BinaryIO) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as sock:
        sock.setblocking(False)
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sock_sendfile(sock, file, fallback=False)
        with pytest.raises((BrokenPipeError, ConnectionError)):
            await loop.sock_sendfile(sock, file)
        assert file.tell() in (0, 1 << 18)  # what the other way has read by then
    await loop.shutdown_default_executor()


async def test_peer_goes_in_the_middle(file: BinaryIO, pair: Pair) -> None:
    near, far = pair
    task = asyncio.create_task(asyncio.get_running_loop().sock_sendfile(near, file, fallback=False))
    await receive(far, 100_000)
    far.close()
    with pytest.raises(ConnectionError):
        await soon(task)
    assert 100_000 <= file.tell() < len(CONTENT)


async def test_cancelled_in_the_middle(file: BinaryIO, pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(loop.sock_sendfile(near, file))
    data = bytearray(await receive(far, 1))
    await fence()
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(task)
    near.shutdown(socket.SHUT_WR)
    while piece := await soon(loop.sock_recv(far, 1 << 18)):
        data += piece
    assert 0 < len(data) < len(CONTENT)
    assert data == CONTENT[: len(data)]
    if loop_kind() == "uringloop":  # asyncio leaves it where it was
        assert file.tell() == len(data)


@pytest.mark.only_on("uringloop")  # on asyncio it never returns
async def test_socket_closed_in_the_middle_is_closed_when_it_is_over(file: BinaryIO, pair: Pair) -> None:
    near, far = pair
    task = asyncio.create_task(asyncio.get_running_loop().sock_sendfile(near, file, 0, None, fallback=False))
    received = len(await receive(far, 1))
    await fence()
    near.close()
    while piece := await soon(asyncio.get_running_loop().sock_recv(far, 1 << 18)):
        received += len(piece)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await soon(task)
    await eventually(lambda: near.fileno() == -1)
    assert 0 < received < len(CONTENT)


async def test_transports_socket_is_refused(file: BinaryIO, pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=pair[0])
    sock = transport.get_extra_info("socket")._sock
    with pytest.raises(RuntimeError, match="is used by transport"):
        await soon(loop.sock_sendfile(sock, file))
    transport.abort()
    await eventually(lambda: sock.fileno() == -1)
