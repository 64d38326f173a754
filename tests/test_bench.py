"""The benchmarks work: each question gives figures, what answers wrongly is told.

The figures themselves mean nothing here: a round is as short as can be.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support import PATIENCE

from bench import loops, memory, native, question, report
from bench.machine import Cores
from bench.question import Case, Cost, Failed, Ratio, Run, Sample
from bench.rounds import Measured, Outcome, Plan, measure_case
from bench.targets import judge

ROOT = Path(__file__).parents[1]
QUESTIONS = question.discover()
SECONDS = 0.05
SMALL = {"memory": Case("a connection", partial(memory.of_a_connection, connections=100))}
"""Instead of a question's first case, where that is not the one to try, or takes long."""

NEEDS = {"http": "wrk", "static": "wrk", "syscalls": "strace"}


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured processes are started by `python -m bench.server`."""
    monkeypatch.chdir(ROOT)


def plan(*names: str, rounds: int = 1) -> Plan:
    return Plan(names, rounds, SECONDS, Cores.choose())


def measured(name: str, case: Case) -> Measured:
    own = plan(loops.OURS, *QUESTIONS[name].also)
    return measure_case(name, case, own)


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUESTIONS)
def test_question_gives_figures_on_uringloop(name: str) -> None:
    if name in NEEDS and shutil.which(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    if name == "tls" and not Path("/usr/include/openssl/ssl.h").exists():
        pytest.skip("the headers of OpenSSL are not installed")
    result = measured(name, SMALL.get(name, QUESTIONS[name].cases[0]))
    assert {loop: outcome.failure for loop, outcome in result.outcomes.items() if outcome.failure} == {}
    told = json.loads(json.dumps(report.as_json({}, {}, QUESTIONS, [result])))["results"][0]
    assert (told["question"], told["unit"]) == (name, QUESTIONS[name].unit)
    for loop in told["loops"].values():
        (sample,) = loop["samples"]
        assert 0 < sample["cost"] == loop["cost"]["median"] < 1e6
        assert all(figure >= 0 for figure in sample.values())
        assert loop["ratio"]["median"] > 0


@pytest.mark.parametrize("name", QUESTIONS)
def test_question_asks_only_what_can_be_answered(name: str) -> None:
    asked = QUESTIONS[name]
    assert len({case.name for case in asked.cases}) == len(asked.cases)
    for case in asked.cases:
        if isinstance(case.target, Ratio):
            assert set(case.target.against) <= set(loops.FACTORIES) | set(asked.also)


# ---------------------------------------------------------------------------------------------------------------------
# The load generators believe nothing
# ---------------------------------------------------------------------------------------------------------------------

Answer = Callable[[bytes], bytes]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server that answers what it receives by this function, one connection after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)

        def serve() -> None:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if not exchange(connection):
                        return

        def exchange(connection: socket.socket) -> bool:
            connection.settimeout(PATIENCE)
            try:
                while data := connection.recv(1 << 16):
                    if data == b"end":
                        return False
                    connection.sendall(answer(data))
            except ConnectionError:
                pass
            return True

        thread = threading.Thread(target=serve)
        thread.start()
        host, port = listener.getsockname()
        try:
            yield f"{host}:{port}"
        finally:
            with socket.create_connection((host, port), PATIENCE) as end:
                end.sendall(b"end")
            thread.join(PATIENCE)


def generate(name: str, address: str, *arguments: str) -> native.Result:
    run = Run("nothing", SECONDS, Cores.choose())
    return native.run_generator(name, run, ["-p", str(os.getpid()), *arguments, address])


@pytest.mark.parametrize("name", ["load", "connects"])
@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (flip, "other bytes came back than were sent"),
        (lambda data: data + b"!", "more came back than was sent"),
    ],
    ids=["a flipped bit", "a byte too many"],
)
def test_load_generator_tells_a_wrong_answer(name: str, answer: Answer, complaint: str) -> None:
    with answering(answer) as address, pytest.raises(Failed, match=complaint):
        generate(name, address, "-c", "1", "-s", "64", "-w", "0", "-t", "0.1")


def test_load_generator_tells_a_right_answer() -> None:
    with answering(bytes) as address:
        result = generate("load", address, "-c", "1", "-s", "64", "-w", "0", "-t", "0.1")
    assert 0 < result.requests <= result.all
    assert 0 < result.p50_ns <= result.p99_ns <= result.p999_ns


@pytest.mark.parametrize(
    ("arguments", "answer", "complaint"),
    [
        (["-r"], lambda request: b"\x01" * 8, "other bytes came than should"),
        ([], lambda data: bytes(8) if data[-1] == 255 else b"", "the server has received 0 of"),
    ],
    ids=["from the server", "to the server"],
)
def test_stream_generator_tells_a_wrong_answer(arguments: list[str], answer: Answer, complaint: str) -> None:
    with answering(answer) as address, pytest.raises(Failed, match=complaint):
        generate("stream", address, "-n", "1", *arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Rounds and targets
# ---------------------------------------------------------------------------------------------------------------------


def costing(**costs: float) -> Callable[[Run], Sample]:
    """A measurement that gives these costs, and fails on other loops."""

    def measure(run: Run) -> Sample:
        if run.loop not in costs:
            raise Failed("it is broken")
        return Sample(costs[run.loop])

    return measure


def test_loop_that_fails_is_told_and_does_not_stop_the_run() -> None:
    result = measure_case(
        "question", Case("case", costing(uringloop=2, uvloop=3)), plan("uringloop", "rloop", "uvloop")
    )
    assert result.outcomes["rloop"] == Outcome([], "it is broken")
    assert result.ratio("rloop") is None
    assert (ratio := result.ratio("uvloop")) is not None
    assert ratio.median == 1.5


@pytest.mark.parametrize(
    ("target", "found", "against", "met"),
    [
        (Ratio(1.1), 1.25, "rloop", True),
        (Ratio(1.5), 1.25, "rloop", False),
        (Ratio(1.5, against=("uvloop",)), 1.5, "uvloop", True),
        (Cost(4), 4, None, True),
        (Cost(3.9), 4, None, False),
    ],
)
def test_target_is_judged_by_the_best_of_those_named(
    target: Ratio | Cost, found: float, against: str | None, met: bool
) -> None:
    case = Case("case", costing(uringloop=4, uvloop=6, rloop=5, asyncio=1), target=target)
    verdict = judge(measure_case("question", case, plan("uringloop", "uvloop", "rloop", "asyncio")))
    assert verdict is not None
    assert (verdict.found, verdict.against, verdict.met) == (found, against, met)


def test_target_is_not_judged_where_nothing_can_be_compared() -> None:
    case = Case("case", costing(uringloop=4), target=Ratio(1.0))
    assert judge(measure_case("question", case, plan("uringloop", "uvloop"))) is None
    assert judge(measure_case("question", case, plan("uvloop"))) is None
