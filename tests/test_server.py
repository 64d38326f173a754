"""Servers: their sockets, starting and stopping, and what becomes of their connections."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import pytest
from support import (
    Address,
    Echo,
    LoopFactory,
    Peer,
    Recorder,
    Unhandled,
    address_of,
    connect,
    connect_plainly,
    eventually,
    fence,
    listen,
    loop_kind,
    per_loop,
    soon,
    tracked,
)

import uringloop

REFUSED = (ConnectionRefusedError, FileNotFoundError)  # a Unix socket that is gone may leave its path, or not


def is_refused(address: Address) -> bool:
    try:
        connect_plainly(address).close()
    except REFUSED:
        return True
    return False


async def served(address: Address) -> bool:
    """Whether an Echo server answers there."""
    client = await connect(Recorder, address)
    client.transport.write(b"?")
    answer = await client.received(1)
    client.transport.close()
    await client.lost()
    return answer == b"?"


async def closed(server: asyncio.Server) -> None:
    server.close()
    await soon(server.wait_closed())


# ---------------------------------------------------------------------------------------------------------------------
# Starting
# ---------------------------------------------------------------------------------------------------------------------


async def test_server_tells_its_sockets_until_it_is_closed(family: str, tmp_path: Path) -> None:
    server = await listen(family, Recorder, tmp_path)
    assert server.is_serving()
    assert server.get_loop() is asyncio.get_running_loop()
    # uvloop has a list, of a class of its own.
    assert type(server.sockets) is per_loop(asyncio=tuple, uvloop=list, uringloop=tuple)
    (sock,) = server.sockets
    assert sock.type == socket.SOCK_STREAM
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
    await closed(server)
    assert len(server.sockets) == 0
    assert not server.is_serving()


async def test_server_does_not_listen_before_it_is_started(family: str, tmp_path: Path) -> None:
    server = await listen(family, Echo, tmp_path, start_serving=False)
    address = address_of(server)
    assert not server.is_serving()
    assert is_refused(address)
    await server.start_serving()
    await server.start_serving()
    assert server.is_serving()
    assert await served(address)
    await closed(server)


async def test_server_listens_on_every_host(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    server = await tracked(loop.create_server(Echo, ["127.0.0.1", "127.0.0.2", "::1"], 0))
    addresses = [sock.getsockname() for sock in server.sockets]
    assert {address[0] for address in addresses} == {"127.0.0.1", "127.0.0.2", "::1"}
    for address in addresses:
        assert await served(address)
    await closed(server)


async def test_address_in_use_is_an_error_and_closes_what_was_opened() -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.2", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match="address already in use"):
            await loop.create_server(Echo, ["127.0.0.1", "127.0.0.2"], port)
    # That no socket is left open is looked after by the fixture `nothing_left_open`.


async def test_backlog_is_how_many_connections_may_wait(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    if isinstance(loop, uringloop.Loop) and not loop.stats().defer_taskrun:
        pytest.skip("without DEFER_TASKRUN the kernel accepts at any system call of the thread, so none wait")
    server = await listen("unix", Recorder, tmp_path, backlog=3)
    waiting = []
    # The loop does not run meanwhile. A full Unix backlog, of one more than asked for, refuses at once.
    with pytest.raises(BlockingIOError):  # noqa: PT012 - sooner or later
        for _ in range(10):
            sock = socket.socket(socket.AF_UNIX)
            waiting.append(sock)
            sock.setblocking(False)
            sock.connect(address_of(server))
    assert len(waiting) == 5
    for sock in waiting:
        sock.close()
    await fence()
    await closed(server)


async def test_two_servers_can_share_a_port_if_both_say_so() -> None:
    loop = asyncio.get_running_loop()
    first = await tracked(loop.create_server(Echo, "127.0.0.1", 0, reuse_port=True))
    host, port = address_of(first)
    second = await tracked(loop.create_server(Echo, host, port, reuse_port=True))
    with pytest.raises(OSError, match="address already in use"):
        await loop.create_server(Echo, host, port)
    await closed(first)
    assert await served((host, port))
    await closed(second)


async def test_listening_socket_can_be_handed_in(family: str, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    if family == "tcp":
        server = await tracked(loop.create_server(Echo, sock=socket.create_server(("127.0.0.1", 0))))
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "socket"))
        server = await tracked(loop.create_unix_server(Echo, sock=sock))
    assert await served(address_of(server))
    await closed(server)


async def test_connections_that_come_all_at_once_are_all_accepted(family: str, tmp_path: Path) -> None:
    server = await listen(family, Echo, tmp_path, backlog=1000)
    peers = [Peer(connect_plainly(address_of(server))) for _ in range(300)]
    for number, peer in enumerate(peers):
        peer.sock.sendall(b"%3d" % number)
    for number, peer in enumerate(peers):
        assert await peer.receive(3) == b"%3d" % number
        peer.close()
    await fence()
    await closed(server)


async def test_client_that_has_reset_its_connection_before_it_is_accepted(tmp_path: Path) -> None:
    class Named(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            names.append(transport.get_extra_info("peername"))
            made.append(self)

    names: list[Address] = []
    made: list[Named] = []
    server = await listen("tcp", Named, tmp_path)
    await fence()
    peer = Peer(connect_plainly(address_of(server)))
    own = peer.sock.getsockname()
    peer.reset()
    await eventually(lambda: made)
    assert isinstance(await made[0].lost(), ConnectionResetError)
    # asyncio remembers what accept() told; the others ask the socket, which has no peer any more.
    assert names == [per_loop(asyncio=own, uvloop=None, uringloop=None)]
    await closed(server)


# ---------------------------------------------------------------------------------------------------------------------
# Stopping
# ---------------------------------------------------------------------------------------------------------------------


async def test_close_stops_accepting_before_it_returns(family: str, tmp_path: Path) -> None:
    server = await listen(family, Echo, tmp_path)
    address = address_of(server)
    assert await served(address)
    server.close()
    assert is_refused(address)  # the loop has not run since
    server.close()
    await soon(server.wait_closed())


async def test_client_that_came_in_the_turn_in_which_its_server_is_closed(family: str, tmp_path: Path) -> None:
    class Closes(Recorder):
        def data_received(self, data: bytes) -> None:
            server.close()
            super().data_received(data)

    near, far = socket.socketpair()
    _, closes = await asyncio.get_running_loop().create_connection(Closes, sock=near)
    server = await listen(family, Recorder, tmp_path)
    await fence()
    with far:
        far.send(b"close it")
        client = Peer(connect_plainly(address_of(server)))
        await closes.called("data_received")
        assert await client.sees_the_end()
        client.close()
    await closes.lost()
    await soon(server.wait_closed())


async def test_closed_server_leaves_its_port_to_the_next_at_once() -> None:
    loop = asyncio.get_running_loop()
    server = await tracked(loop.create_server(Echo, "127.0.0.1", 0))
    address = address_of(server)
    assert await served(address)
    server.close()
    successor = await tracked(loop.create_server(Echo, *address))
    assert await served(address)
    await closed(successor)


async def test_connection_that_waits_to_be_accepted_ends_with_the_server(family: str, tmp_path: Path) -> None:
    server = await listen(family, Echo, tmp_path)
    await fence()
    peer = Peer(connect_plainly(address_of(server)))
    await closed(server)
    assert await peer.sees_the_end()
    peer.close()


async def test_what_is_due_comes_before_connection_made_and_bytes_after_its_tasks(family: str, tmp_path: Path) -> None:
    steps: list[str] = []
    loop = asyncio.get_running_loop()

    class Server(Recorder):
        def __init__(self) -> None:
            super().__init__()
            loop.call_soon(steps.append, "due")

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            steps.append("made")
            self.task = loop.create_task(self.work())

        async def work(self) -> None:
            steps.append("task")

        def data_received(self, data: bytes) -> None:
            steps.append("data")
            self.transport.close()

    server = await listen(family, Server, tmp_path)
    with connect_plainly(address_of(server)) as client:
        client.sendall(b"x")
        await eventually(lambda: "data" in steps and "task" in steps)
    made = [step for step in steps if step != "data"]
    assert made == ["due", "made", "task"]
    if loop_kind() != "uvloop":  # there, data may come before a task of connection_made has begun
        assert steps[-1] == "data"
    await closed(server)


async def test_connections_outlive_the_close_of_their_server(family: str, tmp_path: Path) -> None:
    server = await listen(family, Echo, tmp_path)
    client = await connect(Recorder, address_of(server))
    await fence()
    server.close()
    await fence()
    client.transport.write(b"still here")
    assert await client.received(10) == b"still here"
    client.transport.close()
    await client.lost()
    await soon(server.wait_closed())


async def test_wait_closed_waits_for_the_connections(family: str, tmp_path: Path) -> None:
    server = await listen(family, Echo, tmp_path)
    client = await connect(Recorder, address_of(server))
    await fence()
    server.close()
    waiting = asyncio.create_task(server.wait_closed())
    await fence()
    # asyncio.Server, which uringloop uses, waits from 3.12 on; uvloop's only if it is asked before the close.
    assert waiting.done() is (sys.version_info < (3, 12) or loop_kind() == "uvloop")
    client.transport.close()
    await client.lost()
    await soon(waiting)


async def test_async_with_closes_the_server(family: str, tmp_path: Path) -> None:
    async with await listen(family, Echo, tmp_path) as server:
        address = address_of(server)
        assert await served(address)
    assert not server.is_serving()
    assert is_refused(address)


async def test_serve_forever_starts_the_server_and_closes_it_when_cancelled(family: str, tmp_path: Path) -> None:
    server = await listen(family, Echo, tmp_path, start_serving=False)
    address = address_of(server)
    serving = asyncio.create_task(server.serve_forever())
    await eventually(server.is_serving)
    assert await served(address)
    with pytest.raises(RuntimeError, match="already being awaited"):
        await server.serve_forever()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(serving)
    assert is_refused(address)
    with pytest.raises(RuntimeError, match="is closed"):
        await server.serve_forever()


# uvloop's servers do not know their connections.
@pytest.mark.only_on("asyncio", "uringloop")
@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
@pytest.mark.parametrize("how", ["close_clients", "abort_clients"])
async def test_server_can_end_its_connections(family: str, tmp_path: Path, how: str) -> None:
    server = await listen(family, Echo, tmp_path)
    clients = [await connect(Recorder, address_of(server)) for _ in range(3)]
    await fence()
    server.close()
    getattr(server, how)()
    await soon(server.wait_closed())
    for client in clients:
        assert await client.lost() is None


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop: TypeError
async def test_what_has_no_fd_cannot_be_listened_on() -> None:
    class Mock:
        family, type = socket.AF_INET, socket.SOCK_STREAM
        setblocking = listen = close = getsockname = fileno = lambda *_: None

    mock: Any = Mock()
    with pytest.raises(ValueError, match="Invalid file object"):
        await asyncio.get_running_loop().create_server(Recorder, sock=mock)


# ---------------------------------------------------------------------------------------------------------------------
# Paths of Unix servers
# ---------------------------------------------------------------------------------------------------------------------


async def test_path_is_removed_when_the_server_is_closed(tmp_path: Path) -> None:
    server = await listen("unix", Echo, tmp_path)
    assert (tmp_path / "socket").is_socket()
    await closed(server)
    assert (tmp_path / "socket").exists() is (sys.version_info < (3, 13))


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in Python 3.13")
async def test_path_is_left_if_asked_for(tmp_path: Path) -> None:
    server = await listen("unix", Echo, tmp_path, cleanup_socket=False)
    await closed(server)
    assert (tmp_path / "socket").is_socket()


async def test_path_that_is_another_servers_by_now_is_left(tmp_path: Path) -> None:
    first = await listen("unix", Echo, tmp_path)
    os.unlink(tmp_path / "socket")
    second = await listen("unix", Echo, tmp_path)
    await closed(first)
    assert await served(str(tmp_path / "socket"))
    await closed(second)


async def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "socket"))
    server = await listen("unix", Echo, tmp_path)
    assert await served(str(tmp_path / "socket"))
    await closed(server)


async def test_file_that_is_not_a_socket_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "socket").write_text("precious")
    with pytest.raises(OSError, match="already in use"):
        await listen("unix", Echo, tmp_path)
    assert (tmp_path / "socket").read_text() == "precious"


async def test_path_may_be_a_path_object_or_bytes(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    for number, kind in enumerate([Path, os.fsencode]):
        path = kind(str(tmp_path / str(number)))  # type: ignore[operator]
        server = await tracked(loop.create_unix_server(Echo, path))
        _, client = await loop.create_unix_connection(Recorder, path)
        client.transport.close()
        await client.lost()
        await closed(server)


# uvloop listens on such an address, but cannot connect to it.
@pytest.mark.only_on("asyncio", "uringloop")
async def test_abstract_address_has_no_file() -> None:
    loop = asyncio.get_running_loop()
    name = f"\0uringloop-test-{os.getpid()}"
    server = await tracked(loop.create_unix_server(Echo, name))
    _, client = await loop.create_unix_connection(Recorder, name)
    client.transport.write(b"?")
    assert await client.received(1) == b"?"
    client.transport.close()
    await client.lost()
    await closed(server)


@pytest.mark.only_on("uringloop")  # the other two assert it, and asyncio leaves the socket to the collector
@pytest.mark.filterwarnings("ignore:unclosed transport <asyncio._SSL:ResourceWarning")  # asyncio's
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_server_that_is_closed_by_its_factory_drops_the_connection(tls: bool, unhandled: Unhandled) -> None:
    def closing() -> Echo:
        server.close()
        return Echo()

    loop = asyncio.get_running_loop()
    server = await tracked(
        loop.create_server(
            closing, "127.0.0.1", 0, ssl=ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if tls else None
        )
    )
    with connect_plainly(address_of(server)) as client:
        context = await unhandled.next()
        assert context["message"] == "Error on transport creation for incoming connection"
        assert str(context["exception"]) == "the server was closed while it accepted this connection"
        assert await Peer(client).sees_the_end()
    await soon(server.wait_closed())


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no abort_clients
@pytest.mark.skipif(sys.version_info < (3, 13), reason="Server.abort_clients is new in Python 3.13")
def test_connection_that_is_aborted_before_it_is_made_is_made_and_then_lost(
    new_loop: LoopFactory, family: str, tmp_path: Path
) -> None:
    loop = new_loop()
    protocol = Recorder()

    def interrupt() -> None:
        raise KeyboardInterrupt

    def interrupted_before_it_is_made() -> Recorder:
        loop.call_soon(interrupt)
        return protocol

    server = loop.run_until_complete(listen(family, interrupted_before_it_is_made, tmp_path))

    async def finish() -> None:
        await protocol.lost()
        server.close()
        await soon(server.wait_closed())

    with connect_plainly(address_of(server)):
        with pytest.raises(KeyboardInterrupt):
            loop.run_forever()
        assert protocol.calls == []
        server.abort_clients()
        loop.run_until_complete(finish())
    assert protocol.calls == ["connection_made", "connection_lost"]
    protocol.check_order()


# ---------------------------------------------------------------------------------------------------------------------
# When the loop is closed
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop waits in close() for its servers
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the server's socket, until it is closed
def test_server_is_closed_after_its_loop(new_loop: LoopFactory) -> None:
    """As a `finally` or an `atexit` behind the end of the loop does it."""
    loop = new_loop()
    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
    address = address_of(server)
    loop.close()
    server.close()
    server.close()
    assert not server.is_serving()
    assert is_refused(address)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop's server, not started, asks libuv
def test_closed_loop_starts_no_server(new_loop: LoopFactory) -> None:
    loop = new_loop()
    server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0, start_serving=False))
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        server.start_serving().send(None)
    server.close()
