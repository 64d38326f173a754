/* The fixed-file table: its slots, and that the kernel's half of it lets go of a file when it is told to. */
#include "files.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include "check.h"

#define CAPACITY 8

static struct ul_ring ring;
static struct ul_files files;

static void open_table(int capacity) {
    int error = ul_ring_open(&ring, 16, 64, 0);
    if (error == -EPERM || error == -ENOSYS)
        check_skip("no io_uring: %s", strerror(-error));
    CHECK_INT(error, ==, 0);
    CHECK_INT(ul_ring_enable(&ring), ==, 0);
    CHECK_INT(ul_files_open(&files, &ring, capacity), ==, 0);
}

static void close_table(void) {
    ul_files_close(&files);
    ul_ring_close(&ring);
}

/* --- slots ------------------------------------------------------------------------------------------------------------------------- */

static void every_slot_is_taken_once(void) {
    bool taken[CAPACITY] = {false};
    open_table(CAPACITY);
    for (int i = 0; i < CAPACITY; i++) {
        int slot = ul_files_take(&files);
        CHECK(slot >= 0 && slot < CAPACITY);
        CHECK(!taken[slot]);
        taken[slot] = true;
    }
    CHECK_INT(ul_files_take(&files), ==, UL_NO_SLOT);
    close_table();
}

static void the_slot_given_back_last_is_taken_next(void) {
    open_table(CAPACITY);
    int first = ul_files_take(&files), second = ul_files_take(&files);
    ul_files_give_back(&files, first);
    ul_files_give_back(&files, second);
    CHECK_INT(ul_files_take(&files), ==, second);
    CHECK_INT(ul_files_take(&files), ==, first);
    close_table();
}

static void random_takes_and_returns_never_share_a_slot(void) {
    bool taken[CAPACITY] = {false};
    int held[CAPACITY], count = 0;
    open_table(CAPACITY);
    for (int step = 0; step < 10000; step++) {
        if (check_one_in(2)) {
            int slot = ul_files_take(&files);
            CHECK_INT(slot == UL_NO_SLOT, ==, count == CAPACITY);
            if (slot == UL_NO_SLOT)
                continue;
            CHECK(!taken[slot]);
            taken[slot] = true;
            held[count++] = slot;
        } else if (count) {
            uint32_t chosen = check_below((uint32_t)count);
            taken[held[chosen]] = false;
            ul_files_give_back(&files, held[chosen]);
            held[chosen] = held[--count];
        }
        CHECK_INT(ul_files_in_use(&files), ==, count);
    }
    close_table();
}

static void without_a_table_there_is_no_slot(void) {
    open_table(0);
    CHECK_INT(ul_files_take(&files), ==, UL_NO_SLOT);
    CHECK_INT(files.capacity, ==, 0);
    close_table();
}

static void a_table_beyond_the_limit_of_open_files_is_refused(void) {
    struct rlimit limit;
    SYSTEM(getrlimit(RLIMIT_NOFILE, &limit));
    open_table(0);
    CHECK_INT(ul_files_open(&files, &ring, (int)limit.rlim_cur + 1), ==, -EMFILE);
    CHECK_INT(ul_files_take(&files), ==, UL_NO_SLOT);
    close_table();
}

/* --- files ------------------------------------------------------------------------------------------------------------------------- */

static void update(int slot, int fd) {
    struct io_uring_sqe *sqe = ul_ring_sqe(&ring);
    sqe->opcode = IORING_OP_FILES_UPDATE;
    ul_files_prepare_update(&files, sqe, slot, fd);
}

static void send_through_slot(int slot) {
    struct io_uring_sqe *sqe = ul_ring_sqe(&ring);
    sqe->opcode = IORING_OP_SEND;
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->fd = slot;
    sqe->addr = (uint64_t)(uintptr_t)"x";
    sqe->len = 1;
}

static void expect_results(int count, const int *results) {
    CHECK_INT(ul_ring_enter(&ring, (uint32_t)count, -1), ==, 0);
    CHECK_INT(ul_ring_ready(&ring), ==, count);
    for (int i = 0; i < count; i++)
        CHECK_INT(ring.cqes[(ring.cq_head + (uint32_t)i) & ring.cq_mask].res, ==, results[i]);
    ul_ring_release_cqes(&ring, (uint32_t)count);
}

static void a_slot_is_filled_and_used_in_one_batch(void) {
    int ends[2];
    char byte;
    open_table(CAPACITY);
    SYSTEM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends));
    int slot = ul_files_take(&files);
    update(slot, ends[0]);
    send_through_slot(slot);
    expect_results(2, (int[]){1, 1});
    CHECK_INT(recv(ends[1], &byte, 1, 0), ==, 1);
    close(ends[0]);
    close(ends[1]);
    close_table();
}

static void an_emptied_slot_frees_the_socket(void) {
    int ends[2];
    char byte;
    open_table(CAPACITY);
    SYSTEM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends));
    int slot = ul_files_take(&files);
    update(slot, ends[0]);
    expect_results(1, (int[]){1});
    close(ends[0]);
    CHECK(recv(ends[1], &byte, 1, 0) < 0 && errno == EAGAIN); /* the slot keeps it open */
    update(slot, -1);
    send_through_slot(slot);
    expect_results(2, (int[]){1, -EBADF});
    CHECK_UNTIL(recv(ends[1], &byte, 1, 0) == 0, ul_ring_enter(&ring, 0, 0));
    close(ends[1]);
    close_table();
}

static void a_bad_descriptor_is_refused_its_slot(void) {
    open_table(CAPACITY);
    int slot = ul_files_take(&files);
    update(slot, 987654);
    send_through_slot(slot);
    expect_results(2, (int[]){-EBADF, -EBADF});
    close_table();
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    check_seed();
    RUN(every_slot_is_taken_once);
    RUN(the_slot_given_back_last_is_taken_next);
    RUN(random_takes_and_returns_never_share_a_slot);
    RUN(without_a_table_there_is_no_slot);
    RUN(a_table_beyond_the_limit_of_open_files_is_refused);
    RUN(a_slot_is_filled_and_used_in_one_batch);
    RUN(an_emptied_slot_frees_the_socket);
    RUN(a_bad_descriptor_is_refused_its_slot);
    return check_end();
}
