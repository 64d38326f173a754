"""TLS: servers, connections, and streams that are upgraded; handshakes that fail; what a peer sees at the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import ssl
import sys
import weakref

import pytest
import trustme
from support import (
    Address,
    Echo,
    Peer,
    Recorder,
    address_of,
    connect_plainly,
    eventually,
    fence,
    soon,
)
from tls import MORE_THAN_THE_BUFFERS_TAKE, Tls

ALERT, HANDSHAKE = b"\x15", b"\x16"  # how TLS records of these types begin


# ---------------------------------------------------------------------------------------------------------------------
# Connections
# ---------------------------------------------------------------------------------------------------------------------


async def test_echo_over_tls(tls: Tls) -> None:
    address, _ = await tls.serve(Echo)
    client = await tls.connect(Recorder, address)
    client.transport.write(b"hello")
    assert await client.received(5) == b"hello"
    assert client.calls == ["connection_made", "data_received"]


async def test_server_talks_to_a_client_that_does_not_use_the_loop(tls: Tls) -> None:
    address, _ = await tls.serve(Echo)
    with tls.peer(address) as peer:
        await peer.send(b"hello")
        assert await peer.receive(5) == b"hello"
        (await peer.unwrap()).close()


async def test_extra_info_describes_the_session(tls: Tls) -> None:
    address, made = await tls.serve(Recorder)
    client = await tls.connect(Recorder, address)
    await eventually(lambda: made and made[0].calls)
    info = client.transport.get_extra_info
    assert info("sslcontext") is tls.client_context
    assert made[0].transport.get_extra_info("sslcontext") is tls.server_context
    assert dict(info("peercert"))["subjectAltName"] == (("DNS", "localhost"),)
    name, version, bits = info("cipher")
    assert isinstance(name, str)
    assert version.startswith("TLSv1")
    assert bits >= 128
    assert info("compression") is None
    assert isinstance(info("ssl_object"), ssl.SSLObject)
    assert info("ssl_object").version() == "TLSv1.3"
    assert info("peername") == address
    assert made[0].transport.get_extra_info("peername") == info("sockname")
    assert info("socket").fileno() >= 0
    assert info("no such thing", 7) == 7


@pytest.mark.skipif(sys.version_info < (3, 13), reason="until 3.12 asyncio's TLS keeps a failed handshake in a cycle")
@pytest.mark.only_on("uringloop")  # asyncio in the latest of 3.14 and 3.15
async def test_failed_upgrade_leaves_nothing_for_the_collector(tls: Tls) -> None:
    loop = asyncio.get_running_loop()
    address, _ = await tls.serve(Recorder)
    made: list[weakref.ref[asyncio.BaseTransport]] = []

    async def fail() -> None:
        transport, protocol = await loop.create_connection(asyncio.Protocol, *address)
        made.append(weakref.ref(transport))
        trusts_nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        with contextlib.suppress(ssl.SSLCertVerificationError):
            await loop.start_tls(transport, protocol, trusts_nobody, server_hostname="localhost")

    gc.collect()
    gc.disable()
    try:
        await soon(fail())
        await eventually(lambda: [was() for was in made] == [None])
    finally:
        gc.enable()


async def test_client_can_be_asked_for_a_certificate(tls: Tls, authority: trustme.CA) -> None:
    strict, known = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost").configure_cert(strict)
    authority.configure_trust(strict)
    strict.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(known)
    authority.issue_cert("somebody@example.org").configure_cert(known)
    address, made = await tls.serve(Echo, strict)
    client = await tls.connect(Recorder, address, known)
    client.transport.write(b"it is me")
    assert await client.received(8) == b"it is me"
    certificate = made[0].transport.get_extra_info("peercert")
    assert certificate["subjectAltName"] == (("email", "somebody@example.org"),)


async def test_write_eof_is_not_offered(tls: Tls) -> None:
    address, _ = await tls.serve(Recorder)
    client = await tls.connect(Recorder, address)
    assert not client.transport.can_write_eof()
    with pytest.raises(NotImplementedError):
        client.transport.write_eof()


@pytest.mark.parametrize("option", ["ssl_handshake_timeout", "ssl_shutdown_timeout", "server_hostname"])
async def test_tls_options_need_tls(option: str) -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(ValueError, match="only meaningful with ssl"):
        await loop.create_connection(Recorder, "127.0.0.1", 1, **{option: 1})  # type: ignore[call-overload]


# ---------------------------------------------------------------------------------------------------------------------
# Handshakes that fail
# ---------------------------------------------------------------------------------------------------------------------


async def still_serves(tls: Tls, address: Address) -> bool:
    client = await tls.connect(Recorder, address)
    client.transport.write(b"?")
    return await client.received(1) == b"?"


async def test_certificate_for_another_name_is_refused(tls: Tls) -> None:
    address, _ = await tls.serve(Echo)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        await tls.connect(Recorder, address, hostname="example.org")
    assert await still_serves(tls, address)


async def test_certificate_of_an_unknown_authority_is_refused(tls: Tls) -> None:
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trustme.CA().configure_trust(stranger)
    address, _ = await tls.serve(Echo)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        await tls.connect(Recorder, address, stranger)
    assert await still_serves(tls, address)


async def test_client_that_does_not_speak_tls_is_sent_away(tls: Tls) -> None:
    address, made = await tls.serve(Echo)
    peer = Peer(connect_plainly(address))
    await peer.send(b"GET / HTTP/1.1\r\n\r\n")
    alert = await peer.receive_all()  # to its end: the server has closed
    peer.close()
    assert alert[:1] in (b"", ALERT)
    assert made[0].calls == []
    assert await still_serves(tls, address)


async def test_connect_fails_if_the_server_does_not_speak_tls(tls: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = asyncio.create_task(tls.connect(Recorder, listener.getsockname()))
        accepted, _ = await asyncio.to_thread(listener.accept)
        with accepted:
            accepted.sendall(b"220 welcome\r\n")
            with pytest.raises(ssl.SSLError):
                await connecting


async def test_connect_fails_if_the_server_hangs_up_in_the_handshake(tls: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = asyncio.create_task(tls.connect(Recorder, listener.getsockname()))
        accepted, _ = await asyncio.to_thread(listener.accept)
        peer = Peer(accepted)
        assert await peer.receive(1) == HANDSHAKE
        peer.close()
        with pytest.raises(ConnectionError):
            await connecting


async def test_connect_gives_up_on_a_server_that_never_answers(tls: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(ConnectionAbortedError, match=r"handshake is taking longer than 0\.05 seconds"):
            await tls.connect(Recorder, listener.getsockname(), ssl_handshake_timeout=0.05)
        peer = Peer(listener.accept()[0])
        assert (await peer.receive_all()).startswith(HANDSHAKE)  # the client's hello, and the end
        peer.close()


async def test_server_gives_up_on_a_client_that_never_speaks(tls: Tls) -> None:
    address, made = await tls.serve(Echo, ssl_handshake_timeout=0.05)
    peer = Peer(connect_plainly(address))
    assert await peer.receive_all() == b""
    peer.close()
    assert made[0].calls == []


async def test_connect_that_is_cancelled_in_the_handshake_closes_the_connection(tls: Tls) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connecting = asyncio.create_task(tls.connect(Recorder, listener.getsockname()))
        accepted, _ = await asyncio.to_thread(listener.accept)
        peer = Peer(accepted)
        assert await peer.receive(1) == HANDSHAKE
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await peer.receive_all()
        peer.close()


# ---------------------------------------------------------------------------------------------------------------------
# Flow control, and the end
# ---------------------------------------------------------------------------------------------------------------------


async def test_receiver_that_pauses_reading_pauses_the_sender(tls: Tls) -> None:
    address, made = await tls.serve(Recorder)
    client = await tls.connect(Recorder, address)
    await eventually(lambda: made and made[0].calls)
    receiver = made[0]
    receiver.transport.pause_reading()
    written = 0
    while "pause_writing" not in client.calls:
        client.transport.write(bytes(256 << 10))
        written += 256 << 10
        await fence()
        assert written < 4 * MORE_THAN_THE_BUFFERS_TAKE, "the sender was never told to wait"
    assert receiver.calls == ["connection_made"]
    assert "resume_writing" not in client.calls
    receiver.transport.resume_reading()
    await client.called("resume_writing")
    assert await receiver.received(written) == bytes(written)


async def test_close_sends_everything_written_before(tls: Tls) -> None:
    data = random.Random(1).randbytes(MORE_THAN_THE_BUFFERS_TAKE)

    class Sender(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.transport.write(data)
            self.transport.close()

    address, made = await tls.serve(Sender)
    client = await tls.connect(Recorder, address)
    assert await client.lost() is None
    assert client.data == data
    assert await made[0].lost() is None


async def test_abort_loses_the_connection_at_once(tls: Tls) -> None:
    address, made = await tls.serve(Recorder)
    client = await tls.connect(Recorder, address)
    await eventually(lambda: made and made[0].calls)
    made[0].transport.pause_reading()
    client.transport.write(bytes(MORE_THAN_THE_BUFFERS_TAKE))
    await fence()
    client.transport.abort()
    assert await client.lost() is None
    made[0].transport.resume_reading()
    await made[0].lost()
    assert len(made[0].data) < MORE_THAN_THE_BUFFERS_TAKE


async def test_close_is_an_eof_for_the_peer(tls: Tls) -> None:
    address, made = await tls.serve(Recorder)
    client = await tls.connect(Recorder, address)
    client.transport.write(b"bye")
    client.transport.close()
    assert await client.lost() is None
    await eventually(lambda: made)
    assert await made[0].lost() is None
    assert made[0].data == b"bye"
    assert made[0].calls == ["connection_made", "data_received", "eof_received", "connection_lost"]


async def test_peer_gets_a_close_notify_and_then_a_fin(tls: Tls) -> None:
    class Goodbye(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(b"goodbye")
            self.transport.close()

    address, _ = await tls.serve(Goodbye)
    with tls.peer(address) as peer:
        await peer.send(b"hello")
        assert await peer.receive_all() == b"goodbye"  # an SSLEOFError if there were no close_notify
        in_the_clear = await peer.unwrap()
        assert await in_the_clear.receive_all() == b""
        in_the_clear.close()


async def test_peer_that_hangs_up_without_a_close_notify_ends_the_connection(tls: Tls) -> None:
    address, made = await tls.serve(Recorder)
    with tls.peer(address) as peer:
        await peer.send(b"hello")
        await eventually(lambda: made and made[0].data)
    await made[0].lost()
    assert made[0].data == b"hello"


async def test_write_after_the_end_is_dropped(tls: Tls) -> None:
    address, made = await tls.serve(Recorder)
    client = await tls.connect(Recorder, address)
    client.transport.close()
    assert client.transport.is_closing()
    await client.lost()
    client.transport.write(b"too late")
    await eventually(lambda: made)
    await made[0].lost()
    assert made[0].data == b""


# ---------------------------------------------------------------------------------------------------------------------
# Upgrading a plain connection
# ---------------------------------------------------------------------------------------------------------------------


async def test_both_sides_can_upgrade_a_plain_connection(tls: Tls) -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    _, client = await loop.create_connection(Recorder, sock=near)
    _, server = await loop.connect_accepted_socket(Echo, far)
    client.transport.write(b"in the clear")
    assert await client.received(12) == b"in the clear"

    upgraded = await soon(
        asyncio.gather(
            loop.start_tls(client.transport, client, tls.client_context, server_hostname="localhost"),
            loop.start_tls(server.transport, server, tls.server_context, server_side=True),
        )
    )
    client.transport, server.transport = upgraded  # type: ignore[assignment]
    assert client.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
    data = random.Random(3).randbytes(MORE_THAN_THE_BUFFERS_TAKE)
    client.transport.write(data)
    assert await client.received(len(data)) == data
    assert client.calls.count("connection_made") == 1
    client.transport.close()
    assert await client.lost() is None
    assert await server.lost() is None


async def test_streams_can_be_upgraded(tls: Tls) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"starttls\n"
        writer.write(b"go\n")
        await writer.start_tls(tls.server_context)
        writer.write(b"secretly " + await reader.readline())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*address_of(server))
    writer.write(b"starttls\n")
    assert await soon(reader.readline()) == b"go\n"
    await soon(writer.start_tls(tls.client_context, server_hostname="localhost"))
    writer.write(b"hello\n")
    assert await soon(reader.read()) == b"secretly hello\n"
    writer.close()
    await soon(writer.wait_closed())
    server.close()
    await soon(server.wait_closed())


async def test_upgrade_that_fails_closes_the_connection(tls: Tls) -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    peer = Peer(far)
    _, protocol = await loop.create_connection(Recorder, sock=near)
    upgrading = asyncio.create_task(
        loop.start_tls(protocol.transport, protocol, tls.client_context, server_hostname="localhost")
    )
    assert await peer.receive(1) == HANDSHAKE
    await peer.send(b"this is not TLS")
    with pytest.raises(ssl.SSLError):
        await soon(upgrading)
    await peer.receive_all()
    peer.close()


async def test_only_an_ssl_context_will_do_for_an_upgrade() -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    _, protocol = await loop.create_connection(Recorder, sock=near)
    with pytest.raises(TypeError, match="SSLContext"):
        await loop.start_tls(protocol.transport, protocol, None)  # type: ignore[arg-type]
    far.close()
    await protocol.lost()
