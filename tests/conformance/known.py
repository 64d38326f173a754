"""The tests that are allowed to fail, and why.

By loop, then by the test's full name. Only the loop that this project is about has a ledger: a comparison with
another loop shows all of that loop's failures. An entry that passes is an error too, so the table cannot go stale;
where a test fails on some Python versions only, let the entry depend on `sys.version_info`.
"""

from __future__ import annotations

import sys
import typing

# Reasons that several have. "asyncio's" means: asyncio's own loop does the same, and we follow it.
TLS: typing.Final = "asyncio's: what came before the end is kept for whoever has paused reading"

_UVLOOP: typing.Final = {
    "test_base.TestBaseUV.test_thread_name_prefix_in_default_executor": "asyncio's executor, not 'uvloop' by name",
    "test_process.Test_UV_Process.test_process_double_close": "counts the calls with which uvloop makes pipes",
    "test_runner.TestSourceCode.test_uvloop_run_2": "the message of run() names this project and not uvloop",
    "test_signals.Test_UV_Signals.test_signals_no_SIGCHLD": "asyncio's: SIGCHLD can be handled, tornado needs it",
    "test_sockets.TestUVSockets.test_pseudosocket": "asyncio's TransportSocket and not uvloop's PseudoSocket",
    "test_sockets.TestUVSockets.test_socket_sync_remove": "asks libuv for its back end",
    "test_tcp.Test_UV_TCP.test_create_server_buffered_2": "asyncio's: the exception of get_buffer itself, not wrapped",
    "test_tcp.Test_UV_TCPSSL.test_shutdown_timeout_handler_not_set": TLS,
    "test_udp.Test_UV_UDP.test_udp_sendto_dns": "asyncio's: sendto resolves a name, and fails as the socket does",
}
if sys.version_info >= (3, 13):
    _UVLOOP["test_udp.Test_UV_UDP.test_create_datagram_endpoint_wrong_sock"] = "asyncio's message: 'A datagram socket'"
else:
    _UVLOOP["test_unix.Test_UV_Unix.test_create_unix_server_path_stream_bittype"] = (
        "asyncio's cleanup_socket is of 3.13"
    )
if sys.version_info < (3, 12):
    _UVLOOP["test_unix.Test_UV_Unix.test_epollhup"] = "asyncio's wait_closed waits for connections from 3.12 on"

_APPS: typing.Final = {
    # Of two tasks that read, one takes the word of the end from the other, which on asyncio then finds nothing. Here
    # what arrives is handed out before the callbacks that are ready, and so it finds the peer's answer. On uvloop it
    # fails too.
    "tests.test_client_ws_functional::test_concurrent_close_multiple_tasks[pyloop]": "counts turns of asyncio's loop",
    "tests.test_config::test_get_loop_factory[asyncio-_UnixSelectorEventLoop]": "named after the class of the loop",
}

MOCKED: typing.Final = "mocks a socket for asyncio's selector; the ring is given its fd, which is no socket"

_CPYTHON: typing.Final = {
    "test_base_events.BaseEventLoopTests.test_create_connection_happy_eyeballs": MOCKED,
    "test_base_events.BaseEventLoopTests.test_create_connection_happy_eyeballs_ipv4_only": MOCKED,
    "test_sslproto.SslProtoHandshakeTests.test_connection_lost_when_busy": MOCKED,
    "test_subprocess.SubprocessThreadedWatcherTests.test_pid_not_reaped_before_exit_published": (
        "looks into asyncio's child watcher, which is not asked: a pidfd on the ring tells the end"
    ),
    "test_ssl.TestSSL.test_remote_shutdown_receives_trailing_data_on_slow_socket": (
        "asks for the private name _read_ready_cb"
    ),
    "test_unix_events.SelectorEventLoopUnixSockSendfileTests.test_sock_sendfile_not_available": (
        "takes sendfile away from asyncio's module, which is not asked: the core sends"
    ),
}

KNOWN: dict[str, dict[str, str]] = {
    "uringloop": {**_UVLOOP, **_APPS, **_CPYTHON},
}
if sys.version_info < (3, 14):
    KNOWN["uringloop"]["test_subprocess.GenericWatcherTests.test_create_subprocess_fails_with_inactive_watcher"] = (
        "expects the failure of asyncio's child watcher, which is not asked: a pidfd on the ring tells the end"
    )
