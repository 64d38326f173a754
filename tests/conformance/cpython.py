"""CPython's own asyncio tests, as they come with the running interpreter, pointed at another loop.

Each module of `test.test_asyncio` is a suite. There are two ways to point one at a loop. Some are written as mixins
that ask `self.create_event_loop()`, with a class for each of asyncio's selectors; instead of those we make one class
of our own. All others ask asyncio for a loop, and get ours once `loops.make_default` has run.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import pkgutil
import types
import typing
import unittest

from tests.conformance import loops
from tests.conformance.unittests import UnittestSuite, flat

PACKAGE: typing.Final = "test.test_asyncio"

# The mixins that are joined into one class.
MIXINS: typing.Final = {
    "test_events": ("EventLoopTestsMixin", "SubprocessTestsMixin"),
    "test_sendfile": ("SendfileTestsBase",),
    "test_sock_lowlevel": ("BaseSockTestsMixin",),
}
ABOUT: typing.Final = {
    "test_base_events": "what every loop inherits",
    "test_events": "the event loop: callbacks, timers, connections, servers, pipes, signals, subprocesses",
    "test_sendfile": "sendfile and sock_sendfile",
    "test_server": "asyncio.Server",
    "test_sock_lowlevel": "loop.sock_*",
    "test_ssl": "TLS over real connections",
    "test_sslproto": "start_tls",
    "test_streams": "StreamReader and StreamWriter",
    "test_subprocess": "asyncio.create_subprocess_*",
    "test_unix_events": "signals, Unix sockets, pipes, fork",
}


class CPythonSuite(UnittestSuite):
    """The tests of one module."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.name = f"cpython-{module.removeprefix('test_').replace('_', '-')}"
        self.about = ABOUT.get(module, f"CPython's {module}")

    def load(self, cls: type[asyncio.AbstractEventLoop]) -> dict[str, unittest.TestCase]:
        loops.make_default(cls)
        module = importlib.import_module(f"{PACKAGE}.{self.module}")
        _tolerate_missing_executor(importlib.import_module(f"{PACKAGE}.utils"))
        found = list(flat(unittest.TestLoader().loadTestsFromModule(module)))
        if self.module in MIXINS:
            joined = self._joined(module, cls)
            found = [test for test in found if not hasattr(test, "create_event_loop")]
            found += unittest.TestLoader().loadTestsFromTestCase(joined)
        return {test.id().removeprefix(f"{PACKAGE}."): test for test in found}

    def _joined(self, module: types.ModuleType, cls: type[asyncio.AbstractEventLoop]) -> type[unittest.TestCase]:
        bases = [getattr(module, mixin) for mixin in MIXINS[self.module]]
        body = {"__module__": module.__name__, "create_event_loop": lambda self: cls()}
        return type("EventLoopTests", (*bases, module.test_utils.TestCase), body)


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


def _modules() -> typing.Iterator[str]:
    try:
        package = importlib.util.find_spec(PACKAGE)
    except ModuleNotFoundError:
        package = None  # distributions put `test` into a package of its own
    if package is not None:
        for module in pkgutil.iter_modules(package.submodule_search_locations):
            if module.name.startswith("test_") and not module.name.startswith("test_windows"):
                yield module.name


CPYTHON_SUITES: typing.Final = tuple(CPythonSuite(module) for module in _modules())
