"""aiohttp, client and server, both on the loop under test; and the first example of the documentation, under load."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import web
from support import PATIENCE, eventually, soon

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

LARGE = 8 << 20  # bytes; more than all socket buffers on the way, so that both ends must wait for each other
EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "hello_aiohttp.py"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@asynccontextmanager
async def serving(
    *routes: web.AbstractRouteDef, tls: ssl.SSLContext | None = None, limit: int = 100
) -> AsyncIterator[aiohttp.ClientSession]:
    """A server of these routes, and a client of it that has at most `limit` connections."""
    app = web.Application(client_max_size=2 * LARGE)
    app.add_routes(routes)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        host, port = runner.addresses[0][:2]
        async with client_of(f"{'https' if tls else 'http'}://{host}:{port}/", limit) as http:
            yield http
    finally:
        await soon(runner.cleanup())


def client_of(url: str, limit: int = 100) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=limit)
    return aiohttp.ClientSession(url, connector=connector, timeout=aiohttp.ClientTimeout(total=PATIENCE))


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read())


async def digest(request: web.Request) -> web.Response:
    """Reads the body as it comes, and answers with its digest."""
    sha256 = hashlib.sha256()
    async for piece in request.content.iter_any():
        sha256.update(piece)
    return web.Response(text=sha256.hexdigest())


# ---------------------------------------------------------------------------------------------------------------------
# Requests and responses
# ---------------------------------------------------------------------------------------------------------------------


async def test_get_is_answered() -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=f"hello {request.query['name']}", headers={"X-Seen": request.method})

    async with serving(web.get("/", hello)) as http, http.get("/", params={"name": "wörld"}) as response:
        assert response.status == 200
        assert response.headers["X-Seen"] == "GET"
        assert await response.text() == "hello wörld"


async def test_path_without_a_route_is_not_found() -> None:
    async with serving() as http, http.get("/nowhere") as response:
        assert response.status == 404


async def test_error_in_a_handler_is_a_500_and_the_connection_goes_on() -> None:
    async def broken(request: web.Request) -> web.Response:
        raise ZeroDivisionError

    async with serving(web.get("/broken", broken), web.post("/", echo), limit=1) as http:
        async with http.get("/broken") as response:
            assert response.status == 500
        async with http.post("/", data=b"still here") as response:
            assert await response.read() == b"still here"


@pytest.mark.parametrize("size", [0, 1, 1 << 16, LARGE])
async def test_post_body_comes_back_as_it_was_sent(size: int) -> None:
    body = os.urandom(size)
    async with serving(web.post("/", echo)) as http, http.post("/", data=io.BytesIO(body)) as response:
        assert await response.read() == body


async def test_chunked_upload_is_read_as_it_comes() -> None:
    pieces = [os.urandom(size) for size in (1, 70_000, 3, 1 << 20)]

    async def upload() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with serving(web.post("/", digest)) as http, http.post("/", data=upload()) as response:
        assert response.request_info.headers["Transfer-Encoding"] == "chunked"
        assert await response.text() == hashlib.sha256(b"".join(pieces)).hexdigest()


async def test_streamed_response_arrives_piece_by_piece() -> None:
    """Each piece is sent only when the client has told that it has the one before."""
    seen = asyncio.Queue[int]()

    async def count(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for number in range(5):
            await response.write(b"%d\n" % number)
            assert await soon(seen.get()) == number
        await response.write_eof()
        return response

    async with serving(web.get("/", count)) as http, http.get("/") as response:
        for number in range(5):
            assert await response.content.readline() == b"%d\n" % number
            seen.put_nowait(number)
        assert await response.content.read() == b""


async def test_client_that_reads_slowly_gets_all_of_a_large_response() -> None:
    body = os.urandom(LARGE)

    async def large(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with serving(web.get("/", large)) as http, http.get("/") as response:
        received = bytearray()
        while piece := await response.content.read(100_000):
            received += piece
            await asyncio.sleep(0)
    assert received == body


async def test_client_that_leaves_in_the_middle_of_a_response_ends_the_handler() -> None:
    ended = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 65536)
        except ConnectionError:
            ended.set()
            raise

    async with serving(web.get("/", endless)) as http:
        async with http.get("/") as response:
            await response.content.readexactly(1 << 20)
            response.close()
        await soon(ended.wait())


# ---------------------------------------------------------------------------------------------------------------------
# Connections
# ---------------------------------------------------------------------------------------------------------------------


def port_of_the_peer(request: web.Request) -> int:
    assert request.transport is not None
    port: int = request.transport.get_extra_info("peername")[1]
    return port


async def test_keep_alive_requests_share_a_connection() -> None:
    ports = set()

    async def note_port(request: web.Request) -> web.Response:
        ports.add(port_of_the_peer(request))
        return web.Response()

    async with serving(web.get("/", note_port), limit=1) as http:
        for _ in range(20):
            async with http.get("/") as response:
                assert response.status == 200
    assert len(ports) == 1


async def test_requests_that_close_have_a_connection_each() -> None:
    ports = []

    async def note_port(request: web.Request) -> web.Response:
        ports.append(port_of_the_peer(request))
        return web.Response()

    async with serving(web.get("/", note_port), limit=1) as http:
        for _ in range(5):
            async with http.get("/", headers={"Connection": "close"}) as response:
                assert response.status == 200
    assert len(set(ports)) == 5


async def test_many_clients_at_once_get_each_its_own_answer() -> None:
    async with serving(web.post("/", echo), limit=50) as http:

        async def ask(number: int) -> None:
            body = b"%d " % number * 500
            async with http.post("/", data=body) as response:
                assert await response.read() == body

        async with asyncio.TaskGroup() as asking:
            for number in range(300):
                asking.create_task(ask(number))


async def test_connection_to_a_port_without_a_server_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    async with client_of(f"http://127.0.0.1:{port}/") as http:
        with pytest.raises(aiohttp.ClientConnectorError):
            await http.get("/")


async def test_response_that_takes_too_long_is_given_up() -> None:
    release = asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        await release.wait()
        return web.Response()

    async with serving(web.get("/", slow)) as http:
        with pytest.raises(TimeoutError):
            await http.get("/", timeout=aiohttp.ClientTimeout(total=0.05))
        release.set()


async def test_server_on_a_unix_socket_is_reached(tmp_path: Path) -> None:
    app = web.Application()
    app.add_routes([web.post("/", echo)])
    runner = web.AppRunner(app)
    await runner.setup()
    path = str(tmp_path / "socket")
    await web.UnixSite(runner, path).start()
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
        session.post("http://localhost/", data=b"over a Unix socket") as response,
    ):
        assert await response.read() == b"over a Unix socket"
    await soon(runner.cleanup())


# ---------------------------------------------------------------------------------------------------------------------
# WebSocket, files, TLS
# ---------------------------------------------------------------------------------------------------------------------


async def test_websocket_carries_text_bytes_and_json_both_ways_and_closes_with_its_code() -> None:
    closed_with = asyncio.get_running_loop().create_future()

    async def talk(request: web.Request) -> web.WebSocketResponse:
        server = web.WebSocketResponse(max_msg_size=2 * LARGE)
        await server.prepare(request)
        async for message in server:
            if message.type is aiohttp.WSMsgType.TEXT:
                await server.send_str(message.data)
            elif message.type is aiohttp.WSMsgType.BINARY:
                await server.send_bytes(message.data)
        closed_with.set_result(server.close_code)
        return server

    large = os.urandom(1 << 20)
    async with serving(web.get("/", talk)) as http:
        async with http.ws_connect("/", max_msg_size=2 * LARGE, autoping=False) as client:
            await client.send_str("grüß")
            assert await soon(client.receive_str()) == "grüß"
            await client.send_bytes(large)
            assert await soon(client.receive_bytes()) == large
            await client.send_json({"n": 1})
            assert await soon(client.receive_json()) == {"n": 1}
            await client.ping(b"are you there")
            assert await soon(client.receive()) == (aiohttp.WSMsgType.PONG, b"are you there", "")
            await client.close(code=4001, message=b"enough")
        assert await soon(closed_with) == 4001


@pytest.mark.parametrize("size", [0, 1, LARGE + 1])
async def test_file_is_sent_whole(size: int, tmp_path: Path) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    async with serving(web.static("/", tmp_path)) as http, http.get("/file") as response:
        assert response.status == 200
        assert await response.read() == content


async def test_part_of_a_file_is_sent(tmp_path: Path) -> None:
    content = os.urandom(LARGE)
    (tmp_path / "file").write_bytes(content)
    first, last = 1_000_001, 3_000_000
    some = {"Range": f"bytes={first}-{last}"}
    async with serving(web.static("/", tmp_path)) as http, http.get("/file", headers=some) as response:
        assert response.status == 206
        assert await response.read() == content[first : last + 1]


@pytest.mark.parametrize("size", [1, LARGE])
async def test_body_comes_back_over_tls(size: int, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    body = os.urandom(size)
    async with (
        serving(web.post("/", echo), tls=server_tls) as http,
        http.post("/", data=io.BytesIO(body), ssl=client_tls) as response,
    ):
        assert await response.read() == body


async def test_file_is_sent_over_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, tmp_path: Path) -> None:
    content = os.urandom(LARGE)
    (tmp_path / "file").write_bytes(content)
    async with (
        serving(web.static("/", tmp_path), tls=server_tls) as http,
        http.get("/file", ssl=client_tls) as response,
    ):
        assert await response.read() == content


async def test_certificate_of_an_unknown_authority_is_not_accepted(server_tls: ssl.SSLContext) -> None:
    async with serving(web.post("/", echo), tls=server_tls) as http:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await http.post("/", data=b"secret")


# ---------------------------------------------------------------------------------------------------------------------
# The example of the documentation
# ---------------------------------------------------------------------------------------------------------------------

CONNECTIONS = 200
REQUESTS = 5000


@contextmanager
def running_example() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m uringloop hello_aiohttp.py`, listening; gives the process and its URL."""
    command = [sys.executable, "-u", "-m", "uringloop", str(EXAMPLE), "127.0.0.1", "0"]
    environment = {name: value for name, value in os.environ.items() if name != "URINGLOOP_FALLBACK"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            announcement = process.stdout.readline()
            assert "Running on http://" in announcement, process.communicate(timeout=PATIENCE)
            yield process, announcement.strip("= \n").removeprefix("Running on ")
        finally:
            process.kill()


@pytest.mark.only_on("uringloop")
async def test_example_under_load_answers_every_request_and_stops_cleanly_on_sigint() -> None:
    with running_example() as (process, url):
        async with client_of(url, limit=CONNECTIONS) as http:

            async def ask(numbers: Iterator[int]) -> None:
                for number in numbers:
                    if number % 2:
                        async with http.get(f"/{number}") as response:
                            assert await response.text() == f"Hello, {number}!\n"
                    else:
                        async with http.post("/echo", data=b"%d" % number) as response:
                            assert await response.read() == b"%d" % number

            numbers = iter(range(REQUESTS))
            async with asyncio.TaskGroup() as asking:
                for _ in range(CONNECTIONS):
                    asking.create_task(ask(numbers))
            assert next(numbers, None) is None

        process.send_signal(signal.SIGINT)
        await eventually(lambda: process.poll() is not None)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.returncode == 0
