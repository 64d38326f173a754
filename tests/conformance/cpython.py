"""CPython's own asyncio tests, as they come with the running interpreter, pointed at another loop.

`CPythonSuite` says which tests; `load` builds them inside a worker process; `run` drives such workers. There are
two ways to point a test module at a loop. Some modules are written as mixins that ask `self.create_event_loop()`,
once for each of asyncio's selectors; of those we make one class of our own. All others ask asyncio for a loop, and
get ours once `loops.make_default` has run.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import fnmatch
import importlib
import types
import typing
import unittest

from tests.conformance import loops
from tests.conformance.outcome import Outcome
from tests.conformance.worker import Worker

PACKAGE: typing.Final = "test.test_asyncio"


@dataclasses.dataclass(frozen=True)
class CPythonSuite:
    """The tests of one module: of `mixins` joined, or of `classes`, or all of them."""

    name: str
    module: str
    about: str
    mixins: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    since: tuple[int, int] = (3, 11)

    def run(self, loop: str, only: str, timeout: float) -> typing.Iterator[Outcome]:
        """Run the tests in worker processes; a test that hangs or crashes costs its worker, not the run."""
        names = [name for name in Worker.list_tests(self.name, loop) if fnmatch.fnmatch(name, only)]
        waiting = collections.deque(names)
        while waiting:
            with Worker(self.name, loop, list(waiting)) as worker:
                for outcome in worker.outcomes(timeout):
                    if waiting and outcome.test == waiting[0]:
                        waiting.popleft()
                    yield outcome

    def load(self, cls: type[asyncio.AbstractEventLoop]) -> dict[str, unittest.TestCase]:
        """The tests by name. To be called in a process that is given over to `cls`."""
        loops.make_default(cls)
        module = importlib.import_module(f"{PACKAGE}.{self.module}")
        _tolerate_missing_executor(importlib.import_module(f"{PACKAGE}.utils"))
        loader = unittest.TestLoader()
        if self.mixins:
            found = loader.loadTestsFromTestCase(self._joined(module, cls))
        elif self.classes:
            found = loader.loadTestsFromNames(self.classes, module)
        else:
            found = loader.loadTestsFromModule(module)
        return {name_of(test): test for test in _flat(found)}

    def _joined(self, module: types.ModuleType, cls: type[asyncio.AbstractEventLoop]) -> type[unittest.TestCase]:
        bases = [getattr(module, mixin) for mixin in self.mixins]
        body = {"__module__": module.__name__, "create_event_loop": lambda self: cls()}
        return type("EventLoopTests", (*bases, module.test_utils.TestCase), body)


def name_of(test: unittest.TestCase) -> str:
    return test.id().removeprefix(f"{PACKAGE}.")


def _flat(suite: unittest.TestSuite) -> typing.Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _flat(test)
        else:
            yield test


def _tolerate_missing_executor(utils: types.ModuleType) -> None:
    """Let the tests close a loop that keeps its executor to itself, as uvloop does."""
    close_loop = utils.TestCase.close_loop

    def close(loop: asyncio.AbstractEventLoop) -> None:
        if hasattr(loop, "_default_executor"):
            close_loop(loop)
        else:
            if not loop.is_closed():
                loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    utils.TestCase.close_loop = staticmethod(close)


CPYTHON_SUITES: typing.Final = (
    CPythonSuite(
        "cpython-events",
        "test_events",
        "the event loop: callbacks, timers, connections, servers, pipes, signals, subprocesses",
        mixins=("EventLoopTestsMixin", "SubprocessTestsMixin"),
    ),
    CPythonSuite("cpython-sock", "test_sock_lowlevel", "loop.sock_*", mixins=("BaseSockTestsMixin",)),
    CPythonSuite("cpython-sendfile", "test_sendfile", "sendfile and sock_sendfile", mixins=("SendfileTestsBase",)),
    CPythonSuite("cpython-server", "test_server", "asyncio.Server"),
    CPythonSuite("cpython-buffered", "test_buffered_proto", "BufferedProtocol"),
    CPythonSuite("cpython-streams", "test_streams", "StreamReader and StreamWriter"),
    CPythonSuite("cpython-ssl", "test_ssl", "TLS over real connections"),
    CPythonSuite("cpython-starttls", "test_sslproto", "start_tls", classes=("SelectorStartTLSTests",)),
    CPythonSuite("cpython-subprocess", "test_subprocess", "asyncio.create_subprocess_*"),
    CPythonSuite("cpython-unix", "test_unix_events", "signals, Unix sockets, pipes, fork"),
    CPythonSuite("cpython-base", "test_base_events", "what every loop inherits"),
    CPythonSuite("cpython-tasks", "test_tasks", "tasks, gather, wait, run_coroutine_threadsafe"),
    CPythonSuite("cpython-eager", "test_eager_task_factory", "eager tasks", since=(3, 12)),
    CPythonSuite("cpython-taskgroups", "test_taskgroups", "TaskGroup"),
    CPythonSuite("cpython-timeouts", "test_timeouts", "asyncio.timeout"),
    CPythonSuite("cpython-waitfor", "test_waitfor", "wait_for"),
    CPythonSuite("cpython-locks", "test_locks", "Lock, Event, Condition, Semaphore, Barrier"),
    CPythonSuite("cpython-queues", "test_queues", "Queue"),
    CPythonSuite("cpython-threads", "test_threads", "to_thread"),
    CPythonSuite("cpython-futures", "test_futures2", "await, and futures across loops"),
    CPythonSuite("cpython-runners", "test_runners", "asyncio.run and Runner"),
)
