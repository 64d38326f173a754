"""Where datagrams go: whatever asyncio takes for an address, and what becomes of the transport if it is none."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
from datagrams import Kind, Make
from support import Unhandled, fence

from uringloop import addresses

pytestmark = [
    pytest.mark.tiny_ring,
    pytest.mark.only_on("asyncio", "uringloop"),  # uvloop has rules of its own for addresses
]


class Number:
    """What numpy's integers are: no int, but good for one."""

    def __init__(self, value: int) -> None:
        self._value = value

    def __index__(self) -> int:
        return self._value


async def test_port_is_anything_that_is_good_for_an_int(endpoint: Make, plain: Kind) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    host, port = peer.getsockname()
    for number in (Number(port), port):
        protocol.transport.sendto(b"data", (host, number))
        await fence()
        assert peer.recv(100) == b"data"


@pytest.mark.filterwarnings("ignore:integer value out of range:DeprecationWarning")  # Python 3.15's socket, of 2**32
@pytest.mark.parametrize("scope", [0, 1, -1, 1 << 32, Number(1)], ids=["0", "1", "-1", "2**32", "index"])
async def test_scope_is_what_is_left_of_it_in_32_bits(endpoint: Make, tmp_path: Any, scope: Any) -> None:
    udp6 = Kind("udp6", tmp_path)
    with udp6.socket() as peer:
        protocol = await endpoint(**udp6.local())
        host, port = peer.getsockname()[:2]
        protocol.transport.sendto(b"data", (host, port, Number(0), scope))
        await fence()
        assert peer.recv(100) == b"data"


@pytest.mark.parametrize("flowinfo", [-1, 1 << 20])
async def test_flowinfo_that_is_out_of_range_ends_the_transport(
    endpoint: Make, tmp_path: Any, unhandled: Unhandled, flowinfo: int
) -> None:
    protocol = await endpoint(**Kind("udp6", tmp_path).local())
    protocol.transport.sendto(b"data", ("::1", 9, flowinfo, 0))
    assert isinstance(await protocol.lost(), OverflowError)
    await unhandled.next()


@pytest.mark.parametrize(
    "host", [f"{'a' * 64}.example", "two..dots", "127.0.0.1.", ".", b"\xff\xff"], ids=lambda host: repr(host)[:20]
)
async def test_name_that_cannot_be_one_is_an_error_of_its_datagram(endpoint: Make, plain: Kind, host: Any) -> None:
    protocol, peer = await endpoint(**plain.local()), plain.socket()
    protocol.transport.sendto(b"nowhere", (host, 9))
    assert isinstance(await protocol.next_error(), socket.gaierror)
    protocol.transport.sendto(b"goes on", peer.getsockname())
    await fence()
    assert peer.recv(100) == b"goes on"


@pytest.mark.parametrize("host", ["a\0b", b"a\0b", "\udc80", f"{'ü' * 64}.example"], ids=ascii)
async def test_what_is_no_name_ends_the_transport(
    endpoint: Make, plain: Kind, unhandled: Unhandled, host: str | bytes
) -> None:
    protocol = await endpoint(**plain.local())
    protocol.transport.sendto(b"nowhere", (host, 9))
    assert isinstance(await protocol.lost(), TypeError)
    await unhandled.next()


@pytest.mark.parametrize("kind_of_path", [os.fsdecode, bytes, bytearray, memoryview])
async def test_unix_path_is_text_or_any_bytes(endpoint: Make, unix: Kind, kind_of_path: Any) -> None:
    protocol, peer = await endpoint(**unix.local()), unix.socket()
    protocol.transport.sendto(b"data", kind_of_path(os.fsencode(peer.getsockname())))
    await fence()
    assert peer.recv(100) == b"data"


def test_addresses_are_what_the_socket_module_makes_of_them() -> None:
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", 65535)),
        (socket.AF_INET, ("", 1)),
        (socket.AF_INET, ("<broadcast>", 2)),
        (socket.AF_INET6, ("::1", 3)),
        (socket.AF_INET6, ("fe80::1", 4, 5, 6)),
        (socket.AF_UNIX, "/a/path"),
        (socket.AF_UNIX, b"\0abstract"),
    ):
        name = addresses.packer(family)(address)
        expected: Any = address
        if family == socket.AF_INET:
            expected = ({"": "0.0.0.0", "<broadcast>": "255.255.255.255"}.get(address[0], address[0]), address[1])  # type: ignore[dict-item,index,call-overload]
        elif family == socket.AF_INET6:
            expected = (*address, 0, 0)[:4]
        assert addresses.unpack(name) == expected
    with pytest.raises(OSError, match="too long"):
        addresses.packer(socket.AF_UNIX)("x" * 108)
