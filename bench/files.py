"""What does it cost to read and write files? `python -m bench.files` asks uringloop, aiofiles and anyio, in one run.

Each measurement has a process of its own. Libraries take turns within a round, and are compared within it. CPU is user
and system time of all threads, kernel workers of the ring included. The files are in the page cache, but for what
fsync writes.
"""

import argparse
import asyncio
import contextlib
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import machine
from .loops import new_event_loop

KIB = 1024
LARGE_BYTES = 1024**3
SMALL_FILES, SMALL_BYTES = 10_000, 2 * KIB
RECORD_BYTES = 200
"""Of a journal that is synced after each record."""

MEASURE_SECONDS = 60
"""More than a measurement takes beyond its own time."""

Opener = Callable[[Any, str], Any]
Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Library:
    name: str
    loop: str
    opener: Callable[[], Opener]


def _from(module: str, name: str) -> Callable[[], Opener]:
    def opener() -> Opener:
        found: Opener = getattr(importlib.import_module(module), name)
        return found

    return opener


def _of_anyio() -> Opener:
    anyio = importlib.import_module("anyio")

    @contextlib.asynccontextmanager
    async def opened(path: Any, mode: str) -> AsyncIterator[Any]:
        async with await anyio.open_file(path, mode) as file:
            yield file

    return opened


LIBRARIES = {
    library.name: library
    for library in (
        Library("uringloop", "uringloop", _from("uringloop", "open")),
        Library("aiofiles", "asyncio", _from("aiofiles", "open")),
        Library("aiofiles on uvloop", "uvloop", _from("aiofiles", "open")),
        Library("anyio", "asyncio", _of_anyio),
    )
}
REFERENCE = "uringloop"


class Clock:
    """Runs operations one after another until the time is over, and keeps how long each took."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds
        self.taken: list[float] = []

    async def run(self, operation: Operation) -> None:
        before = time.perf_counter()
        while before < self._end:
            await operation()
            after = time.perf_counter()
            self.taken.append(after - before)
            before = after


async def random_reads(open_file: Opener, folder: Path, seconds: float, at_once: int) -> Clock:
    """4 KiB from anywhere in a file of 1 GiB, by this many tasks, each with a file of its own."""
    clock = Clock(seconds)

    async def read_on(seed: int) -> None:
        places = random.Random(seed)
        async with open_file(folder / "large", "rb") as file:

            async def read() -> None:
                await file.seek(places.randrange(LARGE_BYTES // 4096) * 4096)
                await file.read(4096)

            await clock.run(read)

    await asyncio.gather(*map(read_on, range(at_once)))
    return clock


async def sequential_reads(open_file: Opener, folder: Path, seconds: float) -> Clock:
    """64 KiB after 64 KiB."""
    clock = Clock(seconds)
    async with open_file(folder / "large", "rb") as file:

        async def read() -> None:
            if not await file.read(64 * KIB):
                await file.seek(0)

        await clock.run(read)
    return clock


async def small_files(open_file: Opener, folder: Path, seconds: float) -> Clock:
    """Open, read, close; 10,000 files of 2 KiB."""
    clock = Clock(seconds)
    numbers = itertools.cycle(range(SMALL_FILES))

    async def read() -> None:
        async with open_file(folder / "small" / str(next(numbers)), "rb") as file:
            assert len(await file.read()) == SMALL_BYTES

    await clock.run(read)
    return clock


async def synced_appends(open_file: Opener, folder: Path, seconds: float) -> Clock:
    """Write a record, and wait until it is on the disk."""
    clock = Clock(seconds)
    loop = asyncio.get_running_loop()
    async with open_file(folder / f"journal-{os.getpid()}", "ab") as file:

        async def append() -> None:
            await file.write(b"x" * RECORD_BYTES)
            if hasattr(file, "fsync"):
                await file.fsync()
            else:
                await file.flush()
                await loop.run_in_executor(None, os.fsync, file.fileno())

        await clock.run(append)
    os.unlink(folder / f"journal-{os.getpid()}")
    return clock


CASES: dict[str, Callable[[Opener, Path, float], Awaitable[Clock]]] = {
    "random 4 KiB, 1 at a time": partial(random_reads, at_once=1),
    "random 4 KiB, 64 at a time": partial(random_reads, at_once=64),
    "sequential 64 KiB": sequential_reads,
    "open, read, close 2 KiB": small_files,
    "append and fsync": synced_appends,
}


# ---------------------------------------------------------------------------------------------------------------------
# One measurement, in a process of its own
# ---------------------------------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(case: str, name: str, folder: Path, seconds: float) -> dict[str, float]:
    library = LIBRARIES[name]
    open_file = library.opener()

    async def run() -> dict[str, float]:
        await CASES[case](open_file, folder, seconds / 4)  # warm-up
        cpu, before = cpu_seconds(), time.perf_counter()
        clock = await CASES[case](open_file, folder, seconds)
        cpu, took = cpu_seconds() - cpu, time.perf_counter() - before
        count = len(clock.taken)
        ordered = sorted(clock.taken)
        return {
            "CPU us/op": cpu / count * 1e6,
            "ops/s": count / took,
            "p50 us": ordered[count // 2] * 1e6,
            "p99 us": ordered[count * 99 // 100] * 1e6,
        }

    with asyncio.Runner(loop_factory=lambda: new_event_loop(library.loop)) as runner:
        return runner.run(run())


# ---------------------------------------------------------------------------------------------------------------------
# All of them, in turns
# ---------------------------------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    piece = os.urandom(1 << 20)
    with open(folder / "large", "wb") as large:
        for _ in range(LARGE_BYTES // len(piece)):
            large.write(piece)
    (folder / "small").mkdir()
    for number in range(SMALL_FILES):
        (folder / "small" / str(number)).write_bytes(piece[:SMALL_BYTES])
    os.sync()
    shutil.copyfile(folder / "large", os.devnull)  # into the page cache


def in_turns(libraries: list[str], rounds: int) -> Iterator[str]:
    for number in range(rounds):
        turn = number % len(libraries)
        yield from [*libraries[turn:], *libraries[:turn]]


def measure_apart(case: str, name: str, folder: Path, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.files", "--measure", case, name, str(folder), "--seconds", str(seconds)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=3 * seconds + MEASURE_SECONDS, check=False)
    if child.returncode:
        sys.exit(f"{case}, {name}: {child.stderr}")
    found: dict[str, float] = json.loads(child.stdout)
    return found


def print_case(case: str, samples: dict[str, list[dict[str, float]]]) -> None:
    print(f"\n{case}")
    columns = list(samples[REFERENCE][0])
    print(f"  {'':20}" + "".join(f"{column:>12}" for column in columns) + f"{'rate':>10}{'lowest':>10}")
    for name, own in samples.items():
        medians = [statistics.median(sample[column] for sample in own) for column in columns]
        ratios = [ours["ops/s"] / theirs["ops/s"] for ours, theirs in zip(samples[REFERENCE], own, strict=True)]
        cells = "".join(f"{value:12,.1f}" for value in medians)
        print(f"  {name:20}{cells}{statistics.median(ratios):10.2f}{min(ratios):10.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.files", description=__doc__)
    parser.add_argument("--measure", nargs=3, metavar=("CASE", "LIBRARY", "FOLDER"), help="one measurement, as JSON")
    parser.add_argument("--folder", type=Path, help="where the files are made (default: a temporary folder)")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    if given.measure:
        case, name, folder = given.measure
        print(json.dumps(measure(case, name, Path(folder), given.seconds)))
        return
    print(*(f"{key}: {value}" for key, value in machine.describe(machine.Cores.choose()).items()), sep="\n")
    print("rate: uringloop's operations a second in those of this one; median and lowest over the rounds")
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        prepare(folder)
        for case in given.case or CASES:
            samples: dict[str, list[dict[str, float]]] = {name: [] for name in LIBRARIES}
            for library in in_turns(list(LIBRARIES), given.rounds):
                samples[library].append(measure_apart(case, library, folder, given.seconds))
            print_case(case, samples)


if __name__ == "__main__":
    main()
