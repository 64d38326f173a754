"""What the environment says of how loops are made, for programs that do not make theirs with arguments."""

from __future__ import annotations

import os
from typing import Final

FALLBACK: Final = "URINGLOOP_FALLBACK"
HARDENED: Final = "URINGLOOP_HARDENED"
WITHOUT: Final = "URINGLOOP_WITHOUT"


def fallback() -> str | None:
    """What is to take the loop's place where io_uring cannot be used. Raises ValueError."""
    value = os.environ.get(FALLBACK, "")
    if value not in ("", "asyncio"):
        raise ValueError(f"{FALLBACK} must be asyncio, not {value!r}")
    return value or None


def hardened() -> bool:
    """Whether loops are to be hardened that were made without saying. Raises ValueError."""
    value = os.environ.get(HARDENED, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{HARDENED} must be 0 or 1, not {value!r}")
    return value == "1"


def without(features: frozenset[str]) -> frozenset[str]:
    """Those of these features that are not to be used though the kernel has them. Raises ValueError for others."""
    named = frozenset(filter(None, os.environ.get(WITHOUT, "").replace(" ", "").split(",")))
    if not named <= features:
        raise ValueError(
            f"{WITHOUT} names {', '.join(sorted(named - features))}; there are {', '.join(sorted(features))}"
        )
    return named
