#include "ring_fault.h"

#include "ring.h" /* also where there are no faults: a source must not be empty */

#ifdef UL_FAULTS

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define UL_MILLION 1000000U
/* Enters that a late completion is held back for, at the most. */
#define UL_LATE_ENTERS_MAX 4
/* A request that is made short keeps so many bytes at the most, or so large a part of them. */
#define UL_SHORT_BYTES 64

/* A first-in first-out queue of completions. */
struct ul_held {
    struct io_uring_cqe *cqes;
    size_t count, capacity;
};

struct ul_faults {
    uint64_t random;
    pid_t owner;       /* the thread that has enabled the ring; 0 before */
    uint32_t examined; /* SQEs before this index have been looked at */
    /* The kernel's completion queue; the ring has ours in its place. */
    _Atomic uint32_t *kcq_head, *kcq_tail;
    struct io_uring_cqe *kernel_cqes;
    uint32_t kernel_mask, kernel_head;
    /* Ours. */
    _Atomic uint32_t head, tail;
    struct io_uring_cqe *cqes;
    uint32_t size; /* a power of two */
    struct ul_held overflown; /* has not got into our queue yet */
    struct ul_held late;
    uint32_t late_enters; /* for which `late` is still held back */
};

static const char *const names[UL_FAULT_KINDS] = {
    [UL_FAULT_SHORT_SEND] = "short_send",
    [UL_FAULT_SHORT_READ] = "short_read",
    [UL_FAULT_EAGAIN] = "eagain",
    [UL_FAULT_EINTR] = "eintr",
    [UL_FAULT_ENOBUFS] = "enobufs",
    [UL_FAULT_MULTISHOT_END] = "multishot_end",
    [UL_FAULT_ORPHANED] = "orphaned",
    [UL_FAULT_EMFILE] = "emfile",
    [UL_FAULT_ENFILE] = "enfile",
    [UL_FAULT_ECONNABORTED] = "econnaborted",
    [UL_FAULT_SLOT_REFUSED] = "slot_refused",
    [UL_FAULT_SLOTS_FULL] = "slots_full",
    [UL_FAULT_SQ_FULL] = "sq_full",
    [UL_FAULT_ENTER_EINTR] = "enter_eintr",
    [UL_FAULT_ENTER_EAGAIN] = "enter_eagain",
    [UL_FAULT_ENTER_EBUSY] = "enter_ebusy",
    [UL_FAULT_ENTER_ENOMEM] = "enter_enomem",
    [UL_FAULT_ENTER_PARTIAL] = "enter_partial",
    [UL_FAULT_REGISTER_ENOMEM] = "register_enomem",
    [UL_FAULT_LATE_CANCEL] = "late_cancel",
    [UL_FAULT_LATE] = "late",
    [UL_FAULT_REORDERED] = "reordered",
    [UL_FAULT_CQ_OVERFLOW] = "cq_overflow",
    [UL_FAULT_CANARY_LOST_BYTE] = "canary_lost_byte",
    [UL_FAULT_CANARY_LOST_COMPLETION] = "canary_lost_completion",
    [UL_FAULT_CANARY_SWAPPED] = "canary_swapped",
};

/* Requests that are not submitted, but fail. */
static const struct ul_refusal {
    uint8_t opcode;
    uint8_t kind; /* enum ul_fault */
    int32_t result;
} refusals[] = {
    {IORING_OP_RECV, UL_FAULT_EAGAIN, -EAGAIN},
    {IORING_OP_RECV, UL_FAULT_EINTR, -EINTR},
    {IORING_OP_RECV, UL_FAULT_ENOBUFS, -ENOBUFS},
    {IORING_OP_RECV, UL_FAULT_ORPHANED, -ECANCELED},
    {IORING_OP_RECVMSG, UL_FAULT_EAGAIN, -EAGAIN},
    {IORING_OP_RECVMSG, UL_FAULT_EINTR, -EINTR},
    {IORING_OP_RECVMSG, UL_FAULT_ENOBUFS, -ENOBUFS},
    {IORING_OP_RECVMSG, UL_FAULT_ORPHANED, -ECANCELED},
    {IORING_OP_SEND, UL_FAULT_EAGAIN, -EAGAIN},
    {IORING_OP_SEND, UL_FAULT_EINTR, -EINTR},
    {IORING_OP_SENDMSG, UL_FAULT_EAGAIN, -EAGAIN},
    {IORING_OP_SENDMSG, UL_FAULT_EINTR, -EINTR},
    {IORING_OP_ACCEPT, UL_FAULT_EAGAIN, -EAGAIN},
    {IORING_OP_ACCEPT, UL_FAULT_EINTR, -EINTR},
    {IORING_OP_ACCEPT, UL_FAULT_ORPHANED, -ECANCELED},
    {IORING_OP_ACCEPT, UL_FAULT_EMFILE, -EMFILE},
    {IORING_OP_ACCEPT, UL_FAULT_ENFILE, -ENFILE},
    {IORING_OP_ACCEPT, UL_FAULT_ECONNABORTED, -ECONNABORTED},
    {IORING_OP_POLL_ADD, UL_FAULT_ORPHANED, -ECANCELED},
    {IORING_OP_FILES_UPDATE, UL_FAULT_SLOT_REFUSED, -ENOMEM},
};

/* Relaxed, all of them: they order nothing. Rings of other threads count too. */
static _Atomic uint32_t rates[UL_FAULT_KINDS];
static _Atomic uint64_t counts[UL_FAULT_KINDS];
static _Atomic uint64_t next_seed = 1;

/* --- the binding ------------------------------------------------------------------------------------------------------------------- */

const char *ul_fault_name(int kind) { return names[kind]; }

void ul_fault_set_rate(int kind, uint32_t per_million) { atomic_store_explicit(&rates[kind], per_million, memory_order_relaxed); }

void ul_fault_set_seed(uint64_t seed) { atomic_store_explicit(&next_seed, seed, memory_order_relaxed); }

uint64_t ul_fault_count(int kind) { return atomic_load_explicit(&counts[kind], memory_order_relaxed); }

/* --- chance ------------------------------------------------------------------------------------------------------------------------ */

/* splitmix64. */
static uint64_t ul_fault_random(struct ul_faults *faults) {
    uint64_t z = faults->random += 0x9e3779b97f4a7c15U;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
    return z ^ (z >> 31);
}

static uint64_t ul_fault_below(struct ul_faults *faults, uint64_t limit) { return ul_fault_random(faults) % limit; }

static bool ul_fault_is_due(struct ul_faults *faults, enum ul_fault kind) {
    uint32_t rate = atomic_load_explicit(&rates[kind], memory_order_relaxed);
    return rate && ul_fault_below(faults, UL_MILLION) < rate;
}

static void ul_fault_note(enum ul_fault kind) { atomic_fetch_add_explicit(&counts[kind], 1, memory_order_relaxed); }

bool ul_fault_now(const struct ul_ring *ring, enum ul_fault kind) {
    bool now = ring->faults && ul_fault_is_due(ring->faults, kind);
    if (now)
        ul_fault_note(kind);
    return now;
}

/* From 1 to less than `length`: often few, sometimes nearly all. */
static size_t ul_fault_cut(struct ul_faults *faults, size_t length) {
    size_t most = length - 1;
    if (most > UL_SHORT_BYTES && ul_fault_below(faults, 2))
        most = UL_SHORT_BYTES;
    return 1 + (size_t)ul_fault_below(faults, most);
}

size_t ul_fault_length(const struct ul_ring *ring, enum ul_fault kind, size_t length) {
    return length > 1 && ul_fault_now(ring, kind) ? ul_fault_cut(ring->faults, length) : length;
}

/* --- a queue ----------------------------------------------------------------------------------------------------------------------- */

static void ul_held_push(struct ul_held *held, const struct io_uring_cqe *cqe) {
    if (held->count == held->capacity) {
        held->capacity = held->capacity ? held->capacity * 2 : 256;
        held->cqes = realloc(held->cqes, held->capacity * sizeof *held->cqes);
        if (!held->cqes)
            abort(); /* a completion must not be lost, and this is a test */
    }
    held->cqes[held->count++] = *cqe;
}

static void ul_held_drop(struct ul_held *held, size_t count) {
    held->count -= count;
    memmove(held->cqes, held->cqes + count, held->count * sizeof *held->cqes);
}

/* --- life -------------------------------------------------------------------------------------------------------------------------- */

int ul_fault_open(struct ul_ring *ring) {
    struct ul_faults *faults = calloc(1, sizeof *faults);
    if (!faults)
        return -ENOMEM;
    faults->size = ring->cq_mask + 1;
    faults->cqes = calloc(faults->size, sizeof *faults->cqes);
    if (!faults->cqes) {
        free(faults);
        return -ENOMEM;
    }
    faults->random = atomic_fetch_add_explicit(&next_seed, 1, memory_order_relaxed);
    faults->examined = ring->sq_tail;
    faults->kcq_head = ring->kcq_head;
    faults->kcq_tail = ring->kcq_tail;
    faults->kernel_cqes = ring->cqes;
    faults->kernel_mask = ring->cq_mask;
    faults->kernel_head = ring->cq_head;
    ring->kcq_head = &faults->head;
    ring->kcq_tail = &faults->tail;
    ring->cqes = faults->cqes;
    ring->cq_head = 0;
    ring->faults = faults;
    return 0;
}

void ul_fault_close(struct ul_ring *ring) {
    struct ul_faults *faults = ring->faults;
    if (!faults)
        return;
    free(faults->overflown.cqes);
    free(faults->late.cqes);
    free(faults->cqes);
    free(faults);
    ring->faults = NULL;
}

bool ul_fault_holds(const struct ul_ring *ring) {
    return ring->faults && (ring->faults->overflown.count || ring->faults->late.count);
}

/* --- requests ---------------------------------------------------------------------------------------------------------------------- */

static bool ul_fault_is_inline(const struct io_uring_sqe *sqe) { return sqe->flags & IOSQE_CQE_SKIP_SUCCESS; }

/* It goes whole or not at all. Nothing else that is sent has this flag alone, see datagram_send.c. */
static bool ul_fault_is_datagram(const struct io_uring_sqe *sqe) { return sqe->opcode == IORING_OP_SEND && sqe->op_flags == MSG_DONTWAIT; }

static bool ul_fault_empties_slot(const struct io_uring_sqe *sqe) { return *(const int32_t *)(uintptr_t)sqe->addr < 0; }

static void ul_fault_cut_gathered(struct ul_faults *faults, struct io_uring_sqe *sqe) {
    struct msghdr *message = (struct msghdr *)(uintptr_t)sqe->addr; /* the core's own, filled anew for each send */
    size_t bytes = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++)
        bytes += message->msg_iov[i].iov_len;
    size_t left = ul_fault_cut(faults, bytes), i = 0;
    while (left > message->msg_iov[i].iov_len)
        left -= message->msg_iov[i++].iov_len;
    message->msg_iov[i].iov_len = left;
    message->msg_iovlen = i + 1;
}

static bool ul_fault_shorten_send(struct ul_faults *faults, struct io_uring_sqe *sqe) {
    bool gathered = sqe->opcode == IORING_OP_SENDMSG;
    if (ul_fault_is_datagram(sqe) || (!gathered && sqe->len < 2))
        return false;
    if (!gathered && ul_fault_is_inline(sqe) && ul_fault_is_due(faults, UL_FAULT_CANARY_LOST_BYTE)) {
        ul_fault_note(UL_FAULT_CANARY_LOST_BYTE);
        sqe->len--;
        return true;
    }
    if (!ul_fault_is_due(faults, UL_FAULT_SHORT_SEND))
        return false;
    if (gathered)
        ul_fault_cut_gathered(faults, sqe);
    else
        sqe->len = (uint32_t)ul_fault_cut(faults, sqe->len);
    sqe->flags &= (uint8_t)~IOSQE_CQE_SKIP_SUCCESS; /* what a short one says, even if it skips success */
    ul_fault_note(UL_FAULT_SHORT_SEND);
    return true;
}

/* A receive that is not multishot ends with what it got, as a multishot one may at any time. */
static bool ul_fault_shorten_recv(struct ul_faults *faults, struct io_uring_sqe *sqe) {
    enum ul_fault kind = UL_FAULT_MULTISHOT_END;
    if (ul_fault_is_due(faults, UL_FAULT_SHORT_READ))
        kind = UL_FAULT_SHORT_READ;
    else if (!ul_fault_is_due(faults, UL_FAULT_MULTISHOT_END))
        return false;
    sqe->ioprio = 0;
    sqe->file_index = 0; /* the limit of a multishot one; the kernel takes it of no other */
    if (kind == UL_FAULT_SHORT_READ)
        sqe->len = 1 + (uint32_t)ul_fault_below(faults, UL_SHORT_BYTES);
    ul_fault_note(kind);
    return true;
}

static bool ul_fault_shorten(struct ul_faults *faults, struct io_uring_sqe *sqe) {
    switch (sqe->opcode) {
    case IORING_OP_SEND:
    case IORING_OP_SENDMSG:
        return ul_fault_shorten_send(faults, sqe);
    case IORING_OP_RECV:
        return ul_fault_shorten_recv(faults, sqe);
    case IORING_OP_POLL_ADD: /* the one for wakes is multishot */
    case IORING_OP_ACCEPT:
        if ((sqe->opcode == IORING_OP_POLL_ADD && !sqe->len) || !ul_fault_is_due(faults, UL_FAULT_MULTISHOT_END))
            return false;
        sqe->ioprio = 0;
        sqe->len = 0;
        ul_fault_note(UL_FAULT_MULTISHOT_END);
        return true;
    case IORING_OP_READ:
    case IORING_OP_WRITE:
    case IORING_OP_SPLICE:
        if (sqe->len <= 1 || !ul_fault_is_due(faults, UL_FAULT_SHORT_READ))
            return false;
        sqe->len = (uint32_t)ul_fault_cut(faults, sqe->len);
        ul_fault_note(UL_FAULT_SHORT_READ);
        return true;
    default:
        return false;
    }
}

/* In its place a request goes out that does nothing and says nothing. */
static void ul_fault_refuse(struct ul_faults *faults, struct io_uring_sqe *sqe, int32_t result) {
    const struct io_uring_cqe cqe = {.user_data = sqe->user_data, .res = result};
    ul_held_push(&faults->overflown, &cqe);
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = IORING_OP_NOP;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
}

static void ul_fault_examine(struct ul_faults *faults, struct io_uring_sqe *sqe) {
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        const struct ul_refusal *refusal = &refusals[i];
        if (refusal->opcode != sqe->opcode || !ul_fault_is_due(faults, (enum ul_fault)refusal->kind))
            continue;
        if (refusal->opcode == IORING_OP_FILES_UPDATE && ul_fault_empties_slot(sqe))
            continue; /* that cannot fail */
        ul_fault_note((enum ul_fault)refusal->kind);
        ul_fault_refuse(faults, sqe, refusal->result);
        return;
    }
    ul_fault_shorten(faults, sqe);
}

/* --- system calls ------------------------------------------------------------------------------------------------------------------ */

/* Those that allocate. But to a thread that is not the ring's the kernel says so first. */
bool ul_fault_refuses_register(const struct ul_ring *ring, uint32_t operation) {
    struct ul_faults *faults = ring->faults;
    if (faults && operation == IORING_REGISTER_ENABLE_RINGS)
        faults->owner = gettid();
    if (!faults || (faults->owner && faults->owner != gettid()))
        return false;
    switch (operation) {
    case IORING_REGISTER_FILES2:
    case IORING_REGISTER_PBUF_RING:
    case IORING_REGISTER_RING_FDS:
    case IORING_REGISTER_PROBE:
        return UL_FAULT(ring, REGISTER_ENOMEM);
    default:
        return false;
    }
}

static long ul_fault_fails_enter(struct ul_ring *ring, uint32_t to_submit) {
    if (UL_FAULT(ring, ENTER_EAGAIN))
        return -EAGAIN;
    if (UL_FAULT(ring, ENTER_EBUSY))
        return -EBUSY;
    if (UL_FAULT(ring, ENTER_ENOMEM))
        return -ENOMEM;
    if (!to_submit && UL_FAULT(ring, ENTER_EINTR)) /* if it submits something, that is what it returns */
        return -EINTR;
    return 0;
}

/* How many SQEs to submit: less than there are where memory is out in the middle, or where a cancel is to come late. */
static uint32_t ul_fault_cut_submission(struct ul_ring *ring, uint32_t first, uint32_t count) {
    if (count > 1 && UL_FAULT(ring, ENTER_PARTIAL))
        count = 1 + (uint32_t)ul_fault_below(ring->faults, count - 1);
    for (uint32_t i = 0; i < count; i++) {
        bool cancel = ring->sqes[(first + i) & ring->sq_mask].opcode == IORING_OP_ASYNC_CANCEL;
        if (cancel && UL_FAULT(ring, LATE_CANCEL))
            return i;
    }
    return count;
}

long ul_fault_enter(struct ul_ring *ring, uint32_t *to_submit, uint32_t *min_complete) {
    struct ul_faults *faults = ring->faults;
    if (!faults)
        return 0;
    long error = ul_fault_fails_enter(ring, *to_submit);
    if (error)
        return error;
    uint32_t first = ring->sq_tail - *to_submit;
    uint32_t count = ul_fault_cut_submission(ring, first, *to_submit);
    for (uint32_t i = 0; i < count; i++)
        if ((int32_t)(first + i - faults->examined) >= 0)
            ul_fault_examine(faults, &ring->sqes[(first + i) & ring->sq_mask]);
    if ((int32_t)(first + count - faults->examined) > 0)
        faults->examined = first + count;
    /* The kernel does not sleep if it submits less than it was asked to, nor while there are completions that are not taken. */
    if (count < *to_submit || ul_fault_holds(ring) || ul_ring_ready(ring))
        *min_complete = 0;
    *to_submit = count;
    return 0;
}

/* --- completions ------------------------------------------------------------------------------------------------------------------- */

static void ul_fault_take_from_kernel(struct ul_faults *faults) {
    /* Acquire: the CQEs below this tail must be visible before we read them. */
    uint32_t tail = atomic_load_explicit(faults->kcq_tail, memory_order_acquire);
    for (; faults->kernel_head != tail; faults->kernel_head++)
        ul_held_push(&faults->overflown, &faults->kernel_cqes[faults->kernel_head & faults->kernel_mask]);
    /* Release: our reads of those CQEs must be over before the kernel may write there again. */
    atomic_store_explicit(faults->kcq_head, tail, memory_order_release);
}

static bool ul_fault_has_room(const struct ul_faults *faults) {
    /* Relaxed: both are written by this thread. */
    uint32_t ready = atomic_load_explicit(&faults->tail, memory_order_relaxed) - atomic_load_explicit(&faults->head, memory_order_relaxed);
    return ready < faults->size;
}

static void ul_fault_deliver(struct ul_faults *faults, const struct io_uring_cqe *cqe) {
    uint32_t tail = atomic_load_explicit(&faults->tail, memory_order_relaxed); /* Relaxed: written by this thread. */
    faults->cqes[tail & (faults->size - 1)] = *cqe;
    atomic_store_explicit(&faults->tail, tail + 1, memory_order_relaxed);
}

static bool ul_fault_must_follow(const struct io_uring_cqe *first, const struct io_uring_cqe *second) {
    return first->user_data == second->user_data || first->flags & second->flags & IORING_CQE_F_BUFFER;
}

static bool ul_fault_must_be_late(const struct ul_faults *faults, const struct io_uring_cqe *cqe) {
    for (size_t i = 0; i < faults->late.count; i++)
        if (ul_fault_must_follow(&faults->late.cqes[i], cqe))
            return true;
    return false;
}

/* Change places with the next. */
static void ul_fault_reorder(struct ul_faults *faults, size_t i, size_t count) {
    struct io_uring_cqe *cqes = faults->overflown.cqes;
    if (i + 1 >= count || cqes[i].res < 0 || cqes[i + 1].res < 0 || ul_fault_must_follow(&cqes[i], &cqes[i + 1]))
        return;
    if (!ul_fault_is_due(faults, UL_FAULT_REORDERED))
        return;
    ul_fault_note(UL_FAULT_REORDERED);
    const struct io_uring_cqe cqe = cqes[i];
    cqes[i] = cqes[i + 1];
    cqes[i + 1] = cqe;
}

static bool ul_fault_canary_loses(struct ul_faults *faults, const struct io_uring_cqe *cqe) {
    bool loses = cqe->res >= 0 && !(cqe->flags & IORING_CQE_F_BUFFER) && ul_fault_is_due(faults, UL_FAULT_CANARY_LOST_COMPLETION);
    if (loses)
        ul_fault_note(UL_FAULT_CANARY_LOST_COMPLETION);
    return loses;
}

static void ul_fault_canary_swaps(struct ul_faults *faults, size_t i, size_t count) {
    struct io_uring_cqe *cqes = faults->overflown.cqes;
    uint32_t both = i + 1 < count ? cqes[i].flags & cqes[i + 1].flags : 0;
    if (!(both & IORING_CQE_F_BUFFER) || !(both & IORING_CQE_F_MORE) || cqes[i].res == cqes[i + 1].res)
        return;
    if (!ul_fault_is_due(faults, UL_FAULT_CANARY_SWAPPED))
        return;
    ul_fault_note(UL_FAULT_CANARY_SWAPPED);
    const uint64_t user_data = cqes[i].user_data;
    const int32_t res = cqes[i].res;
    cqes[i].user_data = cqes[i + 1].user_data;
    cqes[i].res = cqes[i + 1].res;
    cqes[i + 1].user_data = user_data;
    cqes[i + 1].res = res;
}

/* Deliver it or, by chance or because it must not overtake one that is, make it late. */
static void ul_fault_pass_on(struct ul_faults *faults, const struct io_uring_cqe *cqe) {
    if (ul_fault_canary_loses(faults, cqe))
        return;
    bool late = ul_fault_must_be_late(faults, cqe);
    if (!late && cqe->res >= 0 && ul_fault_is_due(faults, UL_FAULT_LATE)) {
        ul_fault_note(UL_FAULT_LATE);
        if (!faults->late.count)
            faults->late_enters = 1 + (uint32_t)ul_fault_below(faults, UL_LATE_ENTERS_MAX);
        late = true;
    }
    if (late)
        ul_held_push(&faults->late, cqe);
    else
        ul_fault_deliver(faults, cqe);
}

static void ul_fault_release_late(struct ul_faults *faults) {
    if (!faults->late.count || --faults->late_enters)
        return;
    size_t taken = 0;
    while (taken < faults->late.count && ul_fault_has_room(faults))
        ul_fault_deliver(faults, &faults->late.cqes[taken++]);
    ul_held_drop(&faults->late, taken);
    faults->late_enters = 1;
}

void ul_fault_collect(struct ul_ring *ring) {
    struct ul_faults *faults = ring->faults;
    if (!faults)
        return;
    ul_fault_take_from_kernel(faults);
    ul_fault_release_late(faults);
    size_t count = faults->overflown.count, taken = 0;
    if (count > 1 && UL_FAULT(ring, CQ_OVERFLOW))
        count = 1 + (size_t)ul_fault_below(faults, count - 1);
    for (; taken < count && ul_fault_has_room(faults); taken++) {
        ul_fault_reorder(faults, taken, count);
        ul_fault_canary_swaps(faults, taken, count);
        ul_fault_pass_on(faults, &faults->overflown.cqes[taken]);
    }
    ul_held_drop(&faults->overflown, taken);
}

#endif
