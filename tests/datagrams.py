"""What the datagram tests share: endpoints that write down what happens, and plain sockets for their other ends."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Address, Journal

import uringloop

# Whether uringloop's datagrams are its own here; where the kernel lacks what they need, they are asyncio's.
NATIVE = uringloop.probe().datagrams
native_only = pytest.mark.skipif(not NATIVE, reason="without datagrams of its own the loop has asyncio's")


class Datagrams(Journal, asyncio.DatagramProtocol):
    """Keeps what it is given."""

    transport: Any

    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[bytes, Address]] = []
        self.errors: list[Exception] = []

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.got.append((data, addr))
        self._write_down("datagram_received")

    def error_received(self, exc: Exception) -> None:
        self.errors.append(exc)
        self._write_down("error_received")

    async def next(self) -> tuple[bytes, Address]:
        await self.until(lambda: self.got)
        return self.got.pop(0)

    async def next_error(self) -> Exception:
        await self.until(lambda: self.errors)
        return self.errors.pop(0)


class Kind:
    """Sockets and endpoints of one family."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self._paths = (str(directory / f"socket{number}") for number in itertools.count())
        self.family = {"udp4": socket.AF_INET, "udp6": socket.AF_INET6, "unix": socket.AF_UNIX}[name]
        self.opened: list[socket.socket] = []

    def fresh_address(self) -> Address:
        return next(self._paths) if self.name == "unix" else ({"udp4": "127.0.0.1", "udp6": "::1"}[self.name], 0)

    def socket(self, *, bound: bool = True) -> socket.socket:
        """A plain one; it waits with patience."""
        sock = socket.socket(self.family, socket.SOCK_DGRAM)
        self.opened.append(sock)
        sock.settimeout(PATIENCE)
        if bound:
            sock.bind(self.fresh_address())
        return sock

    def local(self) -> dict[str, Any]:
        return {"local_addr": self.fresh_address(), "family": self.family}

    def connected(self, peer: socket.socket) -> dict[str, Any]:
        name = peer.getsockname()
        return self.local() | {"remote_addr": name if self.name == "unix" else name[:2]}


Make = Callable[..., Any]  # the fixture `endpoint`


def name_of(protocol: Datagrams) -> Address:
    return protocol.transport.get_extra_info("sockname")
