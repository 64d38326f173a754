"""Context variables: in which context callbacks and protocols run."""

from __future__ import annotations

import asyncio
import contextvars
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import (
    BufferedRecorder,
    Journal,
    Recorder,
    address_of,
    connect,
    eventually,
    fence,
    listen,
    loop_kind,
    set_once,
    soon,
)
from tls import Tls

where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")
MORE_THAN_THE_KERNEL_TAKES = 16 << 20


# ---------------------------------------------------------------------------------------------------------------------
# Callbacks
# ---------------------------------------------------------------------------------------------------------------------


def call_soon(callback: Callable[[], object], context: contextvars.Context | None) -> None:
    asyncio.get_running_loop().call_soon(callback, context=context)


def call_soon_threadsafe(callback: Callable[[], object], context: contextvars.Context | None) -> None:
    asyncio.get_running_loop().call_soon_threadsafe(callback, context=context)


def call_later(callback: Callable[[], object], context: contextvars.Context | None) -> None:
    asyncio.get_running_loop().call_later(0.001, callback, context=context)


def call_at(callback: Callable[[], object], context: contextvars.Context | None) -> None:
    loop = asyncio.get_running_loop()
    loop.call_at(loop.time() + 0.001, callback, context=context)


schedulers = pytest.mark.parametrize("schedule", [call_soon, call_soon_threadsafe, call_later, call_at])
Scheduler = Callable[[Callable[[], object], contextvars.Context | None], None]


@schedulers
async def test_callback_runs_in_a_copy_of_the_context_it_was_scheduled_in(schedule: Scheduler) -> None:
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def callback() -> None:
        seen.set_result(where.get())
        where.set("in the callback")

    where.set("when scheduled")
    schedule(callback, None)
    where.set("later")
    assert await soon(seen) == "when scheduled"
    assert where.get() == "later"


@schedulers
async def test_callback_runs_in_the_context_that_it_is_given(schedule: Scheduler) -> None:
    context = contextvars.copy_context()
    context.run(where.set, "in the given context")
    seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def callback() -> None:
        seen.set_result(where.get())
        where.set("changed by the callback")

    schedule(callback, context)
    assert await soon(seen) == "in the given context"
    assert context[where] == "changed by the callback"
    assert where.get() == "nowhere"


async def test_reader_runs_in_the_context_it_was_added_in() -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    with near, far:
        seen: asyncio.Future[str] = loop.create_future()
        where.set("when added")
        loop.add_reader(near, lambda: set_once(seen, where.get()))
        where.set("later")
        far.send(b"x")
        assert await soon(seen) == "when added"
        loop.remove_reader(near)


async def test_task_runs_in_the_context_that_it_is_given() -> None:
    async def change() -> None:
        where.set("changed by the task")

    context = contextvars.copy_context()
    await asyncio.create_task(change(), context=context)
    assert context[where] == "changed by the task"
    assert where.get() == "nowhere"


# ---------------------------------------------------------------------------------------------------------------------
# Protocols
# ---------------------------------------------------------------------------------------------------------------------


class Located(Journal):
    """Notes where each of its callbacks runs."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, str] = {}

    def _write_down(self, call: str) -> None:
        self.places.setdefault(call, where.get())
        super()._write_down(call)


class LocatedRecorder(Located, Recorder):
    pass


class LocatedBuffered(Located, BufferedRecorder):
    def get_buffer(self, sizehint: int) -> bytearray:
        self.places.setdefault("get_buffer", where.get())
        return super().get_buffer(sizehint)


@pytest.mark.parametrize("protocol_class", [LocatedRecorder, LocatedBuffered])
async def test_protocol_is_always_called_in_the_context_that_its_connection_was_made_in(
    family: str, tmp_path: Path, protocol_class: type[Located]
) -> None:
    accepted: list[Located] = []

    def factory() -> Located:
        accepted.append(protocol_class())
        accepted[-1].places["factory"] = where.get()
        return accepted[-1]

    where.set("create_server")
    server = await listen(family, factory, tmp_path)
    where.set("create_connection")
    client = await connect(protocol_class, address_of(server))
    # From here on, whoever reads, writes, pauses, resumes and closes does so from elsewhere.
    where.set("elsewhere")
    await eventually(lambda: accepted and accepted[0].calls)
    for sender, receiver in ((client, accepted[0]), (accepted[0], client)):
        receiver.transport.pause_reading()
        sender.transport.write(bytes(MORE_THAN_THE_KERNEL_TAKES))
        receiver.transport.resume_reading()
        await sender.called("resume_writing")
        await receiver.received(MORE_THAN_THE_KERNEL_TAKES)
    client.transport.close()
    await client.lost()
    await accepted[0].lost()
    server.close()
    await soon(server.wait_closed())

    assert accepted[0].places.keys() >= {"factory", "connection_made", "pause_writing", "connection_lost"}
    if loop_kind() == "asyncio":  # before 3.15 it calls in the context of whoever resumes or closes, too
        assert client.places["connection_lost"] == ("elsewhere" if sys.version_info < (3, 15) else "create_connection")
    else:
        assert set(accepted[0].places.values()) == {"create_server"}
        assert set(client.places.values()) == {"create_connection"}


@pytest.mark.only_on("uvloop", "uringloop")  # asyncio goes by whoever upgrades
async def test_upgraded_protocol_is_called_in_the_context_of_the_connection_below(tls: Tls) -> None:
    loop = asyncio.get_running_loop()
    address, accepted = await tls.serve(Recorder)
    where.set("create_connection")
    client = await tls.connect(LocatedRecorder, address)
    where.set("start_tls")
    await eventually(lambda: accepted and accepted[0].calls)
    server = accepted[0]
    upgraded = await soon(
        asyncio.gather(
            loop.start_tls(client.transport, client, tls.client_context, server_hostname="localhost"),
            loop.start_tls(server.transport, server, tls.server_context, server_side=True),
        )
    )
    client.transport, server.transport = upgraded  # type: ignore[assignment]
    client.transport.pause_reading()
    server.transport.write(b"inner")
    await fence()
    client.transport.resume_reading()  # what has come by then is handed out by a callback of the loop
    assert await client.received(5) == b"inner"
    server.transport.close()
    await client.lost()
    assert client.places["data_received"] == client.places["connection_lost"] == "create_connection"


async def test_protocol_cannot_change_the_context_of_its_server(family: str, tmp_path: Path) -> None:
    class Changing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert where.get() == "create_server"
            where.set("changed by the protocol")

    where.set("create_server")
    server = await listen(family, Changing, tmp_path)
    for _ in range(1 if loop_kind() == "uvloop" else 2):  # nor that of those who come after it, except on uvloop
        client = await connect(Recorder, address_of(server))
        client.transport.close()
        await client.lost()
        await fence()
    server.close()
    await soon(server.wait_closed())
    assert where.get() == "create_server"
