"""Where does the time go? `python -m bench.profile QUESTION CASE` tells it for each loop, in microseconds an operation.

The case is measured once on each loop, while perf samples the serving process. What the case costs is then split by
what the samples were in: the kernel, the interpreter, the loop's own machine code. A loop that is written in Python has
its time in the interpreter, and so has the protocol, on all loops. perf (Debian: `apt install linux-perf`) must be
installed, and the user may have to be root.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import distance, launch, machine
from .question import Case, Failed, Question, Run, discover

SAMPLES_A_SECOND = 4000
REPORT_SECONDS = 60
GROUPS = ("kernel", "interpreter", "the loop's machine code", "other libraries")
LOOPS_CODE = ("_core.abi3", "_cffi_backend", "loop.cpython", "_rloop", "zuvloop", "rsloop", "blazio", "zloop")
"""In the names of the files that hold it; uvloop's is called loop."""


@dataclass(frozen=True)
class Profile:
    cost: float
    shares: dict[str, float]
    """By group; they add up to 1."""


class Recorder:
    """perf on the serving process, from when it is ready until it ends."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._perf: subprocess.Popen[bytes] | None = None

    def begin(self, pid: int) -> None:
        self.end()  # of a case that starts several servers the last is told of
        # Without what it starts: a program that it runs is not its own time.
        command = ["perf", "record", "-q", "--no-inherit", "-F", str(SAMPLES_A_SECOND)]
        command += ["-p", str(pid), "-o", str(self._file)]
        self._perf = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end(self) -> None:
        """After the process has ended; perf ends with it."""
        if self._perf is not None:
            self._perf.wait(REPORT_SECONDS)

    def shares(self) -> dict[str, float]:
        """After the end. Raises Failed if there are none."""
        if self._perf is None:
            raise Failed("the case has no server of its own")
        command = ["perf", "report", "-i", str(self._file), "--stdio", "--no-children", "-g", "none"]
        command += ["--sort", "dso", "-t", ";", "-q"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=REPORT_SECONDS, check=False)
        shares = split(told.stdout)
        if not shares:
            raise Failed(f"perf gave no samples: {told.stderr.strip()[-200:]}")
        return shares


def split(report: str) -> dict[str, float]:
    """The shares by group of perf's lines, each a percentage and the file in which the samples were."""
    percents = dict.fromkeys(GROUPS, 0.0)
    for line in report.splitlines():
        percent, separator, file = line.partition(";")
        if separator and percent.strip().endswith("%"):
            percents[group_of(file.strip())] += float(percent.strip().removesuffix("%"))
    total = sum(percents.values())
    return {group: percents[group] / total for group in GROUPS} if total else {}


def group_of(file: str) -> str:
    if file.startswith(("[kernel", "[vdso", "[unknown", "[guest", "[hypervisor")):
        return "kernel"
    if any(name in file for name in LOOPS_CODE):
        return "the loop's machine code"
    if "python" in file:  # the program, libpython, and the modules of the standard library
        return "interpreter"
    return "other libraries"


def profiled(case: Case, run: Run, near: int | None) -> Profile:
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder, "perf.data"))
        launch.when_ready = recorder.begin
        try:
            cost = distance.measure(case, run, near).cost
        finally:
            launch.when_ready = None
            recorder.end()
        return Profile(cost, recorder.shares())


def table(question: Question, profiles: dict[str, Profile]) -> str:
    lines = [f"| loop | {question.unit} | {' | '.join(GROUPS)} |", f"| --- |{' --: |' * (len(GROUPS) + 1)}"]
    for loop, profile in profiles.items():
        parts = " | ".join(f"{profile.cost * profile.shares[group]:.2f}" for group in GROUPS)
        lines.append(f"| {loop} | {profile.cost:.2f} | {parts} |")
    return "\n".join(lines)


def main() -> int:
    known = discover()
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("question", choices=known)
    parser.add_argument("case")
    parser.add_argument("--loops", default="uringloop,uvloop,rloop")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--near", type=int, metavar="NS", help="as of python -m bench")
    given = parser.parse_args()
    question = known[given.question]
    cases = {case.name: case for case in question.cases}
    if given.case not in cases:
        parser.error(f"no such case: {given.case!r}; there are {', '.join(cases)}")
    if shutil.which("perf") is None:
        sys.exit("perf is not installed")
    cores = machine.Cores.choose()
    os.sched_setaffinity(0, {cores.load})
    profiles = {}
    for loop in given.loops.split(","):
        try:
            profiles[loop] = profiled(cases[given.case], Run(loop, given.seconds, cores), given.near)
        except Failed as failure:
            print(f"{loop}: {failure}", file=sys.stderr)
    print(f"{given.question}, {given.case}:\n\n{table(question, profiles)}")
    return 0 if profiles else 1


if __name__ == "__main__":
    sys.exit(main())
