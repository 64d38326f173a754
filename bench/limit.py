"""How much of a request's cost is the loop's? An echo server in C on io_uring takes part: `native/limit.c`.

It is written by bare system calls, and not on uringloop's core: it is to show what can be reached, and not what this
core reaches when Python is left out.
"""

import os
from functools import partial

from . import load, native
from .echo import serve
from .launch import running, running_server
from .question import Case, Question, Ratio, Run, Sample

KIB = 1024
IN_C = "C"
SHARE = 1.08
"""Our cost may be so many times that of the server in C."""


def measure(run: Run, *, size: int, connections: int) -> Sample:
    if run.loop != IN_C:
        with running_server("limit", run) as server:
            return load.generate(server, run, size=size, connections=connections).sample()
    with running([str(native.built("limit"))]) as server:
        os.sched_setaffinity(server.pid, {run.cores.server})
        return load.generate(server, run, size=size, connections=connections).sample()


QUESTION = Question(
    title="an asyncio.Protocol writes back what it reads, beside a server in C",
    unit="CPU us/request",
    cases=(Case("1KiBx50", partial(measure, size=KIB, connections=50), target=Ratio(1 / SHARE, against=(IN_C,))),),
    serve=serve,
    also=(IN_C,),
)
