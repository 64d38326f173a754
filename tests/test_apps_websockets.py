"""The websockets library, client and server, both on the loop under test."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from support import PATIENCE, eventually, fence, soon
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.asyncio.server import Server, ServerConnection, serve, unix_serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK, InvalidStatus

Handler = Callable[[ServerConnection], Awaitable[None]]

LARGE = 8 << 20  # bytes; more than all socket buffers on the way
CLIENTS = 100
QUIET: dict[str, Any] = {"ping_interval": None, "close_timeout": PATIENCE, "open_timeout": PATIENCE, "max_size": None}
TO_THE_SERVER: dict[str, Any] = QUIET | {"proxy": None}

compressions = pytest.mark.parametrize("compression", ["deflate", None])


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@asynccontextmanager
async def serving(handler: Handler = echo, **options: Any) -> AsyncIterator[str]:
    """A server; gives its URL."""
    async with serve(handler, "127.0.0.1", 0, **QUIET | options) as server:
        yield url_of(server)


@asynccontextmanager
async def talking(handler: Handler = echo, **options: Any) -> AsyncIterator[ClientConnection]:
    """A server and one client, connected."""
    async with serving(handler, **options) as url, connect(url, **TO_THE_SERVER | options) as connection:
        yield connection


def url_of(server: Server) -> str:
    host, port = next(iter(server.sockets)).getsockname()[:2]
    return f"ws://{host}:{port}/"


# ---------------------------------------------------------------------------------------------------------------------
# Messages
# ---------------------------------------------------------------------------------------------------------------------


@compressions
@pytest.mark.parametrize(
    "size", [0, 1, 125, 126, 65_535, 65_536, LARGE]
)  # where the frame's header changes, and beyond
async def test_binary_message_comes_back_as_it_was_sent(size: int, compression: str | None) -> None:
    message = os.urandom(size)
    async with talking(compression=compression) as connection:
        await soon(connection.send(message))
        assert await soon(connection.recv()) == message


async def test_text_stays_text_and_bytes_stay_bytes() -> None:
    async with talking() as connection:
        for message in ("grüß", b"\x00\xff", "", b""):
            await connection.send(message)
            received = await soon(connection.recv())
            assert received == message
            assert type(received) is type(message)


async def test_fragments_are_one_message_to_the_reader_that_wants_one() -> None:
    pieces = [os.urandom(size) for size in (1, 70_000, 0, 3)]

    async def upload() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with talking() as connection:
        await soon(connection.send(upload()))
        assert await soon(connection.recv()) == b"".join(pieces)


async def test_many_messages_in_flight_keep_their_order() -> None:
    count = 2000
    async with talking(compression=None) as connection, asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:

        async def say() -> None:
            for number in range(count):
                await connection.send(str(number))

        tasks.create_task(say())
        for number in range(count):
            assert await connection.recv() == str(number)


async def test_sender_waits_for_a_reader_that_does_not_read() -> None:
    count = 10
    reading = asyncio.Event()

    async def take(connection: ServerConnection) -> None:
        await reading.wait()
        for number in range(count):
            assert await connection.recv() == bytes([number]) * LARGE
        await connection.send("all")

    async def say(connection: ClientConnection) -> None:
        for number in range(count):
            await connection.send(bytes([number]) * LARGE)

    async with talking(take, compression=None, max_queue=1) as connection:
        saying = asyncio.create_task(say(connection))
        try:
            await eventually(lambda: connection.transport.get_write_buffer_size() > 0)
            await fence()
            assert not saying.done()
        finally:
            reading.set()
        await soon(saying)
        assert await soon(connection.recv()) == "all"


async def test_ping_is_answered_in_either_direction() -> None:
    async def ping_first(connection: ServerConnection) -> None:
        await soon(await connection.ping(b"from the server"))
        await echo(connection)

    async with talking(ping_first) as connection:
        latency = await soon(await connection.ping(b"from the client"))
        assert 0 <= latency < PATIENCE
        await connection.send("and goes on")
        assert await soon(connection.recv()) == "and goes on"


# ---------------------------------------------------------------------------------------------------------------------
# Ends
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "error"), [(1000, ConnectionClosedOK), (1001, ConnectionClosedOK)])
async def test_server_that_leaves_politely_is_told_with_its_code(code: int, error: type[ConnectionClosed]) -> None:
    async def leave(connection: ServerConnection) -> None:
        await connection.close(code, "bye")

    async with talking(leave) as connection:
        with pytest.raises(error):
            await soon(connection.recv())
        assert (connection.close_code, connection.close_reason) == (code, "bye")


@pytest.mark.parametrize("code", [1002, 1011, 3000, 4999])
async def test_client_that_leaves_in_trouble_is_told_with_its_code(code: int) -> None:
    seen = asyncio.get_running_loop().create_future()

    async def listen(connection: ServerConnection) -> None:
        with pytest.raises(ConnectionClosedError):
            await connection.recv()
        seen.set_result((connection.close_code, connection.close_reason))

    async with talking(listen) as connection:
        await soon(connection.close(code, "trouble"))
        assert await soon(seen) == (code, "trouble")


async def test_client_that_vanishes_is_noticed() -> None:
    seen = asyncio.get_running_loop().create_future()

    async def listen(connection: ServerConnection) -> None:
        with pytest.raises(ConnectionClosedError):
            await connection.recv()
        seen.set_result(connection.close_code)

    async with talking(listen) as connection:
        connection.transport.abort()
        assert await soon(seen) == 1006  # no close frame came


async def test_handler_that_fails_closes_with_an_internal_error() -> None:
    async def fail(connection: ServerConnection) -> None:
        raise ZeroDivisionError

    async with talking(fail) as connection:
        with pytest.raises(ConnectionClosedError):
            await soon(connection.recv())
        assert connection.close_code == 1011


async def test_message_that_is_too_big_is_refused_by_its_receiver() -> None:
    async with serving(max_size=1000) as url, connect(url, **TO_THE_SERVER) as connection:
        await connection.send(b"x" * 1001)
        with pytest.raises(ConnectionClosedError):
            await soon(connection.recv())
        assert connection.close_code == 1009


async def test_handshake_that_is_declined_is_an_http_status() -> None:
    def decline(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(403, "not you\n")

    async with serving(process_request=decline) as url:
        with pytest.raises(InvalidStatus, match="403"):
            await connect(url, **TO_THE_SERVER)


async def test_server_that_closes_says_going_away_to_all() -> None:
    async with serve(echo, "127.0.0.1", 0, **QUIET) as server:
        clients = [await connect(url_of(server), **TO_THE_SERVER) for _ in range(10)]
        server.close()
        for client in clients:
            await soon(client.wait_closed())
            assert client.close_code == 1001
        await soon(server.wait_closed())


# ---------------------------------------------------------------------------------------------------------------------
# Many clients, and other sockets
# ---------------------------------------------------------------------------------------------------------------------


async def test_many_clients_at_once_get_each_its_own_messages() -> None:
    async def talk(url: str, name: int) -> None:
        async with connect(url, **TO_THE_SERVER) as connection:
            for number in range(20):
                await connection.send(f"{name} says {number}")
                assert await connection.recv() == f"{name} says {number}"

    async with serving() as url, asyncio.timeout(3 * PATIENCE), asyncio.TaskGroup() as talks:
        for name in range(CLIENTS):
            talks.create_task(talk(url, name))


async def test_broadcast_reaches_every_client() -> None:
    connected: set[ServerConnection] = set()
    everybody = asyncio.Event()

    async def join(connection: ServerConnection) -> None:
        connected.add(connection)
        if len(connected) == CLIENTS:
            everybody.set()
        await connection.wait_closed()

    async with serving(join) as url:
        clients = [await connect(url, **TO_THE_SERVER) for _ in range(CLIENTS)]
        await soon(everybody.wait())
        message = os.urandom(10_000)
        for connection in connected:
            await connection.send(message)
        for client in clients:
            assert await soon(client.recv()) == message
            await soon(client.close())


async def test_message_comes_back_over_tls() -> None:
    authority = trustme.CA()
    server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server_tls)
    client_tls = ssl.create_default_context()
    authority.configure_trust(client_tls)
    message = os.urandom(LARGE)
    async with serving(ssl=server_tls, compression=None) as url:
        connection = await connect(url.replace("ws:", "wss:"), ssl=client_tls, **TO_THE_SERVER)
        await soon(connection.send(message))
        assert await soon(connection.recv()) == message
        await soon(connection.close())


async def test_message_comes_back_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    async with unix_serve(echo, path, **QUIET), unix_connect(path, **QUIET) as connection:
        await connection.send("over a Unix socket")
        assert await soon(connection.recv()) == "over a Unix socket"
