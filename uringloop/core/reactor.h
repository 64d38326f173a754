/* Ring, tables and engines together, and the tick that runs them: submit, wait, reap, and leave events for Python. */
#ifndef UL_REACTOR_H
#define UL_REACTOR_H

#include "datagram.h"
#include "listener.h"
#include "op.h"
#include "stream.h"
#include "wake.h"

enum ul_reactor_state {
    UL_REACTOR_DISABLED,  /* made; no thread owns the ring yet, and requests queue up */
    UL_REACTOR_ENABLED,   /* owned by the thread that enabled it */
    UL_REACTOR_MOVING,    /* run by another thread now: the next ticks take what is complete, then all goes over to a ring of its own */
    UL_REACTOR_CLOSING,   /* nothing is armed again */
    UL_REACTOR_ABANDONED, /* in a forked child: the ring is the parent's */
};

struct ul_options {
    uint32_t sq_entries, cq_entries;
    uint32_t buffer_count, buffer_size;
    uint32_t datagram_buffers; /* a power of two; 0: no datagram endpoints */
    int32_t files;          /* fixed-file slots; 0: none */
    bool incremental;       /* incremental buffers */
    bool rewinding;         /* of those, the one in use is begun anew in each turn, see buffers.h */
    bool register_ring;     /* register the ring's own fd */
    bool limited_receives;  /* multishot receives end after UL_RECEIVE_BYTES_MAX */
    bool inline_sends;      /* sends complete while they are submitted */
    bool late_slots;        /* a stream takes its slot before its second send, not before its first: for all but tests of what holds one */
    bool hardened;          /* the ring is restricted, see restrictions.h */
    uint32_t without_flags; /* IORING_SETUP_ flags not to ask for */
};

/* All that loop.stats() tells. */
struct ul_report {
    struct ul_stats stats;
    uint64_t completions, enters, overflows, in_flight; /* completions: of all kinds */
    uint32_t setup_flags, sq_entries, cq_entries;
    uint32_t streams, listeners, endpoints, operations;
    uint32_t files, slots_in_use;
    uint32_t buffer_count, buffer_size, buffers_in_use;
    uint32_t datagram_buffers, datagram_buffers_in_use;
    bool enabled, incremental, ring_registered, hardened;
};

struct ul_reactor {
    struct ul_engine engine;
    struct ul_streams streams;
    struct ul_listeners listeners;
    struct ul_endpoints endpoints;
    struct ul_operations operations;
    struct ul_options options;
    enum ul_reactor_state state;
    struct ul_wake *wake;
    int64_t deadline_ns; /* of CLOCK_MONOTONIC, when the next timer is due; negative: there is none */
    bool woken;          /* in this tick */
    bool wake_due;       /* there was no memory for the poll that tells of wakes */
    bool begun;          /* between begin and end */
    bool untold;         /* nobody heard the events of the last tick: the next one tells them again */
    bool move_failed;    /* the old ring is not to be used again: the pool may have been reset for the next one */
    bool rewinds;        /* as asked for, and completions are deferred */
};

/* NULL with *error = -errno when it cannot be made. */
struct ul_reactor *ul_reactor_open(const struct ul_options *options, int *error);

/* Send what there is room for, cancel all, wait until the kernel is done with it (in vain UL_DRAIN_MS at most), unregister, free. Where requests do not
 * end, or may go on because another thread that owned the ring had asked for operations on memory, what the kernel may still touch is leaked; the
 * bytes leaked are returned. */
uint64_t ul_reactor_close(struct ul_reactor *reactor);

/* Around a run of the loop: take ownership and register the ring fd; submit what is left and unregister it. 0 or -errno. Each run may be in
 * another thread than the one before; -EBUSY while one is under way. */
int ul_reactor_begin(struct ul_reactor *reactor);
void ul_reactor_end(struct ul_reactor *reactor);

/* Submit what is queued, now, and take no completion. 0 or -errno. */
int ul_reactor_flush(struct ul_reactor *reactor);

/* One turn: at most `timeout_ns` nanoseconds of sleep (negative: no limit), and none if there is something to tell. The number of
 * events, 0 also after a signal, or -errno. Spans of the previous tick's DATA events are void from here on. */
int ul_reactor_tick(struct ul_reactor *reactor, int64_t timeout_ns);

/* The loop's turn is a tick that sleeps until the deadline at most (wait) or not at all (look). What the tick returns, and UL_TURN_DUE with it
 * if the deadline has come. The deadline is nanoseconds of CLOCK_MONOTONIC, negative for none. It is set by itself because it seldom changes,
 * and cffi calls a function of one argument without a tuple of arguments: 100 ns less. */
void ul_reactor_set_deadline(struct ul_reactor *reactor, int64_t deadline_ns);
int ul_reactor_wait(struct ul_reactor *reactor);
int ul_reactor_look(struct ul_reactor *reactor);
#define UL_TURN_DUE (1 << 16) /* above any number of events */

/* A look that makes no system call, so that no GIL need be given up for it: 0 if there is nothing to do and nothing to tell, and this was the
 * turn's tick; 1 if it takes a look. */
int ul_reactor_glance(struct ul_reactor *reactor);

/* What the last tick told has not been heard: the next tick tells it again. */
void ul_reactor_keep_events(struct ul_reactor *reactor);

/* What ends the sleep of the tick from any thread at any time, for its holder to release. */
struct ul_wake *ul_reactor_waker(struct ul_reactor *reactor);

/* In a forked child: drop the parent's ring without touching it. */
void ul_reactor_abandon(struct ul_reactor *reactor);

void ul_reactor_report(const struct ul_reactor *reactor, struct ul_report *report);

/* True if the kernel has this operation and the ring may do it. */
bool ul_reactor_has(const struct ul_reactor *reactor, uint8_t opcode);

/* For the binding. */
struct ul_streams *ul_reactor_streams(struct ul_reactor *reactor);
struct ul_listeners *ul_reactor_listeners(struct ul_reactor *reactor);
struct ul_endpoints *ul_reactor_endpoints(struct ul_reactor *reactor);
struct ul_operations *ul_reactor_operations(struct ul_reactor *reactor);
const int32_t *ul_reactor_events(const struct ul_reactor *reactor);
char *ul_reactor_pool(const struct ul_reactor *reactor);
char *ul_reactor_datagram_pool(const struct ul_reactor *reactor); /* NULL before the first endpoint */

#endif
