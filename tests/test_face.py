"""The public face: what `import uringloop` gives, and the ways to put the loop under a program."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import importlib.resources
import inspect
import os
import socket
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

import uringloop

TIMEOUT = 60  # seconds; a program takes a fraction of one, a small pytest about one


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that must succeed, in a process of its own."""
    completed = run_python("-c", textwrap.dedent(program))
    assert completed.returncode == 0, completed.stderr
    return completed


async def loop_in_use() -> type[asyncio.AbstractEventLoop]:
    await asyncio.sleep(0)
    return type(asyncio.get_running_loop())


# ---------------------------------------------------------------------------------------------------------------------
# What the module offers
# ---------------------------------------------------------------------------------------------------------------------

OFFERED = {
    "EventLoopPolicy",
    "Loop",
    "Unavailable",
    "__version__",
    "install",
    "new_event_loop",
    "probe",
    "run",
}


policies_may_warn = pytest.mark.filterwarnings("ignore:'asyncio.*Policy' is deprecated:DeprecationWarning")  # 3.14


@policies_may_warn
def test_all_lists_what_is_offered_and_each_of_it_is_there() -> None:
    assert set(uringloop.__all__) >= OFFERED
    for name in uringloop.__all__:
        assert getattr(uringloop, name) is not None


def test_module_offers_what_uvloop_offers() -> None:
    """A program that says `import uringloop as uvloop` finds every name that uvloop declares public."""
    assert set(uvloop.__all__) <= set(uringloop.__all__)


def test_module_has_no_attribute_that_it_does_not_have() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        uringloop.no_such_name  # noqa: B018


def test_version_is_that_of_the_distribution() -> None:
    assert uringloop.__version__ == importlib.metadata.version("uringloop")


def test_package_says_that_it_is_typed() -> None:
    assert importlib.resources.files(uringloop).joinpath("py.typed").is_file()


@policies_may_warn
def test_every_public_name_has_a_docstring() -> None:
    for name in uringloop.__all__:
        if not name.startswith("__"):
            assert inspect.getdoc(getattr(uringloop, name)), name


def test_import_changes_nothing_and_warns_of_nothing() -> None:
    run_program(
        """
        import asyncio, sys, warnings
        warnings.simplefilter("error")
        before = asyncio.new_event_loop
        import uringloop
        assert asyncio.new_event_loop is before
        with asyncio.Runner() as runner:
            assert not isinstance(runner.get_loop(), uringloop.Loop)
        """
    )


# ---------------------------------------------------------------------------------------------------------------------
# Ways to get the loop
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def policy() -> Iterator[Any]:
    """The policy, in force; asyncio's own afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # policies are deprecated from 3.14 on
        before = asyncio.get_event_loop_policy()
        policy = uringloop.EventLoopPolicy()
        asyncio.set_event_loop_policy(policy)
        yield policy
        asyncio.set_event_loop_policy(before)


def test_policy_gives_the_loop_to_asyncio_run(policy: Any) -> None:
    assert asyncio.run(loop_in_use()) is uringloop.Loop


def test_policy_gives_the_loop_to_new_event_loop(policy: Any) -> None:
    loop = asyncio.new_event_loop()
    assert type(loop) is uringloop.Loop
    loop.close()


def test_policy_knows_the_loop_that_was_set_and_that_none_is(policy: Any) -> None:
    loop = policy.new_event_loop()
    policy.set_event_loop(loop)
    assert policy.get_event_loop() is loop
    policy.set_event_loop(None)
    with pytest.raises(RuntimeError, match="no current event loop"):
        policy.get_event_loop()
    loop.close()


@pytest.mark.parametrize("make", [uringloop.new_event_loop, uringloop.Loop])
def test_runner_takes_the_factory_and_the_class(make: Any) -> None:
    with asyncio.Runner(loop_factory=make) as runner:
        assert runner.run(loop_in_use()) is uringloop.Loop


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.run takes a loop factory from 3.12 on")
def test_asyncio_run_takes_the_factory() -> None:
    assert asyncio.run(loop_in_use(), loop_factory=uringloop.new_event_loop) is uringloop.Loop


def test_run_runs_on_the_loop_and_gives_the_result() -> None:
    assert uringloop.run(loop_in_use()) is uringloop.Loop


def test_run_hands_debug_on() -> None:
    async def debug() -> bool:
        return asyncio.get_running_loop().get_debug()

    assert uringloop.run(debug(), debug=True) is True
    assert uringloop.run(debug(), debug=False) is False


def test_run_refuses_a_factory_of_other_loops() -> None:
    main = loop_in_use()
    with pytest.raises(TypeError, match="uses a non-uringloop event loop"):
        uringloop.run(main, loop_factory=asyncio.new_event_loop)
    main.close()


def test_run_takes_a_factory_of_a_subclass() -> None:
    class Mine(uringloop.Loop):
        pass

    assert uringloop.run(loop_in_use(), loop_factory=Mine) is Mine


def test_run_raises_what_main_raises_and_closes_the_loop() -> None:
    loops = []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        raise LookupError("from main")

    with pytest.raises(LookupError, match="from main"):
        uringloop.run(main())
    assert loops[0].is_closed()


def test_run_refuses_what_is_not_a_coroutine_or_runs_inside_a_loop() -> None:
    with pytest.raises((TypeError, ValueError), match="coroutine"):
        uringloop.run(lambda: None)  # type: ignore[arg-type]

    async def nested() -> None:
        main = loop_in_use()
        try:
            uringloop.run(main)
        finally:
            main.close()

    with pytest.raises(RuntimeError, match="running event loop"):
        uringloop.run(nested())


def test_install_makes_it_the_loop_of_the_process() -> None:
    run_program(
        """
        import asyncio, sys, uringloop, warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            uringloop.install()
        if sys.version_info >= (3, 12):
            assert caught[0].category is DeprecationWarning, caught
            assert "uringloop.run" in str(caught[0].message)
            assert caught[0].filename == "<string>", "the warning is to point at the caller"
        else:
            assert not caught, caught
        async def main():
            return type(asyncio.get_running_loop())
        assert asyncio.run(main()) is uringloop.Loop
        """
    )


# ---------------------------------------------------------------------------------------------------------------------
# The loop's options
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["entries", "buffers"])
@pytest.mark.parametrize("value", [3, 100, (1 << 15) + 1])
def test_number_that_is_not_a_power_of_two_is_refused(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{option}.*power of two"):
        uringloop.new_event_loop(**{option: value})


@pytest.mark.parametrize(
    ("option", "value", "bound"),
    [
        ("entries", 1 << 16, 1 << 15),  # IORING_MAX_ENTRIES
        ("buffers", 1 << 16, 1 << 15),  # the kernel's limit on a buffer ring
        ("entries", 0, 1),
        ("entries", -4, 1),
        ("buffers", 0, 1),
        ("buffers", -4, 1),
        ("buffer_size", 63, 64),
        ("buffer_size", -1, 64),
        ("files", -1, 0),
    ],
)
def test_number_out_of_range_is_refused_and_the_bound_is_named(option: str, value: Any, bound: int) -> None:
    with pytest.raises(ValueError, match=option) as refused:
        uringloop.new_event_loop(**{option: value})
    assert str(bound) in str(refused.value)


@pytest.mark.parametrize("option", ["entries", "buffers", "buffer_size", "files"])
@pytest.mark.parametrize("value", ["64", 64.0, b"64", [64], True])
def test_number_of_the_wrong_type_is_refused(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=option):
        uringloop.new_event_loop(**{option: value})


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        uringloop.new_event_loop(colour="green")


@pytest.mark.parametrize("value", ["trio", "uvloop", True])
def test_unknown_fallback_is_refused_even_where_it_is_not_needed(value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="fallback"):
        uringloop.new_event_loop(fallback=value)


def test_options_are_given_by_name_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        uringloop.new_event_loop(64)  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"entries": 1},
        {"entries": 1 << 15},
        {"buffers": 1, "buffer_size": 64},
        {"buffers": 1 << 15, "buffer_size": 64},
        {"files": 0},
        {"files": 1},
    ],
)
def test_loop_works_at_the_bounds_of_its_options(options: dict[str, Any]) -> None:
    async def say_and_hear() -> bytes:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"x" * 1000)
            writer.write_eof()
            heard = await reader.read()
            writer.close()
            await writer.wait_closed()
        return heard

    with asyncio.Runner(loop_factory=lambda: uringloop.new_event_loop(**options)) as runner:
        heard = runner.run(asyncio.wait_for(say_and_hear(), 10))
    assert heard == b"x" * 1000


# ---------------------------------------------------------------------------------------------------------------------
# What it tells about the kernel and about itself
# ---------------------------------------------------------------------------------------------------------------------


def test_probe_finds_io_uring_and_has_nothing_to_advise() -> None:
    probe = uringloop.probe()
    assert probe.available is True
    assert probe.reason == ""
    assert probe.remedy == ""
    for feature in (
        "fixed_files",
        "incremental_buffers",
        "rewound_buffers",
        "limited_receives",
        "multishot_recv",
        "registered_ring",
        "defer_taskrun",
        "datagrams",
    ):
        assert type(getattr(probe, feature)) is bool, feature


STATS = (
    "accept_rearms",
    "accepts",
    "buffers_in_use",
    "datagrams_received",
    "datagrams_sent",
    "endpoints_open",
    "enters",
    "fixed_files",
    "operations_in_flight",
    "receive_rearms",
    "receives",
    "slots_in_use",
    "streams_open",
    "ticks",
)


def test_stats_are_plain_and_of_the_moment() -> None:
    loop = uringloop.Loop()
    before = loop.stats()
    for name in STATS:
        assert type(getattr(before, name)) is int, name
    assert before.ring_fd_registered is False, "the loop does not run"
    loop.run_until_complete(asyncio.sleep(0))
    after = loop.stats()
    assert after.ticks > before.ticks
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.stats()


def test_stats_cannot_be_written_to() -> None:
    loop = uringloop.Loop()
    with pytest.raises(dataclasses.FrozenInstanceError):
        loop.stats().ticks = 0  # type: ignore[misc] # that is what is tested
    loop.close()


def test_stats_count_a_connection_and_forget_it() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, uringloop.Loop)
        assert loop.stats().ring_fd_registered is uringloop.probe().registered_ring
        ended = asyncio.Event()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(100))
            await reader.read()
            writer.close()
            await writer.wait_closed()
            ended.set()

        at_rest = loop.stats()
        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"hello")
            assert await reader.read(100) == b"hello"
            connected = loop.stats()
            assert connected.streams_open - at_rest.streams_open == 2
            assert connected.accepts - at_rest.accepts == 1
            assert connected.receives - at_rest.receives >= 2
            assert connected.completions_by_kind["accept"] - at_rest.completions_by_kind["accept"] == 1
            assert connected.completions_by_kind["recv"] - at_rest.completions_by_kind["recv"] >= 2
            assert sum(connected.completions_by_kind.values()) == connected.completions
            writer.close()
            await writer.wait_closed()
            await ended.wait()
        assert loop.stats().streams_open == at_rest.streams_open
        assert loop.stats().slots_in_use == at_rest.slots_in_use

    uringloop.run(asyncio.wait_for(main(), 10))


def test_stats_tell_why_receives_had_ended() -> None:
    """More bytes than a pool of two small buffers holds, so that receives find it empty."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, uringloop.Loop)
        near, far = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=near)
        _, sending = await asyncio.open_connection(sock=far)
        sending.write(bytes(5000))
        assert await reader.readexactly(5000) == bytes(5000)
        stats = loop.stats()
        assert stats.receive_starved > 0
        assert stats.receive_ends["starved"] == stats.receive_starved
        assert sum(stats.receive_ends.values()) >= stats.receive_rearms > 0
        for ours in (writer, sending):
            ours.close()
            await ours.wait_closed()

    with asyncio.Runner(loop_factory=lambda: uringloop.Loop(buffers=2, buffer_size=512)) as runner:
        runner.run(asyncio.wait_for(main(), 10))


def test_every_field_of_stats_is_in_its_page() -> None:
    page = (Path(__file__).parents[1] / "docs" / "stats.md").read_text()
    loop = uringloop.Loop()
    stats = loop.stats()
    loop.close()
    names = {field.name for field in dataclasses.fields(stats)} | stats.completions_by_kind.keys()
    assert {name for name in names | stats.receive_ends.keys() if f"`{name}`" not in page} == set()


# ---------------------------------------------------------------------------------------------------------------------
# Under pytest-asyncio
# ---------------------------------------------------------------------------------------------------------------------

A_TEST = """
import asyncio
import uringloop

async def test_the_loop():
    assert type(asyncio.get_running_loop()) is uringloop.Loop
    await asyncio.sleep(0)
"""

BY_HOOK = """
import uringloop

def pytest_asyncio_loop_factories(config, item):
    return {"uringloop": uringloop.new_event_loop}
"""

BY_POLICY_FIXTURE = """
import pytest
import uringloop

@pytest.fixture(scope="session")
def event_loop_policy():
    return uringloop.EventLoopPolicy()
"""


@pytest.mark.parametrize("conftest", [BY_HOOK, BY_POLICY_FIXTURE], ids=["by hook", "by policy fixture"])
def test_pytest_asyncio_can_be_told_to_use_the_loop(conftest: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "test_it.py").write_text(A_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n")
    completed = run_python("-m", "pytest", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", str(tmp_path))
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "1 passed" in completed.stdout
