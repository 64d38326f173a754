"""uvicorn with FastAPI: as a process of its own, told the loop on its command line, and inside the running loop."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel
from support import PATIENCE, eventually, soon

import uringloop
from uringloop import fs

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "hello_fastapi.py"
MORE_THAN_THE_KERNEL_TAKES = 16 << 20  # bytes that cannot all wait in socket buffers
MANY = 500  # requests

http_parsers = pytest.mark.parametrize("parser", ["httptools", "h11"])


# ---------------------------------------------------------------------------------------------------------------------
# The application
# ---------------------------------------------------------------------------------------------------------------------

app = FastAPI()


class Order(BaseModel):
    article: str
    pieces: int
    price: float


@app.get("/hello/{name}")
async def hello(name: str) -> dict[str, str]:
    return {"hello": name, "loop": type(asyncio.get_running_loop()).__module__.partition(".")[0]}


@app.post("/orders")
async def place_order(order: Order) -> dict[str, float]:
    return {"total": order.pieces * order.price}


@app.get("/in-a-thread")
def in_a_thread() -> str:
    return "done"


@app.get("/large")
async def large() -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(MORE_THAN_THE_KERNEL_TAKES >> 16):
            yield b"x" * 65536

    return StreamingResponse(pieces())


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    with suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text(await websocket.receive_text())


# ---------------------------------------------------------------------------------------------------------------------
# A process of its own
# ---------------------------------------------------------------------------------------------------------------------


class Uvicorn:
    """A running `uvicorn` process, and its port."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def rest_of_the_log(self) -> str:
        """What is logged until the end."""
        return self.process.communicate(timeout=PATIENCE)[1]


@contextmanager
def uvicorn_process(program: Path, loop: str, parser: str) -> Iterator[Uvicorn]:
    """The `app` of a program, served on the loop."""
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(program.parent), f"{program.stem}:app"]
    command += ["--host", "127.0.0.1", "--port", "0", "--loop", loop, "--http", parser, "--no-access-log"]
    environment = {name: value for name, value in os.environ.items() if name != "URINGLOOP_FALLBACK"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            log = ""
            for line in process.stderr:
                log += line
                if running := re.search(r"Uvicorn running on http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                pytest.fail(log)
            yield Uvicorn(process, int(running[1]))
        finally:
            process.kill()


@pytest.fixture(params=["asyncio", "uvloop", "uringloop:new_event_loop"])
def loop_option(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@http_parsers
def test_example_answers_over_one_connection_and_over_many(loop_option: str, parser: str) -> None:
    with uvicorn_process(EXAMPLE, loop_option, parser) as server:
        http = server.connect()
        for number in range(MANY):
            http.request("GET", f"/?name=client{number}")
            assert http.getresponse().read() == b'{"hello":"client%d"}' % number
        http.close()
        order = '{"article": "nut", "pieces": 3, "price": 0.5}'
        for _ in range(50):
            http = server.connect()
            http.request("POST", "/orders", order, {"Content-Type": "application/json"})
            assert http.getresponse().read() == b'{"total":1.5}'
            http.close()
        server.process.send_signal(signal.SIGINT)
        log = server.rest_of_the_log()
    assert "Traceback" not in log
    assert "ERROR" not in log


@http_parsers
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_process_told_to_stop_finishes_the_response_that_it_is_sending(
    loop_option: str, parser: str, by: signal.Signals
) -> None:
    with uvicorn_process(Path(__file__), loop_option, parser) as server:
        http = server.connect()
        http.request("GET", "/large")
        response = http.getresponse()
        assert response.read(1) == b"x"
        server.process.send_signal(by)
        wait_until_refused(server)
        assert len(response.read()) == MORE_THAN_THE_KERNEL_TAKES - 1
        http.close()
        log = server.rest_of_the_log()
        assert server.process.returncode in (0, -by), "uvicorn ends by the signal that it was sent"
    assert "Application shutdown complete" in log
    assert "Traceback" not in log


def wait_until_refused(server: Uvicorn) -> None:
    """Until the listener is closed: the process has taken notice of the signal."""
    patience = time.monotonic() + PATIENCE
    with suppress(ConnectionError):  # a reset, if it is closed between the handshake and the accept
        while time.monotonic() < patience:
            socket.create_connection(("127.0.0.1", server.port), PATIENCE).close()
        pytest.fail("the server still accepts connections")


# ---------------------------------------------------------------------------------------------------------------------
# Inside the running loop
# ---------------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(parser: str, served: Any = app) -> AsyncIterator[tuple[uvicorn.Server, aiohttp.ClientSession]]:
    """The server, and a client of it, both on the running loop."""
    config = uvicorn.Config(served, port=0, http=parser, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started or serving.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}/", timeout=timeout) as http:
        yield server, http
    server.should_exit = True
    await soon(serving)


@http_parsers
async def test_requests_are_answered_inside_the_running_loop(parser: str) -> None:
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    async with serving(parser) as (_, http):
        async with http.get("/hello/you") as response:
            assert await response.json() == {"hello": "you", "loop": loop}
        async with http.post("/orders", json={"article": "nut", "pieces": 3, "price": 0.5}) as response:
            assert await response.json() == {"total": 1.5}
        async with http.post("/orders", json={"article": "nut"}) as response:
            assert response.status == 422
        async with http.get("/in-a-thread") as response:
            assert await response.json() == "done"


@http_parsers
async def test_many_requests_at_once_get_each_its_own_answer(parser: str) -> None:
    async with serving(parser) as (_, http):

        async def ask(number: int) -> None:
            async with http.get(f"/hello/{number}") as response:
                assert (await response.json())["hello"] == str(number)

        async with asyncio.TaskGroup() as asking:
            for number in range(MANY):
                asking.create_task(ask(number))


@http_parsers
async def test_large_response_waits_for_a_client_that_does_not_read_and_outlasts_the_shutdown(parser: str) -> None:
    async with serving(parser) as (server, http), http.get("/large") as response:
        await response.content.readexactly(1)
        server.should_exit = True
        await eventually(lambda: not server.servers[0].is_serving())
        rest = await response.content.read()
        assert len(rest) == MORE_THAN_THE_KERNEL_TAKES - 1


async def test_websocket_talks_through_uvicorn() -> None:
    async with serving("httptools") as (_, http), http.ws_connect("/echo") as websocket:
        for number in range(100):
            await websocket.send_str(f"message {number}")
            assert await soon(websocket.receive_str()) == f"message {number}"


CONTENT = os.urandom(1_000_003)


@asynccontextmanager
async def serving_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[aiohttp.ClientSession]:
    """Starlette's FileResponse, as docs/files.md tells to use it."""
    path.write_bytes(CONTENT)  # noqa: ASYNC240
    monkeypatch.setattr(FileResponse, "_open_file", lambda response: uringloop.open(response.path, "rb"))

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await FileResponse(path, stat_result=await fs.stat(path))(scope, receive, send)

    async with serving("httptools", answer) as (_, http):
        yield http


async def test_file_is_read_without_threads_by_starlette(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = threading.active_count()
    async with serving_file(tmp_path / "file", monkeypatch) as http:
        async with http.get("/") as response:
            assert await response.read() == CONTENT
        async with http.get("/", headers={"Range": "bytes=1000-99999"}) as response:
            assert response.status == 206
            assert await response.read() == CONTENT[1000:100_000]
        async with http.get("/", headers={"Range": "bytes=0-9,500000-500009"}) as response:
            body = await response.read()
            assert CONTENT[:10] in body
            assert CONTENT[500_000:500_010] in body
        loop = asyncio.get_running_loop()
        if isinstance(loop, uringloop.Loop) and not loop.stats().hardened:  # a hardened ring may open no files
            assert threading.active_count() == started


async def test_client_of_starlette_that_leaves_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving_file(tmp_path / "file", monkeypatch) as http:
        async with http.get("/") as response:  # connected
            await response.read()
        for _ in range(3):
            async with http.get("/") as response:
                await response.content.readexactly(1)
                response.close()
        await eventually(lambda: not any(link.endswith("/file") for link in links_of_open_files()))


def links_of_open_files() -> Iterator[str]:
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            yield os.readlink(f"/proc/self/fd/{fd}")
