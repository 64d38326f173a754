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
import re
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

ONE_FILE: typing.Final = 300.0  # seconds for the tests of one file; what hangs beyond all time-outs costs no more

PYTEST: typing.Final = ("pytest", "pytest-mock", "pytest-timeout", "trustme")


class PytestSuite:
    """Tests that pytest runs: one process for each file, so that what hangs or crashes costs its file, not the run."""

    def __init__(self, sdist: Sdist, *arguments: str) -> None:
        self.name = sdist.package
        self.about = f"{sdist.package}'s tests; compare with --against asyncio"
        self._sdist = sdist
        self._arguments = arguments

    def run(self, loop: str, only: str, timeout: float) -> typing.Iterator[Outcome]:
        """Run the files in which a name may match `only`, and choose among the results."""
        place = self._sdist.place()
        environ = place.environ() | {"CONFORMANCE_LOOP": loop, "CONFORMANCE_DEFAULT": "1"}
        # -P: what is installed, not what lies in the current directory.
        command = [place.python, "-P", "-m", "pytest", "-v", *self._arguments, f"--timeout={timeout}"]
        for path in sorted((self._sdist.folder / "tests").rglob("test_*.py")):
            file = path.relative_to(self._sdist.folder)
            if _may_match(".".join(file.with_suffix("").parts), only):
                for outcome in self._run_file(file, command, environ):
                    if fnmatch.fnmatch(outcome.test, only):
                        yield outcome

    def _run_file(self, file: pathlib.Path, command: list[str], environ: dict[str, str]) -> typing.Iterator[Outcome]:
        with tempfile.NamedTemporaryFile(suffix=".xml") as results, tempfile.TemporaryFile() as output:
            command = [*command, "-o", "junit_logging=no", f"--junitxml={results.name}", str(file)]
            status = _within(ONE_FILE, command, cwd=self._sdist.folder, env=environ, output=output)
            try:
                found = ET.parse(results.name)
            except ET.ParseError:
                output.seek(0)
                last_words = output.read().decode(errors="replace")[-LAST_WORDS:]
                verdict: Status = "timeout" if status == -signal.SIGKILL else "crashed"
                yield Outcome(f"{file} as a whole", verdict, f"exit status {status}\n{last_words}")
                return
        yield from map(_outcome, found.iter("testcase"))


def _may_match(module: str, only: str) -> bool:
    """Whether a test of the module may have a name that matches the pattern."""
    beginning = re.split(r"[*?[]", only)[0]
    return module.startswith(beginning) or beginning.startswith(module)


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
        *("--override-ini=addopts=", "--import-mode=importlib", "--aiohttp-loop=pyloop"),
        *("-m", "not dev_mode and not autobahn and not internal"),
    ),
    PytestSuite(ANYIO, *WITHOUT_IPV6),
    PytestSuite(UVICORN, "--override-ini=addopts="),
)
