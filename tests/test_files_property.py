"""Files against the standard library's: the same calls in the same order give the same answers and the same bytes."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import LOOPS

import uringloop

# The same examples each time, so that a change is told by what it does; FILES_EXAMPLES=N looks at N random ones.
EXAMPLES = int(os.environ.get("FILES_EXAMPLES", "0"))
SETTINGS = settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

SIZES = st.one_of(st.integers(0, 40), st.sampled_from([8191, 8192, 8193, 70_000]))
BYTES = st.one_of(st.binary(max_size=40), st.sampled_from([b"line\n" * 2000, b"x" * 70_000]))
BINARY_CALLS = st.one_of(
    st.tuples(st.sampled_from(["read", "readline", "read1"]), SIZES),
    st.tuples(st.just("read")),
    st.tuples(st.just("readline")),
    st.tuples(st.just("readlines"), SIZES),
    st.tuples(st.just("write"), BYTES),
    st.tuples(st.just("writelines"), st.lists(BYTES, max_size=3)),
    st.tuples(st.just("seek"), st.integers(0, 30_000)),
    st.tuples(st.just("seek"), st.integers(0, 30), st.sampled_from([1, 2])),
    st.tuples(st.just("seek"), st.integers(-30, 0), st.sampled_from([1, 2])),
    st.tuples(st.just("tell")),
    st.tuples(st.just("flush")),
    st.tuples(st.just("truncate"), SIZES),
    st.tuples(st.just("truncate")),
)


async def answer_of(file: Any, name: str, arguments: tuple[Any, ...]) -> Any:
    """What a call gives, or what it raises."""
    try:
        given = getattr(file, name)(*arguments)
        return await given if asyncio.iscoroutine(given) else given
    except (OSError, ValueError) as exc:
        return type(exc).__name__, getattr(exc, "errno", None)


def same_but_read1(name: str, theirs: Any, ours: Any) -> bool:
    # How much one read gives is up to each; it is of the same bytes.
    if name == "read1" and isinstance(ours, bytes):
        return bool(theirs) == bool(ours) and (theirs.startswith(ours) or ours.startswith(theirs))
    return bool(theirs == ours)


async def compare(mode: str, content: bytes, calls: list[tuple[Any, ...]], in_place: bool, **options: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, "theirs"), Path(folder, "ours")
        for path in paths:
            path.write_bytes(content)
        with io.open(paths[0], mode, **options) as theirs:  # noqa: ASYNC230, UP020 - the file to compare with
            async with uringloop.open(paths[1], mode, **options) as ours:
                getattr(ours, "buffer", ours)._in_place &= in_place
                for name, *arguments in calls:
                    if "a" in mode and name in ("tell", "seek"):
                        # Where an appending file is, io does not know before it has written; nor do we.
                        theirs.flush()
                        await ours.flush()
                    expected = await answer_of(theirs, name, tuple(arguments))
                    given = await answer_of(ours, name, tuple(arguments))
                    assert same_but_read1(name, expected, given), (name, arguments, expected, given)
                    if name == "read1" and expected != given:
                        position = theirs.seek(-len(expected) + len(given), 1)  # type: ignore[arg-type]
                        assert position == await ours.tell()
        assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("mode", ["rb", "r+b", "w+b", "wb", "ab", "a+b"])
@pytest.mark.parametrize("loop", ["uringloop", "asyncio"])
@SETTINGS
@given(content=st.one_of(BYTES), calls=st.lists(BINARY_CALLS, max_size=12), in_place=st.booleans())
def test_binary_file_is_as_of_io(
    mode: str, loop: str, content: bytes, calls: list[tuple[Any, ...]], in_place: bool
) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(compare(mode, content, calls, in_place))


TEXT = st.text(st.sampled_from("ab\n\r\u00e9\u20ac\U0001f600"), max_size=40).flatmap(
    lambda text: st.sampled_from([text, text * 2000])
)
READING_CALLS = st.one_of(
    st.tuples(st.sampled_from(["read", "readline"]), st.integers(0, 40)),
    st.tuples(st.just("readline")),
    st.tuples(st.just("read")),
    st.tuples(st.just("readlines"), SIZES),
    st.tuples(st.just("seek"), st.just(0), st.sampled_from([0, 2])),
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "latin-1", "utf-8-sig", "shift_jis"])
@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@SETTINGS
@given(text=TEXT, calls=st.lists(READING_CALLS, max_size=12))
def test_text_is_read_as_by_io(newline: str | None, encoding: str, text: str, calls: list[tuple[Any, ...]]) -> None:
    content = text.encode(encoding, "ignore")
    with asyncio.Runner(loop_factory=uringloop.new_event_loop) as runner:
        runner.run(compare("r", content, calls, True, encoding=encoding, newline=newline))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("newline", [None, "", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("mode", ["w", "a"])
@SETTINGS
@given(text=TEXT, writes=st.lists(TEXT, max_size=5))
def test_text_is_written_as_by_io(mode: str, newline: str | None, encoding: str, text: str, writes: list[str]) -> None:
    calls = [("write", written) for written in writes]
    with asyncio.Runner(loop_factory=uringloop.new_event_loop) as runner:
        runner.run(compare(mode, text.encode(encoding), calls, True, encoding=encoding, newline=newline))


async def return_to_each_position(content: bytes, sizes: list[int], **options: Any) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        async with uringloop.open(file.name, **options) as ours:
            cookies = []
            for size in sizes:
                cookies.append(await ours.tell())
                await ours.read(size)
            cookies.append(await ours.tell())
            await ours.seek(0)
            whole = await ours.read()
            given = 0
            for cookie, size in zip(cookies, [*sizes, 0], strict=True):
                await ours.seek(cookie)
                assert await ours.read() == whole[given:]
                given = min(given + size, len(whole))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig", "shift_jis"])
@pytest.mark.parametrize("newline", [None, "", "\n", "\r\n"])
@SETTINGS
@given(text=TEXT, sizes=st.lists(st.integers(0, 40), max_size=6))
def test_text_file_returns_to_what_tell_gave(newline: str | None, encoding: str, text: str, sizes: list[int]) -> None:
    content = text.encode(encoding, "ignore")
    with asyncio.Runner(loop_factory=uringloop.new_event_loop) as runner:
        runner.run(return_to_each_position(content, sizes, encoding=encoding, newline=newline))
