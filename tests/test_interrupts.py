"""A protocol that lets KeyboardInterrupt or SystemExit out of one of its methods: the run ends, and when the loop is
run again the transport goes on as if nothing had happened."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from datagrams import Datagrams
from support import (
    Journal,
    LoopFactory,
    Recorder,
    address_of,
    connect_plainly,
    listen,
    soon,
)

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
