"""A protocol that lets KeyboardInterrupt or SystemExit out of one of its methods: the run ends, and when the loop is
run again the transport goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from datagrams import Datagrams, native_only
from support import (
    BufferedRecorder,
    Journal,
    LoopFactory,
    Peer,
    Recorder,
    address_of,
    connect_plainly,
    eventually,
    fence,
    listen,
    soon,
)
from tls import Tls

pytestmark = [
    pytest.mark.only_on("asyncio", "uringloop"),  # uvloop hands what a protocol raises to the exception handler
    pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt]),
]

Error = type[BaseException]


class Exiting(Journal):
    """Lets an error out of one of its methods when that is called for the first time."""

    def __init__(self, method: str, error: Error) -> None:
        super().__init__()
        self.method = method
        self.error = error

    def _write_down(self, call: str) -> None:
        first = call not in self.calls
        super()._write_down(call)
        if call == self.method and first:
            raise self.error


class Stream(Exiting, Recorder):
    """Of a connection or a pipe."""


class Datagram(Exiting, Datagrams):
    """Of a datagram endpoint."""


def run_out(loop: asyncio.AbstractEventLoop, error: Error) -> None:
    """Runs the loop until the error ends that."""
    with pytest.raises(error):
        loop.run_forever()


async def ended(protocol: Journal) -> None:
    protocol.transport.abort()
    await protocol.lost()


# ---------------------------------------------------------------------------------------------------------------------
# connection_made
# ---------------------------------------------------------------------------------------------------------------------


def test_connection_that_is_made_goes_on(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Stream("connection_made", error)
    near, far = socket.socketpair()
    connecting = loop.create_task(loop.create_connection(lambda: protocol, sock=near))
    run_out(loop, error)

    async def finish() -> None:
        assert (await soon(connecting))[1] is protocol
        assert await protocol.received(5) == b"hello"
        await ended(protocol)

    with far:
        far.sendall(b"hello")
        loop.run_until_complete(finish())
    protocol.check_order()


def test_connection_that_is_accepted_goes_on(new_loop: LoopFactory, error: Error, family: str, tmp_path: Path) -> None:
    loop = new_loop()
    protocol = Stream("connection_made", error)
    server = loop.run_until_complete(listen(family, lambda: protocol, tmp_path))

    async def finish() -> None:
        assert await protocol.received(5) == b"hello"
        await ended(protocol)
        server.close()
        await soon(server.wait_closed())

    with connect_plainly(address_of(server)) as peer:
        run_out(loop, error)
        peer.sendall(b"hello")
        loop.run_until_complete(finish())
    protocol.check_order()


def test_pipe_that_is_read_goes_on(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Stream("connection_made", error)
    read_end, write_end = os.pipe()
    connecting = loop.create_task(loop.connect_read_pipe(lambda: protocol, os.fdopen(read_end, "rb", 0)))
    run_out(loop, error)

    async def finish() -> None:
        await soon(connecting)
        os.write(write_end, b"hello")
        assert await protocol.received(5) == b"hello"
        os.close(write_end)
        await protocol.lost()

    loop.run_until_complete(finish())


def test_pipe_that_is_written_goes_on(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Stream("connection_made", error)
    read_end, write_end = os.pipe()
    connecting = loop.create_task(loop.connect_write_pipe(lambda: protocol, os.fdopen(write_end, "wb", 0)))
    run_out(loop, error)

    async def finish() -> None:
        transport, _ = await soon(connecting)
        transport.write(b"hello")
        assert os.read(read_end, 10) == b"hello"
        os.close(read_end)
        await protocol.lost()  # it is told that the reader has gone

    loop.run_until_complete(finish())


def test_endpoint_that_is_made_goes_on(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Datagram("connection_made", error)
    connecting = loop.create_task(loop.create_datagram_endpoint(lambda: protocol, ("127.0.0.1", 0)))
    run_out(loop, error)

    async def finish() -> None:
        transport, _ = await soon(connecting)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"hello", transport.get_extra_info("sockname"))
            await protocol.called("datagram_received")
        transport.abort()
        await protocol.lost()

    loop.run_until_complete(finish())


# ---------------------------------------------------------------------------------------------------------------------
# eof_received, pause_writing and resume_writing
# ---------------------------------------------------------------------------------------------------------------------

MORE_THAN_THE_KERNEL_TAKES = 4 << 20  # of a socket pair or a pipe


def connected(loop: asyncio.AbstractEventLoop, protocol: Journal) -> Peer:
    """Connects the protocol to a peer; nothing has been interrupted yet."""
    near, far = socket.socketpair()
    loop.run_until_complete(loop.connect_accepted_socket(lambda: protocol, near))
    return Peer(far)


def test_end_of_file_is_told_once_more(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Stream("eof_received", error)
    peer = connected(loop, protocol)
    peer.close()
    run_out(loop, error)
    assert loop.run_until_complete(protocol.lost()) is None
    assert protocol.calls == ["connection_made", "eof_received", "eof_received", "connection_lost"]


def write(protocol: Journal) -> None:
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))


def write_many(protocol: Journal) -> None:
    for _ in range(MORE_THAN_THE_KERNEL_TAKES // 1000):
        protocol.transport.write(bytes(1000))


def lower_the_limits(protocol: Journal) -> None:
    protocol.transport.set_write_buffer_limits(1 << 30)
    write_many(protocol)
    protocol.transport.set_write_buffer_limits(0)


@pytest.mark.parametrize("how", [write_many, lower_the_limits])
def test_paused_writer_hears_that_it_may_go_on(
    new_loop: LoopFactory, error: Error, how: Callable[[Journal], None]
) -> None:
    loop = new_loop()
    protocol = Stream("pause_writing", error)
    peer = connected(loop, protocol)
    loop.call_soon(how, protocol)
    run_out(loop, error)
    assert protocol.calls == ["connection_made", "pause_writing"]

    async def finish() -> None:
        receiving = asyncio.create_task(peer.receive_all())
        await protocol.called("resume_writing")
        protocol.transport.close()
        await protocol.lost()
        await receiving
        await loop.shutdown_default_executor()

    loop.run_until_complete(finish())
    peer.close()


@pytest.mark.only_on("uringloop")  # on asyncio it is never lost
def test_closed_connection_is_lost_when_all_is_sent(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Stream("resume_writing", error)
    peer = connected(loop, protocol)
    write(protocol)
    protocol.transport.close()
    receiving = loop.create_task(peer.receive_all())
    run_out(loop, error)

    async def finish() -> None:
        assert await protocol.lost() is None
        assert len(await soon(receiving)) == MORE_THAN_THE_KERNEL_TAKES
        await loop.shutdown_default_executor()

    loop.run_until_complete(finish())
    peer.close()


@pytest.mark.only_on("uringloop")  # on asyncio it is never lost
def test_closed_pipe_is_lost_when_all_is_written(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Stream("resume_writing", error)
    read_end, write_end = os.pipe()
    loop.run_until_complete(loop.connect_write_pipe(lambda: protocol, os.fdopen(write_end, "wb", 0)))
    write(protocol)
    protocol.transport.close()

    def read_all() -> int:
        with open(read_end, "rb") as file:
            return len(file.read())

    reading = loop.run_in_executor(None, read_all)
    run_out(loop, error)

    async def finish() -> None:
        assert await protocol.lost() is None
        assert await soon(reading) == MORE_THAN_THE_KERNEL_TAKES
        await loop.shutdown_default_executor()

    loop.run_until_complete(finish())


@native_only
@pytest.mark.only_on("uringloop")  # asyncio's are paused only where the kernel does not take a datagram at once
def test_paused_endpoint_hears_that_it_may_go_on(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Datagram("pause_writing", error)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        making = loop.create_datagram_endpoint(lambda: protocol, remote_addr=peer.getsockname())
        transport, _ = loop.run_until_complete(making)
        transport.set_write_buffer_limits(0)
        loop.call_soon(transport.sendto, b"hello")
        run_out(loop, error)
        loop.run_until_complete(protocol.called("resume_writing"))
        transport.close()
        loop.run_until_complete(protocol.lost())
        assert peer.recv(10) == b"hello"


# ---------------------------------------------------------------------------------------------------------------------
# get_buffer and buffer_updated
# ---------------------------------------------------------------------------------------------------------------------


class Buffered(Exiting, BufferedRecorder):
    """Has room for a part of what comes."""

    buffer_size = 10

    def get_buffer(self, sizehint: int) -> bytearray:
        self._write_down("get_buffer")
        return super().get_buffer(sizehint)


@pytest.mark.parametrize("method", ["get_buffer", "data_received"])  # the latter is written down in buffer_updated
@pytest.mark.parametrize("paused", [False, True])
def test_no_byte_is_lost_of_a_buffered_protocol(new_loop: LoopFactory, error: Error, method: str, paused: bool) -> None:
    loop = new_loop()
    protocol = Buffered(method, error)
    peer = connected(loop, protocol)
    message = bytes(range(100))

    async def pause() -> None:
        await fence()  # it receives by now
        protocol.transport.pause_reading()
        peer.sock.sendall(message[:50])
        await fence()
        loop.call_soon(protocol.transport.resume_reading)

    if paused:
        loop.run_until_complete(pause())
    else:
        peer.sock.sendall(message[:50])
    run_out(loop, error)

    async def finish() -> None:
        peer.sock.sendall(message[50:])
        assert await protocol.received(100) == message
        await ended(protocol)

    loop.run_until_complete(finish())
    peer.close()


def test_bytes_that_are_kept_wait_for_the_end_of_a_pause(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()

    class Pausing(Buffered):
        def buffer_updated(self, nbytes: int) -> None:
            self.transport.pause_reading()
            super().buffer_updated(nbytes)

    protocol = Pausing("data_received", error)
    peer = connected(loop, protocol)
    peer.sock.sendall(bytes(20))
    run_out(loop, error)

    async def finish() -> None:
        await fence()
        assert await protocol.received(10) == bytes(10)
        protocol.transport.resume_reading()
        assert await protocol.received(10) == bytes(10)
        await ended(protocol)

    loop.run_until_complete(finish())
    peer.close()


def test_end_of_file_comes_behind_bytes_that_are_kept(new_loop: LoopFactory, error: Error) -> None:
    loop = new_loop()
    protocol = Buffered("get_buffer", error)
    peer = connected(loop, protocol)
    peer.sock.sendall(bytes(range(50)))
    peer.close()
    run_out(loop, error)
    loop.run_until_complete(protocol.lost())
    assert protocol.data == bytes(range(50))
    assert protocol.calls[-2:] == ["eof_received", "connection_lost"]


# ---------------------------------------------------------------------------------------------------------------------
# What else happened in that turn
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [False, True])
def test_what_came_to_another_is_not_lost(new_loop: LoopFactory, error: Error, debug: bool) -> None:
    loop = new_loop()
    loop.set_debug(debug)
    protocols = [Stream("data_received", error) for _ in range(2)]
    peers = [connected(loop, protocol) for protocol in protocols]
    loop.run_until_complete(fence())
    for peer in peers:
        peer.sock.sendall(b"hello")
    for _ in protocols:
        run_out(loop, error)
    assert [protocol.data for protocol in protocols] == [b"hello", b"hello"]
    for protocol, peer in zip(protocols, peers, strict=True):
        loop.run_until_complete(ended(protocol))
        peer.close()


@pytest.mark.only_on("uringloop")  # it has been accepted by then
def test_client_that_was_being_accepted_when_the_loop_is_closed(
    new_loop: LoopFactory, error: Error, tmp_path: Path
) -> None:
    loop = new_loop()
    protocol = Stream("data_received", error)
    peer = connected(loop, protocol)
    server = loop.run_until_complete(listen("tcp", Recorder, tmp_path))
    loop.run_until_complete(fence())
    peer.sock.sendall(b"hello")
    client = Peer(connect_plainly(address_of(server)))
    run_out(loop, error)
    server.close()
    loop.close()
    assert asyncio.run(soon(client.sees_the_end()))
    client.close()
    peer.close()

    def drop() -> None:
        del protocol.transport
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed transport"):
        drop()


# ---------------------------------------------------------------------------------------------------------------------
# connection_lost
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "abort"])
def test_connection_is_closed_though_its_protocol_ends_the_run(new_loop: LoopFactory, error: Error, end: str) -> None:
    loop = new_loop()
    protocol = Stream("connection_lost", error)
    peer = connected(loop, protocol)
    getattr(protocol.transport, end)()
    run_out(loop, error)
    assert asyncio.run(soon(peer.sees_the_end()))
    assert protocol.calls == ["connection_made", "connection_lost"]
    peer.close()


# ---------------------------------------------------------------------------------------------------------------------
# TLS
# ---------------------------------------------------------------------------------------------------------------------


def test_connection_that_is_accepted_goes_on_under_tls(
    new_loop: LoopFactory, error: Error, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    loop = new_loop()
    tls = Tls(server_tls, client_tls)
    protocol = Stream("connection_made", error)
    address, _ = loop.run_until_complete(tls.serve(lambda: protocol))
    connecting = loop.create_task(tls.connect(Recorder, address))
    run_out(loop, error)

    async def finish() -> None:
        client = await soon(connecting)
        client.transport.write(b"hello")
        assert await protocol.received(5) == b"hello"
        await tls.close()

    loop.run_until_complete(finish())


@pytest.mark.only_on("uringloop")  # on asyncio whoever connects waits for ever
def test_connection_that_is_made_goes_on_under_tls(
    new_loop: LoopFactory, error: Error, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    loop = new_loop()
    tls = Tls(server_tls, client_tls)
    protocol = Stream("connection_made", error)
    address, served = loop.run_until_complete(tls.serve(Recorder))
    connecting = loop.create_task(tls.connect(lambda: protocol, address))
    run_out(loop, error)

    async def finish() -> None:
        assert await soon(connecting) is protocol
        await eventually(lambda: served and served[0].calls)
        served[0].transport.write(b"hello")
        assert await protocol.received(5) == b"hello"
        await tls.close()

    loop.run_until_complete(finish())
