"""The loop under test under the name of uvloop, for suites that know that name."""

import importlib
import os

from sitecustomize import under_test

Loop = under_test
_module = importlib.import_module(Loop.__module__.partition(".")[0])
run = _module.run
EventLoopPolicy = getattr(_module, "EventLoopPolicy", None) or _module.DefaultEventLoopPolicy
__path__ = [*__path__, os.path.join(os.environ.get("CONFORMANCE_SDIST", ""), "uvloop")]  # uvloop._testbase


def new_event_loop():
    return Loop()


from uvloop import loop as loop  # noqa: E402 - it needs what is above
