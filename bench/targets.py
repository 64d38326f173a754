"""What is asked of our loop, and whether it is reached."""

from dataclasses import dataclass

from .loops import OURS
from .question import Cost, Ratio
from .rounds import Measured


@dataclass(frozen=True)
class Verdict:
    asked: str
    found: float
    against: str | None
    """Whose cost the ratio is of: the best of those that were asked for and gave one."""
    met: bool


def judge(measured: Measured) -> Verdict | None:
    """None if nothing is asked, or if what it takes to tell is missing."""
    target = measured.case.target
    if target is None or OURS not in measured.outcomes or measured.outcomes[OURS].failure:
        return None
    if isinstance(target, Cost):
        cost = measured.outcomes[OURS].cost.median
        return Verdict(f"at most {target.at_most:.2f}", cost, None, cost <= target.at_most)
    found = _least(measured, target)
    if found is None:
        return None
    ratio, against = found
    return Verdict(f"{target.at_least:.2f}", ratio, against, ratio >= target.at_least)


def _least(measured: Measured, target: Ratio) -> tuple[float, str] | None:
    ratios = [
        (spread.median, loop)
        for loop in target.against
        if loop in measured.outcomes and (spread := measured.ratio(loop)) is not None
    ]
    return min(ratios, default=None)
