"""The face of the load generator, which is `load.c`: builds it when it is needed, runs it, reads its result."""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .launch import Server
from .question import Failed, Run, Sample

SOURCE = Path(__file__).with_name("load.c")
BINARY = Path(__file__).with_name(".build") / "load"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror")

BUILD_SECONDS = 120
"""A compile takes a second or two."""

SLACK_SECONDS = 60
"""More than the load generator's own limits for connecting and draining, 35 s together: it is the one to complain."""


class BuildError(Exception):
    """There is no load generator to be had; the message says why."""


@dataclass(frozen=True)
class Result:
    """The load generator's JSON. The server's use of the machine is counted in the measured window only."""

    requests: int
    seconds: float
    errors: int
    p50_ns: int
    p99_ns: int
    p999_ns: int
    cpu_ns: int
    sleeps: int
    preempted: int

    def sample(self) -> Sample:
        details = {
            "requests/s": self.requests / self.seconds,
            "p50 us": self.p50_ns / 1e3,
            "p99 us": self.p99_ns / 1e3,
            "p99.9 us": self.p999_ns / 1e3,
            "CPU %": self.cpu_ns / self.seconds / 1e7,
            "sleeps/request": self.sleeps / self.requests,
            "preempted/s": self.preempted / self.seconds,
        }
        return Sample(cost=self.cpu_ns / self.requests / 1e3, details=details)


def build() -> None:
    """Compiles the load generator, unless the one that is there is newer than its source."""
    if BINARY.exists() and BINARY.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise BuildError("the load generator needs a C compiler: install gcc, or name one in CC")
    BINARY.parent.mkdir(exist_ok=True)
    # Built aside and renamed: another run may be executing the old one, or building as well.
    with tempfile.TemporaryDirectory(dir=BINARY.parent) as aside:
        output = Path(aside) / BINARY.name
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(output)]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(str(error)) from error
        if child.returncode != 0:
            raise BuildError(child.stderr)
        output.replace(BINARY)


def generate(server: Server, run: Run, *, connections: int, size: int, depth: int = 1) -> Result:
    """Loads the server for the time of the run. The core is inherited: the harness has moved to it."""
    command = [str(BINARY), "-p", str(server.pid), "-c", str(connections), "-s", str(size), "-d", str(depth)]
    command += ["-w", str(run.warm_up_seconds), "-t", str(run.seconds), server.address]
    limit = run.warm_up_seconds + run.seconds + SLACK_SECONDS
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=limit, process_group=0, check=False)
    except subprocess.TimeoutExpired:
        raise Failed(f"the load generator did not end within {limit:.0f} s") from None
    if child.returncode != 0:
        raise Failed((child.stderr.strip() or f"load generator: exit status {child.returncode}").splitlines()[0])
    result = Result(**json.loads(child.stdout))
    if result.requests == 0:
        raise Failed("no request was answered in the measured time")
    return result
