"""CPython's own event-loop tests, on uringloop; and that the runner would tell if they failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
EVENT_LOOP_TESTS = {(3, 11): 107, (3, 12): 108, (3, 13): 109}  # later versions have no fewer than the last of these
RUN_TIMEOUT = 300  # seconds; a run takes a few

# Loops with a defect that only `test_call_later` of CPython's suite can notice, and one that no test can miss.
BROKEN_LOOPS = """
import asyncio, os, time

class Wrong(asyncio.SelectorEventLoop):
    def call_later(self, delay, callback, *args):
        return super().call_later(delay, callback, "something else")

class Hanging(asyncio.SelectorEventLoop):
    def call_later(self, *args):
        time.sleep(3600)

class Crashing(asyncio.SelectorEventLoop):
    def call_later(self, *args):
        os.abort()

class Unusable(asyncio.SelectorEventLoop):
    def __init__(self):
        raise RuntimeError("made, and so noticed")
"""


def conformance(*arguments: str, python_path: Path | None = None) -> tuple[int, dict[str, Any]]:
    """Runs one suite; gives the exit code and the report."""
    environment = os.environ | ({"PYTHONPATH": str(python_path)} if python_path else {})
    run = subprocess.run(
        [sys.executable, "-m", "tests.conformance", *arguments, "--json"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT,
    )
    assert run.stdout, run.stderr
    (report,) = json.loads(run.stdout)
    return run.returncode, report


@pytest.mark.timeout(RUN_TIMEOUT)
def test_uringloop_passes_the_event_loop_tests_of_cpython() -> None:
    exit_code, report = conformance("cpython-events", "--loop", "uringloop")
    assert report["unexpected"] == []
    assert report["stale"] == []
    assert exit_code == 0
    expected = EVENT_LOOP_TESTS.get(sys.version_info[:2], EVENT_LOOP_TESTS[3, 13])
    assert report["total"] >= expected
    assert report["passed"] == report["total"] - len(report["expected"]) - len(report["skips"])


@pytest.mark.parametrize(
    ("defect", "status", "detail"),
    [
        ("Wrong", "failed", "AssertionError"),
        ("Hanging", "timeout", "in call_later"),
        ("Crashing", "crashed", "in call_later"),
    ],
)
def test_runner_names_the_test_that_fails_hangs_or_crashes_and_runs_the_rest(
    defect: str, status: str, detail: str, tmp_path: Path
) -> None:
    (tmp_path / "broken_loops.py").write_text(BROKEN_LOOPS)
    exit_code, report = conformance(
        "cpython-events",
        *("--loop", f"broken_loops:{defect}"),
        *("--only", "*.test_call_*"),
        *("--timeout", "2"),
        python_path=tmp_path,
    )
    (outcome,) = report["unexpected"]
    assert outcome["test"] == "test_events.EventLoopTests.test_call_later"
    assert outcome["status"] == status
    assert detail in outcome["detail"]
    assert report["passed"] == report["total"] - 1 > 0
    assert exit_code == 1


def test_tests_that_ask_asyncio_for_a_loop_get_the_one_under_test(tmp_path: Path) -> None:
    (tmp_path / "broken_loops.py").write_text(BROKEN_LOOPS)
    exit_code, report = conformance(
        "cpython-streams",
        *("--loop", "broken_loops:Unusable"),
        *("--only", "*.StreamTests.test_read*"),
        python_path=tmp_path,
    )
    assert report["failed"] == report["total"] > 0
    assert exit_code == 1


def test_what_fails_on_the_other_loop_too_is_no_failure_but_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken_loops.py").write_text(BROKEN_LOOPS)
    arguments = ["cpython-events", "--loop", "broken_loops:Wrong", "--only", "*.test_call_*"]
    exit_code, report = conformance(*arguments, "--against", "broken_loops:Wrong", python_path=tmp_path)
    assert report["unexpected"] == []
    assert report["shared"] == ["test_events.EventLoopTests.test_call_later"]
    assert exit_code == 0
    exit_code, report = conformance(*arguments, "--against", "asyncio", python_path=tmp_path)
    assert [outcome["test"] for outcome in report["unexpected"]] == ["test_events.EventLoopTests.test_call_later"]
    assert report["shared"] == []
    assert exit_code == 1


def test_runner_does_not_take_nothing_for_success() -> None:
    exit_code, report = conformance("cpython-events", "--loop", "asyncio", "--only", "no such test")
    assert report["total"] == 0
    assert exit_code == 1
