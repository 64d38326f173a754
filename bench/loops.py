"""The event loops that can be measured, by name."""

import asyncio
import importlib
import subprocess
import sys

OURS = "uringloop"

FACTORIES = {
    OURS: "new_event_loop",
    "uvloop": "new_event_loop",
    "rloop": "new_event_loop",
    "asyncio": "SelectorEventLoop",
    "zuvloop": "new_event_loop",
    "rsloop": "new_event_loop",
    "blazio": "new_event_loop",
    "zloop": "new_event_loop",
}
"""The function that makes the loop, in the module of the loop's name."""

IMPORT_SECONDS = 20
"""An import takes a fraction of a second; on a machine that is busy or has cold caches it takes a few."""


class Absent(Exception):
    """The loop cannot be imported; the message says why."""


def new_event_loop(name: str) -> asyncio.AbstractEventLoop:
    """Makes the loop, and makes sure that it is the one asked for: a loop that falls back must not pass for another."""
    loop: asyncio.AbstractEventLoop = getattr(importlib.import_module(name), FACTORIES[name])()
    origin = type(loop).__module__
    if origin.partition(".")[0] != name:
        loop.close()
        raise RuntimeError(f"{name} gave a loop of {origin}")
    return loop


def version(name: str) -> str:
    """Imports the loop and tells its version, in a process apart: a broken extension module may crash or hang."""
    if name == "asyncio":
        words = "platform.python_version()"
    else:
        words = f"getattr({name}, '__version__', None) or importlib.metadata.version({name!r})"
    script = f"import importlib.metadata, platform, {name}; from {name} import {FACTORIES[name]}; print({words})"
    try:
        child = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=IMPORT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise Absent(f"the import took more than {IMPORT_SECONDS} s") from None
    if child.returncode != 0:
        raise Absent((child.stderr.strip() or f"exit status {child.returncode}").splitlines()[-1])
    return child.stdout.strip()
