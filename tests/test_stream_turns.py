"""Streams to which two things happen in one turn of the loop, and what is left of them when they are lost."""

from __future__ import annotations

import asyncio
import errno
import socket
import weakref
from pathlib import Path
from typing import Any

import pytest
from support import OpenEnd, Peer, Recorder, Unhandled, address_of, connect_plainly, fence, listen, soon

MORE_THAN_THE_KERNEL_TAKES = 8 << 20


# ---------------------------------------------------------------------------------------------------------------------
# Writing behind close()
# ---------------------------------------------------------------------------------------------------------------------


async def test_what_is_written_behind_close_goes_while_something_is_queued(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    protocol.transport.close()
    protocol.transport.write(b"last")
    assert await peer.receive_all() == bytes(MORE_THAN_THE_KERNEL_TAKES) + b"last"


async def test_what_is_written_in_resume_writing_behind_close_goes(open_end: OpenEnd) -> None:
    class Last(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            if self.calls.count("resume_writing") == 1:
                self.transport.write(b"last")

    protocol, peer = await open_end(Last)
    protocol.transport.set_write_buffer_limits(0)  # so that nothing is queued by then
    protocol.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
    protocol.transport.close()
    assert await peer.receive_all() == bytes(MORE_THAN_THE_KERNEL_TAKES) + b"last"


# ---------------------------------------------------------------------------------------------------------------------
# One connection ends another
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["tcp"])
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_eof_is_not_told_to_whom_another_has_closed(open_end: OpenEnd, family: str, how: str) -> None:
    class Closes(Recorder):
        other: Closes

        def eof_received(self) -> bool:
            getattr(self.other.transport, how)()
            return super().eof_received()

    first, first_peer = await open_end(Closes)
    second, second_peer = await open_end(Closes)
    first.other, second.other = second, first
    await fence()  # they receive by now
    first_peer.send_fin()
    second_peer.send_fin()
    await first.lost()
    await second.lost()
    assert (first.calls + second.calls).count("eof_received") == 1


@pytest.mark.parametrize("family", ["tcp"])
async def test_reset_is_not_told_to_whom_another_has_aborted(open_end: OpenEnd, family: str) -> None:
    class Aborts(Recorder):
        def data_received(self, data: bytes) -> None:
            second.transport.abort()
            super().data_received(data)

    first, first_peer = await open_end(Aborts)
    second, second_peer = await open_end(Recorder)
    await fence()
    first_peer.sock.send(b"abort it")
    second_peer.reset()
    assert await second.lost() is None
    first.transport.close()
    await first.lost()


async def test_abort_behind_an_error_does_not_hide_it(open_end: OpenEnd, unhandled: Unhandled) -> None:
    class Fails(Recorder):
        def data_received(self, data: bytes) -> None:
            asyncio.get_running_loop().call_soon(self.transport.abort)
            raise ZeroDivisionError

    protocol, peer = await open_end(Fails)
    await peer.send(b"provocation")
    assert isinstance(await protocol.lost(), ZeroDivisionError)
    await unhandled.next()


async def test_eof_that_comes_alone_while_reading_is_paused_is_told(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    await fence()
    protocol.transport.pause_reading()
    peer.send_fin()
    await fence()
    assert protocol.calls == ["connection_made"]
    protocol.transport.resume_reading()
    await protocol.lost()
    assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]


# ---------------------------------------------------------------------------------------------------------------------
# Beginnings that fail
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop leaves it open
async def test_connect_that_is_cancelled_just_before_it_is_done_closes_the_connection() -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    protocol = Recorder()
    connecting = loop.create_task(loop.create_connection(lambda: protocol, sock=near))
    loop.call_soon(connecting.cancel)
    with pytest.raises(asyncio.CancelledError):
        await connecting
    await protocol.lost()
    with far:
        assert await Peer(far).receive_all() == b""


@pytest.mark.only_on("uringloop")
async def test_stream_for_which_there_is_no_memory(
    family: str, tmp_path: Path, unhandled: Unhandled, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop: Any = asyncio.get_running_loop()
    server = await listen(family, Recorder, tmp_path)
    with monkeypatch.context() as faults:
        faults.setattr(loop._reactor, "_stream_open", lambda fd: -errno.ENOMEM)
        with connect_plainly(address_of(server)) as sock:
            context = await unhandled.next()
            assert context["message"] == "Error on transport creation for incoming connection"
            assert context["exception"].errno == errno.ENOMEM
            assert await Peer(sock).sees_the_end()
    server.close()
    await soon(server.wait_closed())  # it has no client


# ---------------------------------------------------------------------------------------------------------------------
# What is left
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.only_on("uringloop")  # asyncio's waits for the collector
@pytest.mark.usefixtures("no_collection")
async def test_stream_that_an_error_ended_is_freed_at_once(unhandled: Unhandled) -> None:
    class Fails(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            raise ZeroDivisionError

        def connection_lost(self, exc: BaseException | None) -> None:
            lost.set()

    lost = asyncio.Event()
    near, far = socket.socketpair()
    transport, protocol = await asyncio.get_running_loop().create_connection(Fails, sock=near)
    alive = weakref.ref(transport)
    del transport, protocol
    with far:
        far.send(b"provocation")
        await soon(lost.wait())
    (await unhandled.next()).clear()
    await fence()
    assert alive() is None
