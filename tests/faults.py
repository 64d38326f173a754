"""python -m tests.faults [--faults N] [--seed S]: the loop on a kernel that does all that a kernel may do.

The core is built with faults compiled in (core/ring_fault.h), and then:

- the canaries: a core that loses a byte or a completion, or swaps two, must fail the property test;
- each kind by itself (each_fault.py);
- the property test (test_model.py) until N faults have been made, of all kinds, with many of each;
- without --faults, for a quick look, it is a minute of that, and then those tests that move bytes, with a few faults.

It prints each seed, and in the end the faults by kind. `--seed` of one that failed begins with it; what the kernel does
meanwhile is not repeated. Exits with 1 if anything fails.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = ROOT / "uringloop" / "core"
BUILT = shutil.ignore_patterns(".*", "*.so", "_core.c", "__pycache__", "build", "dist")

SECONDS = 60  # of the quick look
EXAMPLES = 20  # for each seed
CANARY_RATE = 0.02
TEST_SECONDS = 240
# What moves bytes, and does not look at what the loop asked the kernel for.
TESTS = [
    *("test_integrity.py", "test_flow_control.py", "test_buffered_protocol.py", "test_stream_transport.py"),
    *("test_stream_closing.py", "test_server.py", "test_tls.py", "test_datagram_transport.py", "test_sock.py"),
    *("test_pipes.py", "test_subprocess.py", "test_subprocess_protocol.py", "test_files.py"),
]


def tree(folder: Path) -> None:
    """A copy of the sources with an extension that makes faults; that is built when the core has changed."""
    shutil.copytree(ROOT, folder, ignore=BUILT, dirs_exist_ok=True)
    sources = [CORE.parents[1] / "setup.py", *sorted([*CORE.glob("*.[ch]"), CORE / "build.py"])]
    parts = [path.read_bytes() for path in sources if path.name != "_core.c"]
    digest = hashlib.sha256(b"".join(parts) + sys.version.encode()).hexdigest()[:16]
    kept = ROOT / ".build" / "faults" / digest / "_core.abi3.so"
    place = folder / "uringloop" / "core" / kept.name
    if kept.exists():
        shutil.copy(kept, place)
        return
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    subprocess.run(build, cwd=folder, env=os.environ | {"URINGLOOP_FAULTS": "1"}, check=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(place, kept.with_suffix(".new"))
    kept.with_suffix(".new").rename(kept)


def run_in_tree(module: str, arguments: list[str]) -> int:
    """Run a module of the tests again, with these arguments, where the core makes faults."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree(folder)
        paths = os.pathsep.join([str(folder), str(folder / "tests")])
        environment = os.environ | {"PYTHONPATH": paths, "FAULTS_TREE": name}
        return subprocess.run([sys.executable, "-m", module, *arguments], cwd=folder, env=environment).returncode


def is_in_tree() -> bool:
    return "FAULTS_TREE" in os.environ


def table(counts: Mapping[str, int]) -> str:
    return "\n".join(f"  {name:24}{count:>12,}" for name, count in sorted(counts.items()) if count)


# ---------------------------------------------------------------------------------------------------------------------
# In the tree
# ---------------------------------------------------------------------------------------------------------------------


def run_machine(seed: int, rates: Mapping[str, float], examples: int) -> None:
    """The property test with these faults. Raises what it finds."""
    import faulty
    import hypothesis
    from hypothesis import Phase
    from hypothesis.stateful import run_state_machine_as_test
    from test_model import LoopMachine, settings_for

    faulty.set_seed(seed)
    faulty.set_rates(rates)
    try:
        # No shrinking: what fails once by chance does not fail each time.
        machine = hypothesis.seed(seed)(type("Machine", (LoopMachine,), {}))
        run_state_machine_as_test(machine, settings=settings_for(examples, phases=[Phase.generate]))  # type: ignore[no-untyped-call]
    finally:
        faulty.set_rates({})


def check_canaries(seed: int) -> None:
    """Each of them must be noticed."""
    import faulty
    import model

    patience, model.PATIENCE = model.PATIENCE, 2
    for name in sorted(faulty.CANARIES):
        before = faulty.counts()[name]
        model.noticed.clear()
        with suppress(Exception, BaseExceptionGroup):
            run_machine(seed, {name: CANARY_RATE}, EXAMPLES)
        made = faulty.counts()[name] - before
        if not made or not model.noticed:
            sys.exit(f"{name}: not caught, {made} made")
        print(f"{name}: caught, {made} made: {model.noticed[0].partition(chr(10))[0][:80]}", flush=True)
    model.PATIENCE = patience


def search(faults: int | None, seed: int) -> None:
    import faulty
    import model

    model.noticed.clear()

    began = time.monotonic()
    start = faulty.counts()
    made = 0
    while made < faults if faults is not None else time.monotonic() - began < SECONDS:
        print(f"seed {seed}: ", end="", flush=True)
        try:
            run_machine(seed, faulty.MANY, EXAMPLES)
        except BaseException:
            print("\n".join(model.noticed), flush=True)
            raise
        made = faulty.total() - sum(start.values())
        print(f"{made:,} faults so far, {time.monotonic() - began:.0f} s", flush=True)
        seed += 1
    by_kind = {name: count - start[name] for name, count in faulty.counts().items()}
    print(f"{made:,} faults, no failure\n{table(by_kind)}", flush=True)
    missing = [name for name, count in by_kind.items() if not count and name not in faulty.CANARIES]
    if missing:
        sys.exit(f"never made: {', '.join(missing)}")


def run_tests(seed: int) -> int:
    print(f"the tests with a few faults, seed {seed}", flush=True)
    return run_pytest("-k", "uringloop", *(f"tests/{name}" for name in TESTS), seed=seed)


def run_pytest(*arguments: str, seed: int | None = None) -> int:
    """In a process of its own; with a few faults (faulty.py) if there is a seed."""
    options = ["-q", "-p", "faulty", "-p", "no:cacheprovider", f"--timeout={TEST_SECONDS}"]
    environment = os.environ | ({} if seed is None else {"FAULTS_SEED": str(seed)})
    return subprocess.run([sys.executable, "-m", "pytest", *options, *arguments], env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--faults", type=int, help="so many, in the property test")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    if not is_in_tree():
        return run_in_tree("tests.faults", sys.argv[1:])
    import faulty

    import uringloop

    if not faulty.COMPILED_IN or not Path(uringloop.__file__).is_relative_to(os.environ["FAULTS_TREE"]):
        sys.exit("this core makes no faults")
    uringloop.probe()  # of the kernel as it is
    seed = int.from_bytes(os.urandom(4), "big") if arguments.seed is None else arguments.seed
    check_canaries(seed)
    status = run_pytest("tests/each_fault.py")
    if status:
        return status
    search(arguments.faults, seed)
    return 0 if arguments.faults is not None else run_tests(seed)


if __name__ == "__main__":
    sys.exit(main())
