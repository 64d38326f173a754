"""Servers while memory is out: they say so, and go on when there is memory again."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import Echo, Recorder, Unhandled, address_of, connect, fence, listen, soon

from uringloop import compat

pytestmark = pytest.mark.only_on("uringloop")  # the others keep nothing in the kernel for a listening socket


def without_memory(call: Callable[[int], int], times: int) -> Callable[[int], int]:
    """The call, but that memory is out so many times."""
    left = [-errno.ENOMEM] * times

    def failing(token: int) -> int:
        return left.pop() if left else call(token)

    return failing


async def check_serves(server: asyncio.Server) -> None:
    client = await connect(Recorder, address_of(server))
    client.transport.write(b"?")
    assert await client.received(1) == b"?"
    client.transport.close()
    await client.lost()


async def check_out_of_memory(unhandled: Unhandled) -> None:
    context = await unhandled.next()
    assert context["message"] == "socket.accept() out of system resource"
    assert context["exception"].errno == errno.ENOMEM


async def test_accepting_is_tried_until_there_is_memory(
    tmp_path: Path, unhandled: Unhandled, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop: Any = asyncio.get_running_loop()
    monkeypatch.setattr(compat, "ACCEPT_RETRY_DELAY", 0)
    server = await listen("tcp", Echo, tmp_path)
    (listener,) = loop._selector.listeners.values()
    tried: list[int] = []
    start = without_memory(loop._reactor.listener_start, 2)
    monkeypatch.setattr(loop._reactor, "listener_start", lambda token: tried.append(start(token)) or tried[-1])
    listener.on_accepted(-errno.ENOMEM, 0)
    for _ in range(3):
        await check_out_of_memory(unhandled)
    await fence()
    assert tried == [-errno.ENOMEM, -errno.ENOMEM, 0]
    await check_serves(server)
    server.close()
    await soon(server.wait_closed())


@pytest.mark.parametrize("closed", [False, True])
async def test_connection_behind_which_memory_is_out_is_served(
    tmp_path: Path, unhandled: Unhandled, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    loop: Any = asyncio.get_running_loop()
    monkeypatch.setattr(compat, "ACCEPT_RETRY_DELAY", 0)
    server = await listen("unix", Echo, tmp_path)
    (listener,) = loop._selector.listeners.values()
    started: list[int] = []
    monkeypatch.setattr(loop._reactor, "listener_start", lambda token: started.append(token) or 0)
    near, far = socket.socketpair()
    with far:
        near.setblocking(False)
        listener.on_accepted(near.detach(), -errno.ENOMEM)
        if closed:
            server.close()
        far.send(b"?")
        await fence()
        assert far.recv(1) == b"?"
    if not closed:
        await check_out_of_memory(unhandled)
        await fence()
        assert started == [listener._token]
        server.close()
    await soon(server.wait_closed())
    assert started == ([] if closed else [listener._token])


async def test_port_is_free_soon_if_memory_was_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop: Any = asyncio.get_running_loop()
    server = await listen("tcp", Echo, tmp_path)
    address = address_of(server)
    await check_serves(server)
    monkeypatch.setattr(loop._reactor, "listener_close", without_memory(loop._reactor.listener_close, 2))
    server.close()
    await soon(server.wait_closed())
    await fence()
    with socket.create_server(address):
        pass
