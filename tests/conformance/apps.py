"""The suites of programs that run on asyncio: aiohttp, anyio, tornado, uvicorn.

They are large, ask for much of their surroundings, and some of their tests fail on asyncio's own loop too. So the
judge is the difference: run them with `--against asyncio`.
"""

from __future__ import annotations

import asyncio
import fnmatch
import importlib
import logging
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import typing
import unittest
import xml.etree.ElementTree as ET

from tests.conformance import loops
from tests.conformance.outcome import Outcome, Status
from tests.conformance.outside import Sdist
from tests.conformance.unittests import UnittestSuite, flat
from tests.conformance.worker import LAST_WORDS, Place

WHOLE_RUN: typing.Final = 1500.0  # seconds for one suite; each takes minutes

PYTEST: typing.Final = ("pytest", "pytest-mock", "pytest-timeout", "pytest-xdist", "trustme")


class PytestSuite:
    """Tests that pytest runs, in processes of its own."""

    def __init__(self, sdist: Sdist, *arguments: str) -> None:
        self.name = sdist.package
        self.about = f"{sdist.package}'s tests; compare with --against asyncio"
        self._sdist = sdist
        self._arguments = arguments

    def run(self, loop: str, only: str, timeout: float) -> typing.Iterator[Outcome]:
        """Run all; `only` chooses among the results."""
        place = self._sdist.place()
        with tempfile.NamedTemporaryFile(suffix=".xml") as results, tempfile.TemporaryFile() as output:
            # -P: what is installed, not what lies in the current directory.
            command = [place.python, "-P", "-m", "pytest", *self._arguments, f"--timeout={timeout}"]
            status = _within(
                WHOLE_RUN,
                [*command, "-o", "junit_logging=no", f"--junitxml={results.name}"],
                cwd=self._sdist.folder,
                env=place.environ() | {"CONFORMANCE_LOOP": loop, "CONFORMANCE_DEFAULT": "1"},
                output=output,
            )
            try:
                found = ET.parse(results.name)
            except ET.ParseError:
                output.seek(0)
                last_words = output.read().decode(errors="replace")[-LAST_WORDS:]
                yield Outcome(f"{self.name} as a whole", "crashed", f"exit status {status}\n{last_words}")
                return
        for case in found.iter("testcase"):
            outcome = _outcome(case)
            if fnmatch.fnmatch(outcome.test, only):
                yield outcome


def _within(seconds: float, command: list[str], *, cwd: pathlib.Path, env: dict[str, str], output: typing.Any) -> int:
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def _outcome(case: ET.Element) -> Outcome:
    test = f"{case.get('classname')}::{case.get('name')}"
    status: Status = "passed"
    detail = ""
    for result in case:
        if result.tag in ("failure", "error"):
            return Outcome(test, "failed", result.text or result.get("message") or "", float(case.get("time") or 0))
        if result.tag == "skipped":
            status, detail = "skipped", result.get("message") or ""
    return Outcome(test, status, detail, float(case.get("time") or 0))


class TornadoSuite(UnittestSuite):
    """Tornado's tests, which lie in the package."""

    name = "tornado"
    about = "tornado's tests; compare with --against asyncio"

    def place(self) -> Place:
        return TORNADO.place()

    def load(self, cls: type[asyncio.AbstractEventLoop]) -> dict[str, unittest.TestCase]:
        loops.make_default(cls)
        logging.getLogger("tornado.access").setLevel(logging.CRITICAL)  # or its lines fail tests, see runtests.main
        modules = importlib.import_module("tornado.test.runtests").TEST_MODULES
        found = flat(unittest.TestLoader().loadTestsFromNames(modules))
        return {test.id().removeprefix("tornado.test."): test for test in found}


TORNADO: typing.Final = Sdist("tornado", "6.6.1", needs=("tornado==6.6.1",))
AIOHTTP: typing.Final = Sdist(
    "aiohttp",
    "3.14.5",
    needs=(
        *("aiohttp==3.14.5", "aiodns", "brotli", "blockbuster", "freezegun", "isal", "pkgconfig", "proxy.py>=2.4.4rc5"),
        *("pytest-cov", "pytest_codspeed", "python-on-whales", "setuptools-git", "zlib_ng", *PYTEST),
    ),
)
ANYIO: typing.Final = Sdist(
    "anyio",
    "4.16.0",
    needs=("anyio==4.16.0", "blockbuster", "hypothesis", "psutil", "truststore", *PYTEST),
)
UVICORN: typing.Final = Sdist(
    "uvicorn",
    "0.54.0",
    needs=(
        *("uvicorn==0.54.0", "httptools>=0.8.0", "python-dotenv", "PyYAML", "watchfiles", "websockets>=13", "wsproto"),
        *("a2wsgi", "cryptography", "httpx2", "pytest-codspeed", *PYTEST),
    ),
)


def _localhost_has_ipv6() -> bool:
    try:
        return bool(socket.getaddrinfo("localhost", None, family=socket.AF_INET6))
    except socket.gaierror:
        return False


# Where localhost is no IPv6 address, anyio's tests of it fail and leave sockets behind, for which others are blamed.
WITHOUT_IPV6: typing.Final = () if _localhost_has_ipv6() else ("-k", "not ipv6")

APP_SUITES: typing.Final = (
    TornadoSuite(),
    PytestSuite(
        AIOHTTP,
        *("--override-ini=addopts=", "-n2", "--import-mode=importlib", "--aiohttp-loop=pyloop"),
        *("-m", "not dev_mode and not autobahn and not internal", "tests"),
    ),
    PytestSuite(ANYIO, "-n2", *WITHOUT_IPV6, "tests"),
    PytestSuite(UVICORN, "--override-ini=addopts=", "-n2", "tests"),
)
