"""python -m tests.steps [step ...] [pytest arguments]

Runs the suite of uringloop with less of io_uring than this kernel has, a step at a time: as on the older kernels it
is to run on, down to Linux 6.1, without what may fail there too, and hardened. Without names of steps, all of them. The
exit status is 1 if pytest failed at any.

FTRUNCATE (6.9), sleeps that coalesce (6.12) and NO_IOWAIT (6.15) cannot be taken away; the hardened step goes without
the first, as without all operations on files.
"""

from __future__ import annotations

import os
import subprocess
import sys

from uringloop import environment

_6_16 = ["limited_receives"]
_6_12 = [*_6_16, "fixed_files"]
_6_11 = [*_6_12, "incremental_buffers", "rewound_buffers"]
_6_1 = [*_6_11, "no_sqarray"]

STEPS: dict[str, dict[str, str]] = {
    "6.16": {environment.WITHOUT: ",".join(_6_16)},
    "6.12": {environment.WITHOUT: ",".join(_6_12)},
    "6.11": {environment.WITHOUT: ",".join(_6_11)},
    "6.1": {environment.WITHOUT: ",".join(_6_1)},
    "6.1-no-ring-fd": {environment.WITHOUT: ",".join([*_6_1, "registered_ring"])},
    "6.1-waiting-sends": {environment.WITHOUT: ",".join([*_6_1, "inline_sends"])},
    "6.1-no-datagrams": {environment.WITHOUT: ",".join([*_6_1, "datagrams"])},
    "no-defer-taskrun": {environment.WITHOUT: "defer_taskrun"},
    "hardened": {environment.HARDENED: "1"},
}
USUAL = ["-q", "--on=uringloop"]


def main() -> int:
    arguments = sys.argv[1:]
    named = [argument for argument in arguments if argument in STEPS]
    rest = [argument for argument in arguments if argument not in STEPS]
    failed = []
    for step in named or STEPS:
        print(f"=== {step}", flush=True)
        run = subprocess.run([sys.executable, "-m", "pytest", *USUAL, *rest], env=os.environ | STEPS[step])
        if run.returncode:
            failed.append(step)
    print("failed: " + ", ".join(failed) if failed else "all steps passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
