"""Each kind of fault by itself: it is made, and nothing is noticed of it. `python -m tests.faults` runs this."""

from __future__ import annotations

from collections.abc import Iterator

import faulty
import pytest
from model import World

RATE = 0.3
KINDS = sorted(faulty.KINDS.keys() - faulty.CANARIES)
# Of which there are few chances in one world.
ROUNDS = 60


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Iterator[str]:
    faulty.set_seed(1)
    faulty.set_rates({request.param: RATE})
    yield request.param
    faulty.set_rates({})


def everything(world: World) -> None:
    for family in ("tcp", "unix", "pair"):
        for _ in range(3):
            world.open(family)
    world.exchange_datagrams(50)
    world.use_file(50_000)
    world.use_socket(2)
    world.use_pipe(10, by_two_threads=True)
    world.burst(20)
    world.change_threads()
    world.end(world.connections[0], 0, "close")
    world.end(world.connections[0], 1, "slam")
    world.end(world.connections[0], 1, "abort")


@pytest.mark.timeout(200)
def test_fault_is_made_and_makes_no_difference(kind: str) -> None:
    before = faulty.counts()[kind]
    for seed in range(ROUNDS):
        world = World(seed, entries=16, buffers=4, buffer_size=4096, files=16, datagram_buffers=4)
        everything(world)
        world.finish()
        if faulty.counts()[kind] > before:
            return
    pytest.fail(f"{kind} was not made in {ROUNDS} worlds")
