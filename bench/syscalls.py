"""How many system calls does a request take? strace counts those of the server.

A traced system call takes many times as long, so requests gather meanwhile: turns of the loop are longer here than in
the other questions, on all loops. No time is told for that reason.
"""

import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from . import load
from .echo import serve
from .launch import Server, running_server
from .question import Case, Failed, Question, Ratio, Run, Sample

KIB = 1024
STRACE_SECONDS = 10
"""To attach, and to tell what it has counted: a fraction of a second each."""


@contextmanager
def counting(server: Server, report: Path) -> Iterator[None]:
    """The system calls of all threads, from here to the end of the body; the report is then written."""
    if shutil.which("strace") is None:
        raise Failed("strace is not installed")
    command = ["strace", "-f", "-c", "-U", "calls,name", "-o", str(report), "-p", str(server.pid)]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, process_group=0)
    assert tracer.stderr is not None
    try:
        said = tracer.stderr.readline()  # it tells in one write that it has attached, or that it cannot
        if "attached" not in said:
            raise Failed(said.strip() or "strace did not attach")
        yield
        tracer.send_signal(signal.SIGINT)
        tracer.wait(STRACE_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failed("strace did not end") from None
    finally:
        tracer.kill()
        tracer.wait()
        tracer.stderr.close()


def measure(run: Run, *, size: int, connections: int) -> Sample:
    with tempfile.TemporaryDirectory() as folder, running_server("syscalls", run) as server:
        report = Path(folder) / "calls"
        with counting(server, report):
            result = load.generate(server, run, size=size, connections=connections)
        found = re.search(r"^\s*(\d+)\s+total$", report.read_text(), re.MULTILINE)
        if found is None:
            raise Failed("strace counted nothing")
        return Sample(int(found[1]) / result.all)


QUESTION = Question(
    title="an asyncio.Protocol writes back what it reads, over TCP",
    unit="system calls/request",
    cases=(Case("1KiBx50", partial(measure, size=KIB, connections=50), target=Ratio(20, against=("uvloop",))),),
    serve=serve,
)
