"""The suites by name."""

from __future__ import annotations

import typing

from tests.conformance.apps import APP_SUITES
from tests.conformance.cpython import CPYTHON_SUITES
from tests.conformance.outcome import Outcome
from tests.conformance.uvloop import UVLOOP_SUITES


class Suite(typing.Protocol):
    """What the runner asks of a suite."""

    @property
    def name(self) -> str:
        """What it is called on the command line."""

    @property
    def about(self) -> str:
        """What it judges, in a few words."""

    def run(self, loop: str, only: str, timeout: float) -> typing.Iterator[Outcome]:
        """One outcome for each test whose name matches the pattern `only`, as they become known.

        `loop` is a name that `loops.loop_class` understands. A test that takes longer than `timeout` seconds must
        be given up with the status "timeout", and the rest must still run.
        """


_ALL: typing.Final[tuple[Suite, ...]] = (*CPYTHON_SUITES, *UVLOOP_SUITES, *APP_SUITES)
SUITES: typing.Final[dict[str, Suite]] = {suite.name: suite for suite in _ALL}

# Several by one name.
GROUPS: typing.Final[dict[str, list[str]]] = {
    "cpython": [suite.name for suite in CPYTHON_SUITES],
    "apps": [suite.name for suite in APP_SUITES],
    "all": list(SUITES),
}
