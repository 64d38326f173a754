/* A hardened reactor: the kernel refuses what its engines do not do, on the first ring and on one that another thread needs. */
#include <pthread.h>

#include "check.h"
#include "driver.h"
#include "restrictions.h"

static struct ul_options hardened(void) {
    struct ul_options options = usual_setting->options;
    options.hardened = true;
    return options;
}

static int32_t result_of(struct driver *driver, uint16_t opcode, int fd) {
    int32_t token = ul_operation_start(driver->operations, opcode, fd, 0, 0, 0, 0, 0, 0);
    UNTIL(driver, driver_done(driver, token));
    return driver_done(driver, token)->result;
}

static void check_refusals(struct driver *driver) {
    struct ul_ring *ring = &driver->reactor->engine.ring;
    int32_t fd = -1;
    CHECK_INT(result_of(driver, IORING_OP_NOP, -1), ==, -EACCES);
    CHECK_INT(result_of(driver, IORING_OP_OPENAT, -1), ==, -EACCES);
    CHECK_INT(result_of(driver, IORING_OP_POLL_ADD | IOSQE_ASYNC << 8, -1), ==, -EACCES);
    CHECK_INT(result_of(driver, IORING_OP_POLL_ADD, -1), ==, -EBADF); /* is allowed */
    CHECK_INT(ul_ring_register(ring, IORING_REGISTER_FILES, &fd, 1), ==, -EACCES);
    CHECK_INT(ul_restrictions_register(ring), ==, -EACCES);
}

static void what_the_engines_do_not_do_is_refused(void) {
    struct ul_options options = hardened();
    struct driver *driver = driver_open(&options);
    check_refusals(driver);
    driver_close(driver);
}

static void without_it_nothing_is(void) {
    struct driver *driver = driver_open(&usual_setting->options);
    CHECK_INT(result_of(driver, IORING_OP_NOP, -1), ==, 0);
    driver_close(driver);
}

static void it_has_what_it_may_do(void) {
    struct ul_options options = hardened();
    struct driver *driver = driver_open(&options);
    CHECK(ul_reactor_has(driver->reactor, IORING_OP_RECV));
    CHECK(!ul_reactor_has(driver->reactor, IORING_OP_OPENAT));
    CHECK(driver_report(driver).hardened);
    driver_close(driver);
}

static void *begin_and_check(void *argument) {
    struct driver *driver = argument;
    CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
    CHECK_INT(driver_tick(driver, 0), >=, 0);
    check_refusals(driver);
    CHECK_INT(ul_reactor_close(driver->reactor), ==, 0);
    return NULL;
}

static void the_ring_of_another_thread_is_restricted_too(void) {
    pthread_t thread;
    struct ul_options options = hardened();
    struct driver *driver = driver_open(&options);
    ul_reactor_end(driver->reactor);
    CHECK_INT(pthread_create(&thread, NULL, begin_and_check, driver), ==, 0);
    pthread_join(thread, NULL);
    exit(0); /* the driver has no reactor to close any more */
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    RUN(what_the_engines_do_not_do_is_refused);
    RUN(without_it_nothing_is);
    RUN(it_has_what_it_may_do);
    RUN(the_ring_of_another_thread_is_restricted_too);
    return check_end();
}
