"""The typed face of the C core: the one file that touches cffi, and where `Any` stops.

A `Reactor` owns a ring and its tables. What it hands out are tokens (int), errors are raised as OSError, and its
hot calls (those of a turn, `stream_write`, `stream_send_now`, `endpoint_write`) are their C functions with nothing in
between.
"""

from __future__ import annotations

import errno
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from uringloop.core import _core

if TYPE_CHECKING:
    from typing import Protocol

    class Pool(Protocol):
        """The memory that receives fill. A slice of it is a copy."""

        def __getitem__(self, span: slice) -> bytes: ...


_ffi: Any = _core.ffi
_lib: Any = _core.lib

# What an event is; see core/engine.h for what each carries.
EVENT_DATA: Final[int] = _lib.UL_EVENT_DATA
EVENT_ACCEPTED: Final[int] = _lib.UL_EVENT_ACCEPTED
EVENT_EOF: Final[int] = _lib.UL_EVENT_EOF
EVENT_LOST: Final[int] = _lib.UL_EVENT_LOST
EVENT_DRAINED: Final[int] = _lib.UL_EVENT_DRAINED
EVENT_DONE: Final[int] = _lib.UL_EVENT_DONE
EVENT_DATAGRAM: Final[int] = _lib.UL_EVENT_DATAGRAM
EVENT_ENDPOINT_ERROR: Final[int] = _lib.UL_EVENT_ENDPOINT_ERROR
EVENT_ENDPOINT_DRAINED: Final[int] = _lib.UL_EVENT_ENDPOINT_DRAINED
EVENT_ENDPOINT_LOST: Final[int] = _lib.UL_EVENT_ENDPOINT_LOST
EVENT_READABLE: Final[int] = _lib.UL_EVENT_READABLE
_EVENTS_MAX: Final[int] = _lib.UL_EVENTS_MAX
TURN_DUE: Final[int] = _lib.UL_TURN_DUE  # above any number of events
# Kind, token, and two values.
Event = tuple[int, int, int, int]
_EVENT: Final = struct.Struct("=4i")
_EVENT_BYTES: Final = _EVENT.size
unpack_event: Callable[[memoryview], Event] = _EVENT.unpack
_iter_events: Callable[[memoryview], Iterator[Event]] = _EVENT.iter_unpack

# A datagram event: where the address is before the bytes, and how the two lengths are joined.
NAME_BYTES: Final[int] = _lib.UL_NAME_BYTES
NAME_BITS: Final[int] = _lib.UL_NAME_BITS
NAME_MASK: Final = (1 << NAME_BITS) - 1

NANOSECONDS: Final = 1_000_000_000  # in a second; what the core measures time in

OP_POLL_ADD: Final[int] = _lib.IORING_OP_POLL_ADD
OP_READV: Final[int] = _lib.IORING_OP_READV
OP_WRITEV: Final[int] = _lib.IORING_OP_WRITEV
OP_FSYNC: Final[int] = _lib.IORING_OP_FSYNC
OP_FALLOCATE: Final[int] = _lib.IORING_OP_FALLOCATE
OP_OPENAT: Final[int] = _lib.IORING_OP_OPENAT
OP_CLOSE: Final[int] = _lib.IORING_OP_CLOSE
OP_STATX: Final[int] = _lib.IORING_OP_STATX
OP_READ: Final[int] = _lib.IORING_OP_READ
OP_WRITE: Final[int] = _lib.IORING_OP_WRITE
OP_SPLICE: Final[int] = _lib.IORING_OP_SPLICE
OP_RENAMEAT: Final[int] = _lib.IORING_OP_RENAMEAT
OP_UNLINKAT: Final[int] = _lib.IORING_OP_UNLINKAT
OP_MKDIRAT: Final[int] = _lib.IORING_OP_MKDIRAT
OP_SYMLINKAT: Final[int] = _lib.IORING_OP_SYMLINKAT
OP_LINKAT: Final[int] = _lib.IORING_OP_LINKAT
OP_FSETXATTR: Final[int] = _lib.IORING_OP_FSETXATTR
OP_SETXATTR: Final[int] = _lib.IORING_OP_SETXATTR
OP_FGETXATTR: Final[int] = _lib.IORING_OP_FGETXATTR
OP_GETXATTR: Final[int] = _lib.IORING_OP_GETXATTR
OP_FTRUNCATE: Final[int] = _lib.IORING_OP_FTRUNCATE
SQE_ASYNC: Final[int] = _lib.IOSQE_ASYNC
SETUP_DEFER_TASKRUN: Final[int] = _lib.IORING_SETUP_DEFER_TASKRUN
SETUP_NO_SQARRAY: Final[int] = _lib.IORING_SETUP_NO_SQARRAY


def _names(enum: str, prefix: str) -> tuple[str, ...]:
    """Of a C enum that counts from 0 up to its ..._KINDS."""
    elements = _ffi.typeof(f"enum {enum}").elements
    return tuple(elements[number].removeprefix(prefix).lower() for number in range(len(elements) - 1))


# What a completion is for, and why a multishot request had ended: see core/engine.h.
REQUESTS: Final = _names("ul_request", "UL_REQUEST_")
ENDS: Final = _names("ul_end", "UL_END_")

ENTRIES_MAX: Final = 32768  # the kernel's IORING_MAX_ENTRIES
RECEIVE_BYTES_MAX: Final[int] = _lib.UL_BULK_BYTES_MAX  # what EVENT_READABLE asks for
BUFFERS_MAX: Final = 32768  # the kernel's limit for a buffer ring
BUFFER_SIZE_MIN: Final = 64
POOL_BYTES_MAX: Final = 2**31 - 1  # events carry offsets into the pool as int32
_SOCKET_NAME_BYTES: Final[int] = _lib.UL_SOCKET_NAME_BYTES
DATAGRAM_BUFFERS_MAX: Final = 4096  # 1 GiB: as many as a pool can have
COMPLETIONS_PER_ENTRY: Final = 8  # CQ entries for each SQ entry: multishot requests complete many times
COMPLETIONS_MAX: Final = 2 * ENTRIES_MAX  # the kernel's IORING_MAX_CQ_ENTRIES


# Named tuples here and in probe.py: the making of a dataclass costs the import a millisecond, and memory that is kept.
class Options(NamedTuple):
    """Sizes of a ring. Sizes not given are chosen by the loop from what the kernel offers.

    entries: submission queue entries, a power of two up to 32768.
    buffers: receive buffers in the pool, a power of two up to 32768.
    buffer_size: bytes each.
    datagram_buffers: receive buffers for datagrams, a power of two; 0 for no datagram endpoints.
    files: fixed-file slots; 0 for none.
    incremental_buffers: let receives fill a buffer piece by piece (Linux 6.12).
    rewound_buffers: in each turn let them fill the one in use from its front again.
    register_ring: register the ring's fd with the thread that runs the loop (Linux 5.18).
    limited_receives: let receives end now and then, so that no peer takes the whole pool in a turn (Linux 6.17).
    inline_sends: let sends complete while they are submitted, with a completion only for those that were short.
    hardened: let the kernel refuse whatever the engines do not do, see core/restrictions.h (Linux 5.10).
    without_flags: SETUP_... flags not to ask the kernel for.
    """

    entries: int
    buffers: int
    buffer_size: int
    files: int
    incremental_buffers: bool
    datagram_buffers: int = 0
    rewound_buffers: bool = False
    register_ring: bool = True
    limited_receives: bool = False
    inline_sends: bool = True
    hardened: bool = False
    without_flags: int = 0

    def check(self) -> None:
        """Raise TypeError or ValueError for sizes that cannot be."""
        for name in ("entries", "buffers", "buffer_size", "files", "datagram_buffers"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
        _check_power_of_two("entries", self.entries, ENTRIES_MAX)
        _check_power_of_two("buffers", self.buffers, BUFFERS_MAX)
        if self.datagram_buffers != 0:
            _check_power_of_two("datagram_buffers", self.datagram_buffers, DATAGRAM_BUFFERS_MAX)
        largest = POOL_BYTES_MAX // self.buffers
        if not BUFFER_SIZE_MIN <= self.buffer_size <= largest:
            raise ValueError(
                f"buffer_size must be from {BUFFER_SIZE_MIN} to {largest} bytes with {self.buffers} buffers "
                f"(the pool holds at most {POOL_BYTES_MAX}), not {self.buffer_size}"
            )
        if self.files < 0:
            raise ValueError(f"files must be 0 or more, not {self.files}")


def _check_power_of_two(name: str, value: int, maximum: int) -> None:
    if not 1 <= value <= maximum or value & (value - 1):
        raise ValueError(f"{name} must be a power of two from 1 to {maximum}, not {value}")


def raise_errno(code: int) -> NoReturn:
    """Raise -code as the OSError that asyncio users know."""
    raise OSError(-code, os.strerror(-code))


class Reactor:
    """A ring, its buffer pool and its fixed-file table. Not thread-safe, but for `wake`."""

    def __init__(self, options: Options) -> None:
        """Make a disabled ring; the thread that calls `begin` first will own it. Raises OSError, and what
        `Options.check` does."""
        self._pointer: Any = None
        self.closed = True
        options.check()
        self.options = options
        completions = min(COMPLETIONS_MAX, COMPLETIONS_PER_ENTRY * options.entries)
        c_options = _ffi.new(
            "struct ul_options *",
            {
                "sq_entries": options.entries,
                "cq_entries": completions,
                "buffer_count": options.buffers,
                "buffer_size": options.buffer_size,
                "datagram_buffers": options.datagram_buffers,
                "files": options.files,
                "incremental": options.incremental_buffers,
                "rewinding": options.rewound_buffers,
                "register_ring": options.register_ring,
                "limited_receives": options.limited_receives,
                "inline_sends": options.inline_sends,
                "late_slots": True,
                "hardened": options.hardened,
                "without_flags": options.without_flags,
            },
        )
        error = _ffi.new("int *")
        pointer = _lib.ul_reactor_open(c_options, error)
        if not pointer:
            raise_errno(error[0])
        self._pointer = pointer
        self.closed = False
        self._bind(pointer)
        _reactors.add(self)

    def _bind(self, pointer: Any) -> None:
        streams = _lib.ul_reactor_streams(pointer)
        listeners = _lib.ul_reactor_listeners(pointer)
        endpoints = _lib.ul_reactor_endpoints(pointer)
        operations = _lib.ul_reactor_operations(pointer)
        self._report = _ffi.new("struct ul_report *")
        self._names = _ffi.new("char[]", 2 * _SOCKET_NAME_BYTES)
        self._names_bytes = _ffi.buffer(self._names)
        self._own_name = b""  # of the socket that was asked for last
        pool_bytes = self.options.buffers * self.options.buffer_size
        self.pool: Pool = _ffi.buffer(_lib.ul_reactor_pool(pointer), pool_bytes)
        # The calls of the hot path are the C functions themselves, with their first argument beside them: a partial
        # would build an argument tuple twice.
        # pointer, nanoseconds to wait at most (-1: no limit) -> number of events, or -errno.
        self.tick: Callable[[Any, int], int] = _lib.ul_reactor_tick
        # pointer -> as tick, and TURN_DUE if the deadline has come; `wait` sleeps until then, `look` does not.
        self.wait: Callable[[Any], int] = _lib.ul_reactor_wait
        self.look: Callable[[Any], int] = _lib.ul_reactor_look
        # pointer -> 0 if there is nothing to look at; then this was the look, and cost less.
        self.glance: Callable[[Any], int] = _lib.ul_reactor_glance
        # nanoseconds of CLOCK_MONOTONIC; -1: none
        self.set_deadline: Callable[[int], None] = partial(_lib.ul_reactor_set_deadline, pointer)
        self.pointer = pointer
        # streams, token, bytes, length -> bytes queued, or -errno.
        self.stream_write: Callable[[Any, int, bytes, int], int] = _lib.ul_stream_write
        # streams, token, bytes, length -> bytes that the socket took at once, or -errno.
        self.stream_send_now: Callable[[Any, int, bytes, int], int] = _lib.ul_stream_send_now
        self.streams = streams
        self._event_bytes = memoryview(_ffi.buffer(_lib.ul_reactor_events(pointer), _EVENTS_MAX * _EVENT.size))
        # The first event of the last tick, for `unpack_event`.
        self.first_event = self._event_bytes[:_EVENT_BYTES]
        # token, what `pin` gave, length -> bytes queued, or -errno
        self.stream_write_pinned: Callable[[int, Any, int], int] = partial(_lib.ul_stream_write_pinned, streams)
        # From any thread, also while another closes this reactor.
        waker = _ffi.gc(_lib.ul_reactor_waker(pointer), _lib.ul_wake_release)
        self.wake: Callable[[], None] = partial(_lib.ul_wake, waker)
        self.stream_queued: Callable[[int], int] = partial(_lib.ul_stream_queued, streams)
        self._stream_open: Callable[[int], int] = partial(_lib.ul_stream_open, streams)
        self._stream_open_pipe: Callable[[int], int] = partial(_lib.ul_stream_open_pipe, streams)
        # token, wanted
        self.stream_read: Callable[[int, bool], int] = partial(_lib.ul_stream_read, streams)
        # token, bytes received after EVENT_READABLE, or -errno
        self.stream_received: Callable[[int, int], int] = partial(_lib.ul_stream_received, streams)
        # token, bytes
        self.stream_set_low_water: Callable[[int, int], int] = partial(_lib.ul_stream_set_low_water, streams)
        # token -> 0 or -errno of shutdown(2)
        self.stream_write_eof: Callable[[int], int] = partial(_lib.ul_stream_write_eof, streams)
        self.stream_close: Callable[[int], int] = partial(_lib.ul_stream_close, streams)
        # token, errno to report as the reason
        self.stream_abort: Callable[[int, int], int] = partial(_lib.ul_stream_abort, streams)
        self._listener_open: Callable[[int], int] = partial(_lib.ul_listener_open, listeners)
        self._listener_open_shared: Callable[[int], int] = partial(_lib.ul_listener_open_shared, listeners)
        self.listener_start: Callable[[int], int] = partial(_lib.ul_listener_start, listeners)
        self.listener_close: Callable[[int], int] = partial(_lib.ul_listener_close, listeners)
        # endpoints, token, bytes, length, sockaddr (empty: where the socket is connected to), its length -> what is
        # queued, or -errno.
        self.endpoint_write: Callable[[Any, int, bytes, int, bytes, int], int] = _lib.ul_endpoint_write
        self.endpoints = endpoints
        self._endpoint_open: Callable[[int, int], int] = partial(_lib.ul_endpoint_open, endpoints)
        # token, wanted
        self.endpoint_read: Callable[[int, bool], int] = partial(_lib.ul_endpoint_read, endpoints)
        self.endpoint_queued: Callable[[int], int] = partial(_lib.ul_endpoint_queued, endpoints)
        # token, bytes
        self.endpoint_set_low_water: Callable[[int, int], int] = partial(_lib.ul_endpoint_set_low_water, endpoints)
        self.endpoint_close: Callable[[int], int] = partial(_lib.ul_endpoint_close, endpoints)
        self.endpoint_abort: Callable[[int], int] = partial(_lib.ul_endpoint_abort, endpoints)
        self._datagram_pool: Pool | None = None
        self._operation_start: Callable[..., int] = partial(_lib.ul_operation_start, operations)
        # fd, mask of poll(2) -> token of one wait until it is ready, or -errno
        self.operation_poll: Callable[[int, int], int] = partial(_lib.ul_operation_poll, operations)
        self.operation_cancel: Callable[[int], int] = partial(_lib.ul_operation_cancel, operations)

    def events(self, count: int) -> Iterator[Event]:
        """The `count` events of the last tick."""
        return _iter_events(self._event_bytes[: count * _EVENT_BYTES])

    def begin(self) -> None:
        """Own the ring in this thread, and register its fd. Raises RuntimeError while another thread runs it, and after
        a fork."""
        code = _lib.ul_reactor_begin(self._pointer)
        if code < 0:
            raise_tick_error(code)

    def end(self) -> None:
        """Submit what is queued and unregister the ring's fd, which would outlive the ring and keep its sockets
        open."""
        if not self.closed:
            _lib.ul_reactor_end(self._pointer)

    def flush(self) -> None:
        """Submit what is queued, now."""
        if not self.closed:
            _lib.ul_reactor_flush(self._pointer)

    def keep_events(self) -> None:
        """Whoever was to hand out the events of the last tick could not: let the next tick tell them again."""
        if not self.closed:
            _lib.ul_reactor_keep_events(self._pointer)

    def close(self) -> int:
        """Cancel everything, wait for the kernel to let go, free the memory. The bytes that had to be left to the
        kernel."""
        if self.closed:
            return 0
        self.closed = True
        pointer, self._pointer = self._pointer, None
        self._unbind()
        leaked: int = _lib.ul_reactor_close(pointer)
        if leaked:
            _leaked.append(leaked)
        return leaked

    def _unbind(self) -> None:
        # Transports and futures may outlive the loop, and must not reach memory that is freed.
        for name, value in vars(self).items():
            if isinstance(value, partial):
                setattr(self, name, _refuse)
        self.tick = self.wait = self.look = self.glance = _refuse
        self.stream_write = self.stream_send_now = self.endpoint_write = _refuse
        self.stream_queued = self.endpoint_queued = self.operation_cancel = _nothing
        self.wake = _wake_nothing  # the eventfd goes now, or with the last call of the old one that is still under way
        self.pool = b""

    def abandon(self) -> None:
        """In a forked child: let go of the parent's ring without touching it."""
        if not self.closed:
            _lib.ul_reactor_abandon(self._pointer)
            self.wake = partial(raise_tick_error, -errno.EOWNERDEAD)  # the eventfd is the parent's

    def stream_open(self, fd: int) -> int:
        """A token for this connected socket; a fixed-file slot comes with its second send. Raises OSError."""
        return _checked(self._stream_open(fd))

    def socket_names(self, fd: int) -> tuple[bytes, bytes]:
        """The sockaddrs of a socket and of its peer; empty for one that it has not."""
        lengths = _lib.ul_socket_names(fd, self._names)
        names = self._names_bytes
        own = names[: lengths & 0xFFFF]
        if own == self._own_name:
            own = self._own_name  # those that a server accepts share theirs
        else:
            self._own_name = own
        peer = _SOCKET_NAME_BYTES
        return own, names[peer : peer + (lengths >> 16)]

    def stream_open_pipe(self, fd: int) -> int:
        """A token for what can be read but is no socket: a pipe, a terminal. It writes nothing. Raises OSError."""
        return _checked(self._stream_open_pipe(fd))

    def endpoint_open(self, fd: int, overhead: int) -> int:
        """A token for this datagram socket; a datagram that is queued counts `overhead` bytes more than it has. Raises
        OSError."""
        return _checked(self._endpoint_open(fd, overhead))

    def datagram_pool(self) -> Pool:
        """The memory that datagrams are received into; it is there once an endpoint has been opened."""
        if self._datagram_pool is None:
            size = self.options.datagram_buffers * _lib.UL_DATAGRAM_BUFFER_BYTES
            self._datagram_pool = _ffi.buffer(_lib.ul_reactor_datagram_pool(self._pointer), size)
        return self._datagram_pool

    def listener_open(self, fd: int, *, shared: bool = False) -> int:
        """A token for this listening socket, accepting from the next tick on; `shared` if other processes may accept on
        it, too. Raises OSError."""
        return _checked((self._listener_open_shared if shared else self._listener_open)(fd))

    def poll_start(self, fd: int, mask: int) -> int:
        """A token for one wait until `fd` is ready for `mask` (poll(2)). Raises OSError."""
        return _checked(self.operation_poll(fd, mask))

    def operation_start(
        self,
        opcode: int,
        fd: int,
        address: int,
        length: int,
        offset: int,
        flags: int,
        file_index: int,
        address3: int,
    ) -> int:
        """A token for a request with these fields. Raises OSError."""
        return _checked(self._operation_start(opcode, fd, address, length, offset, flags, file_index, address3))

    def has(self, opcode: int) -> bool:
        """True if the kernel has this operation (OP_...) and this ring may do it."""
        return not self.closed and bool(_lib.ul_reactor_has(self._pointer, opcode))

    def report(self) -> Any:
        """The counters of core/reactor.h as a struct; the same object every time."""
        _lib.ul_reactor_report(self._pointer, self._report)
        return self._report


def pin(data: Any, *, writable: bool = False) -> Any:
    """What `stream_write_pinned` takes: keeps the bytes-like `data` alive and in place as long as it is referenced.
    Raises BufferError or TypeError for what cannot be pinned."""
    return _ffi.from_buffer(data, require_writable=writable)


def address_of(pinned: Any) -> int:
    """The address of what `pin` gave, for an operation."""
    return int(_ffi.cast("uintptr_t", pinned))


# socket, file, offset, bytes -> bytes sent, 0 at the end; -EAGAIN; -ENODATA: not in the page cache; another -errno
sendfile_cached: Callable[[int, int, int, int], int] = _lib.ul_sendfile_cached


def leave_to_kernel(memory: object) -> None:
    """Never free this: a ring that could not be emptied may still read or write there."""
    _left_to_kernel.append(memory)


def leaked_bytes() -> int:
    """Memory that closed reactors of this process had to leave to the kernel, bytes."""
    return sum(_leaked)


def _wake_nothing() -> None:
    pass


def _refuse(*_: object) -> NoReturn:
    raise RuntimeError("Event loop is closed")


def _nothing(_: int) -> int:
    return 0


def _checked(token: int) -> int:
    if token < 0:
        raise_errno(token)
    return token


def raise_tick_error(code: int) -> NoReturn:
    """Raise what a tick (or `begin`) failed with."""
    error = -code
    if error == errno.EEXIST:
        raise RuntimeError("this loop's io_uring belongs to another thread; make a loop in each thread")
    if error == errno.EBUSY:
        raise RuntimeError("this loop is being run already")
    if error == errno.EOWNERDEAD:
        raise RuntimeError("this loop belongs to the parent of this process; make a new one after a fork")
    raise OSError(error, f"io_uring_enter: {os.strerror(error)}")


_leaked: list[int] = []
_left_to_kernel: list[object] = []
_reactors: weakref.WeakSet[Reactor] = weakref.WeakSet()


def _abandon_all() -> None:
    for reactor in list(_reactors):
        reactor.abandon()


os.register_at_fork(after_in_child=_abandon_all)
