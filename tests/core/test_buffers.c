/* The provided-buffer ring against a model of the kernel's side of it, and against completions that no kernel would send. */
#include "buffers.h"

#include <sys/mman.h>

#include "check.h"

#define COUNT 8U
#define SIZE 4096U
#define STEPS 200000 /* enough for the ring's 16-bit tail to wrap */

static struct ul_ring ring;
static struct ul_buffers buffers;

static void open_pool(bool incremental) {
    int error = ul_ring_open(&ring, 4, 8, 0);
    if (error == -EPERM || error == -ENOSYS)
        check_skip("no io_uring: %s", strerror(-error));
    CHECK_INT(error, ==, 0);
    error = ul_buffers_open(&buffers, &ring, 0, COUNT, SIZE, incremental);
    if (error == -EINVAL && incremental)
        check_skip("no incremental buffers before Linux 6.12");
    CHECK_INT(error, ==, 0);
}

static void close_pool(void) {
    ul_buffers_close(&buffers, &ring, false);
    ul_ring_close(&ring);
}

/* --- the kernel's side ------------------------------------------------------------------------------------------------------------- */

static uint16_t kernel_head;
static bool kernel_has[COUNT];

static uint16_t kernel_tail(void) { return buffers.ring[0].resv; }

/* Looks at the entries that were given since the last time. */
static void kernel_look(uint16_t from) {
    for (uint16_t at = from; at != kernel_tail(); at++) {
        const struct io_uring_buf *entry = &buffers.ring[at % COUNT];
        CHECK_INT(entry->bid, <, COUNT);
        CHECK(!kernel_has[entry->bid]);
        CHECK_INT(entry->addr, ==, (uintptr_t)buffers.pool + entry->bid * SIZE);
        CHECK_INT(entry->len, ==, SIZE);
        kernel_has[entry->bid] = true;
    }
}

/* Receives so many bytes at most, as the kernel would: where they went, in the pool. */
static struct ul_span kernel_receive(uint32_t most, uint32_t *cqe_flags) {
    CHECK(kernel_head != kernel_tail());
    struct io_uring_buf *entry = &buffers.ring[kernel_head % COUNT];
    uint32_t length = most < entry->len ? most : entry->len;
    struct ul_span written = {(uint32_t)(entry->addr - (uintptr_t)buffers.pool), length};
    *cqe_flags = (uint32_t)entry->bid << IORING_CQE_BUFFER_SHIFT | IORING_CQE_F_BUFFER | IORING_CQE_F_MORE;
    entry->addr += length;
    entry->len -= length;
    if (buffers.incremental && entry->len) {
        *cqe_flags |= IORING_CQE_F_BUF_MORE;
    } else {
        kernel_has[entry->bid] = false;
        kernel_head++;
    }
    return written;
}

static void receive_and_compare(void) {
    uint32_t cqe_flags;
    struct ul_span written = kernel_receive(1 + check_below(2 * SIZE), &cqe_flags);
    struct ul_span taken = ul_buffers_take(&buffers, cqe_flags, (int32_t)written.length);
    CHECK_INT(taken.start, ==, written.start);
    CHECK_INT(taken.length, ==, written.length);
}

static void recycle_and_look(void) {
    uint16_t before = kernel_tail();
    uint32_t returned = buffers.returned_count;
    ul_buffers_recycle(&buffers);
    CHECK_INT((uint16_t)(kernel_tail() - before), ==, returned);
    CHECK_INT(buffers.returned_count, ==, 0);
    kernel_look(before);
}

static void rewind_and_look(void) {
    ul_buffers_rewind(&buffers);
    if (kernel_head == kernel_tail())
        return;
    const struct io_uring_buf *first = &buffers.ring[kernel_head % COUNT];
    CHECK_INT(first->addr, ==, (uintptr_t)buffers.pool + first->bid * SIZE);
    CHECK_INT(first->len, ==, SIZE);
}

static void check_with_an_honest_kernel(bool incremental, bool rewinding) {
    open_pool(incremental);
    kernel_look(0);
    CHECK_INT(kernel_tail(), ==, COUNT);
    for (int step = 0; step < STEPS; step++) {
        if (kernel_head == kernel_tail() || check_one_in(4))
            recycle_and_look();
        else if (rewinding && check_one_in(4))
            rewind_and_look();
        else
            receive_and_compare();
        CHECK_INT(buffers.kernel_count + buffers.returned_count, ==, COUNT);
        CHECK_INT(buffers.kernel_count, ==, (uint16_t)(kernel_tail() - kernel_head));
    }
    recycle_and_look();
    CHECK_INT(buffers.kernel_count, ==, COUNT);
    close_pool();
}

static void plain_spans_are_where_the_kernel_wrote(void) { check_with_an_honest_kernel(false, false); }
static void incremental_spans_are_where_the_kernel_wrote(void) { check_with_an_honest_kernel(true, false); }
static void spans_are_where_the_kernel_wrote_if_buffers_are_rewound(void) { check_with_an_honest_kernel(true, true); }
static void nothing_of_plain_buffers_is_rewound(void) { check_with_an_honest_kernel(false, true); }

/* --- impossible completions -------------------------------------------------------------------------------------------------------- */

static int32_t arbitrary_result(void) {
    switch (check_below(4)) {
    case 0:
        return (int32_t)check_random();
    case 1:
        return -(int32_t)check_below(200);
    case 2:
        return (int32_t)(SIZE - 2 + check_below(4));
    default:
        return (int32_t)check_below(SIZE);
    }
}

static void check_with_arbitrary_completions(bool incremental) {
    open_pool(incremental);
    for (int step = 0; step < STEPS; step++) {
        uint32_t bid = check_one_in(4) ? (uint32_t)check_random() >> IORING_CQE_BUFFER_SHIFT : check_below(COUNT + 2);
        uint32_t cqe_flags = bid << IORING_CQE_BUFFER_SHIFT | (check_random() & 0xFF);
        struct ul_span span = ul_buffers_take(&buffers, cqe_flags, arbitrary_result());
        CHECK_INT((uint64_t)span.start + span.length, <=, ul_buffers_bytes(&buffers));
        CHECK(span.length == 0 || span.start / SIZE == bid);
        CHECK(span.length == 0 || (span.start + span.length - 1) / SIZE == bid);
        CHECK(span.length == 0 || cqe_flags & IORING_CQE_F_BUFFER);
        CHECK_INT(buffers.kernel_count + buffers.returned_count, ==, COUNT);
        if (check_one_in(10))
            ul_buffers_recycle(&buffers);
        if (check_one_in(10))
            ul_buffers_rewind(&buffers);
    }
    close_pool();
}

static void arbitrary_completions_stay_inside_plain_buffers(void) { check_with_arbitrary_completions(false); }
static void arbitrary_completions_stay_inside_incremental_buffers(void) { check_with_arbitrary_completions(true); }

static void a_completion_without_bytes_gives_its_buffer_back(void) {
    open_pool(false);
    uint32_t cqe_flags = 3U << IORING_CQE_BUFFER_SHIFT | IORING_CQE_F_BUFFER;
    struct ul_span span = ul_buffers_take(&buffers, cqe_flags, -ECONNRESET);
    CHECK_INT(span.length, ==, 0);
    CHECK_INT(buffers.returned_count, ==, 1);
    CHECK_INT(buffers.returned[0], ==, 3);
    close_pool();
}

/* --- making and unmaking ----------------------------------------------------------------------------------------------------------- */

static void a_refused_pool_leaves_nothing(void) {
    open_pool(false);
    ul_buffers_close(&buffers, &ring, false);
    CHECK_INT(ul_buffers_open(&buffers, &ring, 0, 3, SIZE, false), ==, -EINVAL); /* not a power of two */
    CHECK(!buffers.open && !buffers.pool && !buffers.ring);
    close_pool();
}

static bool is_mapped(void *address) {
    unsigned char residency;
    return mincore(address, 1, &residency) == 0;
}

static void close_unmaps_the_pool(void) {
    open_pool(false);
    void *pool = buffers.pool, *entries = buffers.ring;
    close_pool();
    CHECK(!is_mapped(pool) && !is_mapped(entries));
}

static void the_group_can_be_registered_again_after_a_close(void) {
    open_pool(false);
    ul_buffers_close(&buffers, &ring, false);
    CHECK_INT(ul_buffers_open(&buffers, &ring, 0, COUNT, SIZE, false), ==, 0);
    close_pool();
}

static void a_pool_that_the_kernel_may_write_to_is_left_in_place(void) {
    open_pool(false);
    static char *pool; /* what is leaked here stays reachable, and so no leak to the sanitizer */
    static struct ul_buffers before;
    before = buffers;
    pool = buffers.pool;
    ul_buffers_close(&buffers, &ring, true);
    CHECK(is_mapped(pool) && is_mapped(before.ring));
    CHECK(!buffers.open);
    ul_ring_close(&ring);
}

static void an_abandoned_pool_gives_nothing(void) {
    open_pool(false);
    munmap(buffers.pool, ul_buffers_bytes(&buffers)); /* as it is for a forked child */
    munmap(buffers.ring, COUNT * sizeof *buffers.ring);
    ul_buffers_abandon(&buffers);
    CHECK_INT(ul_buffers_take(&buffers, IORING_CQE_F_BUFFER, 100).length, ==, 0);
    ul_buffers_recycle(&buffers);
    ul_buffers_close(&buffers, &ring, false);
    ul_ring_close(&ring);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    check_seed();
    RUN(plain_spans_are_where_the_kernel_wrote);
    RUN(incremental_spans_are_where_the_kernel_wrote);
    RUN(spans_are_where_the_kernel_wrote_if_buffers_are_rewound);
    RUN(nothing_of_plain_buffers_is_rewound);
    RUN(arbitrary_completions_stay_inside_plain_buffers);
    RUN(arbitrary_completions_stay_inside_incremental_buffers);
    RUN(a_completion_without_bytes_gives_its_buffer_back);
    RUN(a_refused_pool_leaves_nothing);
    RUN(close_unmaps_the_pool);
    RUN(the_group_can_be_registered_again_after_a_close);
    RUN(a_pool_that_the_kernel_may_write_to_is_left_in_place);
    RUN(an_abandoned_pool_gives_nothing);
    return check_end();
}
