"""Every behaviour test runs on every loop, and after each of them nothing may be left."""

from __future__ import annotations

import asyncio
import gc
import inspect
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from datagrams import Datagrams, Kind, Make
from support import (
    LOOPS,
    PATIENCE,
    J,
    LoopFactory,
    OpenEnd,
    Peer,
    Unhandled,
    children,
    eventually,
    in_use,
    loops_for,
    open_files,
    opened,
    opened_end,
    soon,
)
from tls import Tls


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on", choices=LOOPS, help="leave out what is run on other loops")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    only = config.getoption("--on")
    if only is None:
        return
    config.hook.pytest_deselected(items=[item for item in items if not runs_on(item, only)])
    items[:] = [item for item in items if runs_on(item, only)]


def runs_on(item: pytest.Item, loop: str) -> bool:
    """A test that is run on several loops has the one in its id; one that no loop is named for may run on any."""
    named = LOOPS.keys() & set(item.name.partition("[")[2].removesuffix("]").split("-"))
    only_on = item.get_closest_marker("only_on")
    return loop in (named or (only_on.args if only_on else LOOPS))


def pytest_configure(config: pytest.Config) -> None:
    # In the background of a shell SIGINT is ignored, and so it would be by the children that are to be interrupted.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "tiny_ring: run on a ring of 4 entries and 2 buffers too")
    config.addinivalue_line("markers", "only_on(*loops): run on these loops only")


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, LoopFactory]:
    """Asynchronous tests run inside each loop."""
    return loops_for(item)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Synchronous tests that ask for `new_loop` make, run and close each loop themselves."""
    if "new_loop" in metafunc.fixturenames:
        loops = loops_for(metafunc.definition)
        metafunc.parametrize("new_loop", loops.values(), ids=loops.keys(), indirect=True)


@pytest.fixture(scope="session", autouse=True)
def level_ground() -> None:
    """What is opened or imported once for the whole process is so before the first test.

    libuv keeps a pipe for signals from its first loop on.
    """
    for new_loop in LOOPS.values():
        new_loop().close()


@pytest.fixture(scope="module", autouse=True)
def old_ground(level_ground: None) -> None:
    """The collector, which runs after every test, need not look at what was there before the module's first: it is
    there for good. Else it takes two fifths of the time of all tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """No file descriptor and no thread outlives a test. ResourceWarnings are errors; the collection brings them out."""
    before = open_files()
    threads_before = threading.enumerate()
    yield
    for thread in set(threading.enumerate()).difference(threads_before):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    gc.collect()
    after = open_files()
    assert after.items() - before.items() == set()
    assert before.items() - after.items() == set()


@pytest.fixture(autouse=True)
def nothing_left_running(request: pytest.FixtureRequest, nothing_left_open: None) -> None:
    """Asynchronous tests are looked after by `quiet_loop`, synchronous ones by `new_loop`."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("quiet_loop")


@pytest.fixture
def no_zombies() -> Iterator[None]:
    """No process that the test started is left, running or not."""
    before = children()
    yield
    assert children() <= before


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What goes in the test goes by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def unhandled() -> Iterator[Unhandled]:
    """What reached the loop's exception handler, and was not taken by the test, is a failure."""
    unhandled = Unhandled()
    yield unhandled
    gc.collect()
    assert unhandled.contexts == []


@pytest.fixture
async def quiet_loop(request: pytest.FixtureRequest, unhandled: Unhandled) -> AsyncIterator[None]:
    """When a test is over its loop has no task but this one, no connection, and nothing of the ring in use."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(unhandled)
    at_rest = in_use(loop)
    failed_before = request.session.testsfailed
    yield
    if request.session.testsfailed > failed_before:
        await opened.close()  # lest one failure becomes many
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await eventually(lambda: not opened.any() and in_use(loop) == at_rest)


@pytest.fixture
def new_loop(request: pytest.FixtureRequest, unhandled: Unhandled) -> Iterator[LoopFactory]:
    """Makes loops for a synchronous test. Those that it leaves open are closed."""
    loops = []

    def new_loop() -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = request.param()
        loop.set_exception_handler(unhandled)
        loops.append(loop)
        return loop

    yield new_loop
    for loop in loops:
        assert asyncio.all_tasks(loop) == set()
        loop.close()


@pytest.fixture(params=["tcp", "unix"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["client", "server"])
async def open_end(request: pytest.FixtureRequest, family: str, tmp_path: Path) -> AsyncIterator[OpenEnd]:
    """Opens connections of each family, with the transport on each side. See `OpenEnd`."""
    async with AsyncExitStack() as ends:

        async def open_end(factory: Callable[[], J], /) -> tuple[J, Peer]:
            return await ends.enter_async_context(opened_end(factory, family, request.param, tmp_path))

        yield open_end


@pytest.fixture
async def endpoint() -> AsyncIterator[Make]:
    """Makes endpoints, with create_datagram_endpoint's arguments; they are closed when the test is over."""
    made: list[Datagrams] = []

    async def endpoint(factory: Callable[[], Datagrams] = Datagrams, **options: Any) -> Datagrams:
        _, protocol = await soon(asyncio.get_running_loop().create_datagram_endpoint(factory, **options))
        made.append(protocol)
        return protocol

    yield endpoint
    for protocol in made:
        if "connection_lost" not in protocol.calls:
            protocol.transport.abort()
        await protocol.lost()
        assert [protocol.calls[0], protocol.calls[-1]] == ["connection_made", "connection_lost"]
        assert protocol.calls.count("connection_lost") == 1


@pytest.fixture(params=["udp4", "udp6", "unix"])
def kind(request: pytest.FixtureRequest) -> str:
    """Of datagram sockets."""
    if request.param == "unix" and "uvloop" in request.node.name:
        pytest.skip("uvloop has no Unix datagrams")
    return str(request.param)


@pytest.fixture
def end(kind: str, tmp_path: Path) -> Iterator[Kind]:
    """Plain datagram sockets, and arguments for endpoints, of each kind."""
    end = Kind(kind, tmp_path)
    yield end
    for sock in end.opened:
        sock.close()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Kind]:
    """The same for UDP over IPv4 only."""
    end = Kind("udp4", tmp_path)
    yield end
    for sock in end.opened:
        sock.close()


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[Kind]:
    """The same for Unix sockets only."""
    end = Kind("unix", tmp_path)
    yield end
    for sock in end.opened:
        sock.close()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Signs the certificates of the TLS tests."""
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A server's context, with a certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    """A client's context, which trusts that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context


@pytest.fixture
async def tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> AsyncIterator[Tls]:
    tls = Tls(server_tls, client_tls)
    yield tls
    await tls.close()
