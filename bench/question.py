"""What a question is, and how it is found.

A question is a module of this package with a `QUESTION` in it, so that to ask a new one is to add a file. The module
holds both sides: the cases and how to measure one, and what the measured process runs.

Every question measures a **cost**: lower is better, and the ratio of two costs reads the same way everywhere.
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .machine import Cores

DEFAULT_ROUNDS = 5
DEFAULT_SECONDS = 0.8
"""Of a measurement. With five rounds, and four loops, all questions then take less than 25 minutes."""


class Failed(Exception):
    """A measurement gave no number; the message, one line, says why."""


@dataclass(frozen=True)
class Run:
    """One measurement to be made."""

    loop: str
    seconds: float
    cores: Cores

    @property
    def warm_up_seconds(self) -> float:
        return self.seconds / 4


@dataclass(frozen=True)
class Sample:
    """What one measurement gave. Details are shown under their names, beside the cost; they are not compared."""

    cost: float
    details: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Ratio:
    """What is asked of our loop: the cost of the best of these, in ours."""

    at_least: float
    against: tuple[str, ...] = ("uvloop", "rloop")


@dataclass(frozen=True)
class Cost:
    """What is asked of our loop: a cost that does not depend on others."""

    at_most: float


@dataclass(frozen=True)
class Case:
    """One setting of a question. What is not in the default set runs when it is named."""

    name: str
    measure: Callable[[Run], Sample]
    default: bool = True
    target: Ratio | Cost | None = None


@dataclass(frozen=True)
class Question:
    title: str
    unit: str
    cases: tuple[Case, ...]
    serve: Callable[..., Awaitable[None]]
    """Runs in the measured process, on the loop under test: announces the address where it serves, by the function that
    it is given, and then serves. If the measurement starts its server with arguments, it is given them too."""
    also: tuple[str, ...] = ()
    """What is measured besides the loops, under these names."""


def load(name: str) -> Question | None:
    """The question that the module of that name asks, if it asks one."""
    question = getattr(importlib.import_module(f"{__package__}.{name}"), "QUESTION", None)
    return question if isinstance(question, Question) else None


def discover() -> dict[str, Question]:
    """All questions by name."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    names = sorted(module.name for module in modules if not module.name.startswith("_"))
    return {name: question for name in names if (question := load(name)) is not None}
