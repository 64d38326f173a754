"""`python -m bench` measures all questions on all loops that can be imported; see README.md.

`python -m bench report` makes a page of what was measured.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import document, loops, machine, report
from .question import DEFAULT_ROUNDS, DEFAULT_SECONDS, Case, Question, discover
from .rounds import Measured, Plan, measure_case

QUICK_ROUNDS, QUICK_SECONDS = 2, 0.3


@dataclass(frozen=True)
class Request:
    """The command line, checked."""

    questions: Mapping[str, Question]
    cases: Mapping[str, Sequence[Case]]
    loops: Sequence[str]
    rounds: int
    seconds: float
    near: int | None
    json: Path | None


def parse_command_line(known: Mapping[str, Question]) -> Request:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=f"of {', '.join(known)} (default: all)")
    parser.add_argument("--loops", default=",".join(loops.FACTORIES), help="comma-separated (default: %(default)s)")
    parser.add_argument("--case", action="append", metavar="NAME", help="this case only; may be given more than once")
    parser.add_argument("--list", action="store_true", help="list the questions and their cases, and end")
    parser.add_argument("--rounds", type=int, help=f"default: {DEFAULT_ROUNDS}")
    parser.add_argument("--seconds", type=float, help=f"a measurement's time (default: {DEFAULT_SECONDS})")
    parser.add_argument(
        "--near",
        type=int,
        metavar="NS",
        help="only while a cache line goes to and fro between the two cores in so many nanoseconds (see README.md)",
    )
    parser.add_argument("--quick", action="store_true", help="few and short rounds: a trial, no result")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    given = parser.parse_args()

    names = given.questions or list(known)
    if unknown := set(names) - set(known):
        parser.error(f"no such question: {', '.join(sorted(unknown))}")
    questions = {name: known[name] for name in names}
    if given.list:
        parser.exit(message=_listing(questions))
    cases = {name: _selected(question, given.case) for name, question in questions.items()}
    if unknown := set(given.case or ()) - {case.name for chosen in cases.values() for case in chosen}:
        parser.error(f"no such case: {', '.join(sorted(unknown))} (--list shows them)")
    chosen_loops = list(dict.fromkeys(given.loops.split(",")))
    if unknown := set(chosen_loops) - set(loops.FACTORIES):
        parser.error(f"no such loop: {', '.join(sorted(unknown))}")
    rounds = given.rounds if given.rounds is not None else QUICK_ROUNDS if given.quick else DEFAULT_ROUNDS
    seconds = given.seconds if given.seconds is not None else QUICK_SECONDS if given.quick else DEFAULT_SECONDS
    if rounds < 1 or seconds <= 0:
        parser.error("--rounds and --seconds must be positive")
    if given.near is not None and given.near <= 0:
        parser.error("--near must be positive")
    if given.json and not given.json.parent.is_dir():  # to be told before the run, not after it
        parser.error(f"no such folder: {given.json.parent}")
    return Request(questions, cases, chosen_loops, rounds, seconds, given.near, given.json)


def _listing(questions: Mapping[str, Question]) -> str:
    lines = []
    for name, question in questions.items():
        lines.append(f"{name}: {question.title}")
        lines += [f"  {case.name}{'' if case.default else '  (when named)'}" for case in question.cases]
    return "\n".join(lines) + "\n"


def _selected(question: Question, names: Sequence[str] | None) -> Sequence[Case]:
    return [case for case in question.cases if (case.default if names is None else case.name in names)]


def find_loops(names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """The versions of those that are there, and for those that are absent the reason."""
    present, absent = {}, {}
    for name in names:
        try:
            present[name] = loops.version(name)
        except loops.Absent as reason:
            absent[name] = str(reason)
    return present, absent


def measure_all(request: Request, plan: Plan, results: list[Measured]) -> None:
    """Adds to the results as they come, so that an interrupted run has some."""
    total = sum(map(len, request.cases.values()))
    began = time.monotonic()
    for name, cases in request.cases.items():
        own = replace(plan, loops=[*plan.loops, *request.questions[name].also])
        for case in cases:
            took = time.monotonic() - began
            print(f"[{len(results)} of {total} cases, {took:.0f} s]", file=sys.stderr)
            results.append(measure_case(name, case, own))


def print_report(request: Request, about: Mapping[str, object], results: Sequence[Measured]) -> None:
    for key, value in about.items():
        told = value
        if isinstance(value, dict):
            told = ", ".join(f"{name} {version}" for name, version in value.items()) or "none"
        print(f"{key}: {told}")
    for name, question in request.questions.items():
        if own := [result for result in results if result.question == name]:
            print("", report.as_text(name, question, own), sep="\n")


def main() -> int:
    # Ended politely, the harness must still end its servers: a SIGTERM unwinds the stack as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.argv[1:2] == ["report"]:
        return document.main(sys.argv[2:])
    request = parse_command_line(discover())
    cores = machine.Cores.choose()
    about = machine.describe(cores)
    os.sched_setaffinity(0, {cores.load})
    if cores.shared:
        print("there is one core for server and load: take no number seriously", file=sys.stderr)
    present, absent = find_loops(request.loops)
    if not present:
        sys.exit(f"no loop to measure: {absent}")
    about |= {"loops": present, "absent": absent}

    results: list[Measured] = []
    interrupted = False
    try:
        measure_all(request, Plan(list(present), request.rounds, request.seconds, cores, request.near), results)
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted", file=sys.stderr)
    print_report(request, about, results)
    if request.json:
        settings = {
            "rounds": request.rounds,
            "seconds": request.seconds,
            "near": request.near,
            "interrupted": interrupted,
        }
        request.json.write_text(
            json.dumps(report.as_json(about, settings, request.questions, results), indent=2) + "\n"
        )
    failed = any(result.outcomes[result.reference].failure for result in results)
    return 130 if interrupted else int(failed)


if __name__ == "__main__":
    sys.exit(main())
