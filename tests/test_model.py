"""What asyncio promises of connections, whatever is done to them: hypothesis does it, model.py checks.

`python -m tests.faults` runs this on a core that makes faults; here the kernel makes those that it has.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from model import World
from model_ends import size_of

CONNECTIONS_MAX = 40
EXAMPLES = 30  # of the normal suite
STEPS = 25

SIDES = st.integers(0, 1)
# Of rings so small that everything overflows, up to what is usual.
RINGS = st.fixed_dictionaries(
    {
        "entries": st.sampled_from([2, 16, 512]),
        "buffers": st.sampled_from([2, 16]),
        "buffer_size": st.sampled_from([512, 65536]),
        "files": st.sampled_from([0, 8, 1024]),
        "datagram_buffers": st.sampled_from([2, 64]),
    }
)


class LoopMachine(RuleBasedStateMachine):
    """One loop for each example."""

    world: World | None = None

    @initialize(seed=st.integers(0, 2**32 - 1), ring=RINGS)
    def make_world(self, seed: int, ring: dict[str, int]) -> None:
        self.world = World(seed, **ring)

    @property
    def it(self) -> World:
        assert self.world is not None
        return self.world

    # No preconditions: how many connections there are depends on timing, and hypothesis must be able to draw again what
    # it has drawn.

    def connection(self, number: int) -> Any:
        """One of those that there are, or None."""
        connections = self.it.connections
        return connections[number % len(connections)] if connections else None

    @rule(kind=st.sampled_from(["tcp", "unix", "pair"]), count=st.integers(1, 12))
    def open(self, kind: str, count: int) -> None:
        if len(self.it.connections) < CONNECTIONS_MAX:
            for _ in range(count):
                self.it.open(kind)

    @rule(number=st.integers(0, 99), side=SIDES, count=st.integers(1, 5))
    def write(self, number: int, side: int, count: int) -> None:
        if connection := self.connection(number):
            for _ in range(count):
                connection.ends[side].write(size_of(self.it.chance))

    @rule(number=st.integers(0, 99), side=SIDES, on=st.booleans())
    def set_reading(self, number: int, side: int, on: bool) -> None:
        if connection := self.connection(number):
            connection.ends[side].set_reading(on)

    @rule(number=st.integers(0, 99), side=SIDES)
    def write_eof(self, number: int, side: int) -> None:
        if connection := self.connection(number):
            connection.ends[side].write_eof()

    @rule(number=st.integers(0, 99), side=SIDES, how=st.sampled_from(["close", "slam", "abort"]))
    def end(self, number: int, side: int, how: str) -> None:
        if connection := self.connection(number):
            self.it.end(connection, side, how)

    @rule(rounds=st.integers(1, 40))
    def burst(self, rounds: int) -> None:
        if self.it.connections:
            self.it.burst(rounds)

    @rule()
    def settle(self) -> None:
        if self.it.connections:
            self.it.settle()

    @rule(count=st.integers(1, 120))
    def exchange_datagrams(self, count: int) -> None:
        self.it.exchange_datagrams(count)

    @rule(size=st.integers(1, 200_000))
    def use_file(self, size: int) -> None:
        self.it.use_file(size)

    @rule(writes=st.integers(1, 20), by_two_threads=st.booleans())
    def use_pipe(self, writes: int, by_two_threads: bool) -> None:
        self.it.use_pipe(writes, by_two_threads=by_two_threads)

    @rule(rounds=st.integers(1, 4))
    def use_socket(self, rounds: int) -> None:
        self.it.use_socket(rounds)

    @rule()
    def change_threads(self) -> None:
        self.it.change_threads()

    def teardown(self) -> None:
        if self.world is not None:
            self.world.finish()


def settings_for(examples: int, **others: Any) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        **others,
    )


@pytest.mark.timeout(300)
def test_loop_does_what_asyncio_promises() -> None:
    run_state_machine_as_test(LoopMachine, settings=settings_for(EXAMPLES, derandomize=True))  # type: ignore[no-untyped-call]
