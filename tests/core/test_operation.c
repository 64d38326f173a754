/* One-shot operations: one DONE each, with the kernel's result, whatever happens to them in between. */
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "check.h"
#include "driver.h"

static const struct setting *setting; /* of the tests that are run now */

static struct driver *open_driver(void) { return driver_open(&setting->options); }

static int32_t start_poll(struct driver *driver, int fd, uint32_t events) {
    int32_t token = ul_operation_start(driver->operations, IORING_OP_POLL_ADD, fd, 0, 0, 0, events, 0, 0);
    CHECK_INT(token, >=, 0);
    return token;
}

static int32_t start_nop(struct driver *driver) { return ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0); }

static int result_of(struct driver *driver, int32_t operation) {
    UNTIL(driver, driver_done(driver, operation));
    return driver_done(driver, operation)->result;
}

static void open_pipe(int ends[2]) { SYSTEM(pipe2(ends, O_CLOEXEC | O_NONBLOCK)); }

static void close_pipe(int ends[2]) {
    close(ends[0]);
    close(ends[1]);
}

static void a_poll_tells_what_it_waits_for(void) {
    struct driver *driver = open_driver();
    int ends[2];
    open_pipe(ends);
    CHECK_INT(result_of(driver, start_poll(driver, ends[1], POLLOUT)), ==, POLLOUT);
    int32_t reading = start_poll(driver, ends[0], POLLIN);
    driver_fence(driver);
    CHECK(!driver_done(driver, reading));
    SYSTEM(write(ends[1], "x", 1));
    CHECK_INT(result_of(driver, reading), ==, POLLIN);
    driver_fence(driver);
    CHECK_INT(driver_done_times(driver, reading), ==, 1);
    close_pipe(ends);
    driver_close(driver);
}

static void a_cancelled_operation_is_done_once(void) {
    struct driver *driver = open_driver();
    int ends[2];
    open_pipe(ends);
    int32_t reading = start_poll(driver, ends[0], POLLIN);
    driver_fence(driver);
    CHECK_INT(ul_operation_cancel(driver->operations, reading), ==, 0);
    CHECK_INT(ul_operation_cancel(driver->operations, reading), ==, 0);
    CHECK_INT(ul_ring_unsubmitted(&driver->reactor->engine.ring), ==, 1); /* twice is once */
    CHECK_INT(result_of(driver, reading), ==, -ECANCELED);
    driver_fence(driver);
    CHECK_INT(driver_done_times(driver, reading), ==, 1);
    CHECK_INT(ul_operation_cancel(driver->operations, reading), ==, -ENOENT);
    close_pipe(ends);
    driver_close(driver);
}

static void an_operation_cancelled_in_the_turn_of_its_start_is_done(void) {
    struct driver *driver = open_driver();
    int ends[2];
    open_pipe(ends);
    int32_t reading = start_poll(driver, ends[0], POLLIN);
    CHECK_INT(ul_operation_cancel(driver->operations, reading), ==, 0);
    CHECK_INT(result_of(driver, reading), ==, -ECANCELED);
    close_pipe(ends);
    driver_close(driver);
}

static void a_cancel_that_comes_too_late_changes_nothing(void) {
    struct driver *driver = open_driver();
    int32_t nop = start_nop(driver);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0); /* it is over, but that is not heard yet */
    CHECK_INT(ul_operation_cancel(driver->operations, nop), ==, 0);
    CHECK_INT(result_of(driver, nop), ==, 0);
    driver_fence(driver);
    CHECK_INT(driver_done_times(driver, nop), ==, 1);
    driver_close(driver);
}

/* A cancel goes by token, so one that is still on its way cannot hit the next operation in the same entry. */
static void a_late_cancel_does_not_hit_a_stranger(void) {
    struct driver *driver = open_driver();
    int ends[2];
    open_pipe(ends);
    int32_t nop = start_nop(driver);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0);
    CHECK_INT(ul_operation_cancel(driver->operations, nop), ==, 0);
    CHECK_INT(result_of(driver, nop), ==, 0);
    int32_t stranger = start_poll(driver, ends[0], POLLIN);
    CHECK_INT(stranger & ((1 << UL_INDEX_BITS) - 1), ==, nop & ((1 << UL_INDEX_BITS) - 1));
    driver_fence(driver);
    CHECK(!driver_done(driver, stranger));
    ul_operation_cancel(driver->operations, stranger);
    CHECK_INT(result_of(driver, stranger), ==, -ECANCELED);
    close_pipe(ends);
    driver_close(driver);
}

static void errors_are_results(void) {
    struct driver *driver = open_driver();
    char byte;
    int32_t bad_file = ul_operation_start(driver->operations, IORING_OP_READ, 987654, (uint64_t)(uintptr_t)&byte, 1, 0, 0, 0, 0);
    int32_t bad_opcode = ul_operation_start(driver->operations, 255, -1, 0, 0, 0, 0, 0, 0);
    int32_t good = start_nop(driver);
    CHECK_INT(result_of(driver, bad_file), ==, -EBADF);
    CHECK_INT(result_of(driver, bad_opcode), ==, -EINVAL);
    CHECK_INT(result_of(driver, good), ==, 0);
    driver_close(driver);
}

static void a_read_fills_its_memory(void) {
    struct driver *driver = open_driver();
    int ends[2];
    char data[16] = "";
    open_pipe(ends);
    SYSTEM(write(ends[1], "hello", 5));
    int32_t reading = ul_operation_start(driver->operations, IORING_OP_READ, ends[0], (uint64_t)(uintptr_t)data, sizeof data, UINT64_MAX, 0, 0, 0);
    CHECK_INT(result_of(driver, reading), ==, 5);
    CHECK(memcmp(data, "hello", 5) == 0);
    close_pipe(ends);
    driver_close(driver);
}

static void a_thousand_operations_are_done_once_each(void) {
    enum { OPERATIONS = 1000 };
    struct driver *driver = open_driver();
    int32_t tokens[OPERATIONS];
    for (int i = 0; i < OPERATIONS; i++)
        tokens[i] = start_nop(driver);
    UNTIL(driver, driver->done_count >= OPERATIONS);
    driver_fence(driver);
    for (int i = 0; i < OPERATIONS; i++) {
        CHECK_INT(driver_done_times(driver, tokens[i]), ==, 1);
        CHECK_INT(driver->done[i].operation, ==, tokens[i]); /* in their order: they complete while they are submitted */
    }
    driver_close(driver);
}

/* What a closed descriptor was polled for stays so until it is cancelled, and does not move to the next file of that number. */
static void a_poll_belongs_to_the_file_and_not_to_its_number(void) {
    struct driver *driver = open_driver();
    int ends[2], others[2];
    open_pipe(ends);
    int32_t reading = start_poll(driver, ends[0], POLLIN);
    driver_fence(driver);
    close(ends[0]);
    open_pipe(others);
    CHECK_INT(others[0], ==, ends[0]);
    SYSTEM(write(others[1], "x", 1));
    driver_fence(driver);
    CHECK(!driver_done(driver, reading));
    CHECK_INT(ul_operation_cancel(driver->operations, reading), ==, 0);
    CHECK_INT(result_of(driver, reading), ==, -ECANCELED);
    close(ends[1]);
    close_pipe(others);
    driver_close(driver);
}

static void any_token_may_be_cancelled(void) {
    struct driver *driver = open_driver();
    const int32_t tokens[] = {INT32_MIN, -1, 0, 1, INT32_MAX};
    for (size_t i = 0; i < sizeof tokens / sizeof *tokens; i++)
        CHECK_INT(ul_operation_cancel(driver->operations, tokens[i]), ==, -ENOENT);
    driver_close(driver);
}

/* The attempt in place opens a FIFO for reading at once, as O_NONBLOCK does; a worker thread waits for the writer. */
static void an_operation_may_go_to_a_worker_thread_at_once(void) {
    struct driver *driver = open_driver();
    char folder[] = "/tmp/uringloop-XXXXXX", path[sizeof folder + 8];
    CHECK(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/fifo", folder);
    SYSTEM(mkfifo(path, 0600));
    const uint16_t opcode = IORING_OP_OPENAT | IOSQE_ASYNC << 8;
    int32_t opening = ul_operation_start(driver->operations, opcode, AT_FDCWD, (uint64_t)(uintptr_t)path, 0, 0, O_RDONLY | O_CLOEXEC, 0, 0);
    driver_fence(driver);
    CHECK(!driver_done(driver, opening));
    int writer = open(path, O_RDWR | O_CLOEXEC);
    CHECK_INT(writer, >=, 0);
    int reader = result_of(driver, opening);
    CHECK_INT(reader, >=, 0);
    close(reader);
    close(writer);
    unlink(path);
    rmdir(folder);
    driver_close(driver);
}

static void the_kernel_tells_what_operations_it_has(void) {
    struct driver *driver = open_driver();
    CHECK(ul_reactor_has(driver->reactor, IORING_OP_READ));
    CHECK(!ul_reactor_has(driver->reactor, 255));
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(a_poll_tells_what_it_waits_for);
        RUN(a_cancelled_operation_is_done_once);
        RUN(an_operation_cancelled_in_the_turn_of_its_start_is_done);
        RUN(a_cancel_that_comes_too_late_changes_nothing);
        RUN(a_late_cancel_does_not_hit_a_stranger);
        RUN(errors_are_results);
        RUN(a_read_fills_its_memory);
        RUN(a_thousand_operations_are_done_once_each);
        RUN(a_poll_belongs_to_the_file_and_not_to_its_number);
        RUN(any_token_may_be_cancelled);
        RUN(an_operation_may_go_to_a_worker_thread_at_once);
        RUN(the_kernel_tells_what_operations_it_has);
    }
    return check_end();
}
