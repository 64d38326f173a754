"""The core as a plain C program: its own tests under sanitizers, and what it must not depend on."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

import pytest

from uringloop.core import build

ROOT = Path(__file__).parents[1]
CORE = ROOT / "uringloop" / "core"
C_TESTS = Path(__file__).parent / "core"

COMPILER = os.environ.get("CC", "cc")
STRICT = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O2"]
SANITIZERS = "-fsanitize=address,undefined"

SKIPPED = 77  # the exit status of a program of which every test was skipped
BUILD_SECONDS = 120
PROGRAM_SECONDS = 120

SOURCES = sorted(path for path in CORE.glob("*.c") if path.name != "_core.c")  # which cffi generates
PROGRAMS = sorted(path.stem for path in C_TESTS.glob("test_*.c"))


def compile_c(*arguments: str | Path, source: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMPILER, *arguments], input=source, capture_output=True, text=True, timeout=BUILD_SECONDS)


@pytest.fixture(scope="module")
def sanitized() -> Path:
    """Where the programs are, built with the sanitizers."""
    with tempfile.NamedTemporaryFile() as program:
        link = compile_c(SANITIZERS, "-x", "c", "-", "-o", program.name, source="int main(void) { return 0; }")
    if link.returncode != 0:
        pytest.skip(f"{COMPILER} has no sanitizer runtime: {link.stderr.strip().splitlines()[-1]}")
    make = ["make", "--silent", f"--jobs={os.cpu_count()}", "-C", str(C_TESTS), f"CC={COMPILER}", "sanitized"]
    built = subprocess.run(make, capture_output=True, text=True, timeout=BUILD_SECONDS)
    if built.returncode != 0:
        pytest.fail(built.stdout + built.stderr, pytrace=False)
    return C_TESTS / ".build" / "sanitized"


def run_c(program: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["timeout", str(PROGRAM_SECONDS), program],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=1"},
        text=True,
    )


@pytest.mark.timeout(BUILD_SECONDS + PROGRAM_SECONDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_c_program(sanitized: Path, program: str) -> None:
    run = run_c(sanitized / program)
    # pytest shows it if the test fails.
    print("".join(line for line in run.stdout.splitlines(keepends=True) if not line.startswith("ok ")))
    if run.returncode == SKIPPED:
        pytest.skip(run.stdout.splitlines()[-2])  # the last test that was, with the reason
    assert run.returncode == 0, "see the lines that begin with FAIL"


def test_a_leak_in_a_c_program_would_be_noticed(sanitized: Path) -> None:
    run = run_c(sanitized / "canary_leak")
    assert "LeakSanitizer: detected memory leaks" in run.stdout
    assert run.returncode == 1


def test_there_are_c_programs() -> None:
    assert len(PROGRAMS) > 10


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_source_compiles_without_a_warning(source: Path) -> None:
    compiled = compile_c(*STRICT, "-c", source, "-o", os.devnull)
    assert compiled.stderr == ""
    assert compiled.returncode == 0


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_source_includes_neither_python_nor_the_kernels_headers(source: Path) -> None:
    included = compile_c(*STRICT, "-M", source).stdout
    assert source.name in included
    assert "Python.h" not in included
    assert "linux/io_uring.h" not in included


def test_the_extension_is_made_of_the_sources_that_are_tested() -> None:
    assert sorted(build.SOURCES) == [source.name for source in SOURCES]


def test_every_constant_of_the_kernel_is_checked() -> None:
    """abi.h declares it; abi_facts.h compares it with the documented number and with the machine's header."""
    abi = (CORE / "abi.h").read_text()
    declared = re.findall(r"^(?:#define|   ) (IO\w+) (?!\\)", abi, re.MULTILINE)
    checked = re.findall(r"VALUE\((IO\w+),", (C_TESTS / "abi_facts.h").read_text())
    assert sorted(declared) == sorted(checked)


def test_every_struct_of_the_kernel_is_checked() -> None:
    declared = re.findall(r"^struct (\w+) \{", (CORE / "abi.h").read_text(), re.MULTILINE)
    checked = re.findall(r"SIZE\((\w+), \d", (C_TESTS / "abi_facts.h").read_text())
    assert sorted(declared) == sorted(checked)


def test_a_hardened_ring_may_do_what_the_engines_submit() -> None:
    submitted = set()
    for path in SOURCES:
        if path.name not in ("restrictions.c", "ring_fault.c"):  # the last is not in what is shipped
            # But for what is compared with: that was asked for from above.
            submitted |= set(re.findall(r"(?<![!=]= )\bIORING_OP_\w+", path.read_text()))
    allowed = set(re.findall(r"\bIORING_OP_\w+", (CORE / "restrictions.c").read_text()))
    assert submitted == allowed
