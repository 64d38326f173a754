"""The benchmarks work: each question gives figures, what answers wrongly is told, and the page is made.

The figures themselves mean nothing here: a round is as short as can be.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import sys
import threading
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from support import PATIENCE

from bench import __main__ as program
from bench import distance, document, floor, launch, loops, memory, native, profile, question, report
from bench.machine import Cores
from bench.question import Case, Cost, Failed, Question, Ratio, Run, Sample
from bench.rounds import Measured, Outcome, Plan, measure_case
from bench.targets import judge

ROOT = Path(__file__).parents[1]
QUESTIONS = question.discover()
SECONDS = 0.05
ALSO = {"streaming": {"from the server"}, "streams": {"lines 64Bx50"}}
"""Cases that are measured in another way than the first of their question."""

TRIED = [
    *((name, asked.cases[0]) for name, asked in QUESTIONS.items()),
    *((name, case) for name, asked in QUESTIONS.items() for case in asked.cases if case.name in ALSO.get(name, ())),
    ("memory", Case("a connection, of few", partial(memory.of_a_connection, connections=100))),
]

NEEDS = {"http": "wrk", "static": "wrk", "syscalls": "strace"}


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measured processes are started by `python -m bench.server`."""
    monkeypatch.chdir(ROOT)


def plan(*names: str, rounds: int = 1, seconds: float = SECONDS) -> Plan:
    return Plan(names, rounds, seconds, Cores.choose())


def measured(name: str, case: Case) -> Measured:
    names = (loops.OURS, *QUESTIONS[name].also)
    result = measure_case(name, case, plan(*names))
    if "measured time" in "".join(outcome.failure or "" for outcome in result.outcomes.values()):
        # On a busy machine a turn of others may be longer than that.
        result = measure_case(name, case, plan(*names, seconds=20 * SECONDS))
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "case"), TRIED, ids=[f"{name} {case.name}" for name, case in TRIED])
def test_question_gives_figures_on_uringloop(name: str, case: Case) -> None:
    if name in NEEDS and shutil.which(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    if name == "tls" and not Path("/usr/include/openssl/ssl.h").exists():
        pytest.skip("the headers of OpenSSL are not installed")
    result = measured(name, case)
    assert {loop: outcome.failure for loop, outcome in result.outcomes.items() if outcome.failure} == {}
    told = json.loads(json.dumps(report.as_json({}, {}, QUESTIONS, [result])))["results"][0]
    assert (told["question"], told["unit"]) == (name, QUESTIONS[name].unit)
    for loop in told["loops"].values():
        (sample,) = loop["samples"]
        assert ("cores apart ns" in sample) is not Cores.choose().shared
        assert 0 < sample["cost"] == loop["cost"]["median"] < 1e6
        assert all(figure >= 0 for figure in sample.values())
        assert loop["ratio"]["median"] > 0


def test_profile_is_split_by_what_the_samples_were_in() -> None:
    told = """
    40.00%;[kernel.kallsyms]
    30.00%;libpython3.13.so.1.0
     5.00%;_asyncio.cpython-313-x86_64-linux-gnu.so
    10.00%;_core.abi3.so
     5.00%;loop.cpython-313-x86_64-linux-gnu.so
     2.00%;libc.so.6
"""
    shares = profile.split(told)
    assert shares == pytest.approx(dict(zip(profile.GROUPS, (40 / 92, 35 / 92, 15 / 92, 2 / 92), strict=True)))
    assert profile.split("no samples\n") == {}


def test_floor_tells_each_step_and_each_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(floor, "TURNS", 2)
    monkeypatch.setattr(floor, "ROUNDS", 3)
    monkeypatch.setattr(floor, "LOOPS", ("uringloop", "asyncio"))
    floor.main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    figures = {row[0].strip(): int(row[-1]) for row in rows if row[-1].strip().isdigit()}
    assert figures.keys() == {*floor.STEPS, "uringloop", "asyncio"}
    assert all(figures.values())
    assert not floor.ready


def test_profile_attaches_to_the_server_of_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    watched: list[int] = []
    monkeypatch.setattr(launch, "when_ready", watched.append)
    assert not measured("echo", QUESTIONS["echo"].cases[0]).outcomes[loops.OURS].failure
    assert len(watched) == 1


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


def test_load_generator_sends_lines_when_it_is_told_to() -> None:
    sent = []

    def answer(data: bytes) -> bytes:
        sent.append(data)
        return data

    with answering(answer) as address:
        generate("load", address, "-c", "1", "-s", "64", "-l", "-w", "0", "-t", "0.02")
    *lines, rest = b"".join(sent).split(b"\n")
    assert rest == b""
    assert {len(line) for line in lines} == {63}
    assert len(set(lines)) > 1


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


@pytest.fixture
def cores_apart(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the cores will be apart, each time that it is measured; all of it must be asked for."""
    coming: list[float] = []
    monkeypatch.setattr(distance, "between", lambda _: coming.pop(0))
    monkeypatch.setattr(distance, "LOOK_AGAIN_SECONDS", 0)
    yield coming
    assert coming == []


APART = Run("uringloop", SECONDS, Cores(server=0, load=1))


def numbered() -> Case:
    """Its samples cost 1, 2, 3 ..."""
    costs = itertools.count(1)
    return Case("case", lambda _: Sample(next(costs)))


def test_distance_of_the_cores_is_told_with_a_sample(cores_apart: list[float]) -> None:
    cores_apart += [80, 400]
    assert distance.measure(numbered(), APART, None) == Sample(1, {"cores apart ns": 400})


def test_sample_is_taken_when_the_cores_are_near_and_again_if_they_did_not_stay_so(cores_apart: list[float]) -> None:
    cores_apart += [400, 400, 80, 400, 400, 90, 80]
    assert distance.measure(numbered(), APART, 150) == Sample(2, {"cores apart ns": 90})


def test_sample_is_taken_in_the_end_though_the_cores_are_never_near(
    cores_apart: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distance, "PATIENCE_SECONDS", -1)
    cores_apart += [400, 390]
    assert distance.measure(numbered(), APART, 150) == Sample(1, {"cores apart ns": 400})


def test_distance_of_cores_is_what_a_cache_line_takes() -> None:
    cores = Cores.choose()
    if cores.shared:
        with pytest.raises(Failed, match="one core"):
            distance.between(cores)
    else:
        assert 1 < distance.between(cores) < 1e6
    with pytest.raises(Failed, match="bad core"):
        distance.between(Cores(server=0, load=10**6))


def test_target_is_not_judged_where_nothing_can_be_compared() -> None:
    case = Case("case", costing(uringloop=4), target=Ratio(1.0))
    assert judge(measure_case("question", case, plan("uringloop", "uvloop"))) is None
    assert judge(measure_case("question", case, plan("uvloop"))) is None


# ---------------------------------------------------------------------------------------------------------------------
# The program, and its page
# ---------------------------------------------------------------------------------------------------------------------


def run_program(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    cores = os.sched_getaffinity(0)
    try:
        return program.main()
    finally:
        os.sched_setaffinity(0, cores)


def test_results_become_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = tmp_path / "docs"
    pages.mkdir()
    echo = ["echo", "--case", "64Bx1", "--loops", "uringloop,uvloop", "--rounds", "2", "--seconds", str(SECONDS)]
    echo += ["--near", "1000000"]
    assert run_program(monkeypatch, *echo, "--json", str(tmp_path / "echo.json")) == 0
    told = json.loads((tmp_path / "echo.json").read_text())
    assert {"kernel", "cpu", "python", "loops"} <= set(told["machine"])
    assert told["machine"]["loops"].keys() == {"uringloop", "uvloop"}
    assert "64Bx1" in capsys.readouterr().out

    case = Case("1 KiB | 50", costing(uringloop=4, uvloop=2), target=Ratio(1.0))
    broken = measure_case("made up", case, plan("uringloop", "uvloop", "rloop", rounds=2))
    made_up = {"made up": Question("title & all", "CPU us/thing", (case,), serve=_never)}
    other = report.as_json(told["machine"], told["settings"], made_up, [broken])
    (tmp_path / "other.json").write_text(json.dumps(other))

    page = pages / "performance.md"
    files = [str(tmp_path / "echo.json"), str(tmp_path / "other.json")]
    assert run_program(monkeypatch, "report", *files, "--page", str(page)) == 0
    text = page.read_text()
    assert "failed: it is broken" in text
    assert "--near 1000000 --json" in text
    assert re.search(r"\| made up \|.*\| 0\.50 \(uvloop\) \| 1\.00 \| \*\*no\*\* \|", text)
    charts = re.findall(r"!\[.*\]\((.+\.svg)\)", text)
    assert len(charts) == 2
    for name in charts:
        drawn = xml.etree.ElementTree.parse(pages / name)
        assert "uvloop" in "".join(drawn.getroot().itertext())
    _assert_tables_are_whole(text)


async def _never() -> None:
    raise AssertionError("nobody serves this")


def _assert_tables_are_whole(text: str) -> None:
    """All rows of a table have as many cells as its head."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_of_a_case_that_is_in_two_files_the_last_counts(tmp_path: Path) -> None:
    for name, cost in (("first", 1.0), ("second", 3.0)):
        case = Case("case", costing(uringloop=cost))
        asked = {"question": Question("title", "unit", (case,), serve=_never)}
        told = report.as_json(
            {}, {"rounds": 1, "seconds": 1}, asked, [measure_case("question", case, plan("uringloop"))]
        )
        (tmp_path / name).write_text(json.dumps(told))
    results = document.read([tmp_path / "first", tmp_path / "second"])
    assert [case["loops"]["uringloop"]["cost"]["median"] for case in results.cases] == [3.0]
    assert document.command(results) == "python -m bench question --rounds 1 --seconds 1 --json results.json"
