"""What a probe sees on a kernel that is not as this one."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

import uringloop
from uringloop.reactor import Reactor

PROBES: Any = sys.modules["uringloop.probe"]  # the name in the package is the function's


class KeepingReactor(Reactor):
    """As a ring before Linux 6.13: while requests are pending, a file that leaves the table stays open."""

    kept: list[int]

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.kept = []
        self._fds: dict[int, int] = {}
        close = self.stream_close

        def stream_close(token: int) -> int:
            if self.report().slots_in_use == len(self._fds):
                self.kept.append(os.dup(self._fds[token]))
            return close(token)

        self.stream_close = stream_close

    def stream_open(self, fd: int) -> int:
        token = super().stream_open(fd)
        self._fds[token] = fd
        return token

    def close(self) -> int:
        while self.kept:
            os.close(self.kept.pop())
        return super().close()


@pytest.mark.skipif(not uringloop.probe().fixed_files, reason="no fixed files, or not such as are freed (Linux 6.13)")
def test_fixed_files_that_stay_open_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert PROBES._frees_fixed_files()
    monkeypatch.setattr(PROBES, "Reactor", KeepingReactor)
    assert not PROBES._frees_fixed_files()
