"""Sockets that are none: what stands for a socket, and hands on what it is asked for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
from support import fence, soon

pytestmark = pytest.mark.tiny_ring


class Wrapper:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


class SlottedWrapper:
    __slots__ = ("_sock",)  # nothing else can be set

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


Pair = tuple[Any, socket.socket]


@pytest.fixture(params=[Wrapper, SlottedWrapper])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    with near, far:
        yield request.param(near), far
        near.close()
        assert near.fileno() == -1  # no call keeps it any more


async def test_receive_waits(pair: Pair) -> None:
    wrapper, far = pair
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(wrapper, 4))
    await fence()
    far.send(b"data")
    assert await soon(receiving) == b"data"


async def test_receive_into_waits(pair: Pair) -> None:
    wrapper, far = pair
    buffer = bytearray(4)
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv_into(wrapper, buffer))
    await fence()
    far.send(b"data")
    assert await soon(receiving) == 4
    assert buffer == b"data"


async def test_send_waits_for_room(pair: Pair) -> None:
    wrapper, far = pair
    data = bytes(1 << 20)
    sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(wrapper, data))
    await fence()
    assert not sending.done()
    received = 0
    while received < len(data):
        received += len(await soon(asyncio.to_thread(far.recv, 1 << 16)))
    await soon(sending)


async def test_cancelled_receive_takes_nothing(pair: Pair) -> None:
    wrapper, far = pair
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(wrapper, 4))
    await fence()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    far.send(b"data")
    assert wrapper.recv(4) == b"data"


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop believes it
async def test_mock_that_says_it_is_a_socket_waits() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        mock = Mock(near)  # its __class__ is socket.socket
        mock.fileno = near.fileno
        mock.gettimeout = near.gettimeout
        mock.recv = Mock(side_effect=[BlockingIOError, b"data"])
        far.send(b"x")
        assert await soon(asyncio.get_running_loop().sock_recv(mock, 4)) == b"data"


async def test_calls_wait_where_the_name_of_the_class_is_something_else_s(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        with monkeypatch.context() as patch:  # as tests do that give a program sockets of their own
            patch.setattr(socket, "socket", lambda *arguments: near)
            receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(near, 4))
            await asyncio.sleep(0)
        far.send(b"data")
        assert await soon(receiving) == b"data"
