"""What a loop can tell about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uringloop.reactor import ENDS, REQUESTS, SETUP_DEFER_TASKRUN, leaked_bytes


def _by_name(names: tuple[str, ...], counts: Any) -> dict[str, int]:
    return {name: counts[number] for number, name in enumerate(names)}


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the loop was made, and gauges of this moment. Always counted; reading them costs some
    microseconds."""

    # The ring.
    ticks: int  # turns of the loop
    enters: int  # io_uring_enter system calls
    completions: int
    completions_by_kind: dict[str, int]  # by what they were for; the names are those of core/engine.h's ul_request
    cq_overflows: int  # looks that found more completions than the queue holds; none is lost
    sq_entries: int
    cq_entries: int
    defer_taskrun: bool  # completions run only when the loop asks for them (Linux 6.1)
    ring_fd_registered: bool  # true while the loop runs
    hardened: bool  # the kernel refuses what the loop does not do
    operations_in_flight: int  # requests in the kernel, less those that the loop itself always keeps there
    # Receiving.
    receives: int
    receive_arms: int
    receive_rearms: int  # times that one was to go on after it had ended; in bulk mode by a poll
    receive_ends: dict[str, int]  # why it had; the names are those of core/engine.h's ul_end
    receive_starved: int  # receives that ended because the buffer pool was empty
    receives_bulk: int  # of streams with large messages and of pipes, which take a system call each
    bytes_received: int
    sleeps_coalesced: int  # of a loop that much came to one way: they last up to 150 microseconds
    buffers: int
    buffer_size: int
    buffers_in_use: int  # handed out, to go back at the next tick
    incremental_buffers: bool
    # Sending.
    sends: int
    sends_direct: int  # large writes of which the socket took some at once, and the last before an abort
    sends_short: int
    bytes_sent: int
    # Datagrams. Their arms, starved receives and bytes are counted above.
    datagrams_received: int
    datagrams_truncated: int  # larger than 256 KiB
    datagrams_sent: int
    datagrams_joined: int  # of those sent, those that the kernel took several as one
    datagram_batches: int  # sendmmsg calls, for several at once
    datagram_waits: int  # for room in a full socket
    datagram_errors: int  # told to error_received
    datagram_buffers: int
    datagram_buffers_in_use: int  # handed out, to go back at the next tick
    endpoints_open: int
    # Connections.
    accepts: int
    accept_rearms: int
    accept_ends: dict[str, int]  # why the accepts that were armed again had ended
    streams_open: int
    listeners_open: int
    fixed_files: int  # slots in the table; 0: there is none
    slots_in_use: int
    fixed_file_fallbacks: int  # streams on their plain fd because the table was full or absent
    # What should be zero.
    stale_completions: int
    leaked_bytes: int  # memory that closed loops of this process had to leave to the kernel

    @classmethod
    def of(cls, report: Any, own_polls: int) -> Stats:
        """From the core's report; `own_polls` are polls in flight that belong to the loop."""
        stats = report.stats
        own_wake = int(report.enabled)  # the poll on the eventfd that other threads write to
        return cls(
            ticks=stats.ticks,
            enters=report.enters,
            completions=report.completions,
            completions_by_kind=_by_name(REQUESTS, stats.completions),
            cq_overflows=report.overflows,
            sq_entries=report.sq_entries,
            cq_entries=report.cq_entries,
            defer_taskrun=bool(report.setup_flags & SETUP_DEFER_TASKRUN),
            ring_fd_registered=report.ring_registered,
            hardened=report.hardened,
            operations_in_flight=report.in_flight - own_polls - own_wake,
            receives=stats.receives,
            receive_arms=stats.receive_arms,
            receive_rearms=stats.receive_rearms,
            receive_ends=_by_name(ENDS, stats.receive_ends),
            receive_starved=stats.receive_starved,
            receives_bulk=stats.receives_bulk,
            bytes_received=stats.bytes_received,
            sleeps_coalesced=stats.sleeps_coalesced,
            buffers=report.buffer_count,
            buffer_size=report.buffer_size,
            buffers_in_use=report.buffers_in_use,
            incremental_buffers=report.incremental,
            sends=stats.sends,
            sends_direct=stats.sends_direct,
            sends_short=stats.sends_short,
            bytes_sent=stats.bytes_sent,
            datagrams_received=stats.datagrams_received,
            datagrams_truncated=stats.datagrams_truncated,
            datagrams_sent=stats.datagrams_sent,
            datagrams_joined=stats.datagrams_joined,
            datagram_batches=stats.datagram_batches,
            datagram_waits=stats.datagram_waits,
            datagram_errors=stats.datagram_errors,
            datagram_buffers=report.datagram_buffers,
            datagram_buffers_in_use=report.datagram_buffers_in_use,
            endpoints_open=report.endpoints,
            accepts=stats.accepts,
            accept_rearms=stats.accept_rearms,
            accept_ends=_by_name(ENDS, stats.accept_ends),
            streams_open=report.streams,
            listeners_open=report.listeners,
            fixed_files=report.files,
            slots_in_use=report.slots_in_use,
            fixed_file_fallbacks=stats.fixed_file_fallbacks,
            stale_completions=stats.stale_completions,
            leaked_bytes=leaked_bytes(),
        )
