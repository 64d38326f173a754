"""Receives of no bytes, or of a size that cannot be: over at once, also where the last receive had to wait."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support import fence, soon

pytestmark = [
    pytest.mark.tiny_ring,
    pytest.mark.only_on("asyncio", "uringloop"),  # uvloop waits for a byte before it returns none, and fails otherwise
]


@pytest.fixture
async def emptied() -> AsyncIterator[socket.socket]:
    """A socket of which the last receive had to wait, and then took all that there was."""
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(near, 100))
        await fence()
        far.send(b"all")
        assert await soon(receiving) == b"all"
        yield near


async def test_no_bytes(emptied: socket.socket) -> None:
    assert await soon(asyncio.get_running_loop().sock_recv(emptied, 0)) == b""


async def test_into_no_room(emptied: socket.socket) -> None:
    assert await soon(asyncio.get_running_loop().sock_recv_into(emptied, bytearray())) == 0


@pytest.mark.parametrize(("size", "error"), [(-1, ValueError), ("1", TypeError), (None, TypeError)])
async def test_size_that_cannot_be(emptied: socket.socket, size: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        await soon(asyncio.get_running_loop().sock_recv(emptied, size))


@pytest.mark.parametrize("buffer", [b"read only", "text", None])
async def test_into_what_cannot_be_written_to(emptied: socket.socket, buffer: Any) -> None:
    with pytest.raises(TypeError):
        await soon(asyncio.get_running_loop().sock_recv_into(emptied, buffer))
