"""TLS: how the application is called, and what it is given."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import ssl

import pytest
from support import (
    Echo,
    Journal,
    Recorder,
    eventually,
    fence,
    loop_kind,
    soon,
)
from tls import MORE_THAN_THE_BUFFERS_TAKE, Tls

where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


class Located(Recorder):
    """Notes where each of its callbacks runs."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, set[str]] = {}

    def _write_down(self, call: str) -> None:
        self.places.setdefault(call, set()).add(where.get())
        super()._write_down(call)


async def test_protocol_is_called_in_the_context_of_its_connection(tls: Tls) -> None:
    where.set("create_server")
    address, made = await tls.serve(Located)
    where.set("create_connection")
    client = await tls.connect(Located, address)
    where.set("elsewhere")
    await eventually(lambda: made and made[0].calls)
    for sender, receiver in ((client, made[0]), (made[0], client)):
        receiver.transport.pause_reading()
        for _ in range(16):  # what is written when the transport below is full counts
            sender.transport.write(bytes(MORE_THAN_THE_BUFFERS_TAKE // 16))
        receiver.transport.resume_reading()
        await sender.called("resume_writing")
        await receiver.received(MORE_THAN_THE_BUFFERS_TAKE)
    client.transport.close()
    await client.lost()
    await made[0].lost()
    places = [set[str]().union(*protocol.places.values()) for protocol in (made[0], client)]
    if loop_kind() == "asyncio":  # calls in the context of whoever writes, resumes or closes, too
        assert "elsewhere" in places[0] | places[1]
    else:
        assert places == [{"create_server"}, {"create_connection"}]


async def test_what_arrives_after_close_is_dropped(tls: Tls) -> None:
    address, made = await tls.serve(Recorder)
    with tls.peer(address) as peer:
        await peer.send(b"hello")
        await eventually(lambda: made and made[0].data == b"hello")
        made[0].transport.close()  # asks the peer to close too
        await fence()
        await peer.send(b"too late")
        assert await peer.receive(1) == b""
        (await peer.unwrap()).close()
    exc = await made[0].lost()
    assert made[0].data == b"hello"
    if loop_kind() == "asyncio":  # gives up on the connection instead
        assert isinstance(exc, ssl.SSLError)
    else:
        assert exc is None


async def test_data_that_waits_while_reading_is_paused_is_dropped_by_close(tls: Tls) -> None:
    address, made = await tls.serve(Recorder)
    client = await tls.connect(Recorder, address)
    await eventually(lambda: made and made[0].calls)
    client.transport.pause_reading()
    made[0].transport.write(b"unwanted")
    await eventually(client.transport.get_read_buffer_size)  # type: ignore[attr-defined]
    client.transport.resume_reading()
    client.transport.close()
    await client.lost()
    assert client.data == (b"unwanted" if loop_kind() == "asyncio" else b"")


class Duck(Journal):
    """Has get_buffer, and no class says so."""

    def __init__(self) -> None:
        super().__init__()
        self.data = bytearray()
        self.buffer = bytearray(4)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        self._write_down("data_received")


@pytest.mark.only_on("uvloop", "uringloop")  # asyncio goes by the base class
async def test_protocol_is_buffered_by_what_it_has(tls: Tls) -> None:
    address, _ = await tls.serve(Echo)
    client = await tls.connect(Duck, address)
    client.transport.write(b"hello there")
    assert await client.received(11) == b"hello there"


async def test_upgraded_transport_is_there_before_the_first_bytes(tls: Tls) -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    _, server = await loop.connect_accepted_socket(Recorder, far)

    async def upgrade() -> bytes:
        upgraded = await loop.start_tls(server.transport, server, tls.server_context, server_side=True)
        server.transport = upgraded  # type: ignore[assignment]
        return bytes(server.data)

    upgrading = loop.create_task(upgrade())

    def talk() -> None:  # the last piece of the handshake and the first of the data come at once
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        session = tls.client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                session.do_handshake()
                break
            except ssl.SSLWantReadError:
                near.sendall(outgoing.read())
                incoming.write(near.recv(1 << 16))
        session.write(b"hello")
        near.sendall(outgoing.read())

    await asyncio.sleep(0)  # the transport is being upgraded: what comes now is TLS's
    with near:
        await soon(asyncio.to_thread(talk))
        assert await soon(upgrading) == (b"hello" if loop_kind() == "asyncio" else b"")
        assert await server.received(5) == b"hello"
    await server.lost()
