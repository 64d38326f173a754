"""Protocols that only write: they have no data_received, and need none until something comes."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from support import Journal, OpenEnd, Recorder, Unhandled

pytestmark = pytest.mark.only_on("asyncio", "uringloop")  # uvloop refuses them


async def test_protocol_need_not_receive(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Journal)
    protocol.transport.write(b"hello")
    assert await peer.receive(5) == b"hello"
    peer.send_fin()
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]


async def test_protocol_that_cannot_receive_may_take_the_place_of_another(open_end: OpenEnd) -> None:
    protocol, peer = await open_end(Recorder)
    protocol.transport.pause_reading()
    protocol.transport.set_protocol(successor := Journal())
    protocol.transport.resume_reading()
    assert protocol.transport.get_protocol() is successor
    protocol.transport.write(b"hello")
    assert await peer.receive(5) == b"hello"
    protocol.transport.set_protocol(protocol)
    await peer.send(b"hello")
    assert await protocol.received(5) == b"hello"


async def test_bytes_for_a_protocol_that_cannot_receive_end_the_connection(
    open_end: OpenEnd, unhandled: Unhandled
) -> None:
    protocol, peer = await open_end(Journal)
    await peer.send(b"hello")
    exc = await protocol.lost()
    assert isinstance(exc, AttributeError)
    context = await unhandled.next()
    assert context["exception"] is exc
    assert context["message"] == "Fatal error: protocol.data_received() call failed."


async def test_pipe_may_be_connected_though_its_protocol_cannot_receive() -> None:
    read_end, write_end = os.pipe()
    file: Any = os.fdopen(read_end, "rb", 0)
    _, protocol = await asyncio.get_running_loop().connect_read_pipe(Journal, file)
    os.close(write_end)
    assert await protocol.lost() is None
    assert protocol.calls == ["connection_made", "eof_received", "connection_lost"]
