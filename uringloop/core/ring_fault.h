/* Faults made on purpose, for tests: what a kernel may do, but seldom does.
 *
 * Compiled in with UL_FAULTS only; else every macro below is nothing. A fault is one that a kernel could have made, and never lies about bytes:
 * - A request is changed before it is submitted (made shorter, or to complete once instead of many times), or it is not submitted at all and
 *   completes with an error here.
 * - An enter fails instead of being made, or submits less than it was asked to.
 * - Completions go through a queue of ours, where they are held back for some enters. Those of one request keep their order, and so do those
 *   that name a buffer, since what they say of it adds up; failures are held back only together with all that follow. While any is held, the
 *   ring says that it has overflown, as it would if the kernel held them.
 * The canaries are the exception: they lie, and a test that does not notice is not worth its time.
 */
#ifndef UL_RING_FAULT_H
#define UL_RING_FAULT_H

#ifdef UL_FAULTS

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ul_ring;

enum ul_fault {
    /* Of requests. */
    UL_FAULT_SHORT_SEND,
    UL_FAULT_SHORT_READ,
    UL_FAULT_EAGAIN,
    UL_FAULT_EINTR,
    UL_FAULT_ENOBUFS,
    UL_FAULT_MULTISHOT_END,
    UL_FAULT_ORPHANED, /* ECANCELED, though nobody asked: what was left of a ring whose thread has ended */
    UL_FAULT_EMFILE,
    UL_FAULT_ENFILE,
    UL_FAULT_ECONNABORTED,
    UL_FAULT_SLOT_REFUSED,
    /* Of tables. */
    UL_FAULT_SLOTS_FULL,
    UL_FAULT_SQ_FULL,
    /* Of system calls. */
    UL_FAULT_ENTER_EINTR,
    UL_FAULT_ENTER_EAGAIN,
    UL_FAULT_ENTER_EBUSY,
    UL_FAULT_ENTER_ENOMEM,
    UL_FAULT_ENTER_PARTIAL, /* submits some */
    UL_FAULT_REGISTER_ENOMEM,
    /* Of completions. */
    UL_FAULT_LATE_CANCEL, /* the cancel is submitted by the next enter: more completions come after it was asked for */
    UL_FAULT_LATE,
    UL_FAULT_REORDERED,
    UL_FAULT_CQ_OVERFLOW,
    /* Canaries. */
    UL_FAULT_CANARY_LOST_BYTE,
    UL_FAULT_CANARY_LOST_COMPLETION,
    UL_FAULT_CANARY_SWAPPED,
    UL_FAULT_KINDS,
};

/* For the binding. The rates are of all rings of the process, in so many of a million chances; the seed is for rings that are made from now on. */
const char *ul_fault_name(int kind);
void ul_fault_set_rate(int kind, uint32_t per_million);
void ul_fault_set_seed(uint64_t seed);
uint64_t ul_fault_count(int kind);

/* For the macros. */
bool ul_fault_now(const struct ul_ring *ring, enum ul_fault kind);
size_t ul_fault_length(const struct ul_ring *ring, enum ul_fault kind, size_t length);
int ul_fault_open(struct ul_ring *ring);
void ul_fault_close(struct ul_ring *ring);
bool ul_fault_refuses_register(const struct ul_ring *ring, uint32_t operation);
long ul_fault_enter(struct ul_ring *ring, uint32_t *to_submit, uint32_t *min_complete);
void ul_fault_collect(struct ul_ring *ring);
bool ul_fault_holds(const struct ul_ring *ring);

/* True if it is to happen now. */
#define UL_FAULT(ring, kind) ul_fault_now(ring, UL_FAULT_##kind)
/* A length of at least one, shorter if it is to be. */
#define UL_FAULT_LENGTH(ring, kind, length) ul_fault_length(ring, UL_FAULT_##kind, length)
#define UL_FAULT_OPEN(ring) ul_fault_open(ring)
#define UL_FAULT_CLOSE(ring) ul_fault_close(ring)
#define UL_FAULT_REGISTER(ring, operation) ul_fault_refuses_register(ring, operation)
/* Before the system call: -errno to have instead of it, or 0. */
#define UL_FAULT_ENTER(ring, to_submit, min_complete) ul_fault_enter(ring, to_submit, min_complete)
/* After it: take what has been completed into our queue. */
#define UL_FAULT_COLLECT(ring) ul_fault_collect(ring)
/* True while completions are held back. */
#define UL_FAULT_HOLDS(ring) ul_fault_holds(ring)

#else

#define UL_FAULT(ring, kind) ((void)(ring), 0)
#define UL_FAULT_LENGTH(ring, kind, length) (length)
#define UL_FAULT_OPEN(ring) 0
#define UL_FAULT_CLOSE(ring) ((void)0)
#define UL_FAULT_REGISTER(ring, operation) 0
#define UL_FAULT_ENTER(ring, to_submit, min_complete) ((void)(to_submit), (void)(min_complete), 0)
#define UL_FAULT_COLLECT(ring) ((void)0)
#define UL_FAULT_HOLDS(ring) 0

#endif
#endif
