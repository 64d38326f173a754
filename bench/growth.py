"""Does a request cost more when there are many connections? Ten are busy, all others are open and silent.

The cost is a number without a unit: the CPU time of a request with so many connections, in that of a request when there
are the ten busy ones only. Both are measured, one after the other.
"""

from functools import partial

from . import load
from .echo import serve
from .launch import running_server
from .native import Result
from .question import Case, Cost, Question, Run, Sample

KIB = 1024
BUSY = 10
MOST = 1.15


def ask(run: Run, connections: int) -> Result:
    with running_server("growth", run) as server:
        return load.generate(server, run, size=KIB, connections=connections, idle=connections - BUSY)


def measure(run: Run, *, connections: int) -> Sample:
    few = ask(run, BUSY).sample()
    many = ask(run, connections).sample()
    details = {
        f"us/request at {BUSY}": few.cost,
        "us/request": many.cost,
        **{name: many.details[name] for name in ("requests/s", "p50 us", "p99 us", "p99.9 us", "CPU %")},
    }
    return Sample(many.cost / few.cost, details)


QUESTION = Question(
    title=f"1 KiB over {BUSY} busy connections, with many that are idle",
    unit=f"CPU/request, in that at {BUSY} connections",
    cases=tuple(
        Case(f"{connections}", partial(measure, connections=connections), target=Cost(MOST))
        for connections in (100, 1000, 10_000)
    ),
    serve=serve,
)
