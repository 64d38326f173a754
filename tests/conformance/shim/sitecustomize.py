"""Python imports this as it starts: every process that a suite starts has the loop under test."""

import importlib.util
import os
import pathlib

_spec = importlib.util.spec_from_file_location("_loops", pathlib.Path(__file__).parents[1] / "loops.py")
_loops = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_loops)

under_test = _loops.loop_class(os.environ["CONFORMANCE_LOOP"])
if os.environ.get("CONFORMANCE_DEFAULT"):  # for suites that ask asyncio for a loop
    _loops.make_default(under_test)
