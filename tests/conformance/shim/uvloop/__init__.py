"""The loop under test under the name of uvloop, for suites that know that name."""

import functools
import importlib
import os
import subprocess
import time
from unittest import mock

from sitecustomize import under_test

Loop = under_test
_module = importlib.import_module(Loop.__module__.partition(".")[0])
run = _module.run
EventLoopPolicy = getattr(_module, "EventLoopPolicy", None) or _module.DefaultEventLoopPolicy
__path__ = [*__path__, os.path.join(os.environ.get("CONFORMANCE_SDIST", ""), "uvloop")]  # uvloop._testbase


def new_event_loop():
    return Loop()


class SleepyPopen(subprocess.Popen):
    """The thread sleeps, and by the time the loop looks at the process all that it does is done."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        time.sleep(1)


def _with_uvloops_hook(start):
    """The tests ask for that sleep with an argument that uvloop has for them."""

    @functools.wraps(start)
    async def start_process(self, *args, __uvloop_sleep_after_fork=False, **options):
        if not __uvloop_sleep_after_fork:
            return await start(self, *args, **options)
        with mock.patch("subprocess.Popen", SleepyPopen):
            return await start(self, *args, **options)

    return start_process


Loop.subprocess_shell = _with_uvloops_hook(Loop.subprocess_shell)


from uvloop import loop as loop  # noqa: E402 - it needs what is above
