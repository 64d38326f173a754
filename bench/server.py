"""The measured process: `python -m bench.server QUESTION [ARGUMENT...] --loop NAME` serves what the question asks for.

It announces `ready ADDRESS` on stdout once it can be talked to, and serves until it is killed.
"""

import argparse
import ctypes
import os
import signal
import sys

from . import loops, machine, question

READY = "ready "

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _die_with_parent() -> None:
    """Has the kernel kill this process when the harness dies, however it dies: no server outlives its run."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _announce(address: str) -> None:
    print(f"{READY}{address}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.server", description=__doc__)
    parser.add_argument("question")
    parser.add_argument("arguments", nargs="*", help="the question's own")
    parser.add_argument("--loop", required=True, choices=loops.FACTORIES)
    parser.add_argument("--core", type=int, help="run on this core only")
    arguments = parser.parse_args()

    _die_with_parent()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    machine.raise_file_limit()
    asked = question.load(arguments.question)
    if asked is None:
        sys.exit(f"{arguments.question} is not a question")

    loop = loops.new_event_loop(arguments.loop)

    async def serve() -> None:
        await asked.serve(_announce, *arguments.arguments)

    loop.run_until_complete(serve())


if __name__ == "__main__":
    main()
