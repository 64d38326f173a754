"""Outside suites run against the loop: other people's idea of what an event loop does.

    python -m tests.conformance cpython --loop uringloop
    python -m tests.conformance uvloop uvloop-debug
    python -m tests.conformance apps --against asyncio --json

None of the suites' code is kept here. CPython's tests come with the interpreter that runs them, so each Python
version is judged by its own tests; the others come in sdists, which are fetched when they are asked for, by version,
into a folder that git ignores. Where a difference is meant, `known.py` has it with its reason; any other failure makes
the exit code 1, and so does a known difference that has gone.

To add a suite, write an object with the shape of `suites.Suite` and put it into `suites.SUITES`. Everything else here
works on the outcomes that it yields.
"""
