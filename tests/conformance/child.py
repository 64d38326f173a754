"""The process in which the tests run: `python -m tests.conformance.child SUITE LOOP FD`.

`worker.py` says what it is told, and what it answers.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import io
import json
import os
import sys
import time
import traceback
import typing
import unittest

from tests.conformance import loops
from tests.conformance.outcome import Outcome, Status
from tests.conformance.suites import SUITES
from tests.conformance.unittests import UnittestSuite

Report = typing.Callable[[Outcome], None]


class Recorder(unittest.TestResult):
    """Reports every test of `names` once and in order, whatever its fixtures do.

    Of a test it keeps the worst that is said, be it by a subtest or a cleanup. A class or module fixture that fails
    is reported under its own name, and the tests that it takes with it share its fate.
    """

    def __init__(self, names: list[str], by_id: dict[str, str], report: Report) -> None:
        super().__init__()
        self._waiting = names[::-1]
        self._by_id = by_id
        self._report = report
        self._running = False
        self._fixture: tuple[Status, str] = ("failed", "did not run")
        self._status: Status = "passed"
        self._detail = ""
        self._started = 0.0

    def startTest(self, test: unittest.TestCase) -> None:
        self._give_up_before(self._name_of(test))
        self._running, self._status, self._detail = True, "passed", ""
        self._started = time.monotonic()

    def stopTest(self, test: unittest.TestCase) -> None:
        self._running = False
        seconds = time.monotonic() - self._started
        self._report(Outcome(self._waiting.pop(), self._status, self._detail, seconds))

    def stopTestRun(self) -> None:
        self._give_up_before(None)

    def _give_up_before(self, name: str | None) -> None:
        while self._waiting and self._waiting[-1] != name:
            self._report(Outcome(self._waiting.pop(), *self._fixture))

    def _name_of(self, test: unittest.TestCase) -> str:
        return self._by_id.get(test.id(), test.id())  # a fixture is no test, and has no name with us

    def _note(self, test: unittest.TestCase, status: Status, detail: str) -> None:
        if not self._running:
            self._fixture = status, f"because of {self._name_of(test)}"
            self._report(Outcome(self._name_of(test), status, detail))
        elif self._status != "failed":
            self._status, self._detail = status, detail

    def addSuccess(self, test: unittest.TestCase) -> None:
        pass

    def addError(self, test: unittest.TestCase, err: typing.Any) -> None:
        self._note(test, "failed", "".join(traceback.format_exception(*err)))

    addFailure = addError

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: typing.Any) -> None:
        if err is not None:
            self._note(test, "failed", f"{subtest}\n" + "".join(traceback.format_exception(*err)))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._note(test, "skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: typing.Any) -> None:
        pass

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._note(test, "failed", "passed, though it is marked as an expected failure")


def main(suite_name: str, loop: str, results_fd: int) -> None:
    faulthandler.enable()
    names: list[str] = json.load(sys.stdin)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = io.TextIOWrapper(io.FileIO(0))
    os.set_inheritable(results_fd, False)
    with open(results_fd, "w", buffering=1) as results:

        def say(message: typing.Any) -> None:
            print(json.dumps(message), file=results)

        suite = SUITES[suite_name]
        assert isinstance(suite, UnittestSuite)
        tests = suite.load(loops.loop_class(loop))
        say("ready")
        if not names:
            say(list(tests))
        by_id = {test.id(): name for name, test in tests.items()}
        recorder = Recorder(names, by_id, lambda outcome: say(dataclasses.asdict(outcome)))
        # One suite for all, as CPython runs them: some tests rely on what a test of their class left behind.
        unittest.TestSuite(tests[name] for name in names).run(recorder)
        recorder.stopTestRun()
        say("done")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
