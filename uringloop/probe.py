"""What this kernel offers: found out by doing it, not read off a version number, and told in words."""

from __future__ import annotations

import errno
import functools
import os
import select
import socket
from pathlib import Path
from typing import Any, NamedTuple

from uringloop import environment
from uringloop.addresses import packer
from uringloop.reactor import (
    EVENT_DATA,
    EVENT_DATAGRAM,
    EVENT_LOST,
    NAME_BITS,
    SETUP_DEFER_TASKRUN,
    SETUP_NO_SQARRAY,
    Options,
    Reactor,
)

DEFAULT_ENTRIES = 256  # a fuller tick is submitted in pieces; twice as many were no faster with 10,000 connections
# More slots than that are of no use before the process has been given more fds than most ever get; a slot costs the
# kernel 8 bytes.
FILES_MAX = 32768
# Plain buffers: 256 of 16 KiB, of which a receive of 1 KiB touches 1 KiB. Incremental: 4 of 256 KiB, eaten piece by
# piece; a message at the end of one comes in two, which costs as much as two, so they are large. One that is begun anew
# in each turn ends only in a turn that brings more than it holds: 512 KiB are 51 messages of 10 KiB. Of all pools what
# is in use stays in the L2 cache.
_PLAIN_BUFFERS = (256, 16 * 1024)
_INCREMENTAL_BUFFERS = (4, 256 * 1024)
_REWOUND_BUFFERS = (2, 512 * 1024)

# A datagram takes one of 256 KiB to itself, of which it touches what it needs. As many as one turn brings from a busy
# socket; a turn that brings more takes another.
DATAGRAM_BUFFERS = 64

_TICK_NS = 50_000_000  # how long a probe waits for what loopback delivers in microseconds
_FIN_MS = 100
_PIECE_BYTES = 1024  # recv takes memory for all that it may bring


class Probe(NamedTuple):
    """What io_uring offers here. With `available` false, `reason` says why in words and `remedy` what to do about
    it."""

    available: bool
    reason: str = ""
    remedy: str = ""
    errno: int = 0  # what the kernel said
    multishot_recv: bool = False  # Linux 6.0; needed
    defer_taskrun: bool = False  # Linux 6.1
    registered_ring: bool = False  # Linux 5.18
    inline_sends: bool = False  # a send that is short is told apart from one that is not: Linux 6.1
    datagrams: bool = False  # multishot recvmsg, and addresses on sends: Linux 6.1
    no_sqarray: bool = False  # a submission queue without an index into it: Linux 6.6
    incremental_buffers: bool = False  # Linux 6.12
    rewound_buffers: bool = False  # one in use can be begun anew, where completions are deferred: Linux 6.12
    limited_receives: bool = False  # a multishot recv ends after so many bytes: Linux 6.17
    fixed_files: bool = False  # a removed fixed file is freed at once: Linux 6.13


# What the loop does without where it is missing, and where URINGLOOP_WITHOUT names it.
OPTIONAL = frozenset(Probe._fields) - {"available", "reason", "remedy", "errno", "multishot_recv"}


class Unavailable(OSError):
    """io_uring cannot be used here; the text says why and what to do. `probe` holds it in parts."""

    def __init__(self, found: Probe) -> None:
        super().__init__(found.errno, f"{found.reason}. {found.remedy}")
        self.probe = found


@functools.cache
def probe() -> Probe:
    """Look once in a process; some milliseconds the first time. Raises ValueError for a wrong URINGLOOP_WITHOUT."""
    unwanted = environment.without(OPTIONAL)
    try:
        return _less(_look(), unwanted)
    except OSError as exc:
        return explain(exc)


def _less(found: Probe, features: frozenset[str]) -> Probe:
    absent: dict[str, Any] = dict.fromkeys(features, False)
    return found._replace(**absent)


def forget() -> None:
    """Look again at the next `probe()`."""
    probe.cache_clear()


def default_buffers(found: Probe) -> tuple[int, int]:
    """How many receive buffers, and of how many bytes."""
    if not found.incremental_buffers:
        return _PLAIN_BUFFERS
    return _REWOUND_BUFFERS if found.rewound_buffers and found.defer_taskrun else _INCREMENTAL_BUFFERS


def usable_files(found: Probe, wanted: int | None) -> int:
    """Slots for the fixed-file table: `wanted`, or as many as the process may have fds; 0 where the kernel would leak
    sockets."""
    if wanted is not None and (type(wanted) is not int or wanted < 0):
        return wanted  # Options refuses it
    if not found.fixed_files:
        return 0
    limit = os.sysconf("SC_OPEN_MAX")  # RLIMIT_NOFILE, without the module that else nobody may need
    if limit < 0:  # unlimited
        limit = FILES_MAX
    return min(limit, FILES_MAX if wanted is None else wanted)


def unwanted_flags(found: Probe) -> int:
    """SETUP_... flags that are not to be asked for."""
    return (0 if found.defer_taskrun else SETUP_DEFER_TASKRUN) | (0 if found.no_sqarray else SETUP_NO_SQARRAY)


def _options(buffers: int, files: int, incremental: bool) -> Options:
    return Options(
        entries=8, buffers=buffers, buffer_size=4096, files=files, incremental_buffers=incremental, datagram_buffers=2
    )


def _look() -> Probe:
    reactor = Reactor(_options(buffers=4, files=0, incremental=False))
    try:
        reactor.begin()
        report = reactor.report()
        defer_taskrun = bool(report.setup_flags & SETUP_DEFER_TASKRUN)
        no_sqarray = bool(report.setup_flags & SETUP_NO_SQARRAY)
        registered_ring = bool(report.ring_registered)
        multishot_recv = _receives_twice(reactor)
        inline_sends = _loses_nothing_of_a_short_send(reactor)
        datagrams = _exchanges_datagrams(reactor)
        reactor.end()
    finally:
        reactor.close()
    if not multishot_recv:
        return Probe(
            available=False,
            reason="this kernel's io_uring has no multishot receive into provided buffers",
            remedy="Linux 6.1 or newer is needed",
            errno=errno.EOPNOTSUPP,
        )
    return Probe(
        available=True,
        multishot_recv=True,
        defer_taskrun=defer_taskrun,
        registered_ring=registered_ring,
        inline_sends=inline_sends,
        datagrams=datagrams,
        no_sqarray=no_sqarray,
        incremental_buffers=_receives(_options(buffers=1, files=0, incremental=True)),
        rewound_buffers=_receives_from_the_front(),
        limited_receives=_receives(_options(buffers=4, files=0, incremental=False)._replace(limited_receives=True)),
        fixed_files=_frees_fixed_files(),
    )


def _data(reactor: Reactor) -> tuple[int, int] | None:
    """The span of the next DATA event."""
    for _ in range(3):
        count = reactor.tick(reactor.pointer, _TICK_NS)
        if count <= 0:
            continue
        kind, _, start, stop = next(reactor.events(count))
        if kind == EVENT_DATA:
            return start, stop
    return None


def _receives_twice(reactor: Reactor, messages: tuple[bytes, bytes] = (b"first", b"second")) -> bool:
    """Two messages through one multishot receive, each told as DATA with its bytes in place."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        token = reactor.stream_open(ours.fileno())
        reactor.stream_read(token, True)
        for message in messages:
            theirs.send(message)
            span = _data(reactor)
            if span is None or reactor.pool[span[0] : span[1]] != message:
                return False
        return bool(reactor.report().stats.receive_arms == 1)


def _loses_nothing_of_a_short_send(reactor: Reactor) -> bool:
    """More bytes than the socket takes at once, each told as sent once it is: none is forgotten, none is sent twice."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the least: some 4 KiB
        theirs.setblocking(False)
        data = bytes(range(256)) * 64  # and no more: what memory this takes stays with the process
        token = reactor.stream_open(ours.fileno())
        reactor.stream_write(reactor.streams, token, data, len(data))
        received = bytearray()
        for _ in range(len(data)):
            reactor.tick(reactor.pointer, 0)
            try:
                received += theirs.recv(_PIECE_BYTES)
            except BlockingIOError:
                if not reactor.stream_queued(token):
                    break
        reactor.stream_abort(token, 0)
        reactor.tick(reactor.pointer, 0)
        return received == data


def _exchanges_datagrams(reactor: Reactor) -> bool:
    """Datagrams, an empty one among them, sent to an address through the ring, and received whole and in order."""
    messages = [b"first", b"", b"third"]
    try:
        # Of no network, which may be down or have no IPv4.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind("")  # the kernel finds a name
            name = packer(socket.AF_UNIX)(sock.getsockname())
            token = reactor.endpoint_open(sock.fileno(), 0)
            reactor.endpoint_read(token, True)
            received = []
            for message in messages:
                reactor.endpoint_write(reactor.endpoints, token, message, len(message), name, len(name))
                received.append(_datagram(reactor))
            reactor.endpoint_abort(token)
            reactor.tick(reactor.pointer, 0)
            return received == messages
    except OSError:  # no multishot recvmsg
        return False


def _datagram(reactor: Reactor) -> bytes | None:
    """The bytes of the next DATAGRAM event."""
    for _ in range(3):
        count = reactor.tick(reactor.pointer, _TICK_NS)
        for kind, _token, start, lengths in reactor.events(max(count, 0)):
            if kind == EVENT_DATAGRAM:
                return reactor.datagram_pool()[start : start + (lengths >> NAME_BITS)]
    return None


def _receives(options: Options, messages: tuple[bytes, bytes] = (b"first", b"second")) -> bool:
    """Do receives work this way? In one incremental buffer, two messages one behind the other: kernels that accept the
    flag have been seen to get this wrong. A limit is refused by kernels that do not know it."""
    try:
        reactor = Reactor(options)
    except OSError:
        return False
    try:
        reactor.begin()
        works = _receives_twice(reactor, messages)
        reactor.end()
        return works
    finally:
        reactor.close()


def _receives_from_the_front() -> bool:
    """Two messages in one buffer that has room for one of them: does the second come whole, at the front of it?"""
    options = _options(buffers=1, files=0, incremental=True)._replace(rewound_buffers=True)
    length = options.buffer_size * 3 // 4
    return _receives(options, (b"1" * length, b"2" * length))


def _frees_fixed_files() -> bool:
    """Does a socket close when its slot is emptied, while a request on another slot is pending? Before Linux 6.13 it
    stays open."""
    try:
        reactor = Reactor(_options(buffers=4, files=2, incremental=False))
    except OSError:
        return False
    waiting, silent = socket.socketpair()
    ours, theirs = socket.socketpair()
    try:
        with waiting, silent, ours, theirs:
            reactor.begin()
            pending = reactor.stream_open(waiting.fileno())
            _take_slot(reactor, pending)
            reactor.stream_read(pending, True)  # from the slot
            ending = reactor.stream_open(ours.fileno())
            _take_slot(reactor, ending)
            if reactor.report().slots_in_use != 2:  # what is to be seen would not be
                return False
            reactor.stream_close(ending)
            count = reactor.tick(reactor.pointer, _TICK_NS)
            lost = count > 0 and any(kind == EVENT_LOST for kind, *_ in reactor.events(count))
            ours.close()
            end = select.poll()
            end.register(theirs, 0)  # for POLLHUP only: the bytes are still there
            freed = bool(end.poll(_FIN_MS))
            reactor.end()
            return lost and freed
    finally:
        reactor.close()


def _take_slot(reactor: Reactor, token: int) -> None:
    """Have the stream hold a slot: it takes one with its second send."""
    for _ in range(2):
        reactor.stream_write(reactor.streams, token, b"x", 1)
        reactor.tick(reactor.pointer, 0)


_USE_FALLBACK = "use fallback='asyncio' or URINGLOOP_FALLBACK=asyncio"
_SECCOMP = (
    "Allow the system calls io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile "
    f"(Docker and containerd leave them out by default), or {_USE_FALLBACK}"
)


def explain(exc: OSError) -> Probe:
    """What a failed attempt to make a ring says of this system."""
    code = exc.errno or 0
    reason, remedy = _advice(code)
    return Probe(available=False, reason=reason, remedy=remedy, errno=code)


def _advice(code: int) -> tuple[str, str]:
    """Why io_uring_setup failed with this errno, and what to do about it."""
    disabled = _sysctl("io_uring_disabled")
    if code in (errno.EPERM, errno.EACCES) and disabled not in ("", "0"):
        who = "everyone" if disabled == "2" else "all without CAP_SYS_ADMIN that are not in a group for it"
        return (
            f"io_uring is switched off for {who} on this system (sysctl kernel.io_uring_disabled={disabled})",
            "Set kernel.io_uring_disabled=0 (or 1, with the user in the group that kernel.io_uring_group names), "
            f"or {_USE_FALLBACK}",
        )
    if code in (errno.EPERM, errno.EACCES):
        return "io_uring is forbidden to this process, most likely by seccomp", _SECCOMP
    if code == errno.ENOSYS:
        return (
            "this kernel has no io_uring, or a seccomp profile hides it",
            f"Linux 6.1 or newer is needed, built with CONFIG_IO_URING. {_SECCOMP}",
        )
    if code == errno.EINVAL:
        return (
            f"the io_uring of this kernel ({os.uname().release}) is too old",
            f"Linux 6.1 or newer is needed; or {_USE_FALLBACK}",
        )
    if code == errno.ENOMEM:
        return (
            "there is not enough memory, or locked memory, for a ring",
            "Raise RLIMIT_MEMLOCK (ulimit -l) or free memory",
        )
    if code in (errno.EMFILE, errno.ENFILE):
        return "no file descriptor is left for a ring", "Raise RLIMIT_NOFILE (ulimit -n) or close files"
    return (
        f"io_uring cannot be set up: {os.strerror(code)} ({errno.errorcode.get(code, code)})",
        f"Please report it, and {_USE_FALLBACK}",
    )


def _sysctl(name: str) -> str:
    try:
        return Path("/proc/sys/kernel", name).read_text().strip()
    except OSError:
        return ""
