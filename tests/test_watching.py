"""add_reader() and add_writer(): level-triggered, for any number of descriptors, and never for a former owner's."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import tempfile
from collections.abc import Iterator

import pytest
from support import LoopFactory, Recorder, eventually, fence, set_once, soon

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


def fill(sock: socket.socket) -> int:
    """Sends until the kernel takes no more; gives the number of bytes."""
    sent = 0
    while True:
        try:
            sent += sock.send(bytes(1 << 16))
        except BlockingIOError:
            return sent


async def test_reader_is_called_as_long_as_there_is_something_to_read(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    read = bytearray()
    loop.add_reader(near, lambda: read.extend(near.recv(1)))
    far.send(b"abc")
    await eventually(lambda: len(read) == 3)
    await fence()
    assert read == b"abc"
    far.send(b"d")
    await eventually(lambda: read == b"abcd")
    loop.remove_reader(near)


async def test_reader_that_reads_nothing_is_called_again(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    calls: list[int] = []
    loop.add_reader(near, calls.append, 1)
    far.send(b"x")
    await eventually(lambda: len(calls) >= 5)
    near.recv(1)
    await fence()
    calls.clear()
    await fence()
    assert calls == []
    loop.remove_reader(near)


async def test_writer_is_called_as_long_as_there_is_room(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    calls: list[int] = []
    loop.add_writer(near, calls.append, 1)
    await eventually(lambda: len(calls) >= 5)
    size = fill(near)
    await fence()
    calls.clear()
    await fence()
    assert calls == []
    while size:
        size -= len(far.recv(size))
    await eventually(lambda: calls)
    loop.remove_writer(near)


async def test_reader_and_writer_of_one_descriptor_do_not_disturb_each_other(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    reads: list[int] = []
    writes: list[int] = []
    loop.add_reader(near, lambda: reads.append(len(near.recv(100))))
    loop.add_writer(near, writes.append, 1)
    await eventually(lambda: len(writes) >= 3)
    far.send(b"xyz")
    await eventually(lambda: reads == [3])
    loop.remove_writer(near)
    await fence()
    writes.clear()
    far.send(b"z")
    await eventually(lambda: reads == [3, 1])
    assert writes == []
    loop.add_writer(near, writes.append, 1)
    loop.remove_reader(near)
    far.send(b"!")
    await eventually(lambda: len(writes) >= 3)
    await fence()
    assert reads == [3, 1]
    loop.remove_writer(near)


async def test_adding_again_takes_the_place_of_the_earlier_callback(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    called: list[str] = []
    loop.add_reader(near, called.append, "first")
    await fence()
    loop.add_reader(near, called.append, "second")
    far.send(b"x")
    await eventually(lambda: called)
    loop.remove_reader(near)
    assert set(called) == {"second"}


# uvloop's do not always tell.
@pytest.mark.only_on("asyncio", "uringloop")
async def test_removing_tells_whether_there_was_something_to_remove(pair: Pair) -> None:
    near, _ = pair
    loop = asyncio.get_running_loop()
    assert loop.remove_reader(near) is False
    assert loop.remove_writer(near) is False
    loop.add_reader(near, print)
    loop.add_writer(near, print)
    assert loop.remove_reader(near) is True
    assert loop.remove_writer(near) is True
    assert loop.remove_reader(near) is False


async def test_removed_reader_is_not_called_even_if_it_was_ready(pair: Pair) -> None:
    near, far = pair
    other_near, other_far = socket.socketpair()
    loop = asyncio.get_running_loop()
    called: list[str] = []

    def remove_the_other(me: str, other: socket.socket) -> None:
        called.append(me)
        loop.remove_reader(other)

    with other_near, other_far:
        loop.add_reader(near, remove_the_other, "one", other_near)
        loop.add_reader(other_near, remove_the_other, "other", near)
        far.send(b"x")
        other_far.send(b"x")
        await eventually(lambda: len(called) >= 2)
        assert len(set(called)) == 1
        loop.remove_reader(near)
        loop.remove_reader(other_near)


async def test_closed_and_reused_descriptor_belongs_to_its_new_owner(pair: Pair) -> None:
    """The number is the same, the socket is not: nothing of the first may reach the second, nor the other way."""
    new_near, new_far = pair
    loop = asyncio.get_running_loop()
    called: list[str] = []
    old_near, old_far = socket.socketpair()
    number = old_near.detach()
    loop.add_reader(number, called.append, "old")
    await fence()
    old_far.send(b"for the old one")
    loop.remove_reader(number)
    os.close(number)
    os.dup2(new_near.fileno(), number)
    loop.add_reader(number, called.append, "new")
    await fence()
    assert called == []
    new_far.send(b"for the new one")
    await eventually(lambda: called)
    loop.remove_reader(number)
    os.close(number)
    old_far.close()
    assert set(called) == {"new"}


async def test_hang_up_is_told_to_the_reader_and_to_the_writer(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    fill(near)
    called: set[str] = set()
    loop.add_reader(near, called.add, "reader")
    loop.add_writer(near, called.add, "writer")
    await fence()
    assert called == set()
    far.close()
    await eventually(lambda: called == {"reader", "writer"})
    loop.remove_reader(near)
    loop.remove_writer(near)


async def test_pipe_can_be_watched() -> None:
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe()
    writable, readable = loop.create_future(), loop.create_future()
    loop.add_writer(write_end, set_once, writable, None)
    loop.add_reader(read_end, lambda: set_once(readable, os.read(read_end, 10)))
    await soon(writable)
    os.write(write_end, b"data")
    assert await soon(readable) == b"data"
    loop.remove_writer(write_end)
    loop.remove_reader(read_end)
    os.close(read_end)
    os.close(write_end)


async def test_file_on_a_disk_cannot_be_watched() -> None:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryFile() as file:
        with pytest.raises(PermissionError):
            loop.add_reader(file, print)
        with pytest.raises(PermissionError):
            loop.add_writer(file, print)


async def test_closed_descriptor_cannot_be_watched(pair: Pair) -> None:
    loop = asyncio.get_running_loop()
    number = os.dup(0)
    os.close(number)
    with pytest.raises(OSError, match="Bad file descriptor"):
        loop.add_reader(number, print)
    pair[0].close()
    with pytest.raises(ValueError, match="file"):
        loop.add_reader(pair[0], print)


async def test_socket_of_a_transport_cannot_be_watched() -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    _, protocol = await loop.create_connection(Recorder, sock=near)
    for watch in (loop.add_reader, loop.add_writer):
        with pytest.raises(RuntimeError, match="is used by transport"):
            watch(protocol.transport.get_extra_info("socket").fileno(), print)
    far.close()
    await protocol.lost()


@pytest.mark.parametrize("reuse", [False, True])
async def test_reader_that_a_protocol_changes_in_the_turn_in_which_it_is_ready(pair: Pair, reuse: bool) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    watched = near
    peer = far
    called: list[str] = []

    class Changing(Recorder):
        def data_received(self, data: bytes) -> None:
            nonlocal watched, peer
            if reuse:  # most likely the same number
                loop.remove_reader(watched)
                watched.close()
                watched, peer = socket.socketpair()
            loop.add_reader(watched, called.append, "new")

    other, other_far = socket.socketpair()
    _, protocol = await loop.create_connection(Changing, sock=other)
    loop.add_reader(near, called.append, "old")
    await fence()
    far.send(b"x")
    other_far.send(b"x")  # both are told in one turn
    await eventually(lambda: protocol.data == b"x" or watched is not near or "new" in called)
    await fence()
    peer.send(b"x")
    await eventually(lambda: "new" in called)
    loop.remove_reader(watched)
    protocol.transport.abort()
    await protocol.lost()
    other_far.close()
    if reuse:
        watched.close()
        peer.close()


async def test_many_connections_on_one_loop_take_turns() -> None:
    loop = asyncio.get_running_loop()
    pairs = [socket.socketpair() for _ in range(100)]
    read = [0] * len(pairs)

    def count(number: int) -> None:
        read[number] += len(pairs[number][0].recv(1))
        assert max(read) - min(read) <= 1

    for number, (near, far) in enumerate(pairs):
        loop.add_reader(near, count, number)
        far.send(b"x" * 10)
    await eventually(lambda: read == [10] * len(pairs))
    for near, far in pairs:
        loop.remove_reader(near)
        near.close()
        far.close()


def test_5000_descriptors_can_be_added_before_the_loop_runs(new_loop: LoopFactory) -> None:
    loop = new_loop()
    pairs = [socket.socketpair() for _ in range(5000)]
    ready: set[int] = set()

    def note(number: int) -> None:
        ready.add(number)
        loop.remove_reader(pairs[number][0])
        if len(ready) == len(pairs):
            loop.stop()

    for number, (near, far) in enumerate(pairs):
        loop.add_reader(near, note, number)
        far.send(b"x")
    loop.run_forever()
    assert len(ready) == len(pairs)
    loop.close()
    for near, far in pairs:
        near.close()
        far.close()


def test_what_is_always_ready_is_refused_as_epoll_does(new_loop: LoopFactory) -> None:
    loop = new_loop()
    for path in ("/dev/null", "/dev/zero", "/dev/urandom", "/proc/self/status", __file__):
        with open(path, "rb", buffering=0) as file, pytest.raises(PermissionError):
            loop.add_reader(file, int)
    with open("/proc/self/mounts", "rb", buffering=0) as file:  # a regular file that tells of changes
        loop.add_reader(file, int)
        loop.remove_reader(file)


@pytest.mark.only_on("uringloop")
async def test_poll_that_a_change_of_threads_had_no_memory_for_is_made_again(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    called = loop.create_future()
    loop.add_reader(near, set_once, called, None)
    await fence()
    selector = loop._selector  # type: ignore[attr-defined]
    selector._on_poll(selector._poll_tokens[near.fileno()], -errno.ENOMEM)
    far.send(b"x")
    await soon(called)
    loop.remove_reader(near)
    await fence()  # the first poll, of which nothing is known any more, is over
