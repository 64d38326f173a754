"""Processes, whose end a pidfd on the ring tells: no thread, no SIGCHLD handler, no child watcher.

So it works in any thread, and the application may have a SIGCHLD handler of its own. How the pipes are connected and
the protocol is called is asyncio's.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
from asyncio.log import logger
from typing import TYPE_CHECKING, Any

from uringloop import compat
from uringloop.reactor import OP_POLL_ADD

if TYPE_CHECKING:
    from uringloop.loop import Loop

UNKNOWN_EXIT_CODE = 255  # asyncio's, for a child that somebody else has reaped


class ProcessTransport(compat.BaseSubprocessTransport):  # type: ignore[misc]
    """asyncio's, with a pidfd."""

    _pid: int
    _proc: subprocess.Popen[bytes] | None
    _returncode: int | None
    _loop: Loop
    _pending_calls: object  # what happened before the pipes were connected; None from then on
    _pipes: dict[int, Any]  # None until it is connected

    def _start(self, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any, bufsize: int, **kwargs: Any) -> None:
        self._proc = subprocess.Popen(
            args, shell=shell, stdin=stdin, stdout=stdout, stderr=stderr, bufsize=bufsize, **kwargs
        )
        try:
            self._watch(self._proc.pid)
        except BaseException:
            self._give_up(self._proc)
            raise

    def _watch(self, pid: int) -> None:
        """Hear of the end of the process. Raises OSError, and RuntimeError when the loop is closed."""
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # over, and reaped by the kernel, which does so where SIGCHLD is ignored
            self._loop.call_soon(self._on_exit)
            return
        try:
            exited = self._loop._operations.start(OP_POLL_ADD, pidfd, flags=select.POLLIN)
        except BaseException:
            os.close(pidfd)
            raise
        self._pidfd = pidfd
        self._loop._selector.processes.add(self)
        exited.add_done_callback(self._on_exit)

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        """A process of whose end nobody would hear is not left behind."""
        process.kill()
        process.wait()
        for file in (process.stdin, process.stdout, process.stderr):
            if file is not None:
                file.close()

    async def _connect_pipes(self, waiter: asyncio.Future[None]) -> None:
        """asyncio's. If it fails, `waiter` tells whoever spawned the process, and the protocol hears nothing. Nobody
        waits then for the end of pipes that could not be connected, as asyncio's does until 3.13."""
        await super()._connect_pipes(waiter)
        if self._pending_calls is None:
            return
        assert self._proc is not None
        for number, file in enumerate((self._proc.stdin, self._proc.stdout, self._proc.stderr)):
            if file is not None and self._pipes[number] is None:
                file.close()
                del self._pipes[number]
        self._protocol = asyncio.SubprocessProtocol()
        self._pending_calls = None

    def on_loop_closed(self) -> None:
        """Close the pidfd. The process lives on."""
        os.close(self._pidfd)

    def _on_exit(self, exited: asyncio.Future[int] | None = None) -> None:
        if exited is not None:
            self._loop._selector.processes.discard(self)
            os.close(self._pidfd)
        self._process_exited(self._reap())

    def _reap(self) -> int:
        process = self._proc
        assert process is not None
        if process.returncode is not None:  # a look at whether it still runs has reaped it
            return process.returncode
        try:
            _, status = os.waitpid(self._pid, 0)
        except ChildProcessError:
            logger.warning(
                "child process pid %d exit status already read: will report returncode %d",
                self._pid,
                UNKNOWN_EXIT_CODE,
            )
            return UNKNOWN_EXIT_CODE
        return os.waitstatus_to_exitcode(status)

    # asyncio of 3.13 signals the number without a look at whether it still is this process.

    def send_signal(self, number: int) -> None:
        self._check_proc()
        assert self._proc is not None
        self._proc.send_signal(number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
