"""A listening socket that several loops accept on, as the workers of uvicorn and gunicorn do."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest
from support import PATIENCE, Echo, LoopFactory, connect_plainly

CLIENTS = 20


def listening(family: str, folder: Path) -> socket.socket:
    sock = socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX)
    sock.bind(("127.0.0.1", 0) if family == "tcp" else str(folder / "socket"))
    sock.listen()
    sock.setblocking(False)
    return sock


async def serve(family: str, sock: socket.socket) -> asyncio.Server:
    loop = asyncio.get_running_loop()
    create = loop.create_server if family == "tcp" else loop.create_unix_server
    return await create(Echo, sock=sock)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_clients_are_served_while_another_worker_is_busy(new_loop: LoopFactory, family: str, tmp_path: Path) -> None:
    busy_loop, free_loop = new_loop(), new_loop()
    is_busy, go_on = threading.Event(), threading.Event()
    first = listening(family, tmp_path)
    second = first.dup()
    address = first.getsockname()

    async def busy() -> None:
        server = await serve(family, first)
        await asyncio.sleep(0.01)  # it has begun to accept, before the other
        is_busy.set()
        go_on.wait(PATIENCE)
        server.close()
        await asyncio.sleep(0.01)

    def ask() -> None:
        for _ in range(CLIENTS):
            with connect_plainly(address) as client:
                client.sendall(b"hello")
                assert client.recv(5) == b"hello"

    async def free() -> None:
        server = await serve(family, second)
        await asyncio.get_running_loop().run_in_executor(None, ask)
        server.close()
        await asyncio.get_running_loop().shutdown_default_executor()

    thread = threading.Thread(target=busy_loop.run_until_complete, args=[busy()])
    thread.start()
    try:
        assert is_busy.wait(PATIENCE)
        free_loop.run_until_complete(asyncio.wait_for(free(), PATIENCE))
    finally:
        go_on.set()
        thread.join(PATIENCE)
