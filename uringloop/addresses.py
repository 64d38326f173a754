"""Socket addresses between Python and the kernel: what socket.sendto takes and recvfrom gives, as a sockaddr in bytes.

The socket module does this too, but only within its own system calls. Datagrams go to and come from few addresses many
times, so both ways are remembered; names are not, since what they resolve to may change.
"""

from __future__ import annotations

import operator
import os
import socket
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any

FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
# More peers than that at once cost a conversion each, some 1.5 us; a full table is some 300 KiB.
_REMEMBERED = 1024
_PATH_MAX = 108  # sizeof sun_path

_family = struct.Struct("=H")
_port = struct.Struct("!H")
_flow = struct.Struct("!I")
_scope = struct.Struct("=I")


@lru_cache(maxsize=_REMEMBERED)
def unpack(name: bytes) -> Any:
    """What recvfrom gives as the address; None for no name, as of a Unix socket that is not bound."""
    if len(name) <= _family.size:
        return None
    (family,) = _family.unpack_from(name)
    if family == socket.AF_INET:
        return socket.inet_ntop(family, name[4:8]), *_port.unpack_from(name, 2)
    if family == socket.AF_INET6:
        return (
            socket.inet_ntop(family, name[8:24]),
            *_port.unpack_from(name, 2),
            *_flow.unpack_from(name, 4),
            *_scope.unpack_from(name, 24),
        )
    if family == socket.AF_UNIX:
        path = name[2:]
        return path if path[0] == 0 else os.fsdecode(path.partition(b"\0")[0])
    raise ValueError(f"an address of the unknown family {family}")


def unpack_name(name: bytes) -> Any:
    """What getsockname and getpeername give; None for none at all."""
    if len(name) == _family.size:
        return ""  # of a Unix socket that is not bound
    return unpack(name)


def packer(family: int) -> Callable[[Any], bytes]:
    """The function that makes a sockaddr of what sendto takes on a socket of this family. It raises what sendto raises:
    TypeError and OverflowError for what is no address, OSError for a name that does not resolve."""
    return {socket.AF_INET: _pack_inet, socket.AF_INET6: _pack_inet6, socket.AF_UNIX: _pack_unix}[
        socket.AddressFamily(family)
    ]


def _pack_inet(address: Any) -> bytes:
    try:
        return _pack_inet_numeric(address)
    except (OSError, TypeError, ValueError):  # a name, something that cannot be remembered, or no address at all
        return _pack_inet_any(address)


def _pack_inet6(address: Any) -> bytes:
    try:
        return _pack_inet6_numeric(address)
    except (OSError, TypeError, ValueError):
        return _pack_inet6_any(address)


@lru_cache(maxsize=_REMEMBERED)
def _pack_inet_numeric(address: Any) -> bytes:
    _check(address, "AF_INET", (2,))
    return _join_inet(socket.inet_pton(socket.AF_INET, address[0]), address[1])


@lru_cache(maxsize=_REMEMBERED)
def _pack_inet6_numeric(address: Any) -> bytes:
    _check(address, "AF_INET6", (2, 3, 4))
    return _join_inet6(socket.inet_pton(socket.AF_INET6, address[0]), *address[1:])


def _pack_inet_any(address: Any) -> bytes:
    _check(address, "AF_INET", (2,))
    if address[0] == "<broadcast>":
        return _join_inet(b"\xff\xff\xff\xff", address[1])
    return _join_inet(_resolve(socket.AF_INET, address[0]), address[1])


def _pack_inet6_any(address: Any) -> bytes:
    _check(address, "AF_INET6", (2, 3, 4))
    return _join_inet6(_resolve(socket.AF_INET6, address[0]), *address[1:])


def _check(address: Any, family: str, lengths: tuple[int, ...]) -> None:
    if not isinstance(address, tuple):
        raise TypeError(f"{family} address must be tuple, not {type(address).__name__}")
    if len(address) not in lengths:
        raise TypeError(f"{family} address must be a tuple of {' or '.join(map(str, lengths))} items")
    if not isinstance(address[0], str | bytes | bytearray):
        raise TypeError(f"{family} host must be str, bytes or bytearray, not {type(address[0]).__name__}")


def _resolve(family: socket.AddressFamily, host: str | bytes | bytearray) -> bytes:
    # Blocks, as sendto itself does with a name; asyncio's users know to resolve first.
    if not host:
        return bytes(4 if family == socket.AF_INET else 16)
    found = socket.getaddrinfo(_encode(host), None, family, socket.SOCK_DGRAM)
    numeric = str(found[0][4][0]).partition("%")[0]
    return socket.inet_pton(family, numeric)


def _encode(host: str | bytes | bytearray) -> bytes:
    # As sendto does. getaddrinfo refuses a label that is empty or too long before it asks whether the name resolves.
    try:
        name = host.encode("ascii" if host.isascii() else "idna") if isinstance(host, str) else bytes(host)
    except UnicodeError as exc:
        raise TypeError("encoding of hostname failed") from exc
    if 0 in name:
        raise TypeError("host name must not contain null character")
    return name


def _join_inet(host: bytes, port: int) -> bytes:
    return _family.pack(socket.AF_INET) + _port.pack(_in_range("port", port, 0xFFFF)) + host + bytes(8)


def _join_inet6(host: bytes, port: int, flowinfo: int = 0, scope_id: int = 0) -> bytes:
    return (
        _family.pack(socket.AF_INET6)
        + _port.pack(_in_range("port", port, 0xFFFF))
        + _flow.pack(_in_range("flowinfo", _unsigned(flowinfo), 0xFFFFF))
        + host
        + _scope.pack(_unsigned(scope_id))
    )


def _in_range(what: str, value: int, most: int) -> int:
    number = operator.index(value)
    if not 0 <= number <= most:
        raise OverflowError(f"sendto(): {what} must be 0-{most}.")
    return number


def _unsigned(value: int) -> int:
    return operator.index(value) & 0xFFFFFFFF  # as sendto takes these two


def _pack_unix(address: Any) -> bytes:
    path = os.fsencode(address) if isinstance(address, str) else memoryview(address).tobytes()
    named = path[:1] not in (b"", b"\0")  # the others are abstract, and not ended by a NUL
    if len(path) > _PATH_MAX - named:
        raise OSError("AF_UNIX path too long")
    return _family.pack(socket.AF_UNIX) + path + bytes(named)
