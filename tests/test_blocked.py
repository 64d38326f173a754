"""Where the loop cannot have what it wants: io_uring refused, few file descriptors, or no network.

Each test runs a program in a process of its own, since neither a seccomp filter nor a lowered limit can be taken back
by the process that has it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

REFUSE = str(Path(__file__).with_name("seccomp.py"))
TIMEOUT = 30  # seconds; a program takes a fraction of one

refusals = pytest.mark.parametrize("refusal", ["EPERM", "ENOSYS"])


def run(*arguments: str, refusal: str = "", fallback: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the interpreter, where io_uring is refused if `refusal` names an errno."""
    command = [sys.executable, *arguments]
    if refusal:
        command = [sys.executable, REFUSE, refusal, *command]
    environment = os.environ | {"URINGLOOP_FALLBACK": fallback}
    if not fallback:
        del environment["URINGLOOP_FALLBACK"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT)


def run_program(program: str, refusal: str = "", fallback: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a program that must succeed."""
    completed = run("-c", textwrap.dedent(program), refusal=refusal, fallback=fallback)
    assert completed.returncode == 0, completed.stderr
    return completed


# ---------------------------------------------------------------------------------------------------------------------
# io_uring refused
# ---------------------------------------------------------------------------------------------------------------------


@refusals
def test_refusal_of_io_uring_is_told_with_its_reason_and_its_remedy(refusal: str) -> None:
    told = run_program(
        """
        import errno, uringloop
        try:
            uringloop.new_event_loop()
        except uringloop.Unavailable as unavailable:
            assert isinstance(unavailable, OSError)
            print(unavailable)
            print(errno.errorcode[unavailable.errno])
        """,
        refusal=refusal,
    ).stdout
    assert "io_uring" in told
    assert "seccomp" in told
    assert told.splitlines()[-1] == refusal


@refusals
def test_probe_says_that_nothing_is_there_and_does_not_raise(refusal: str) -> None:
    run_program(
        """
        import uringloop
        probe = uringloop.probe()
        assert probe.available is False
        assert "io_uring" in probe.reason, probe.reason
        assert "seccomp" in probe.remedy, probe.remedy
        for feature in (
            "fixed_files", "incremental_buffers", "multishot_recv", "registered_ring", "defer_taskrun"
        ):
            assert getattr(probe, feature) is False, feature
        """,
        refusal=refusal,
    )


def test_refused_loops_leave_no_file_descriptor_behind() -> None:
    run_program(
        """
        import os, uringloop
        def open_files():
            return sorted(os.listdir("/proc/self/fd"))
        before = open_files()
        for _ in range(10):
            try:
                uringloop.new_event_loop()
            except uringloop.Unavailable:
                pass
        assert open_files() == before, open_files()
        """,
        refusal="EPERM",
    )


@refusals
def test_fallback_asked_for_in_the_call_gives_the_loop_of_asyncio(refusal: str) -> None:
    run_program(
        """
        import asyncio, uringloop, warnings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loops = [uringloop.new_event_loop(fallback="asyncio") for _ in range(3)]
        for loop in loops:
            assert type(loop) is asyncio.SelectorEventLoop, type(loop)
            assert loop.run_until_complete(asyncio.sleep(0, "works")) == "works"
            loop.close()
        (warning,) = caught
        assert warning.category is RuntimeWarning
        assert "seccomp" in str(warning.message)
        assert warning.filename == "<string>", "the warning is to point at the caller"
        """,
        refusal=refusal,
    )


def test_fallback_asked_for_in_the_environment_gives_the_loop_of_asyncio_and_one_warning_a_process() -> None:
    completed = run_program(
        """
        import asyncio, uringloop, warnings
        warnings.simplefilter("always")
        async def main():
            assert type(asyncio.get_running_loop()) is asyncio.SelectorEventLoop
        for _ in range(3):
            with asyncio.Runner(loop_factory=uringloop.new_event_loop) as runner:
                runner.run(main())
        """,
        refusal="EPERM",
        fallback="asyncio",
    )
    assert completed.stderr.count("RuntimeWarning") == 1, completed.stderr


@pytest.mark.parametrize(
    ("option", "error"), [("nonsense=1", "TypeError"), ("entries=3", "ValueError"), ("files='many'", "TypeError")]
)
def test_fallback_takes_no_options_that_are_wrong(option: str, error: str) -> None:
    run_program(
        f"""
        import uringloop, warnings
        warnings.simplefilter("error")
        try:
            uringloop.new_event_loop(fallback="asyncio", {option})
        except {error} as exc:
            assert "{option.split("=")[0]}" in str(exc), exc
        else:
            raise AssertionError("it was taken")
        """,
        refusal="EPERM",
    )


def test_fallback_takes_options_that_it_has_no_use_for() -> None:
    run_program(
        """
        import asyncio, uringloop, warnings
        warnings.simplefilter("ignore")
        loop = uringloop.new_event_loop(fallback="asyncio", entries=64, buffers=8, files=10, hardened=True)
        assert type(loop) is asyncio.SelectorEventLoop
        loop.close()
        """,
        refusal="EPERM",
    )


def test_fallback_is_not_a_loop_of_the_wrong_class_to_run() -> None:
    run_program(
        """
        import asyncio, uringloop
        async def main():
            return type(asyncio.get_running_loop())
        assert uringloop.run(main()) is asyncio.SelectorEventLoop
        """,
        refusal="EPERM",
        fallback="asyncio",
    )


def test_fallback_is_not_taken_where_io_uring_works() -> None:
    completed = run_program(
        """
        import uringloop
        loop = uringloop.new_event_loop(fallback="asyncio")
        assert type(loop) is uringloop.Loop
        loop.close()
        """,
        fallback="asyncio",
    )
    assert completed.stderr == ""


@refusals
def test_check_fails_and_gives_advice(refusal: str) -> None:
    completed = run("-m", "uringloop", "--check", refusal=refusal)
    assert completed.returncode == 1
    assert "seccomp" in completed.stdout + completed.stderr
    assert "Traceback" not in completed.stderr


def test_program_on_the_command_line_is_refused_with_advice_instead_of_a_traceback(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import asyncio; asyncio.run(asyncio.sleep(0)); print('ran')")
    completed = run("-m", "uringloop", str(script), refusal="EPERM")
    assert completed.returncode == 1
    assert "seccomp" in completed.stderr
    assert "Traceback" not in completed.stderr
    assert "ran" not in completed.stdout


def test_program_on_the_command_line_runs_on_the_fallback(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import asyncio; asyncio.run(asyncio.sleep(0)); print('ran')")
    completed = run("-m", "uringloop", str(script), refusal="EPERM", fallback="asyncio")
    assert completed.stdout == "ran\n"
    assert completed.returncode == 0
    assert completed.stderr.count("RuntimeWarning") == 1


# ---------------------------------------------------------------------------------------------------------------------
# Few file descriptors
# ---------------------------------------------------------------------------------------------------------------------


def test_loop_serves_under_a_limit_of_64_file_descriptors() -> None:
    """A fixed-file table may have no more slots than a process may have files (RLIMIT_NOFILE)."""
    run_program(
        """
        import asyncio, resource, uringloop
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

        async def echo(reader, writer):
            writer.write(await reader.readexactly(4))
            writer.close()
            await writer.wait_closed()

        async def call(port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"ping")
            assert await reader.read() == b"ping"
            writer.close()
            await writer.wait_closed()

        async def main():
            async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                for _ in range(10):  # more connections than file descriptors, though not at once
                    async with asyncio.timeout(10), asyncio.TaskGroup() as calls:
                        for _ in range(20):
                            calls.create_task(call(port))

        with asyncio.Runner(loop_factory=uringloop.new_event_loop) as runner:
            runner.run(main())
        """
    )


def test_loop_that_cannot_open_all_that_it_needs_says_so_and_leaves_nothing_open() -> None:
    told = run_program(
        """
        import asyncio, errno, os, resource, uringloop
        uringloop.new_event_loop().close()  # what is opened once for the process is open now

        def open_files():
            return len(os.listdir("/proc/self/fd")) - 1  # without the one that lists them

        at_rest = open_files()
        files_needed = 0
        while True:
            resource.setrlimit(resource.RLIMIT_NOFILE, (at_rest + files_needed, 4096))
            try:
                loop = uringloop.new_event_loop()
            except OSError as error:
                assert error.errno == errno.EMFILE, error
            else:
                break
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            assert open_files() == at_rest, files_needed
            files_needed += 1
            assert files_needed < 32
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        print(files_needed)
        """
    ).stdout
    assert int(told) > 0


# ---------------------------------------------------------------------------------------------------------------------
# No network
# ---------------------------------------------------------------------------------------------------------------------

WITHOUT_NETWORK = ["unshare", "--map-root-user", "--net"]  # a namespace whose loopback interface is down


def test_probe_finds_the_same_where_the_network_is_down() -> None:
    """The network may come up later, and what has been found holds for the process."""
    probe = [sys.executable, "-c", "import uringloop; print(uringloop.probe())"]
    try:
        down = subprocess.run([*WITHOUT_NETWORK, *probe], capture_output=True, text=True, timeout=TIMEOUT)
    except FileNotFoundError:
        pytest.skip("there is no unshare(1) here")
    if "unshare failed" in down.stderr:
        pytest.skip(f"no namespace can be made here: {down.stderr.strip()}")
    assert down.returncode == 0, down.stderr
    assert down.stdout == run(*probe[1:]).stdout
