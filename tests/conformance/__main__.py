"""python -m tests.conformance SUITE ... [--loop NAME] [--only PATTERN] [--against NAME] [--timeout SECONDS] [--json]"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import platform
import sys
import textwrap
import time
import typing

from tests.conformance.known import KNOWN
from tests.conformance.loops import LOOPS
from tests.conformance.outcome import Outcome
from tests.conformance.suites import GROUPS, SUITES, Suite


@dataclasses.dataclass
class Report:
    """What one suite said about one loop."""

    suite: str
    loop: str
    outcomes: list[Outcome]
    seconds: float
    against: list[Outcome]  # what the same suite said about the loop that this one is compared with

    @property
    def known(self) -> dict[str, str]:
        return KNOWN.get(self.loop, {})

    @property
    def unexpected(self) -> list[Outcome]:
        bad = [o for o in self.outcomes if o.bad and o.test not in self.known]
        if not self.against:
            return bad
        good_there = {o.test for o in self.against if not o.bad}
        seen = {o.test for o in self.outcomes}
        missing = [Outcome(test, "failed", "did not run") for test in sorted(good_there - seen - self.known.keys())]
        bad_there = {o.test for o in self.against if o.bad}
        return [o for o in bad if o.test not in bad_there] + missing

    @property
    def shared(self) -> list[str]:
        """The tests that are bad on both loops."""
        bad_there = {o.test for o in self.against if o.bad}
        return [o.test for o in self.outcomes if o.bad and o.test in bad_there]

    @property
    def expected(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.bad and o.test in self.known]

    @property
    def stale(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.status == "passed" and o.test in self.known]

    @property
    def skipped(self) -> list[Outcome]:
        return [o for o in self.outcomes if o.status == "skipped"]

    @property
    def ok(self) -> bool:
        """Something passed, and nothing went otherwise than the ledger says."""
        return any(o.status == "passed" for o in self.outcomes) and not self.unexpected and not self.stale

    def as_json(self) -> dict[str, typing.Any]:
        return {
            "suite": self.suite,
            "loop": self.loop,
            "python": platform.python_version(),
            "kernel": platform.release(),
            "ok": self.ok,
            "total": len(self.outcomes),
            **collections.Counter(outcome.status for outcome in self.outcomes),
            "seconds": round(self.seconds, 1),
            "shared": self.shared,
            "unexpected": [dataclasses.asdict(outcome) for outcome in self.unexpected],
            "expected": {outcome.test: self.known[outcome.test] for outcome in self.expected},
            "stale": [outcome.test for outcome in self.stale],
            "skips": {outcome.test: outcome.detail for outcome in self.skipped},
        }

    def as_text(self) -> str:
        counts = collections.Counter(outcome.status for outcome in self.outcomes)
        words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no tests"
        lines = [f"{self.suite} on {self.loop}: {words} of {len(self.outcomes)} in {self.seconds:.1f} s"]
        for outcome in self.unexpected:
            lines.append(f"  {outcome.status.upper()} {outcome.test}")
            lines.append(textwrap.indent(outcome.detail.rstrip(), "      "))
        lines += [f"  not here alone: {test}" for test in self.shared]
        lines += [f"  known: {o.test}: {self.known[o.test]}" for o in self.expected]
        lines += [f"  PASSES, though known to fail: {o.test}" for o in self.stale]
        lines += [f"  skipped: {o.test}: {o.detail}" for o in self.skipped]
        return "\n".join(lines)


def run(suite: Suite, options: argparse.Namespace) -> Report:
    started = time.monotonic()
    outcomes = list(suite.run(options.loop, options.only, options.timeout))
    seconds = time.monotonic() - started
    against = list(suite.run(options.against, options.only, options.timeout)) if options.against else []
    return Report(suite.name, options.loop, outcomes, seconds, against)


def parse(argv: list[str]) -> argparse.Namespace:
    suites = "\n".join(f"  {suite.name:20} {suite.about}" for suite in SUITES.values())
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance",
        description="Run outside suites against an event loop.",
        epilog=f"suites:\n{suites}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "suites", nargs="+", choices=[*SUITES, *GROUPS], metavar="SUITE", help=f"or: {', '.join(GROUPS)}"
    )
    parser.add_argument("--loop", default="uringloop", help=f"{', '.join(LOOPS)} or module:Class")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="only tests whose name matches")
    parser.add_argument("--against", metavar="NAME", help="a loop too: what fails on it as well is no failure")
    parser.add_argument("--timeout", default=60.0, type=float, metavar="SECONDS", help="for one test")
    parser.add_argument("--json", action="store_true", help="print a JSON list of reports instead of text")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    names = [name for asked in options.suites for name in GROUPS.get(asked, [asked])]
    reports = []
    for name in names:
        report = run(SUITES[name], options)
        if not options.json:
            print(report.as_text(), flush=True)
        reports.append(report)
    if options.json:
        print(json.dumps([report.as_json() for report in reports], indent=2))
    return 0 if all(report.ok for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
