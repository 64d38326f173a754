"""What does it cost to serve a file over HTTP? aiohttp's FileResponse, unchanged; wrk asks for it."""

import asyncio
import importlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .launch import running_server
from .question import Case, Failed, Question, Run, Sample

KIB = 1024
SIZES = {"1KiB": KIB, "100KiB": 100 * KIB, "10MiB": 10 * KIB * KIB}
SLACK_SECONDS = 30
"""For wrk to connect and to end."""


async def serve(announce: Callable[[str], None]) -> None:
    web: Any = importlib.import_module("aiohttp.web")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size, count in SIZES.items():
            (folder / size).write_bytes(b"x" * count)

        async def answer(request: Any) -> Any:
            return web.FileResponse(folder / request.match_info["size"])

        application = web.Application()
        application.router.add_get("/{size}", answer)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0]
        announce(f"{host}:{port}")
        await asyncio.Event().wait()


def cpu_ns(pid: int) -> int:
    """User and system time of another process (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def wrk(address: str, size: str, connections: int, seconds: float) -> tuple[int, str]:
    """Runs wrk for that time; the number of requests, and what it says."""
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        f"http://{address}/{size}",
    ]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=seconds + SLACK_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(str(error)) from None
    found = re.search(r"(\d+) requests in", child.stdout)
    if not found or "Non-2xx" in child.stdout or "Socket errors" in child.stdout or found[1] == "0":
        raise Failed(" ".join((child.stderr + child.stdout).split()) or "wrk says nothing")
    return int(found[1]), child.stdout


def measure(run: Run, *, size: str, connections: int) -> Sample:
    if shutil.which("wrk") is None:
        raise Failed("wrk is not installed")
    with running_server("static", run) as server:
        wrk(server.address, size, connections, run.warm_up_seconds)
        before, began = cpu_ns(server.pid), time.perf_counter()
        requests, _ = wrk(server.address, size, connections, run.seconds)
        used, took = cpu_ns(server.pid) - before, time.perf_counter() - began
        return Sample(used / requests / 1e3, {"requests/s": requests / took, "CPU %": used / took / 1e7})


QUESTION = Question(
    title="aiohttp's FileResponse, over HTTP",
    unit="CPU us/request",
    cases=tuple(Case(size, partial(measure, size=size, connections=16), default=False) for size in SIZES),
    serve=serve,
)
