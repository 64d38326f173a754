"""The tests that are allowed to fail, and why.

By loop, then by the test's full name. Only the loop that this project is about has a ledger: a comparison with
another loop shows all of that loop's failures. An entry that passes is an error too, so the table cannot go stale;
where a test fails on some Python versions only, let the entry depend on `sys.version_info`.
"""

from __future__ import annotations

import sys

KNOWN: dict[str, dict[str, str]] = {
    "uringloop": {},
}
if sys.version_info < (3, 14):
    KNOWN["uringloop"]["test_subprocess.GenericWatcherTests.test_create_subprocess_fails_with_inactive_watcher"] = (
        "expects the failure of asyncio's child watcher, which is not asked: a pidfd on the ring tells the end"
    )
