"""python -m tests.sanitize [pytest arguments]

Runs the Python suite on a core that is built with AddressSanitizer and UndefinedBehaviorSanitizer: where a test of the
core by itself drives it with memory of its own, here it is driven by the loop, with memory that Python owns and frees.

Without arguments it runs what moves bytes, on uringloop only. The exit status is that of pytest, or 1 if a sanitizer
had something to say in any process.

How: the tree is copied to a temporary folder, the extension is built there with the sanitizers, and the interpreter,
which is not, gets their runtimes by LD_PRELOAD. Before the tests a canary makes the core read beyond a buffer; if that
is not caught, the core that was imported was not the sanitized one, and nothing that follows would mean anything.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT = shutil.ignore_patterns(".*", "*.so", "_core.c", "__pycache__", "build", "dist")

SUBJECTS = [
    *("stream_*", "buffered_protocol", "flow_control", "integrity", "server"),
    *("datagram*", "operations", "sock", "files", "fs", "sendfile"),
]
TEST_SECONDS = 300  # as much longer than usual as sanitizers can make it

FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g -O1"
# The interpreter frees little of what it allocates when it ends, which is no leak of ours; and a crash is the
# sanitizer's to tell, not faulthandler's.
ASAN_OPTIONS = "detect_leaks=0:allow_user_segv_handler=0"
UBSAN_OPTIONS = "print_stacktrace=1"

# A load of the core itself: in a copy by memcpy() the runtime would see it, whoever calls.
CANARY = """
from uringloop.core._core import ffi, lib
too_small = ffi.new("char[1]")
lib.ul_reactor_open(ffi.cast("struct ul_options *", too_small), ffi.new("int *"))
"""


def build(folder: Path) -> None:
    """A copy of the tree, with a sanitized extension in it."""
    shutil.copytree(ROOT, folder, ignore=BUILT, dirs_exist_ok=True)
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=folder,
        env=os.environ | {"URINGLOOP_CFLAGS": FLAGS, "URINGLOOP_LDFLAGS": FLAGS},
        check=True,
    )


def runtime(library: str) -> str:
    asked = subprocess.run(["gcc", f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    path = asked.stdout.strip()
    if not os.path.isabs(path):  # what gcc does not find, it gives back as it is
        sys.exit(f"gcc has no {library}")
    return path


def environment(folder: Path, findings: Path) -> dict[str, str]:
    """For a process in which the sanitizers write what they find to files: pytest keeps what it captures to itself
    when its process is ended."""
    return os.environ | {
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": f"{ASAN_OPTIONS}:log_path={findings}",
        "UBSAN_OPTIONS": f"{UBSAN_OPTIONS}:log_path={findings}",
        "PYTHONMALLOC": "malloc",  # so that the sanitizer knows where each of Python's objects ends
        "PYTHONPATH": str(folder),
        "SANITIZED_FOLDER": str(folder),
    }


def found(findings: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(findings.parent.glob(f"{findings.name}.*")))


def check_canary(folder: Path) -> None:
    findings = folder / "canary"
    run = subprocess.run([sys.executable, "-c", CANARY], cwd=folder, env=environment(folder, findings))
    if run.returncode == 0 or "heap-buffer-overflow" not in found(findings):
        sys.exit(f"the canary lives: the core was not sanitized\n{found(findings)}")


def run_tests(folder: Path, arguments: list[str]) -> int:
    findings = folder / "findings"
    command = [sys.executable, "-m", "pytest", "-p", "tests.sanitize", "-p", "no:cacheprovider", *arguments]
    status = subprocess.run(command, cwd=folder, env=environment(folder, findings)).returncode
    if found(findings):
        print(found(findings))
        return status or 1
    return status


def pytest_sessionstart() -> None:
    """In the process of the tests: the extension that they will use is the one in the folder."""
    extension = importlib.import_module("uringloop.core._core").__file__
    if extension is None or not Path(extension).is_relative_to(os.environ["SANITIZED_FOLDER"]):
        raise pytest.UsageError(f"{extension} is not the sanitized extension")


def default_arguments() -> list[str]:
    tests = [path for subject in SUBJECTS for path in sorted(ROOT.glob(f"tests/test_{subject}.py"))]
    return ["-q", f"--timeout={TEST_SECONDS}", "-k", "uringloop", *(str(path.relative_to(ROOT)) for path in tests)]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        check_canary(Path(folder))
        return run_tests(Path(folder), sys.argv[1:] or default_arguments())


if __name__ == "__main__":
    sys.exit(main())
