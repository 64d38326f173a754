/* The io_uring itself: set-up, the two shared queues, the three system calls. Knows nothing of streams or events. */
#ifndef UL_RING_H
#define UL_RING_H

#include <stdatomic.h>
#include <stdbool.h>

#include "abi.h"

/* Words that the kernel writes or reads while we run are `k...`; the rest is ours alone. */
struct ul_ring {
    int fd;                /* -1: not open */
    int registered_index;  /* -1: the ring's own fd is not registered with this thread */
    uint32_t setup_flags;  /* what the kernel accepted */
    uint32_t features;
    uint64_t enters;       /* io_uring_enter calls made */
    uint64_t overflows;    /* times the CQ was found overflown */

    void *map;             /* SQ and CQ ring, one mapping (FEAT_SINGLE_MMAP) */
    size_t map_bytes;
    struct io_uring_sqe *sqes;
    size_t sqes_bytes;

    _Atomic uint32_t *ksq_head, *ksq_tail, *ksq_flags;
    uint32_t sq_entries, sq_mask;
    uint32_t sq_tail;      /* SQEs written; published to ksq_tail at enter */

    _Atomic uint32_t *kcq_head, *kcq_tail;
    struct io_uring_cqe *cqes;
    uint32_t cq_entries, cq_mask;
    uint32_t cq_head;      /* CQEs read; published to kcq_head by ul_ring_release_cqes */

    /* CQEs that were taken out of the CQ before anyone could handle them: they come before those that are in it. */
    struct io_uring_cqe *aside;
    uint32_t aside_head, aside_count, aside_capacity;

    /* SQEs that found the SQ full wait here, in order, and follow at the next enter: no request is ever refused for want of room. */
    struct io_uring_sqe *spill;
    size_t spill_count, spill_capacity;

    _Atomic uint32_t nothing; /* what the k... pointers point at once the ring is abandoned */
#ifdef UL_FAULTS
    struct ul_faults *faults; /* NULL: none are made */
#endif
};

/* Make a disabled ring. `without` holds setup flags not to ask for. 0 or -errno. */
int ul_ring_open(struct ul_ring *ring, uint32_t sq_entries, uint32_t cq_entries, uint32_t without);

/* Unmap and close. The kernel may go on with requests in flight for a moment: cancel and drain first, or leave the memory to it. */
void ul_ring_close(struct ul_ring *ring);

/* In a forked child: close our copy of the fd and forget the mappings, which the child does not have. Every call stays safe: requests
 * gather in the spill and go nowhere. */
void ul_ring_abandon(struct ul_ring *ring);

/* True if the kernel has this operation (enum io_uring_op). */
bool ul_ring_has(const struct ul_ring *ring, uint8_t opcode);

/* Let the calling thread, and from now on only it, use the ring. */
int ul_ring_enable(struct ul_ring *ring);

/* Register the ring's own fd with the calling thread, so that enter need not look it up; and take it back, on the same thread. */
int ul_ring_register_self(struct ul_ring *ring);
int ul_ring_unregister_self(struct ul_ring *ring);

int ul_ring_register(const struct ul_ring *ring, uint32_t operation, void *argument, uint32_t count);

/* A zeroed SQE to fill at once, or NULL when memory is out. */
struct io_uring_sqe *ul_ring_sqe(struct ul_ring *ring);

/* SQEs that wait for the next enter: how many, and each of them, in order. */
size_t ul_ring_unsubmitted(const struct ul_ring *ring);
const struct io_uring_sqe *ul_ring_unsubmitted_at(const struct ul_ring *ring, size_t index);

/* Submit everything, then sleep until `min_complete` completions are there (0: do not sleep), a signal comes or `timeout_ns` nanoseconds
 * are over (negative: no limit). 0, -ETIME, -EINTR (which a submission can hide) or another -errno. */
int ul_ring_enter(struct ul_ring *ring, uint32_t min_complete, int64_t timeout_ns);

/* True if the kernel can end a sleep with the first completion that comes after some time, and before that with the second (6.12). */
bool ul_ring_can_coalesce(const struct ul_ring *ring);

/* As ul_ring_enter that waits for one completion, but so. After that time with no completion it may return too. */
int ul_ring_enter_coalescing(struct ul_ring *ring, int64_t timeout_ns, uint32_t microseconds);

/* True if an enter would bring completions that are not yet in the CQ. */
bool ul_ring_has_work(const struct ul_ring *ring);

/* True if the kernel holds completions for which the CQ had no room; an enter moves them there once it has. */
bool ul_ring_has_overflown(struct ul_ring *ring);

/* The CQEs that are there: how many, and each of them, to be given back together. */
uint32_t ul_ring_ready(const struct ul_ring *ring);
const struct io_uring_cqe *ul_ring_ready_at(const struct ul_ring *ring, uint32_t index);
void ul_ring_release_cqes(struct ul_ring *ring, uint32_t count);

/* Make room in the CQ: what is in it is kept elsewhere until it is given back. 0 or -ENOMEM. */
int ul_ring_set_aside(struct ul_ring *ring);

#endif
