"""uvloop's own tests, with another loop under the name of uvloop (`shim/uvloop`)."""

from __future__ import annotations

import asyncio
import importlib
import os
import pathlib
import typing
import unittest

from tests.conformance.outside import Sdist
from tests.conformance.unittests import UnittestSuite, flat
from tests.conformance.worker import Place

PACKAGE: typing.Final = "uvloop_tests"
SDIST: typing.Final = Sdist("uvloop", "0.23.0", needs=("aiohttp>=3.10.5", "psutil", "pyOpenSSL~=25.3.0"))

# Tests of what no other loop has: Cython, libuv's handles, how uvloop's sources look.
OF_UVLOOP_ALONE: typing.Final = {"test_cython", "test_fs_event", "test_libuv_api", "test_sourcecode"}


class UvloopSuite(UnittestSuite):
    """What uvloop's tests ask of uvloop; what they ask of asyncio's own loop for comparison is left out."""

    def __init__(self, name: str, about: str, debug: bool) -> None:
        self.name, self.about, self._debug = name, about, debug

    def place(self) -> Place:
        place = SDIST.place()
        if self._debug:
            place.environment["PYTHONASYNCIODEBUG"] = "1"
        return place

    def load(self, cls: type[asyncio.AbstractEventLoop]) -> dict[str, unittest.TestCase]:
        base = importlib.import_module("uvloop._testbase")
        folder = pathlib.Path(os.environ["CONFORMANCE_SDIST"], "tests")
        modules = sorted(path.stem for path in folder.glob("test_*.py") if path.stem not in OF_UVLOOP_ALONE)
        found = flat(unittest.TestLoader().loadTestsFromNames(f"{PACKAGE}.{module}" for module in modules))
        ours = [test for test in found if not isinstance(test, base.AIOTestCase)]
        return {test.id().removeprefix(f"{PACKAGE}."): test for test in ours}


UVLOOP_SUITES: typing.Final = (
    UvloopSuite("uvloop", "uvloop's tests", debug=False),
    UvloopSuite("uvloop-debug", "uvloop's tests in asyncio's debug mode", debug=True),
)
