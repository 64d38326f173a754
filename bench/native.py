"""The programs in C, which are in `native/`: builds them when they are needed, runs the load generators."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .question import Failed, Run, Sample

FOLDER = Path(__file__).with_name("native")
BUILT = Path(__file__).with_name(".build")
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror")

BUILD_SECONDS = 120
"""A compile takes a second or two."""

SLACK_SECONDS = 60
"""More than the load generators' own limits for connecting and draining, 35 s together: they are to complain first."""


@dataclass(frozen=True)
class Program:
    sources: tuple[str, ...]
    libraries: tuple[str, ...] = ()
    needs: str = "a C compiler"


PROGRAMS = {
    "load": Program(("load.c", "common.c", "channel_plain.c")),
    "load-tls": Program(
        ("load.c", "common.c", "channel_tls.c"),
        ("-lssl", "-lcrypto"),
        needs="a C compiler and OpenSSL's headers (Debian: libssl-dev)",
    ),
    "connects": Program(("connects.c", "common.c")),
    "stream": Program(("stream.c", "common.c")),
    "limit": Program(("limit.c", "common.c")),
    "distance": Program(("distance.c", "common.c"), ("-pthread",)),
}


def built(name: str) -> Path:
    """The program, compiled unless the one that is there is newer than all sources."""
    program, binary = PROGRAMS[name], BUILT / name
    newest = max(source.stat().st_mtime for source in FOLDER.iterdir())
    if binary.exists() and binary.stat().st_mtime > newest:
        return binary
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Failed(f"{name} needs {program.needs}")
    BUILT.mkdir(exist_ok=True)
    # Built aside and renamed: another run may be executing the old one, or building as well.
    with tempfile.TemporaryDirectory(dir=BUILT) as aside:
        output = Path(aside) / name
        sources = [str(FOLDER / source) for source in program.sources]
        command = [compiler, *FLAGS, *sources, "-o", str(output), *program.libraries]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(f"{name}: {error}") from error
        if child.returncode != 0:
            raise Failed(f"{name} needs {program.needs}: {first_line(child.stderr)}")
        output.replace(binary)
    return binary


def first_line(text: str) -> str:
    """Of what a program complained about: a failure is told in one line."""
    return (text.strip() or "it does not say why").splitlines()[0]


@dataclass(frozen=True)
class Result:
    """A load generator's JSON. The server's use of the machine is counted in the measured window only."""

    requests: int
    seconds: float
    all: int
    """Requests of the whole run, out of the window too."""
    errors: int
    p50_ns: int
    p99_ns: int
    p999_ns: int
    cpu_ns: int
    sleeps: int
    preempted: int

    def sample(self) -> Sample:
        """The CPU time of a request, in microseconds."""
        details = {
            "requests/s": self.requests / self.seconds,
            "p50 us": self.p50_ns / 1e3,
            "p99 us": self.p99_ns / 1e3,
            "p99.9 us": self.p999_ns / 1e3,
            "CPU %": self.cpu_ns / self.seconds / 1e7,
            "sleeps/request": self.sleeps / self.requests,
            "preempted/s": self.preempted / self.seconds,
        }
        return Sample(self.cpu_ns / self.requests / 1e3, details)

    def sample_of_many(self, operations: float) -> Sample:
        """The CPU time of an operation, in microseconds, of which a request has so many."""
        details = {
            "operations/s": self.requests * operations / self.seconds,
            "CPU %": self.cpu_ns / self.seconds / 1e7,
            "preempted/s": self.preempted / self.seconds,
        }
        return Sample(self.cpu_ns / self.requests / operations / 1e3, details)


def run_generator(name: str, run: Run, arguments: Sequence[str]) -> Result:
    """Runs a load generator for the time of the run. The core is inherited: the harness has moved to it."""
    limit = run.warm_up_seconds + run.seconds + SLACK_SECONDS
    try:
        child = subprocess.run(
            [str(built(name)), *arguments], capture_output=True, text=True, timeout=limit, process_group=0, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"the load generator did not end within {limit:.0f} s") from None
    if child.returncode != 0:
        raise Failed(first_line(child.stderr))
    result = Result(**json.loads(child.stdout))
    if result.requests == 0:
        raise Failed("no request was answered in the measured time")
    return result


def time_options(run: Run) -> list[str]:
    """Of the load generators that run for a time."""
    return ["-w", str(run.warm_up_seconds), "-t", str(run.seconds)]
