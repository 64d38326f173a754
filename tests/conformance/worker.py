"""A process of its own for tests that may hang it or crash it: the parent's side. `child.py` is the other.

The child is given the names of the tests as a JSON list on standard input, and writes JSON lines to a pipe:
`"ready"`, an outcome for each test in the given order, `"done"`. An empty list asks for the names of all tests
instead. Standard output and error go to a file, so that what a test prints can neither block the child nor be taken
for a result.

The clock is the parent's. A child that is late is sent SIGABRT, upon which faulthandler writes where every thread
is; then the whole process group goes, with whatever the test had started.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time
import typing

from tests.conformance.outcome import Outcome

ROOT: typing.Final = pathlib.Path(__file__).parents[2]
START_TIMEOUT: typing.Final = 60.0  # imports, on a machine that has other things to do
ABORT_TIMEOUT: typing.Final = 5.0  # to write the tracebacks
LAST_WORDS: typing.Final = 8000  # characters of output kept from a child that died


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a suite runs: an interpreter, folders that it is to import from, and what else it is told."""

    python: str = sys.executable
    path: tuple[pathlib.Path, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    def environ(self, *path: pathlib.Path) -> dict[str, str]:
        """The environment of a process there, which imports from `path` too."""
        inherited = filter(None, [os.environ.get("PYTHONPATH")])
        python_path = os.pathsep.join([*map(str, self.path), *map(str, path), *inherited])
        return os.environ | self.environment | {"PYTHONPATH": python_path}


class Worker:
    """The parent's end."""

    def __init__(self, place: Place, suite: str, loop: str, tests: list[str]) -> None:
        self._tests = tests
        self._received = b""
        self._results, child_end = os.pipe()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, self._results)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="conformance-"))
            self._output = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                [place.python, "-m", "tests.conformance.child", suite, loop, str(child_end)],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[child_end],
                cwd=folder,  # some tests write files to where they are
                env=place.environ(ROOT) | {"CONFORMANCE_LOOP": loop},  # ROOT: it does not run there
                start_new_session=True,
            )
            self._cleanup = stack.pop_all()
        os.close(child_end)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as names:
            names.write(json.dumps(tests).encode())

    @classmethod
    def list_tests(cls, place: Place, suite: str, loop: str) -> list[str]:
        with cls(place, suite, loop, []) as worker:
            worker._wait_until_ready()
            names: list[str] = json.loads(worker._line(START_TIMEOUT))
            return names

    def outcomes(self, timeout: float) -> typing.Iterator[Outcome]:
        """The outcomes of the tests, and of fixtures that failed. After a crash or a time-out no more come."""
        self._wait_until_ready()
        waiting = collections.deque([*self._tests, "(the end)"])
        while True:
            started = time.monotonic()
            try:
                message = json.loads(self._line(timeout))
            except TimeoutError:
                self._abort()
                yield Outcome(waiting[0], "timeout", self._last_words(), time.monotonic() - started)
                return
            except EOFError:
                detail = f"exit status {self._process.wait(ABORT_TIMEOUT)}\n{self._last_words()}"
                yield Outcome(waiting[0], "crashed", detail, time.monotonic() - started)
                return
            if message == "done":
                return
            outcome = Outcome(**message)
            if outcome.test == waiting[0]:
                waiting.popleft()
            yield outcome

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # all of them gone already
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._cleanup.close()

    def _wait_until_ready(self) -> None:
        try:
            line = self._line(START_TIMEOUT)
        except TimeoutError:
            self._abort()
            raise RuntimeError(f"the child is late\n{self._last_words()}") from None
        except EOFError:
            self._process.wait(ABORT_TIMEOUT)
            raise RuntimeError(f"the child did not start\n{self._last_words()}") from None
        assert json.loads(line) == "ready", line

    def _line(self, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._received:
            readable, _, _ = select.select([self._results], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise TimeoutError
            chunk = os.read(self._results, 65536)
            if not chunk:
                raise EOFError
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _abort(self) -> None:
        self._process.send_signal(signal.SIGABRT)
        with contextlib.suppress(subprocess.TimeoutExpired):  # __exit__ kills it
            self._process.wait(ABORT_TIMEOUT)

    def _last_words(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace")[-LAST_WORDS:]
