"""Faults on purpose (core/ring_fault.h), from Python. There are none to make in the extension that is shipped: they are
compiled in by `python -m tests.faults`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import uringloop
from uringloop.core import _core

_ffi: Any = _core.ffi
_lib: Any = _core.lib

COMPILED_IN = hasattr(_lib, "ul_fault_count")
KINDS: dict[str, int] = {}  # name -> number in the core
if COMPILED_IN:
    KINDS = {_ffi.string(_lib.ul_fault_name(kind)).decode(): kind for kind in range(_lib.UL_FAULT_KINDS)}
CANARIES = {name for name in KINDS if name.startswith("canary_")}

# Of the chances that there are for each. Many: what is rare in a year is to happen in a second. The more chances a
# kind has, the smaller its part of them.
MANY: Mapping[str, float] = dict.fromkeys(KINDS.keys() - CANARIES, 0.03) | {
    "short_send": 0.3,
    "late": 0.1,
    "late_cancel": 0.5,
    "reordered": 0.5,
    "cq_overflow": 0.1,
    "econnaborted": 0.2,
    "slot_refused": 0.2,
    "slots_full": 0.2,
    "register_enomem": 0.1,
    "enter_eintr": 0.2,
}
# Of everything, but seldom enough that what is written for a healthy kernel goes on at its pace.
FEW: Mapping[str, float] = dict.fromkeys(KINDS.keys() - CANARIES - {"emfile", "enfile", "register_enomem"}, 0.01)


def set_rates(rates: Mapping[str, float]) -> None:
    """From now on, in all rings, by kind; 0 for all that are not named."""
    for name, kind in KINDS.items():
        _lib.ul_fault_set_rate(kind, int(rates.get(name, 0) * 1_000_000))


def set_seed(seed: int) -> None:
    """Of the rings that are made from now on."""
    _lib.ul_fault_set_seed(seed & 0xFFFFFFFFFFFFFFFF)


def counts() -> dict[str, int]:
    """The faults made in this process, by kind."""
    return {name: _lib.ul_fault_count(kind) for name, kind in KINDS.items()}


def total(kinds: Iterable[str] = ()) -> int:
    """All of them, or those of these kinds."""
    made = counts()
    return sum(made[name] for name in kinds or made)


def pytest_sessionstart() -> None:
    """Where this is a plugin of pytest: a few faults, if FAULTS_SEED says so."""
    uringloop.probe()  # of the kernel as it is
    if "FAULTS_SEED" in os.environ:
        set_seed(int(os.environ["FAULTS_SEED"]))
        set_rates(FEW)
