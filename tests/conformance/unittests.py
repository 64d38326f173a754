"""Suites of unittest tests: run by name, in worker processes."""

from __future__ import annotations

import asyncio
import collections
import fnmatch
import typing
import unittest

from tests.conformance.outcome import Outcome
from tests.conformance.worker import Place, Worker


class UnittestSuite:
    """What `run` needs of a suite: its name, where it runs, and the tests once it is there."""

    name: str
    about: str

    def place(self) -> Place:
        """The interpreter for the workers and what it is told; made ready if it is not there yet."""
        return Place()

    def load(self, cls: type[asyncio.AbstractEventLoop]) -> dict[str, unittest.TestCase]:
        """The tests by name. To be called in a process that is given over to `cls`."""
        raise NotImplementedError

    def run(self, loop: str, only: str, timeout: float) -> typing.Iterator[Outcome]:
        """Run the tests in worker processes; a test that hangs or crashes costs its worker, not the run."""
        place = self.place()
        names = [name for name in Worker.list_tests(place, self.name, loop) if fnmatch.fnmatch(name, only)]
        waiting = collections.deque(names)
        while waiting:
            with Worker(place, self.name, loop, list(waiting)) as worker:
                for outcome in worker.outcomes(timeout):
                    if waiting and outcome.test == waiting[0]:
                        waiting.popleft()
                    yield outcome


def flat(suite: unittest.TestSuite) -> typing.Iterator[unittest.TestCase]:
    """The tests of a suite of suites."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test
