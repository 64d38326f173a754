/* The ring by itself: set-up, the two queues, sleeping, ownership, the way out. */
#include "ring.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

#define CQ_ENTRIES 256

static void open_disabled(struct ul_ring *ring, uint32_t sq_entries, uint32_t cq_entries, uint32_t without) {
    int error = ul_ring_open(ring, sq_entries, cq_entries, without);
    if (error == -EPERM || error == -ENOSYS)
        check_skip("no io_uring: %s", strerror(-error));
    if (error == -EINVAL && without)
        check_skip("this kernel wants what is left out");
    CHECK_INT(error, ==, 0);
}

static void open_enabled(struct ul_ring *ring, uint32_t sq_entries, uint32_t cq_entries) {
    open_disabled(ring, sq_entries, cq_entries, 0);
    CHECK_INT(ul_ring_enable(ring), ==, 0);
}

static void queue_nop(struct ul_ring *ring, uint64_t user_data) {
    struct io_uring_sqe *sqe = ul_ring_sqe(ring);
    CHECK(sqe);
    sqe->opcode = IORING_OP_NOP;
    sqe->user_data = user_data;
}

/* Takes the completions that are there; each must be the one after the last. */
static void take_in_order(struct ul_ring *ring, uint64_t *next) {
    uint32_t ready = ul_ring_ready(ring);
    for (uint32_t i = 0; i < ready; i++) {
        const struct io_uring_cqe *cqe = &ring->cqes[(ring->cq_head + i) & ring->cq_mask];
        CHECK_INT(cqe->user_data, ==, *next);
        CHECK_INT(cqe->res, ==, 0);
        ++*next;
    }
    ul_ring_release_cqes(ring, ready);
}

static void check_that_it_works(struct ul_ring *ring) {
    uint64_t next = 7;
    queue_nop(ring, 7);
    CHECK_INT(ul_ring_unsubmitted(ring), ==, 1);
    CHECK_INT(ul_ring_enter(ring, 1, -1), ==, 0);
    CHECK_INT(ul_ring_unsubmitted(ring), ==, 0);
    take_in_order(ring, &next);
    CHECK_INT(next, ==, 8);
    CHECK_INT(ul_ring_ready(ring), ==, 0);
}

/* --- set-up ------------------------------------------------------------------------------------------------------------------------ */

static void check_rung(uint32_t without, uint32_t expected) {
    struct ul_ring ring;
    open_disabled(&ring, 8, 16, without);
    CHECK_INT(ring.setup_flags & without, ==, 0);
    CHECK_INT(ring.setup_flags & expected, ==, expected);
    CHECK(ring.setup_flags & IORING_SETUP_SUBMIT_ALL);
    CHECK_INT(ul_ring_enable(&ring), ==, 0);
    check_that_it_works(&ring);
    ul_ring_close(&ring);
}

static void the_ladder_starts_with_the_best(void) {
    check_rung(0, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG);
}

static void the_ladder_does_with_an_array_of_indices(void) { check_rung(IORING_SETUP_NO_SQARRAY, 0); }
static void the_ladder_does_without_deferred_work(void) { check_rung(IORING_SETUP_DEFER_TASKRUN, IORING_SETUP_COOP_TASKRUN); }
static void the_ladder_does_without_a_single_issuer(void) { check_rung(IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_COOP_TASKRUN); }

static void the_ladder_ends(void) {
    struct ul_ring ring;
    CHECK_INT(ul_ring_open(&ring, 8, 16, IORING_SETUP_TASKRUN_FLAG), ==, -EINVAL);
    CHECK_INT(ring.fd, ==, -1);
    ul_ring_close(&ring);
}

static void a_ring_is_disabled_until_it_is_enabled(void) {
    struct ul_ring ring;
    open_disabled(&ring, 8, 16, 0);
    queue_nop(&ring, 7);
    CHECK_INT(ul_ring_enter(&ring, 0, 0), ==, -EBADFD);
    CHECK_INT(ul_ring_unsubmitted(&ring), ==, 1);
    CHECK_INT(ul_ring_enable(&ring), ==, 0);
    uint64_t next = 7;
    CHECK_INT(ul_ring_enter(&ring, 1, -1), ==, 0);
    take_in_order(&ring, &next);
    CHECK_INT(next, ==, 8);
    ul_ring_close(&ring);
}

/* --- the queues -------------------------------------------------------------------------------------------------------------------- */

/* More requests than the SQ has room for, and completions than the CQ has, in several rounds. */
static void check_that_order_is_kept(uint32_t sq_entries, uint32_t cq_entries) {
    struct ul_ring ring;
    uint64_t queued = 0, taken = 0;
    open_enabled(&ring, sq_entries, cq_entries);
    CHECK_INT(ring.sq_entries, ==, sq_entries);
    for (int round = 0; round < 50; round++) {
        for (uint32_t i = check_below(40); i > 0; i--)
            queue_nop(&ring, queued++);
        if (check_one_in(3))
            continue; /* the next round queues behind what has spilled */
        int error = ul_ring_enter(&ring, 0, 0);
        CHECK(error == 0 || error == -EBUSY);
        take_in_order(&ring, &taken);
    }
    CHECK_UNTIL(taken == queued, { ul_ring_enter(&ring, 0, 0); take_in_order(&ring, &taken); });
    CHECK_INT(ul_ring_unsubmitted(&ring), ==, 0);
    CHECK_INT(ring.spill_count, ==, 0);
    ul_ring_close(&ring);
}

static void one_entry_keeps_the_order(void) { check_that_order_is_kept(1, CQ_ENTRIES); }
static void two_entries_keep_the_order(void) { check_that_order_is_kept(2, CQ_ENTRIES); }
static void four_entries_keep_the_order(void) { check_that_order_is_kept(4, CQ_ENTRIES); }
static void a_tiny_cq_keeps_the_order(void) { check_that_order_is_kept(4, 4); }
static void a_large_ring_keeps_the_order(void) { check_that_order_is_kept(256, 1024); }

static void an_enter_submits_what_has_spilled(void) {
    struct ul_ring ring;
    uint64_t next = 0;
    open_enabled(&ring, 4, CQ_ENTRIES);
    for (uint64_t i = 0; i < 100; i++)
        queue_nop(&ring, i);
    CHECK_INT(ul_ring_unsubmitted(&ring), ==, 100);
    CHECK_INT(ul_ring_enter(&ring, 1, -1), ==, 0);
    CHECK_INT(ul_ring_unsubmitted(&ring), ==, 0);
    take_in_order(&ring, &next);
    CHECK_INT(next, ==, 100);
    ul_ring_close(&ring);
}

static void an_overflown_cq_loses_nothing(void) {
    struct ul_ring ring;
    uint64_t next = 0;
    open_enabled(&ring, 64, 64);
    CHECK(!ul_ring_has_overflown(&ring));
    for (uint64_t i = 0; i < 200; i++)
        queue_nop(&ring, i);
    ul_ring_enter(&ring, 0, 0);
    CHECK(ul_ring_has_overflown(&ring));
    CHECK(ul_ring_has_work(&ring));
    CHECK_INT(ring.overflows, >, 0);
    CHECK_UNTIL(next == 200, { take_in_order(&ring, &next); ul_ring_enter(&ring, 0, 0); });
    CHECK(!ul_ring_has_overflown(&ring));
    ul_ring_close(&ring);
}

static void a_bad_request_does_not_stop_those_after_it(void) {
    struct ul_ring ring;
    open_enabled(&ring, 8, 16);
    struct io_uring_sqe *sqe = ul_ring_sqe(&ring);
    sqe->opcode = 255;
    queue_nop(&ring, 1);
    CHECK_INT(ul_ring_enter(&ring, 2, -1), ==, 0);
    CHECK_INT(ul_ring_ready(&ring), ==, 2);
    CHECK_INT(ring.cqes[ring.cq_head & ring.cq_mask].res, ==, -EINVAL);
    CHECK_INT(ring.cqes[(ring.cq_head + 1) & ring.cq_mask].res, ==, 0);
    ul_ring_close(&ring);
}

static void an_sqe_is_zeroed_each_time(void) {
    struct ul_ring ring;
    const struct io_uring_sqe zero = {0};
    open_enabled(&ring, 2, CQ_ENTRIES);
    for (int i = 0; i < 20; i++) {
        struct io_uring_sqe *sqe = ul_ring_sqe(&ring);
        CHECK(memcmp(sqe, &zero, sizeof zero) == 0);
        memset(sqe, 0xEE, sizeof *sqe);
        sqe->opcode = IORING_OP_NOP;
        sqe->flags = 0;
        if (i % 5 == 0)
            ul_ring_enter(&ring, 0, 0);
    }
    ul_ring_close(&ring);
}

/* --- sleeping ---------------------------------------------------------------------------------------------------------------------- */

static void a_sleep_lasts_its_time(void) {
    struct ul_ring ring;
    open_enabled(&ring, 8, 16);
    int64_t started = check_now_ns();
    CHECK_INT(ul_ring_enter(&ring, 1, 20 * MILLISECOND), ==, -ETIME);
    int64_t slept = check_now_ns() - started;
    CHECK_INT(slept, >=, 20 * MILLISECOND);
    CHECK_INT(slept, <, CHECK_PATIENCE_NS / 2);
    ul_ring_close(&ring);
}

static void an_enter_that_wants_nothing_does_not_sleep(void) {
    struct ul_ring ring;
    open_enabled(&ring, 8, 16);
    CHECK_INT(ul_ring_enter(&ring, 0, -1), ==, 0);
    ul_ring_close(&ring);
}

static void count_signal(int signal) { (void)signal; }

/* A timer that goes on firing: a signal that comes before the sleep has begun is followed by one that does not. */
static void a_signal_ends_a_sleep(void) {
    struct ul_ring ring;
    timer_t timer;
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    struct itimerspec every_5_ms = {{0, 5 * MILLISECOND}, {0, 5 * MILLISECOND}};
    open_enabled(&ring, 8, 16);
    SYSTEM(sigaction(SIGUSR1, &action, NULL));
    SYSTEM(timer_create(CLOCK_MONOTONIC, &event, &timer));
    SYSTEM(timer_settime(timer, 0, &every_5_ms, NULL));
    CHECK_INT(ul_ring_enter(&ring, 1, CHECK_PATIENCE_NS), ==, -EINTR);
    SYSTEM(timer_delete(timer));
    ul_ring_close(&ring);
}

/* --- ownership --------------------------------------------------------------------------------------------------------------------- */

static void *enable_and_use(void *argument) {
    struct ul_ring *ring = argument;
    CHECK_INT(ul_ring_enable(ring), ==, 0);
    check_that_it_works(ring);
    return NULL;
}

static void the_thread_that_enables_a_ring_owns_it(void) {
    struct ul_ring ring;
    pthread_t thread;
    open_disabled(&ring, 8, 16, 0);
    if (!(ring.setup_flags & IORING_SETUP_SINGLE_ISSUER))
        check_skip("this kernel has no single issuer");
    CHECK_INT(pthread_create(&thread, NULL, enable_and_use, &ring), ==, 0);
    CHECK_INT(pthread_join(thread, NULL), ==, 0);
    queue_nop(&ring, 7);
    CHECK_INT(ul_ring_enter(&ring, 1, -1), ==, -EEXIST);
    CHECK_INT(ul_ring_unsubmitted(&ring), ==, 1);
    CHECK_INT(ul_ring_register_self(&ring), ==, -EEXIST);
    ul_ring_close(&ring);
}

static void a_ring_registers_itself_any_number_of_times(void) {
    struct ul_ring ring;
    open_enabled(&ring, 8, 16);
    for (int i = 0; i < 20; i++) { /* a thread has sixteen places */
        CHECK_INT(ul_ring_register_self(&ring), ==, 0);
        CHECK_INT(ring.registered_index, >=, 0);
        check_that_it_works(&ring);
        CHECK_INT(ul_ring_unregister_self(&ring), ==, 0);
        CHECK_INT(ring.registered_index, ==, -1);
        check_that_it_works(&ring);
    }
    CHECK_INT(ul_ring_unregister_self(&ring), ==, 0);
    ul_ring_close(&ring);
}

static void the_seventeenth_registration_of_a_thread_is_refused_and_harmless(void) {
    struct ul_ring rings[17];
    for (int i = 0; i < 17; i++) {
        open_enabled(&rings[i], 2, 4);
        CHECK_INT(ul_ring_register_self(&rings[i]), ==, i < 16 ? 0 : -EBUSY);
    }
    CHECK_INT(rings[16].registered_index, ==, -1);
    for (int i = 0; i < 17; i++)
        check_that_it_works(&rings[i]);
    for (int i = 0; i < 17; i++) {
        CHECK_INT(ul_ring_unregister_self(&rings[i]), ==, 0);
        ul_ring_close(&rings[i]);
    }
}

/* --- the way out ------------------------------------------------------------------------------------------------------------------- */

static bool is_mapped(void *address) {
    unsigned char residency;
    return mincore(address, 1, &residency) == 0;
}

static void close_gives_everything_back(void) {
    struct ul_ring ring;
    open_enabled(&ring, 2, 4);
    void *map = ring.map, *sqes = ring.sqes;
    int fd = ring.fd;
    for (int i = 0; i < 10; i++)
        queue_nop(&ring, 0);
    CHECK(is_mapped(map) && is_mapped(sqes));
    ul_ring_close(&ring);
    CHECK(!is_mapped(map) && !is_mapped(sqes));
    CHECK(fcntl(fd, F_GETFD) < 0 && errno == EBADF);
    ul_ring_close(&ring); /* a second time is harmless */
}

/* What the parent maps is not in the child, and an abandoned ring swallows every call. */
static int use_an_abandoned_ring(struct ul_ring *ring, int parents_fd) {
    CHECK(!is_mapped(ring->map) && !is_mapped(ring->sqes));
    ul_ring_abandon(ring);
    CHECK(fcntl(parents_fd, F_GETFD) < 0 && errno == EBADF);
    for (uint64_t i = 0; i < 200; i++)
        queue_nop(ring, i);
    CHECK_INT(ul_ring_unsubmitted(ring), ==, 200);
    CHECK_INT(ul_ring_enter(ring, 1, 0), <, 0);
    CHECK_INT(ul_ring_ready(ring), ==, 0);
    CHECK(!ul_ring_has_work(ring) && !ul_ring_has_overflown(ring));
    CHECK_INT(ul_ring_unregister_self(ring), ==, 0);
    ul_ring_close(ring);
    return EXIT_SUCCESS;
}

static void a_forked_child_abandons_the_ring_and_the_parent_goes_on(void) {
    struct ul_ring ring;
    int status;
    open_enabled(&ring, 8, CQ_ENTRIES);
    CHECK_INT(ul_ring_register_self(&ring), ==, 0);
    queue_nop(&ring, 7);
    fflush(stdout);
    pid_t child = SYSTEM(fork());
    if (child == 0)
        exit(use_an_abandoned_ring(&ring, ring.fd));
    SYSTEM(waitpid(child, &status, 0));
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SUCCESS);
    uint64_t next = 7;
    CHECK_INT(ul_ring_enter(&ring, 1, -1), ==, 0);
    take_in_order(&ring, &next);
    CHECK_INT(next, ==, 8);
    CHECK_INT(ul_ring_unregister_self(&ring), ==, 0);
    ul_ring_close(&ring);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    check_seed();
    RUN(the_ladder_starts_with_the_best);
    RUN(the_ladder_does_with_an_array_of_indices);
    RUN(the_ladder_does_without_deferred_work);
    RUN(the_ladder_does_without_a_single_issuer);
    RUN(the_ladder_ends);
    RUN(a_ring_is_disabled_until_it_is_enabled);
    RUN(one_entry_keeps_the_order);
    RUN(two_entries_keep_the_order);
    RUN(four_entries_keep_the_order);
    RUN(a_tiny_cq_keeps_the_order);
    RUN(a_large_ring_keeps_the_order);
    RUN(an_enter_submits_what_has_spilled);
    RUN(an_overflown_cq_loses_nothing);
    RUN(a_bad_request_does_not_stop_those_after_it);
    RUN(an_sqe_is_zeroed_each_time);
    RUN(a_sleep_lasts_its_time);
    RUN(an_enter_that_wants_nothing_does_not_sleep);
    RUN(a_signal_ends_a_sleep);
    RUN(the_thread_that_enables_a_ring_owns_it);
    RUN(a_ring_registers_itself_any_number_of_times);
    RUN(the_seventeenth_registration_of_a_thread_is_refused_and_harmless);
    RUN(close_gives_everything_back);
    RUN(a_forked_child_abandons_the_ring_and_the_parent_goes_on);
    return check_end();
}
