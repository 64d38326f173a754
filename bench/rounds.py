"""Measures loops against each other, so that what disturbs the machine disturbs them alike.

A machine drifts: its clock, its temperature, its neighbours. So the loops take turns within a round, each round starts
with another loop, and loops are compared within a round. What is told is the median over the rounds, and how far they
lie apart.
"""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from . import distance
from .loops import OURS
from .machine import Cores
from .question import Case, Failed, Run, Sample


@dataclass(frozen=True)
class Plan:
    loops: Sequence[str]
    rounds: int
    seconds: float
    cores: Cores
    near: float | None = None
    """How far apart the cores may be, in nanoseconds; see distance.py."""


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1])


@dataclass
class Outcome:
    """What one loop gave: a sample a round, or the reason why there are fewer."""

    samples: list[Sample] = field(default_factory=list)
    failure: str | None = None

    @property
    def cost(self) -> Spread:
        return Spread.of(sample.cost for sample in self.samples)

    def details(self) -> dict[str, float]:
        names = self.samples[0].details
        return {name: statistics.median(sample.details[name] for sample in self.samples) for name in names}


def reference(loops: Sequence[str]) -> str:
    """The loop that the others are compared with: ours, if it takes part."""
    return OURS if OURS in loops else loops[0]


def ratio(theirs: Outcome, ours: Outcome) -> Spread | None:
    """Their cost in ours, round by round: above 1, the reference is the cheaper. None if either has failed."""
    if theirs.failure or ours.failure:
        return None
    return Spread.of(t.cost / o.cost for t, o in zip(theirs.samples, ours.samples, strict=True))


@dataclass(frozen=True)
class Measured:
    """One case of one question, on all loops. Never empty: a plan has one loop at the least."""

    question: str
    case: Case
    outcomes: Mapping[str, Outcome]

    @property
    def reference(self) -> str:
        return reference(list(self.outcomes))

    def ratio(self, loop: str) -> Spread | None:
        return ratio(self.outcomes[loop], self.outcomes[self.reference])


def measure_case(question: str, case: Case, plan: Plan) -> Measured:
    """Measures all loops in all rounds. One that fails is left out of the rounds that follow: a hang costs a minute."""
    outcomes = {name: Outcome() for name in plan.loops}
    for number in range(plan.rounds):
        turn = number % len(plan.loops)
        for name in [*plan.loops[turn:], *plan.loops[:turn]]:
            outcome = outcomes[name]
            if outcome.failure:
                continue
            _progress(f"{question} {case.name}, round {number + 1} of {plan.rounds}: {name} ")
            try:
                sample = distance.measure(case, Run(name, plan.seconds, plan.cores), plan.near)
            except (Failed, OSError) as failure:
                outcome.failure = str(failure) or repr(failure)
                _progress(f"failed: {failure}\n")
            else:
                outcome.samples.append(sample)
                _progress(f"{sample.cost:.2f}\n")
    return Measured(question, case, outcomes)


def _progress(text: str) -> None:
    print(text, end="", file=sys.stderr, flush=True)
