"""What became of one test of a suite."""

from __future__ import annotations

import dataclasses
import typing

Status = typing.Literal["passed", "failed", "skipped", "crashed", "timeout"]

BAD: typing.Final[frozenset[Status]] = frozenset({"failed", "crashed", "timeout"})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """`detail` is the traceback of a failure, the reason of a skip, or the last words of a process that died."""

    test: str
    status: Status
    detail: str = ""
    seconds: float = 0.0

    @property
    def bad(self) -> bool:
        return self.status in BAD
