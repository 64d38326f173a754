#include "ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ring_fault.h"

#define UL_OPCODES 256 /* as many as an SQE can name */

static long ul_errno(long result) { return result < 0 ? -errno : result; }

static int ul_sys_setup(uint32_t entries, struct io_uring_params *params) {
    return (int)ul_errno(syscall(UL_NR_io_uring_setup, entries, params));
}

static int ul_sys_register(int fd, uint32_t operation, void *argument, uint32_t count) {
    return (int)ul_errno(syscall(UL_NR_io_uring_register, fd, operation, argument, count));
}

/* From the best to the least; a kernel that does not know a flag says EINVAL. A ring without DEFER_TASKRUN is not for one thread only: its
 * requests go on whenever the thread that made them enters the kernel, so another could not take them over. The floor is what 5.19 has, and
 * is there so that the core can be tested without DEFER_TASKRUN; Linux 6.1, which the loop is for, has the second. */
static const uint32_t setup_ladder[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_NO_SQARRAY,
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
};

static int ul_ring_setup(struct io_uring_params *params, uint32_t sq_entries, uint32_t cq_entries, uint32_t without) {
    int fd = -EINVAL;
    for (size_t rung = 0; rung < sizeof setup_ladder / sizeof *setup_ladder && fd == -EINVAL; rung++) {
        if (setup_ladder[rung] & without)
            continue;
        memset(params, 0, sizeof *params);
        params->cq_entries = cq_entries;
        params->flags = setup_ladder[rung] | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP | IORING_SETUP_CQSIZE | IORING_SETUP_R_DISABLED;
        fd = ul_sys_setup(sq_entries, params);
    }
    return fd;
}

static int ul_ring_map(struct ul_ring *ring, const struct io_uring_params *params) {
    size_t sq_bytes = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq_bytes = params->cq_off.cqes + params->cq_entries * sizeof(struct io_uring_cqe);
    if (params->flags & IORING_SETUP_NO_SQARRAY)
        sq_bytes = 0;
    ring->map_bytes = sq_bytes > cq_bytes ? sq_bytes : cq_bytes;
    ring->sqes_bytes = params->sq_entries * sizeof(struct io_uring_sqe);
    void *map = mmap(NULL, ring->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, (off_t)IORING_OFF_SQ_RING);
    if (map == MAP_FAILED)
        return -errno;
    ring->map = map;
    void *sqes = mmap(NULL, ring->sqes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, (off_t)IORING_OFF_SQES);
    if (sqes == MAP_FAILED)
        return -errno;
    ring->sqes = sqes;
    /* A forked child must not write into queues that its parent still runs. */
    if (madvise(ring->map, ring->map_bytes, MADV_DONTFORK) < 0 || madvise(ring->sqes, ring->sqes_bytes, MADV_DONTFORK) < 0)
        return -errno;
    return 0;
}

static void ul_ring_locate(struct ul_ring *ring, const struct io_uring_params *params) {
    char *map = ring->map;
    ring->ksq_head = (_Atomic uint32_t *)(void *)(map + params->sq_off.head);
    ring->ksq_tail = (_Atomic uint32_t *)(void *)(map + params->sq_off.tail);
    ring->ksq_flags = (_Atomic uint32_t *)(void *)(map + params->sq_off.flags);
    ring->kcq_head = (_Atomic uint32_t *)(void *)(map + params->cq_off.head);
    ring->kcq_tail = (_Atomic uint32_t *)(void *)(map + params->cq_off.tail);
    ring->cqes = (struct io_uring_cqe *)(void *)(map + params->cq_off.cqes);
    ring->sq_entries = params->sq_entries;
    ring->cq_entries = params->cq_entries;
    ring->sq_mask = params->sq_entries - 1;
    ring->cq_mask = params->cq_entries - 1;
    ring->sq_tail = atomic_load_explicit(ring->ksq_tail, memory_order_relaxed);
    ring->cq_head = atomic_load_explicit(ring->kcq_head, memory_order_relaxed);
    if (!(params->flags & IORING_SETUP_NO_SQARRAY)) {
        /* We always submit SQE i from slot i, so the indirection array is written once. */
        uint32_t *array = (uint32_t *)(void *)(map + params->sq_off.array);
        for (uint32_t i = 0; i < params->sq_entries; i++)
            array[i] = i;
    }
}

int ul_ring_open(struct ul_ring *ring, uint32_t sq_entries, uint32_t cq_entries, uint32_t without) {
    const uint32_t needed = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_EXT_ARG;
    struct io_uring_params params;
    memset(ring, 0, sizeof *ring);
    ring->registered_index = -1;
    ring->fd = ul_ring_setup(&params, sq_entries, cq_entries, without);
    if (ring->fd < 0) {
        int error = ring->fd;
        ring->fd = -1;
        return error;
    }
    ring->setup_flags = params.flags;
    ring->features = params.features;
    int error = (params.features & needed) == needed ? ul_ring_map(ring, &params) : -EINVAL;
    if (error) {
        ul_ring_close(ring);
        return error;
    }
    ul_ring_locate(ring, &params);
    error = UL_FAULT_OPEN(ring);
    if (error)
        ul_ring_close(ring);
    return error;
}

void ul_ring_close(struct ul_ring *ring) {
    UL_FAULT_CLOSE(ring);
    if (ring->map)
        munmap(ring->map, ring->map_bytes);
    if (ring->sqes)
        munmap(ring->sqes, ring->sqes_bytes);
    if (ring->fd >= 0)
        close(ring->fd);
    free(ring->spill);
    free(ring->aside);
    ring->aside = NULL;
    ring->aside_head = ring->aside_count = ring->aside_capacity = 0;
    ring->map = NULL;
    ring->sqes = NULL;
    ring->spill = NULL;
    ring->spill_count = ring->spill_capacity = 0;
    ring->fd = -1;
}

void ul_ring_abandon(struct ul_ring *ring) {
    ring->map = NULL; /* MADV_DONTFORK: there is nothing to unmap here */
    ring->sqes = NULL;
    ul_ring_close(ring);
    ring->nothing = 0;
    ring->ksq_head = ring->ksq_tail = ring->ksq_flags = ring->kcq_head = ring->kcq_tail = &ring->nothing;
    ring->sq_tail = ring->cq_head = ring->sq_entries = 0;
    ring->registered_index = -1;
}

int ul_ring_register(const struct ul_ring *ring, uint32_t operation, void *argument, uint32_t count) {
    if (UL_FAULT_REGISTER(ring, operation))
        return -ENOMEM;
    return ul_sys_register(ring->fd, operation, argument, count);
}

bool ul_ring_has(const struct ul_ring *ring, uint8_t opcode) {
    _Alignas(struct io_uring_probe) unsigned char memory[sizeof(struct io_uring_probe) + UL_OPCODES * sizeof(struct io_uring_probe_op)] = {0};
    struct io_uring_probe *probe = (struct io_uring_probe *)(void *)memory;
    if (ul_ring_register(ring, IORING_REGISTER_PROBE, probe, UL_OPCODES) < 0)
        return false;
    return opcode < probe->ops_len && probe->ops[opcode].flags & IO_URING_OP_SUPPORTED;
}

int ul_ring_enable(struct ul_ring *ring) { return ul_ring_register(ring, IORING_REGISTER_ENABLE_RINGS, NULL, 0); }

int ul_ring_register_self(struct ul_ring *ring) {
    struct io_uring_rsrc_update update = {.offset = UINT32_MAX /* any index */, .data = (uint64_t)ring->fd};
    int count = ul_ring_register(ring, IORING_REGISTER_RING_FDS, &update, 1);
    if (count != 1)
        return count < 0 ? count : -EINVAL;
    ring->registered_index = (int)update.offset;
    return 0;
}

int ul_ring_unregister_self(struct ul_ring *ring) {
    if (ring->registered_index < 0)
        return 0;
    struct io_uring_rsrc_update update = {.offset = (uint32_t)ring->registered_index};
    int count = ul_ring_register(ring, IORING_UNREGISTER_RING_FDS, &update, 1);
    if (count != 1)
        return count < 0 ? count : -EINVAL;
    ring->registered_index = -1;
    return 0;
}

static uint32_t ul_ring_queued(const struct ul_ring *ring) {
    /* Acquire: a head that has moved means the kernel is done reading those SQEs, so they may be written again. */
    return ring->sq_tail - atomic_load_explicit(ring->ksq_head, memory_order_acquire);
}

static struct io_uring_sqe *ul_ring_next_slot(struct ul_ring *ring) {
    struct io_uring_sqe *sqe = &ring->sqes[ring->sq_tail & ring->sq_mask];
    ring->sq_tail++;
    return sqe;
}

static struct io_uring_sqe *ul_ring_spill_slot(struct ul_ring *ring) {
    if (ring->spill_count == ring->spill_capacity) {
        size_t capacity = ring->spill_capacity ? ring->spill_capacity * 2 : 64;
        struct io_uring_sqe *spill = realloc(ring->spill, capacity * sizeof *spill);
        if (!spill)
            return NULL;
        ring->spill = spill;
        ring->spill_capacity = capacity;
    }
    return &ring->spill[ring->spill_count++];
}

struct io_uring_sqe *ul_ring_sqe(struct ul_ring *ring) {
    /* Once one request has spilled, all that follow must, or they would overtake it. */
    bool room = ring->spill_count == 0 && ul_ring_queued(ring) < ring->sq_entries && !UL_FAULT(ring, SQ_FULL);
    struct io_uring_sqe *sqe = room ? ul_ring_next_slot(ring) : ul_ring_spill_slot(ring);
    if (sqe)
        memset(sqe, 0, sizeof *sqe);
    return sqe;
}

static void ul_ring_unspill(struct ul_ring *ring) {
    size_t moved = 0;
    while (moved < ring->spill_count && ul_ring_queued(ring) < ring->sq_entries)
        *ul_ring_next_slot(ring) = ring->spill[moved++];
    ring->spill_count -= moved;
    if (moved && ring->spill_count)
        memmove(ring->spill, ring->spill + moved, ring->spill_count * sizeof *ring->spill);
}

size_t ul_ring_unsubmitted(const struct ul_ring *ring) { return ul_ring_queued(ring) + ring->spill_count; }

const struct io_uring_sqe *ul_ring_unsubmitted_at(const struct ul_ring *ring, size_t index) {
    uint32_t queued = ul_ring_queued(ring);
    return index < queued ? &ring->sqes[(ring->sq_tail - queued + (uint32_t)index) & ring->sq_mask] : &ring->spill[index - queued];
}

static int ul_ring_enter_once(struct ul_ring *ring, uint32_t min_complete, int64_t timeout_ns, uint32_t min_wait_us) {
    struct __kernel_timespec ts = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    struct io_uring_getevents_arg argument = {.ts = timeout_ns >= 0 ? (uint64_t)(uintptr_t)&ts : 0, .min_wait_usec = min_wait_us};
    bool limited = timeout_ns >= 0 || min_wait_us;
    uint32_t flags = IORING_ENTER_GETEVENTS | (limited ? IORING_ENTER_EXT_ARG : 0);
    if (ring->features & IORING_FEAT_NO_IOWAIT)
        flags |= IORING_ENTER_NO_IOWAIT; /* an idle server is idle, not waiting for a disk */
    int fd = ring->fd;
    if (ring->registered_index >= 0) {
        flags |= IORING_ENTER_REGISTERED_RING;
        fd = ring->registered_index;
    }
    /* Release: the kernel must see the SQEs' contents before the tail that covers them. */
    atomic_store_explicit(ring->ksq_tail, ring->sq_tail, memory_order_release);
    ring->enters++;
    uint32_t to_submit = ul_ring_queued(ring);
    long result = UL_FAULT_ENTER(ring, &to_submit, &min_complete);
    if (!result)
        result = ul_errno(syscall(UL_NR_io_uring_enter, fd, to_submit, min_complete, flags, limited ? &argument : NULL, limited * sizeof argument));
    UL_FAULT_COLLECT(ring);
    return result < 0 ? (int)result : 0;
}

/* All but what one enter submits, which is then the last. */
static int ul_ring_submit_spilled(struct ul_ring *ring) {
    ul_ring_unspill(ring);
    while (ring->spill_count) {
        uint32_t before = ul_ring_queued(ring);
        int error = ul_ring_enter_once(ring, 0, 0, 0);
        if (error < 0 && error != -EINTR)
            return error;
        if (ul_ring_queued(ring) == before)
            return -EBUSY; /* the kernel takes no more before completions are reaped */
        ul_ring_unspill(ring);
    }
    return 0;
}

int ul_ring_enter(struct ul_ring *ring, uint32_t min_complete, int64_t timeout_ns) {
    int error = ul_ring_submit_spilled(ring);
    return error ? error : ul_ring_enter_once(ring, min_complete, timeout_ns, 0);
}

bool ul_ring_can_coalesce(const struct ul_ring *ring) { return ring->features & IORING_FEAT_MIN_TIMEOUT; }

int ul_ring_enter_coalescing(struct ul_ring *ring, int64_t timeout_ns, uint32_t microseconds) {
    int error = ul_ring_submit_spilled(ring);
    return error ? error : ul_ring_enter_once(ring, 2, timeout_ns, microseconds);
}

bool ul_ring_has_work(const struct ul_ring *ring) {
    /* Relaxed: a hint only; the enter that follows does the ordering. */
    return atomic_load_explicit(ring->ksq_flags, memory_order_relaxed) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW) || UL_FAULT_HOLDS(ring);
}

bool ul_ring_has_overflown(struct ul_ring *ring) {
    /* Acquire: the flag is set before the enter that overflowed returns, and is read for what that enter submitted. */
    bool overflown = atomic_load_explicit(ring->ksq_flags, memory_order_acquire) & IORING_SQ_CQ_OVERFLOW || UL_FAULT_HOLDS(ring);
    ring->overflows += overflown;
    return overflown;
}

static uint32_t ul_ring_in_cq(const struct ul_ring *ring) {
    /* Acquire: the CQEs below this tail must be visible before we read them. */
    return atomic_load_explicit(ring->kcq_tail, memory_order_acquire) - ring->cq_head;
}

uint32_t ul_ring_ready(const struct ul_ring *ring) { return ring->aside_count + ul_ring_in_cq(ring); }

const struct io_uring_cqe *ul_ring_ready_at(const struct ul_ring *ring, uint32_t index) {
    if (index < ring->aside_count)
        return &ring->aside[ring->aside_head + index];
    return &ring->cqes[(ring->cq_head + index - ring->aside_count) & ring->cq_mask];
}

static void ul_ring_release_aside(struct ul_ring *ring, uint32_t count) {
    ring->aside_head += count;
    ring->aside_count -= count;
    if (ring->aside_count)
        return;
    free(ring->aside); /* that there was any is rare */
    ring->aside = NULL;
    ring->aside_head = ring->aside_capacity = 0;
}

void ul_ring_release_cqes(struct ul_ring *ring, uint32_t count) {
    if (ring->aside_count) {
        uint32_t first = count < ring->aside_count ? count : ring->aside_count;
        ul_ring_release_aside(ring, first);
        count -= first;
    }
    ring->cq_head += count;
    /* Release: our reads of those CQEs must be over before the kernel may write there again. */
    atomic_store_explicit(ring->kcq_head, ring->cq_head, memory_order_release);
}

int ul_ring_set_aside(struct ul_ring *ring) {
    uint32_t count = ul_ring_in_cq(ring), used = ring->aside_head + ring->aside_count;
    if (used + count > ring->aside_capacity) {
        uint32_t capacity = (used + count) * 2;
        struct io_uring_cqe *aside = realloc(ring->aside, capacity * sizeof *aside);
        if (!aside)
            return -ENOMEM;
        ring->aside = aside;
        ring->aside_capacity = capacity;
    }
    for (uint32_t i = 0; i < count; i++)
        ring->aside[used + i] = ring->cqes[(ring->cq_head + i) & ring->cq_mask];
    ring->aside_count += count;
    ring->cq_head += count;
    atomic_store_explicit(ring->kcq_head, ring->cq_head, memory_order_release); /* Release: as above. */
    return 0;
}
