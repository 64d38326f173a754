"""The floods, each small: what they may cost a server on the loop is in floods/attacks.py."""

from __future__ import annotations

import pytest
from floods.__main__ import OURS, run
from floods.attacks import FLOODS, Flood

SEED = 1


@pytest.mark.parametrize("flood", FLOODS, ids=lambda flood: flood.name.replace(" ", "-"))
def test_flood_costs_no_more_than_is_allowed_and_leaves_nothing(flood: Flood) -> None:
    sent, told, wrong = run(flood, OURS, small=True, seed=SEED)
    assert wrong == [], f"{sent}: {told}"
