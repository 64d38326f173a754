"""The command line: `python -m uringloop` runs a program as `python` would, except that asyncio's loops are ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TIMEOUT = 30  # seconds; a program takes a fraction of one


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("URINGLOOP_FALLBACK", raising=False)


def write(path: str, program: str) -> str:
    file = Path(path)
    file.parent.mkdir(exist_ok=True)
    file.write_text(textwrap.dedent(program))
    return path


def python(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], input=stdin, capture_output=True, text=True, timeout=TIMEOUT)


def uringloop(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return python("-m", "uringloop", *arguments, stdin=stdin)


# ---------------------------------------------------------------------------------------------------------------------
# The program's world
# ---------------------------------------------------------------------------------------------------------------------

TELL_THE_WORLD = """
    '''A docstring.'''
    import json, os, sys

    print(
        json.dumps(
            {
                "argv": sys.argv,
                "name": __name__,
                "file": __file__,
                "doc": __doc__,
                "package": __package__,
                "spec": getattr(__spec__, "name", None),
                "is main": sys.modules["__main__"].__dict__ is globals(),
                "path": [os.path.abspath(entry) for entry in sys.path],
                "stdin": sys.stdin.read(),
            }
        )
    )
"""


def test_script_sees_the_same_world_as_under_python() -> None:
    script = write("folder/script.py", TELL_THE_WORLD)
    arguments = [script, "one", "--check", "-m", "--", ""]
    told = json.loads(uringloop(*arguments, stdin="input").stdout)
    assert told == json.loads(python(*arguments, stdin="input").stdout)
    assert told["argv"] == arguments
    assert told["name"] == "__main__"
    assert told["stdin"] == "input"


def test_module_sees_the_same_world_as_under_python() -> None:
    write("package/__init__.py", "")
    write("package/module.py", TELL_THE_WORLD)
    arguments = ["-m", "package.module", "one", "--check", "-m", "--", ""]
    told = json.loads(uringloop(*arguments, stdin="input").stdout)
    assert told == json.loads(python(*arguments, stdin="input").stdout)
    assert told["argv"][1:] == arguments[2:]
    assert told["spec"] == "package.module"


def test_annotations_of_the_script_are_what_they_are_under_python() -> None:
    script = write("script.py", "def function(x: int) -> str: ...\nprint(function.__annotations__)")
    assert uringloop(script).stdout == python(script).stdout == "{'x': <class 'int'>, 'return': <class 'str'>}\n"


def test_script_behind_a_link_imports_what_lies_next_to_it() -> None:
    write("folder/neighbour.py", "WORDS = 'from next door'")
    write("folder/script.py", "import neighbour; print(neighbour.WORDS)")
    os.symlink("folder/script.py", "link.py")
    assert uringloop("link.py").stdout == "from next door\n"


def test_safe_path_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    script = write("folder/script.py", TELL_THE_WORLD)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("PYTHONPATH", f"/no/such/folder:{Path(__file__).parent.parent}")
    assert json.loads(uringloop(script).stdout) == json.loads(python(script).stdout)


def test_package_sees_the_arguments_while_it_is_imported() -> None:
    write("package/__init__.py", "import sys; print(sys.argv)")
    write("package/module.py", "")
    assert uringloop("-mpackage.module", "--option").stdout == "['-m', '--option']\n"


def test_package_is_run_by_its_main_module() -> None:
    write("package/__init__.py", "")
    write("package/__main__.py", TELL_THE_WORLD)
    told = json.loads(uringloop("-m", "package", "one").stdout)
    assert told == json.loads(python("-m", "package", "one").stdout)


def test_script_imports_what_lies_next_to_it() -> None:
    write("folder/neighbour.py", "WORDS = 'from next door'")
    script = write("folder/script.py", "import neighbour; print(neighbour.WORDS)")
    assert uringloop(script).stdout == "from next door\n"


def test_module_imports_relatively() -> None:
    write("package/__init__.py", "")
    write("package/neighbour.py", "WORDS = 'from next door'")
    write("package/module.py", "from . import neighbour; print(neighbour.WORDS)")
    assert uringloop("-m", "package.module").stdout == "from next door\n"


def test_functions_of_the_script_can_be_sent_to_other_processes() -> None:
    script = write(
        "script.py",
        """
        import asyncio, concurrent.futures, multiprocessing

        def double(number):
            return 2 * number

        async def main():
            spawn = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                return await asyncio.get_running_loop().run_in_executor(pool, double, 21)

        if __name__ == "__main__":
            print(asyncio.run(main()))
        """,
    )
    completed = uringloop(script)
    assert completed.stdout == "42\n", completed.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The loop that it gets
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        "asyncio.run(loop())",
        "asyncio.Runner().run(loop())",
        "closing(asyncio.new_event_loop())",
        "closing(asyncio.get_event_loop_policy().new_event_loop())",
        "threading_run(loop())",
    ],
)
def test_every_way_to_a_loop_of_asyncio_gives_ours(way: str) -> None:
    script = write(
        "script.py",
        f"""
        import asyncio, concurrent.futures, uringloop

        async def loop():
            return asyncio.get_running_loop()

        def closing(loop):
            loop.close()
            return loop

        def threading_run(main):
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                return thread.submit(asyncio.run, main).result()

        found = {way}
        assert type(found) is uringloop.Loop, found
        print("ours")
        """,
    )
    completed = uringloop(script)
    assert completed.stdout == "ours\n", completed.stderr


def test_nothing_is_warned_of() -> None:
    script = write("script.py", "import asyncio; asyncio.run(asyncio.sleep(0)); print('ran')")
    completed = python("-W", "error", "-m", "uringloop", script)
    assert (completed.stdout, completed.stderr, completed.returncode) == ("ran\n", "", 0)


# ---------------------------------------------------------------------------------------------------------------------
# How it ends
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ending", "exit_code", "stderr"),
    [
        ("", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('last words')", 1, "last words\n"),
        ("asyncio.run(leave())", 4, ""),
    ],
)
@pytest.mark.parametrize("how", [["script.py"], ["-m", "script"]], ids=["script", "module"])
def test_exit_code_is_the_program_s_own(how: list[str], ending: str, exit_code: int, stderr: str) -> None:
    write(
        "script.py",
        f"""
        import asyncio, sys
        async def leave():
            sys.exit(4)
        {ending}
        """,
    )
    completed = uringloop(*how)
    assert completed.returncode == exit_code
    assert completed.stderr == stderr


@pytest.mark.parametrize("how", [["script.py"], ["-m", "script"]], ids=["script", "module"])
def test_exception_is_shown_with_the_line_that_raised_it(how: list[str]) -> None:
    write(
        "script.py",
        """
        def fail():
            raise LookupError("no such thing")
        fail()
        """,
    )
    completed = uringloop(*how)
    assert completed.returncode == 1
    assert completed.stderr.startswith("Traceback")
    assert 'raise LookupError("no such thing")' in completed.stderr
    assert completed.stderr.endswith("LookupError: no such thing\n")


def test_sigint_ends_a_program_as_it_would_under_python() -> None:
    script = write(
        "script.py",
        """
        import asyncio
        async def main():
            print("running", flush=True)
            await asyncio.Event().wait()
        asyncio.run(main())
        """,
    )
    command = [sys.executable, "-m", "uringloop", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT
    assert stderr.endswith("KeyboardInterrupt\n")


# ---------------------------------------------------------------------------------------------------------------------
# What it says
# ---------------------------------------------------------------------------------------------------------------------


def test_check_says_in_words_what_the_kernel_offers() -> None:
    completed = uringloop("--check")
    assert completed.returncode == 0
    assert completed.stderr == ""
    for words in ("io_uring", "multishot", "registered", "buffer", os.uname().release):
        assert words in completed.stdout, words
    assert "Probe(" not in completed.stdout


def test_missing_script_is_named_without_a_traceback() -> None:
    completed = uringloop("no_such_script.py", "one")
    assert completed.returncode == 2
    assert "no_such_script.py" in completed.stderr
    assert "Traceback" not in completed.stderr


def test_folder_without_a_main_module_is_named_without_a_traceback() -> None:
    Path("folder").mkdir()
    completed = uringloop("folder")
    assert completed.returncode != 0
    assert "folder" in completed.stderr
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize("module", ["no_such_module", "no_such_package.module", "json.no_such_module"])
def test_missing_module_is_named_without_a_traceback(module: str) -> None:
    completed = uringloop("-m", module)
    assert completed.returncode == 1, "as under python"
    assert module.partition(".")[0] in completed.stderr
    assert "Traceback" not in completed.stderr


def test_missing_module_inside_the_program_is_an_error_of_the_program() -> None:
    write("module.py", "import no_such_module")
    completed = uringloop("-m", "module")
    assert completed.returncode == 1
    assert completed.stderr.startswith("Traceback")
    assert "import no_such_module" in completed.stderr


def test_help_explains_the_usage() -> None:
    completed = uringloop("--help")
    assert completed.returncode == 0
    for words in ("python -m uringloop", "script", "-m", "--check"):
        assert words in completed.stdout, words


@pytest.mark.parametrize("arguments", [[], ["-m"], ["--no-such-option"], ["--no-such-option", "script.py"]])
def test_wrong_usage_is_told_without_a_traceback(arguments: list[str]) -> None:
    write("script.py", "print('ran')")
    completed = uringloop(*arguments)
    assert completed.returncode == 2
    assert "usage: python -m uringloop" in completed.stderr
    assert completed.stdout == ""
    assert "Traceback" not in completed.stderr


@pytest.mark.parametrize("arguments", [["--check"], ["script.py"]])
@pytest.mark.parametrize("name", ["URINGLOOP_FALLBACK", "URINGLOOP_HARDENED", "URINGLOOP_WITHOUT"])
def test_wrong_environment_is_told_without_a_traceback(
    arguments: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("script.py", "print('ran')")
    monkeypatch.setenv(name, "wrong")
    completed = uringloop(*arguments)
    assert completed.returncode == 2
    assert completed.stdout == ""
    assert completed.stderr.startswith(f"uringloop: {name} ")
    assert completed.stderr.count("\n") == 1
