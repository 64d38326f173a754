"""A hardened loop works by the networking that its ring may do; tests/core/test_restrictions.c has what it refuses."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from support import PATIENCE

import uringloop


async def _exchange(folder: Path) -> bytes:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        answered = await reader.read()
        writer.close()
        await writer.wait_closed()
    async with uringloop.open(folder / "file", "wb") as file:
        await file.write(answered)
    async with uringloop.open(folder / "file", "rb") as file:
        return bytes(await file.read())


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_a_hardened_loop_serves_and_writes_files(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "environment":
        monkeypatch.setenv("URINGLOOP_HARDENED", "1")
    loop = uringloop.new_event_loop(**({"hardened": True} if way == "argument" else {}))
    try:
        assert loop.stats().hardened  # type: ignore[attr-defined]
        assert loop.run_until_complete(_exchange(tmp_path)) == b"hello\n"
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


async def _send_under_tls(path: Path, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> bytes:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with path.open("rb") as file:
            await asyncio.get_running_loop().sendfile(writer.transport, file)
        writer.close()

    async with await asyncio.start_server(send, "127.0.0.1", 0, ssl=server_tls) as server:
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address, ssl=client_tls, server_hostname="localhost")
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        return received


def test_a_hardened_loop_sends_a_file_under_tls(
    tmp_path: Path, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    """Which is read by the ring elsewhere."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    loop = uringloop.new_event_loop(hardened=True)
    try:
        received = loop.run_until_complete(asyncio.wait_for(_send_under_tls(path, server_tls, client_tls), PATIENCE))
        assert received == path.read_bytes()
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


def test_what_the_environment_says_must_make_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URINGLOOP_HARDENED", "yes")
    with pytest.raises(ValueError, match="URINGLOOP_HARDENED"):
        uringloop.new_event_loop()


def test_the_argument_is_stronger_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URINGLOOP_HARDENED", "1")
    loop = uringloop.new_event_loop(hardened=False)
    try:
        assert not loop.stats().hardened  # type: ignore[attr-defined]
    finally:
        loop.close()
