"""The tests that are allowed to fail, and why.

By loop, then by the test's full name. Only the loop that this project is about has a ledger: a comparison with
another loop shows all of that loop's failures. An entry that passes is an error too, so the table cannot go stale;
where a test fails on some Python versions only, let the entry depend on `sys.version_info`.
"""

from __future__ import annotations

KNOWN: dict[str, dict[str, str]] = {
    "uringloop": {},
}
