"""sock_recv() and its kin: what they give, when they fail, and that a cancelled one has taken nothing."""

from __future__ import annotations

import array
import asyncio
import errno
import gc
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PATIENCE, LoopFactory, Recorder, eventually, fence, in_use, soon

pytestmark = pytest.mark.tiny_ring

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture
def datagrams() -> Iterator[Pair]:
    with socket.socket(type=socket.SOCK_DGRAM) as near, socket.socket(type=socket.SOCK_DGRAM) as far:
        for sock in (near, far):
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
        yield near, far


def fill(sock: socket.socket, data: bytes = bytes(1 << 16)) -> int:
    """Sends until the kernel takes no more; gives the number of bytes."""
    sent = 0
    while True:
        try:
            sent += sock.send(data)
        except BlockingIOError:
            return sent


async def receive_all(sock: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        received += await soon(asyncio.get_running_loop().sock_recv(sock, 1 << 16))
    return bytes(received)


# ---------------------------------------------------------------------------------------------------------------------
# What they give
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
async def test_recv(pair: Pair, waits: bool) -> None:
    near, far = pair
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(near, 4))
    if waits:
        await fence()
    far.send(b"abcdef")
    assert await soon(receiving) == b"abcd"
    assert near.recv(10) == b"ef"


async def empty(near: socket.socket, far: socket.socket) -> None:
    """Have a call wait for all that there is."""
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(near, 100))
    await fence()
    far.send(b"all")
    assert await soon(receiving) == b"all"


async def test_what_follows_on_a_socket_that_was_emptied(pair: Pair) -> None:
    near, far = pair
    await empty(near, far)
    await empty(near, far)
    far.send(b"already there")
    assert await receive_all(near, 13) == b"already there"
    far.close()
    assert await soon(asyncio.get_running_loop().sock_recv(near, 100)) == b""


async def test_number_of_a_socket_that_was_emptied_is_another_sockets(pair: Pair) -> None:
    near, far = pair
    await empty(near, far)
    number = near.fileno()
    near.close()
    other, sender = socket.socketpair(type=socket.SOCK_DGRAM)
    with other, sender:
        assert other.fileno() == number
        other.setblocking(False)
        sender.send(b"for another")
        assert await receive_all(other, 11) == b"for another"


@pytest.mark.parametrize("waits", [False, True])
async def test_recv_into(pair: Pair, waits: bool) -> None:
    near, far = pair
    buffer = bytearray(b"......")
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv_into(near, memoryview(buffer)[:4]))
    if waits:
        await fence()
    far.send(b"abc")
    assert await soon(receiving) == 3
    assert buffer == b"abc..."


async def test_end_of_stream_is_no_bytes(pair: Pair) -> None:
    near, far = pair
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(near, 10))
    await fence()
    far.close()
    assert await soon(receiving) == b""


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop has no datagram calls
@pytest.mark.parametrize("waits", [False, True])
async def test_recvfrom(datagrams: Pair, waits: bool) -> None:
    near, far = datagrams
    loop = asyncio.get_running_loop()
    receiving = asyncio.ensure_future(loop.sock_recvfrom(near, 100))
    if waits:
        await fence()
    assert await soon(loop.sock_sendto(far, b"hello", near.getsockname())) == 5
    assert await soon(receiving) == (b"hello", far.getsockname())


@pytest.mark.only_on("asyncio", "uringloop")
@pytest.mark.parametrize(("nbytes", "taken"), [(0, 5), (3, 3)])
async def test_recvfrom_into(datagrams: Pair, nbytes: int, taken: int) -> None:
    near, far = datagrams
    loop = asyncio.get_running_loop()
    buffer = bytearray(10)
    receiving = asyncio.ensure_future(loop.sock_recvfrom_into(near, buffer, nbytes))
    await fence()
    far.sendto(b"hello", near.getsockname())
    assert await soon(receiving) == (taken, far.getsockname())
    assert buffer == b"hello"[:taken].ljust(10, b"\0")


@pytest.mark.only_on("asyncio", "uringloop")
async def test_sendto_waits_for_room(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    near, far = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        name = str(tmp_path / "socket")
        far.bind(name)
        near.connect(name)  # only a socket that is connected is told when there is room again
        sent = fill(near, b"filling")
        sending = asyncio.ensure_future(loop.sock_sendto(near, b"last", name))
        await fence()
        assert not sending.done()
        for _ in range(sent // 7):
            assert far.recv(100) == b"filling"
        assert await soon(sending) == 4
        assert far.recv(100) == b"last"


async def test_sendall_sends_all_in_order(pair: Pair) -> None:
    near, far = pair
    data = bytes(range(256)) * (4 << 12)
    sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(near, data))
    assert await receive_all(far, len(data)) == data
    assert await soon(sending) is None


@pytest.mark.only_on("uringloop")  # the others count items where they should count bytes
async def test_sendall_takes_items_of_any_size(pair: Pair) -> None:
    near, far = pair
    numbers = array.array("I", range(1 << 19))
    sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(near, numbers))
    assert await receive_all(far, len(numbers) * numbers.itemsize) == numbers.tobytes()
    await soon(sending)
    numbers.append(1)  # not held any more


async def test_both_directions_at_once(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    fill(near)
    receiving = asyncio.ensure_future(loop.sock_recv(near, 10))
    sending = asyncio.ensure_future(loop.sock_sendall(near, b"last"))
    await fence()
    far.send(b"first")
    assert await soon(receiving) == b"first"
    assert not sending.done()
    received = bytearray()
    while not received.endswith(b"last"):
        received += await soon(loop.sock_recv(far, 1 << 16))
    await soon(sending)


@pytest.mark.only_on("uringloop")  # on the others the second takes the first one's place, which then never returns
async def test_two_that_receive_are_both_served(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    receiving = [asyncio.ensure_future(loop.sock_recv(near, 1)) for _ in range(2)]
    await fence()
    far.send(b"ab")
    assert sorted(await soon(asyncio.gather(*receiving))) == [b"a", b"b"]


async def test_connect_and_accept(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.sock_accept(listener))
    await fence()
    with socket.socket() as client:
        client.setblocking(False)
        assert await soon(loop.sock_connect(client, listener.getsockname())) is None
        served, address = await soon(accepting)
        with served:
            assert address == client.getsockname()
            assert served.gettimeout() == 0
            await loop.sock_sendall(client, b"hello")
            assert await soon(loop.sock_recv(served, 10)) == b"hello"


async def test_connect_resolves_names(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await soon(loop.sock_connect(client, ("localhost", listener.getsockname()[1])))
        assert client.getpeername() == listener.getsockname()
    await loop.shutdown_default_executor()


# ---------------------------------------------------------------------------------------------------------------------
# Failures
# ---------------------------------------------------------------------------------------------------------------------


async def test_connect_refused_tells_the_address(listener: socket.socket) -> None:
    address = listener.getsockname()
    listener.close()
    with socket.socket() as client:
        client.setblocking(False)
        with pytest.raises(ConnectionRefusedError, match=r"Connect call failed \('127.0.0.1', \d+\)"):
            await soon(asyncio.get_running_loop().sock_connect(client, address))


async def test_reset_while_waiting(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        await soon(loop.sock_connect(client, listener.getsockname()))
        served, _ = await soon(loop.sock_accept(listener))
        receiving = asyncio.ensure_future(loop.sock_recv(client, 10))
        await fence()
        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        served.close()
        with pytest.raises(ConnectionResetError):
            await soon(receiving)


async def test_send_to_nobody(pair: Pair) -> None:
    near, far = pair
    fill(near)
    sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(near, b"x"))
    await fence()
    far.close()
    with pytest.raises(OSError, match=r"pipe|reset") as failure:
        await soon(sending)
    assert failure.value.errno in (errno.EPIPE, errno.ECONNRESET)


async def test_blocking_socket_is_refused_in_debug_mode(pair: Pair) -> None:
    near, _ = pair
    near.setblocking(True)
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    for call in (
        loop.sock_recv(near, 1),
        loop.sock_recv_into(near, bytearray(1)),
        loop.sock_sendall(near, b"x"),
        loop.sock_connect(near, "nowhere"),
        loop.sock_accept(near),
    ):
        with pytest.raises(ValueError, match="must be non-blocking"):
            await call
    loop.set_debug(False)


@pytest.mark.only_on("asyncio", "uringloop")  # uvloop looks at the type in debug mode only
async def test_ssl_socket_is_refused(pair: Pair) -> None:
    near, _ = pair
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context()
    context.check_hostname = False
    with context.wrap_socket(near, do_handshake_on_connect=False) as wrapped:
        for call in (loop.sock_recv(wrapped, 1), loop.sock_sendall(wrapped, b"x"), loop.sock_accept(wrapped)):
            with pytest.raises(TypeError, match=r"[sS]ocket cannot be of type SSLSocket"):
                await call


async def test_socket_of_a_transport_is_refused(pair: Pair) -> None:
    near, _ = pair
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(Recorder, sock=near)
    with pytest.raises(RuntimeError, match="is used by transport"):
        await loop.sock_recv(near, 1)
    transport.close()
    await protocol.lost()


@pytest.mark.only_on("asyncio", "uringloop")  # on uvloop the error of a closed socket is another
async def test_closed_socket() -> None:
    sock = socket.socket()
    sock.setblocking(False)
    sock.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        await asyncio.get_running_loop().sock_recv(sock, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Cancelling and closing
# ---------------------------------------------------------------------------------------------------------------------


async def test_cancelled_recv_leaves_the_bytes_for_anyone(pair: Pair) -> None:
    """Also for a plain recv(): the bytes are in the socket, and not with the loop."""
    near, far = pair
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(near, 10))
    await fence()
    receiving.cancel()
    far.send(b"hello")
    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert near.recv(10) == b"hello"


@pytest.mark.only_on("uringloop")  # the others lose bytes when the cancel comes between their arrival and the task
async def test_cancelled_recvs_under_traffic_lose_nothing(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    at_rest = in_use(loop)
    total = 1 << 18
    sent = b"".join(i.to_bytes(4, "big") for i in range(total // 4))
    received = bytearray()
    cancelled = 0

    async def send() -> None:
        for start in range(0, total, 16):
            await loop.sock_sendall(far, sent[start : start + 16])
            if start % 64 == 0:
                await asyncio.sleep(0)

    sending = asyncio.create_task(send())
    turns = 0
    while len(received) < total or cancelled < 10_000:
        receiving = asyncio.create_task(loop.sock_recv(near, 24))
        turns = (turns + 1) % 4
        for _ in range(turns):
            await asyncio.sleep(0)
        receiving.cancel()
        try:
            received += await soon(receiving)
        except asyncio.CancelledError:
            cancelled += 1
    assert received == sent
    await sending
    await eventually(lambda: in_use(loop) == at_rest)


async def test_cancelled_accept_leaves_the_connection(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    accepting = asyncio.ensure_future(loop.sock_accept(listener))
    await fence()
    with socket.create_connection(listener.getsockname(), timeout=PATIENCE) as client:
        accepting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await accepting
        served, address = await soon(loop.sock_accept(listener))
        with served:
            assert address == client.getsockname()


async def test_fd_of_a_cancelled_connect_is_reused_by_another_connection(pair: Pair) -> None:
    """Never with the other's data, and never waking or failing the other's call."""
    near, far = pair
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = []
        for _ in range(20):  # more than such a backlog takes: the last ones are left waiting
            client = socket.socket()
            client.setblocking(False)
            waiting.append((client, asyncio.ensure_future(loop.sock_connect(client, full.getsockname()))))
        await fence()
        client, connecting = waiting[-1]
        assert not connecting.done()
        number = client.fileno()
        connecting.cancel()
        client.close()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        with near.dup() as reused:
            assert reused.fileno() == number
            receiving = asyncio.ensure_future(loop.sock_recv(reused, 10))
            await fence()
            assert not receiving.done()
            far.send(b"its own")
            assert await soon(receiving) == b"its own"
        for client, connecting in waiting[:-1]:
            connecting.cancel()
            client.close()
        await asyncio.gather(*(connecting for _, connecting in waiting), return_exceptions=True)


async def test_a_reader_stays_when_a_receive_is_cancelled(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    for _ in range(3):
        receiving = asyncio.ensure_future(loop.sock_recv(near, 10))
        await fence()
        receiving.cancel()
        called = loop.create_future()
        loop.add_reader(near, lambda called=called: called.done() or called.set_result(near.recv(10)))
        with pytest.raises(asyncio.CancelledError):
            await receiving
        far.send(b"x")
        assert await soon(called) == b"x"
        assert loop.remove_reader(near) in (True, None)


@pytest.mark.only_on("uringloop", "uvloop")  # on asyncio the call never returns
async def test_closed_while_waiting_is_closed_when_it_is_over(pair: Pair) -> None:
    near, far = pair
    receiving = asyncio.ensure_future(asyncio.get_running_loop().sock_recv(near, 10))
    await fence()
    number = near.fileno()
    near.close()
    with far.dup() as other:
        assert other.fileno() != number
        far.send(b"the last")
        assert await soon(receiving) == b"the last"
    assert near.fileno() == -1


async def test_peer_sees_the_end_after_a_cancelled_receive(pair: Pair) -> None:
    near, far = pair
    loop = asyncio.get_running_loop()
    receiving = asyncio.ensure_future(loop.sock_recv(near, 10))
    await fence()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving
    near.close()
    assert await soon(loop.sock_recv(far, 10)) == b""


def test_loop_closed_with_a_receive_that_waits(new_loop: LoopFactory) -> None:
    loop = new_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    receiving = loop.sock_recv(near, 10)
    with pytest.raises(asyncio.TimeoutError):
        loop.run_until_complete(asyncio.wait_for(fence(), 0))
    receiving.send(None)  # type: ignore[attr-defined]
    loop.close()
    near.close()
    far.close()
    receiving.close()  # type: ignore[attr-defined]
    gc.collect()


@pytest.mark.only_on("uvloop", "uringloop")  # asyncio does not keep it
def test_socket_closed_while_a_receive_waits_is_closed_with_the_loop(new_loop: LoopFactory) -> None:
    loop = new_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    receiving = loop.create_task(loop.sock_recv(near, 10))
    loop.run_until_complete(fence())
    near.close()
    assert near.fileno() != -1
    receiving._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    assert near.fileno() == -1
    with far:
        assert far.recv(10) == b""
    asyncio._unregister_task(receiving)
