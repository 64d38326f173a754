"""The face of wrk, which asks a server over HTTP for a time, and what such servers have in common."""

import importlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any, Never

from .launch import Server, running_server
from .native import first_line
from .question import DEFAULT_SECONDS, Failed, Run, Sample
from .serving import for_ever

SLACK_SECONDS = 30
"""For wrk to connect and to end."""

# wrk's own summary has no 99.9th percentile; microseconds.
AS_JSON = """
function done(summary, latency)
    local errors = summary.errors
    print(string.format(
        '{"requests": %d, "errors": %d, "p50": %.0f, "p99": %.0f, "p999": %.0f}', summary.requests,
        errors.connect + errors.read + errors.write + errors.status + errors.timeout,
        latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"""


async def serve(announce: Callable[[str], None], path: str, answer: Callable[[Any], Any]) -> Never:
    """An aiohttp application that answers so at this path."""
    web: Any = importlib.import_module("aiohttp.web")
    application = web.Application()
    application.router.add_get(path, answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host, port = runner.addresses[0]
    announce(f"{host}:{port}")
    await for_ever()


def cpu_ns(pid: int) -> int:
    """User and system time of another process (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def _ask(server: Server, path: str, connections: int, seconds: float) -> dict[str, int]:
    """What it counted; latencies are in microseconds. It runs for whole seconds, one at the least."""
    if shutil.which("wrk") is None:
        raise Failed("wrk is not installed")
    duration = max(1, round(seconds))
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(AS_JSON)
        script.flush()
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{duration}s",
            "-s",
            script.name,
            f"http://{server.address}{path}",
        ]
        limit = duration + SLACK_SECONDS
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failed(str(error)) from None
    told = [line for line in child.stdout.splitlines() if line.startswith("{")]
    if not told:
        raise Failed(first_line(child.stderr + child.stdout))
    counted: dict[str, int] = json.loads(told[0])
    if counted["errors"] or not counted["requests"]:
        raise Failed(f"wrk counted {counted['requests']} requests and {counted['errors']} errors")
    return counted


def measure(run: Run, *, question: str, path: str, connections: int) -> Sample:
    with running_server(question, run) as server:
        if run.seconds >= DEFAULT_SECONDS:
            _ask(server, path, connections, run.warm_up_seconds)
        before, began = cpu_ns(server.pid), time.perf_counter()
        counted = _ask(server, path, connections, run.seconds)
        used, took = cpu_ns(server.pid) - before, time.perf_counter() - began
    requests = counted["requests"]
    details = {
        "requests/s": requests / took,
        "p50 us": counted["p50"],
        "p99 us": counted["p99"],
        "p99.9 us": counted["p999"],
        "CPU %": used / took / 1e7,
    }
    return Sample(used / requests / 1e3, details)
