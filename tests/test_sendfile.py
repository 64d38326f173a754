"""loop.sendfile: the file's bytes in order between what is written before and after, whatever the socket takes."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from support import fence, loop_kind, open_files, soon

import uringloop
from uringloop import splice

CONTENT = os.urandom(5 << 20)

pytestmark = pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no sendfile


@pytest.fixture(params=["cached", "not cached"])
def file(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    (tmp_path / "file").write_bytes(CONTENT)
    if request.param == "not cached":
        monkeypatch.setattr(splice, "sendfile_cached", lambda sock, fd, offset, size: -errno.ENODATA)
    with open(tmp_path / "file", "rb") as file:
        yield file


class Served:
    """A server whose connection is the test's to write to, and what its client has read."""

    def __init__(self, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None) -> None:
        self._tls = tls

    async def __aenter__(self) -> Served:
        self._accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_server(
            lambda reader, writer: self._accepted.set_result(writer),
            "127.0.0.1",
            0,
            ssl=self._tls and self._tls[0],
        )
        port = self._server.sockets[0].getsockname()[1]
        name = "localhost" if self._tls else None
        self.reader, self._client = await asyncio.open_connection(
            "127.0.0.1", port, ssl=self._tls and self._tls[1], server_hostname=name
        )
        self.writer = await soon(self._accepted)
        return self

    async def __aexit__(self, *_: object) -> None:
        for writer in (self.writer, self._client):
            writer.close()
            await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])
        self._server.close()
        await self._server.wait_closed()


def sending(served: Served, file: BinaryIO, *arguments: int, **options: bool) -> asyncio.Task[int]:
    loop = asyncio.get_running_loop()
    return asyncio.create_task(loop.sendfile(served.writer.transport, file, *arguments, **options))


async def test_whole_file_comes_between_what_is_written(file: BinaryIO) -> None:
    async with Served() as served:
        served.writer.write(b"before")
        task = sending(served, file, fallback=False)
        assert await soon(served.reader.readexactly(6 + len(CONTENT))) == b"before" + CONTENT
        assert await soon(task) == len(CONTENT)
        served.writer.write(b"after")
        assert await soon(served.reader.readexactly(5)) == b"after"
        assert file.tell() == len(CONTENT)


async def test_what_is_written_before_goes_in_several_pieces_of_one_turn(file: BinaryIO) -> None:
    written = [bytes([number]) * 8_000 for number in range(18)]  # more than one send takes, and less than the socket
    async with Served() as served:
        for data in written:
            served.writer.write(data)
        loop = asyncio.get_running_loop()
        assert await soon(loop.sendfile(served.writer.transport, file, 0, 1_000, fallback=False)) == 1_000
        expected = b"".join(written) + CONTENT[:1_000]
        assert await soon(served.reader.readexactly(len(expected))) == expected


@pytest.mark.parametrize(("offset", "count"), [(0, 1), (7, 100_000), (1_000_003, 3_000_001), (len(CONTENT) - 5, 100)])
async def test_part_of_a_file(file: BinaryIO, offset: int, count: int) -> None:
    expected = CONTENT[offset : offset + count]
    async with Served() as served:
        task = sending(served, file, offset, count)
        assert await soon(served.reader.readexactly(len(expected))) == expected
        assert await soon(task) == len(expected)
        assert file.tell() == offset + len(expected)


@pytest.mark.only_on("uringloop")  # uvloop does not move it, asyncio from 3.14 on
async def test_position_is_where_it_began_if_there_was_nothing_to_send(file: BinaryIO) -> None:
    async with Served() as served:
        file.seek(7)
        assert await soon(sending(served, file, len(CONTENT))) == 0
        assert file.tell() == len(CONTENT)


@pytest.mark.only_on("uringloop")  # asyncio moves the position some time later
async def test_cancelled_in_the_middle_it_has_sent_as_much_as_it_says(file: BinaryIO) -> None:
    before = open_files()
    async with Served() as served:
        task = sending(served, file)
        first = await soon(served.reader.readexactly(1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        position = file.tell()
        assert 0 < position < len(CONTENT)
        served.writer.close()
        assert first + await soon(served.reader.read()) == CONTENT[:position]
    assert open_files() == before


@pytest.mark.only_on("uringloop")  # on asyncio the transport takes no more
async def test_cancelled_while_it_waits_for_what_was_written_before(file: BinaryIO) -> None:
    async with Served() as served:
        served.reader._transport.pause_reading()  # type: ignore[attr-defined]
        written = os.urandom(16 << 20)  # more than the sockets take
        served.writer.write(written)
        task = sending(served, file)
        await fence()
        with pytest.raises(RuntimeError, match="sendfile is in progress"):
            served.writer.write(b"too soon")
        with pytest.raises(RuntimeError, match="already set"):
            await sending(served, file)
        with pytest.raises(RuntimeError, match="sendfile is in progress"):  # the first still is
            served.writer.write(b"too soon")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(task)
        assert served.writer.transport.is_reading()  # type: ignore[attr-defined]
        served.writer.write(b"after")
        served.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await soon(served.reader.readexactly(len(written) + 5)) == written + b"after"


async def test_all_that_was_written_goes_first_though_the_protocol_may_write_before(file: BinaryIO) -> None:
    async with Served() as served:
        written = os.urandom(16 << 20)
        served.writer.transport.set_write_buffer_limits(8 << 20, 8 << 20)
        served.writer.write(written)
        task = sending(served, file)
        assert await soon(served.reader.readexactly(len(written))) == written
        assert await soon(served.reader.readexactly(len(CONTENT))) == CONTENT
        assert await soon(task) == len(CONTENT)


async def test_peer_that_goes_away_ends_it(file: BinaryIO) -> None:
    async with Served() as served:
        task = sending(served, file)
        await fence()
        served._client.transport.abort()
        with pytest.raises(ConnectionError):
            await soon(task)


@pytest.mark.only_on("uringloop")  # on asyncio it waits for ever
@pytest.mark.parametrize("end", ["close", "abort"])
async def test_connection_that_is_closed_meanwhile_ends_it(file: BinaryIO, end: str) -> None:
    before = open_files()
    async with Served() as served:
        transport = served.writer.transport
        task = sending(served, file)
        await soon(served.reader.readexactly(1))
        getattr(transport, end)()
        with pytest.raises(ConnectionError):
            await soon(task)
        assert 1 + len(await soon(served.reader.read())) == file.tell() < len(CONTENT)
    assert open_files() == before


async def test_file_that_is_none(file: BinaryIO) -> None:
    async with Served() as served:
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await sending(served, io.BytesIO(b"content"), fallback=False)
        assert await soon(sending(served, io.BytesIO(b"content"))) == 7
        assert await soon(served.reader.readexactly(7)) == b"content"


@pytest.mark.parametrize(("offset", "count"), [(0, len(CONTENT)), (1_000_003, 300_001)])
async def test_under_tls(
    file: BinaryIO, offset: int, count: int, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with Served((server_tls, client_tls)) as served:
        task = sending(served, file, offset, count)
        assert await soon(served.reader.readexactly(count)) == CONTENT[offset : offset + count]
        assert await soon(task) == count
        loop: Any = asyncio.get_running_loop()
        if loop_kind() == "uringloop" and not loop.stats().hardened:
            assert loop._default_executor is None


class Sink:
    """Takes all."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    async def room(self) -> None:
        await asyncio.sleep(0)  # after a piece of which not all was in the cache


@pytest.mark.only_on("uringloop")
async def test_socket_that_takes_it_all_does_not_keep_the_loop_to_itself(file: BinaryIO) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    loop = asyncio.get_running_loop()
    assert isinstance(loop, uringloop.Loop)
    counting = asyncio.create_task(count())
    with open(os.devnull, "wb") as sink:  # noqa: ASYNC230
        sent = await soon(splice.send_file(loop._operations, Sink(sink.fileno()), file.fileno(), 0, None))
    counting.cancel()
    assert sent == len(CONTENT)
    assert turns >= len(CONTENT) // splice.SEND_BYTES - 1  # one between each piece and the next
