"""python -m tests.floods [FLOOD ...] [--loops NAME,...] [--small] [--seed N]

Floods a server on each loop, all on loopback, bounded in count and time, and prints a table for each flood: what was
sent, what the server did, what it used, how a client fared that behaves, and what was left. A word of its name picks a
flood. The exit status is 1 if uringloop grew by more than the flood allows, used more CPU, or kept anything.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import sys

from .attacks import FLOODS, MIB, Flood
from .victim import Service, Told, left, probe, victim

LOOPS = "uringloop,uvloop,asyncio"
OURS = "uringloop"
COLUMNS = ("loop", "the server", "MiB at rest, at most", "CPU, s", "a line meanwhile, ms", "afterwards, ms", "left")


def in_words(service: Service) -> str:
    return f"{service.middle * 1000:.2f}, at most {service.longest * 1000:.1f}"


def row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def run(flood: Flood, loop: str, small: bool, seed: int) -> tuple[str, str, list[str]]:
    """What was sent; a row of the table; what was wrong."""
    size = flood.small if small else flood.whole
    with victim(loop, flood.patience, flood.files) as server:
        server.serve_after()  # and so warm
        server.tell()  # as is the connection that tells: with a second answer it takes a slot
        before = server.tell("begin")
        with probe(server) as took:
            outcome = flood.attack(server, size, random.Random(seed))
        after = server.at_rest(before)
        afterwards = server.serve_after()
        over = server.at_rest(before)
    wrong = faults(flood, before, outcome.height, after, over, small)
    cells = (
        loop,
        flood.did(outcome.height.counts if flood.patience > 60 else after.counts),
        f"{before.rss / MIB:.1f}, {max(after.peak, outcome.height.peak) / MIB:.1f}",
        f"{outcome.height.cpu - before.cpu:.2f}",
        in_words(Service.of(took)),
        in_words(afterwards),
        ", ".join(f"{number} {name}" for name, number in left(before, over).items()) or "nothing",
    )
    return outcome.sent, row(cells), wrong


def faults(flood: Flood, before: Told, height: Told, after: Told, over: Told, small: bool) -> list[str]:
    size = flood.small if small else flood.whole
    wrong = [f"left: {left(before, over)}"] if left(before, over) else []
    growth, allowed = max(after.peak, height.peak) - before.rss, flood.memory(size)
    if growth > allowed:
        wrong.append(f"the memory grew by {growth / MIB:.1f} MiB, {allowed / MIB:.1f} are allowed")
    if flood.cpu is not None and height.cpu - before.cpu > flood.cpu * size.seconds:
        wrong.append(f"it used {height.cpu - before.cpu:.1f} s of CPU in {size.seconds:.0f} s")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.floods", description=__doc__.partition("\n")[0])
    parser.add_argument("floods", nargs="*", metavar="FLOOD")
    parser.add_argument("--loops", default=LOOPS)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if arguments.seed is None else arguments.seed
    chosen = [flood for flood in FLOODS if not arguments.floods or any(word in flood.name for word in arguments.floods)]
    if not chosen:
        parser.error(f"there is none of these floods: {', '.join(flood.name for flood in FLOODS)}")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(f"seed {seed}", flush=True)
    status = 0
    for flood in chosen:
        rows = []
        loops = arguments.loops.split(",")
        if flood.fills_kernel and not arguments.small:
            run(flood, loops[-1], arguments.small, seed)
        for loop in loops:
            sent, line, wrong = run(flood, loop, arguments.small, seed)
            rows.append(line)
            for fault in wrong:
                print(f"{flood.name}, {loop}: {fault}", file=sys.stderr, flush=True)
                status |= loop == OURS
        print(f"\n### {flood.name[0].upper()}{flood.name[1:]}\n\n{sent}.\n", row(COLUMNS), sep="\n")
        print(row(("---",) * len(COLUMNS)), *rows, sep="\n", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
