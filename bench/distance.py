"""How far apart the two cores are, on which server and load run. On a virtual machine that changes while it runs.

Facts: the bytes of each request, and what tells of them, lie in cache lines that both cores write. Such a line goes to
and fro in 75 ns where the two have a cache in common, and in 390 ns where they have not, on two chiplets of one AMD
EPYC. A hypervisor moves its virtual cores about, there after seconds or after minutes. An echo of 1 KiB over 50
connections costs the server 4.9 us in the one case and 6.7 us in the other. What a line costs is the same for all
loops.
So: far apart, all loops pay for what is the load's and not theirs, and ratios come closer to 1; and loops between whose
turns the cores are moved are not compared at all. The distance is measured before and after each sample and told with
it, and samples can be had for which the cores were near: those for which they were not are taken again.
Cost: 20 ms a sample, and up to two minutes of patience.
"""

import subprocess
import time
from dataclasses import replace

from .machine import Cores
from .native import built, first_line
from .question import Case, Failed, Run, Sample

DETAIL = "cores apart ns"
PATIENCE_SECONDS = 120
LOOK_AGAIN_SECONDS = 0.2
LIMIT_SECONDS = 30
"""For what takes ten milliseconds."""


def between(cores: Cores) -> float:
    """The nanoseconds in which a cache line goes to and fro. Raises Failed."""
    command = [str(built("distance")), str(cores.server), str(cores.load)]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Failed("the distance of the cores could not be measured") from None
    if child.returncode != 0:
        raise Failed(first_line(child.stderr))
    return float(child.stdout)


def measure(case: Case, run: Run, near: float | None) -> Sample:
    """A sample, with the distance of the cores. If `near` is given, one for which they were no farther apart than so
    many nanoseconds, or, if there is none to be had, the last one. Raises Failed."""
    if run.cores.shared:
        return case.measure(run)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        before = _when_near(run.cores, near, deadline)
        sample = case.measure(run)
        apart = max(before, between(run.cores))
        if near is None or apart <= near or time.monotonic() > deadline:
            return replace(sample, details={**sample.details, DETAIL: apart})


def _when_near(cores: Cores, near: float | None, deadline: float) -> float:
    while (apart := between(cores)) > (near or apart) and time.monotonic() < deadline:
        time.sleep(LOOK_AGAIN_SECONDS)
    return apart
