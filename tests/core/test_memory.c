/* Every allocation of the core fails once, alone and with all that follow it: calls say so, nothing is touched that is not there, and when
 * memory is back close gives everything back.
 *
 * The linker puts these functions in the place of malloc, calloc and realloc; see the Makefile.
 */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);

/* How many allocations succeed before the first fails, and how many fail then. Negative: all succeed. */
static int before_failure = -1, failures;

static bool fails(void) {
    if (before_failure < 0)
        return false;
    if (before_failure > 0) {
        before_failure--;
        return false;
    }
    if (failures == 0)
        return false;
    failures--;
    return true;
}

void *__wrap_malloc(size_t bytes) { return fails() ? NULL : __real_malloc(bytes); }
void *__wrap_calloc(size_t count, size_t bytes) { return fails() ? NULL : __real_calloc(count, bytes); }
void *__wrap_realloc(void *memory, size_t bytes) { return fails() ? NULL : __real_realloc(memory, bytes); }

enum { STREAMS = 70, ALL = 1 << 20 }; /* more streams than a chunk of the table, and requests than a tiny ring and the first spill hold */

struct world {
    int fds[STREAMS];
    struct peer peers[STREAMS];
    int listener;
    int datagrams[2]; /* a connected pair */
};

static char data[20000];

static void open_world(struct world *world) {
    for (int i = 0; i < STREAMS; i++)
        world->fds[i] = peer_connect(&world->peers[i], FAMILY_UNIX);
    world->listener = listen_on_loopback(1);
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, world->datagrams));
}

static void close_world(struct world *world) {
    for (int i = 0; i < STREAMS; i++) {
        close(world->fds[i]);
        CHECK(peer_is_at_the_end(&world->peers[i]));
        peer_free(&world->peers[i]);
    }
    close(world->listener);
    close(world->datagrams[0]);
    close(world->datagrams[1]);
}

static void use_streams(struct ul_streams *streams, const struct world *world) {
    for (int i = 0; i < STREAMS; i++) {
        int32_t token = ul_stream_open(streams, world->fds[i]);
        CHECK(token >= 0 || token == -ENOMEM);
        if (token < 0)
            continue;
        ul_stream_read(streams, token, true);
        int64_t copied = ul_stream_write(streams, token, data, sizeof data);
        int64_t pinned = ul_stream_write_pinned(streams, token, data, sizeof data);
        CHECK(copied >= 0 || copied == -ENOMEM || copied == -EPIPE);
        CHECK(pinned >= 0 || pinned == -ENOMEM || pinned == -EPIPE);
        if (i % 3 == 0)
            ul_stream_close(streams, token);
        if (i % 3 == 1)
            ul_stream_read(streams, token, false);
    }
}

static void use_endpoint(struct ul_endpoints *endpoints, const struct world *world) {
    int32_t token = ul_endpoint_open(endpoints, world->datagrams[0], 0);
    CHECK(token >= 0 || token == -ENOMEM);
    if (token < 0)
        return;
    ul_endpoint_read(endpoints, token, true);
    SYSTEM(send(world->datagrams[1], "x", 1, 0));
    for (int i = 0; i < 3; i++) {
        int64_t queued = ul_endpoint_write(endpoints, token, data, 100, "", 0);
        CHECK(queued >= 0 || queued == -ENOMEM);
    }
}

static void use_reactor(struct ul_reactor *reactor, const struct world *world) {
    CHECK_INT(ul_reactor_begin(reactor), ==, 0);
    use_streams(ul_reactor_streams(reactor), world);
    use_endpoint(ul_reactor_endpoints(reactor), world);
    int32_t listener = ul_listener_open(ul_reactor_listeners(reactor), world->listener);
    int32_t operation = ul_operation_start(ul_reactor_operations(reactor), IORING_OP_POLL_ADD, world->fds[0], 0, 0, 0, 0, 0, 0);
    for (int i = 0; i < 5; i++)
        CHECK_INT(ul_reactor_tick(reactor, 0), >=, 0);
    if (listener >= 0)
        ul_listener_close(ul_reactor_listeners(reactor), listener);
    if (operation >= 0)
        ul_operation_cancel(ul_reactor_operations(reactor), operation);
    for (int i = 0; i < 5; i++)
        CHECK_INT(ul_reactor_tick(reactor, 0), >=, 0);
    ul_reactor_end(reactor);
}

/* True if anything was left to fail. */
static bool run_with_failures(const struct setting *setting, int before, int count) {
    struct world world;
    int error = 0;
    open_world(&world);
    before_failure = before;
    failures = count;
    struct ul_reactor *reactor = ul_reactor_open(&setting->options, &error);
    CHECK(reactor || error == -ENOMEM);
    if (reactor)
        use_reactor(reactor, &world);
    bool failed = failures < count;
    before_failure = -1;
    if (reactor)
        CHECK_INT(ul_reactor_close(reactor), ==, 0);
    close_world(&world);
    return failed;
}

static void any_allocation_may_fail(void) {
    int before = 0;
    driver_close(driver_open(&tiny_setting->options)); /* skips where there is no io_uring */
    while (run_with_failures(tiny_setting, before, 1))
        before++;
    CHECK_INT(before, >, 100);
}

static void memory_may_run_out_at_any_time(void) {
    int before = 0;
    driver_close(driver_open(&tiny_setting->options));
    while (run_with_failures(tiny_setting, before, ALL))
        before++;
    CHECK_INT(before, >, 100);
}

/* What follows a write of which a part was sent would be taken for its rest. */
static void write_that_is_half_sent_ends_the_stream(void) {
    struct driver *driver = driver_open(&usual_setting->options);
    struct connection connection = connection_open_small(driver, FAMILY_UNIX);
    before_failure = 0;
    failures = ALL;
    int64_t queued = ul_stream_write(driver->streams, connection.token, data, sizeof data);
    before_failure = -1;
    CHECK_INT(queued, ==, -ENOMEM);
    CHECK_INT(driver_report(driver).stats.bytes_sent, >, 0);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "next", 4), ==, -EPIPE); /* not taken any more */
    UNTIL(driver, driver_heard(driver, connection.token)->lost);
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, ENOMEM);
    connection_finish(driver, &connection);
    driver_close(driver);
}

/* The SQ is full and there is no memory for the spill: what is asked for then is asked for later. */
static void fill_the_ring(struct driver *driver, int fd) {
    before_failure = 0;
    failures = ALL;
    for (int32_t token = 0; token >= 0;)
        token = ul_operation_start(driver->operations, IORING_OP_NOP, fd, 0, 0, 0, 0, 0, 0);
}

static void a_stream_closed_without_memory_is_lost(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    ul_stream_read(driver->streams, connection.token, true);
    driver_fence(driver);
    fill_the_ring(driver, connection.fd);
    ul_stream_close(driver->streams, connection.token);
    before_failure = -1;
    UNTIL(driver, driver_heard(driver, connection.token)->lost);
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void a_stream_that_could_not_leave_its_slot_is_lost(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    for (int i = 0; i < 2; i++) {
        ul_stream_write(driver->streams, connection.token, "data", 4);
        driver_fence(driver);
    }
    CHECK_INT(driver_report(driver).slots_in_use, ==, 1);
    fill_the_ring(driver, connection.fd);
    ul_stream_close(driver->streams, connection.token);
    before_failure = -1;
    UNTIL(driver, driver_heard(driver, connection.token)->lost);
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void a_waiting_send_aborted_without_memory_is_over(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    struct connection connection = connection_open_small(driver, FAMILY_UNIX);
    for (int i = 0; i < 20; i++)
        ul_stream_write(driver->streams, connection.token, data, sizeof data);
    driver_fence(driver);
    fill_the_ring(driver, connection.fd);
    ul_stream_abort(driver->streams, connection.token, 0);
    before_failure = -1;
    UNTIL(driver, driver_heard(driver, connection.token)->lost);
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void an_operation_that_could_not_be_cancelled_can_be_later(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    int ends[2];
    SYSTEM(pipe2(ends, O_CLOEXEC));
    int32_t token = ul_operation_poll(driver->operations, ends[0], POLLIN);
    driver_fence(driver);
    fill_the_ring(driver, ends[0]);
    CHECK_INT(ul_operation_cancel(driver->operations, token), ==, -ENOMEM);
    before_failure = -1;
    driver_fence(driver);
    CHECK_INT(ul_operation_cancel(driver->operations, token), ==, 0);
    UNTIL(driver, driver_done(driver, token));
    CHECK_INT(driver_done(driver, token)->result, ==, -ECANCELED);
    driver_close(driver);
    close(ends[0]);
    close(ends[1]);
}

enum { OPERATIONS = 20 };

struct moving {
    struct driver *driver;
    int32_t tokens[OPERATIONS];
    int ends[2];
};

static void *move_without_memory(void *argument) {
    struct moving *moving = argument;
    struct driver *driver = moving->driver;
    int failed = 0;
    CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
    before_failure = 0;
    failures = ALL;
    CHECK_INT(ul_reactor_tick(driver->reactor, 0), >=, 0);
    before_failure = -1;
    ul_reactor_keep_events(driver->reactor);
    SYSTEM(write(moving->ends[1], "x", 1));
    for (int i = 0; i < OPERATIONS; i++) {
        UNTIL(driver, driver_done(driver, moving->tokens[i]));
        failed += driver_done(driver, moving->tokens[i])->result == -ENOMEM;
    }
    CHECK(failed > 0 && failed < OPERATIONS);
    ul_reactor_end(driver->reactor);
    return NULL;
}

/* More operations than the next ring has room for: none is left without an end. */
static void operations_for_which_a_move_has_no_memory_are_over(void) {
    struct moving moving = {.driver = driver_open(&tiny_setting->options)};
    pthread_t thread;
    SYSTEM(pipe2(moving.ends, O_CLOEXEC));
    for (int i = 0; i < OPERATIONS; i++)
        moving.tokens[i] = ul_operation_poll(moving.driver->operations, moving.ends[0], POLLIN);
    driver_fence(moving.driver);
    ul_reactor_end(moving.driver->reactor);
    CHECK_INT(pthread_create(&thread, NULL, move_without_memory, &moving), ==, 0);
    CHECK_INT(pthread_join(thread, NULL), ==, 0);
    CHECK_INT(ul_reactor_begin(moving.driver->reactor), ==, 0);
    driver_close(moving.driver);
    close(moving.ends[0]);
    close(moving.ends[1]);
}

/* The poll that tells of wakes ends, as when the CQ has overflown, while there is no memory to ask for another. */
static void a_wake_is_heard_after_memory_was_out(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    driver_fence(driver);
    ul_cancel(&driver->reactor->engine, ul_user_data(UL_REQUEST_WAKE, 0));
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0); /* its last completion is there, and is taken in the next tick */
    fill_the_ring(driver, 0);
    CHECK_INT(ul_reactor_tick(driver->reactor, 0), >=, 0);
    before_failure = -1;
    driver_fence(driver);
    ul_wake(driver->reactor->wake);
    int64_t started = check_now_ns();
    driver_tick(driver, 3000 * MILLISECOND);
    CHECK_INT(check_now_ns() - started, <, 2000 * MILLISECOND);
    driver_close(driver);
}

static bool is_lost(const struct driver *driver) {
    return driver->note_count && driver->notes[driver->note_count - 1].kind == UL_EVENT_ENDPOINT_LOST;
}

static void an_endpoint_closed_without_memory_is_lost(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    int fds[2];
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, fds));
    int32_t token = ul_endpoint_open(driver->endpoints, fds[0], 0);
    ul_endpoint_read(driver->endpoints, token, true);
    driver_fence(driver);
    fill_the_ring(driver, fds[0]);
    ul_endpoint_close(driver->endpoints, token);
    before_failure = -1;
    UNTIL(driver, is_lost(driver));
    close(fds[0]);
    close(fds[1]);
    driver_close(driver);
}

/* An endpoint on a Unix socket, with more to send than the other one takes. */
static int32_t open_full(struct driver *driver, int *fds) {
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, fds));
    int32_t token = ul_endpoint_open(driver->endpoints, fds[0], 0);
    for (int i = 0; i < 1000; i++)
        ul_endpoint_write(driver->endpoints, token, data, 100, "", 0);
    return token;
}

static void a_full_endpoint_aborted_without_memory_is_lost(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    int fds[2];
    int32_t token = open_full(driver, fds);
    driver_fence(driver);
    fill_the_ring(driver, fds[0]);
    ul_endpoint_abort(driver->endpoints, token);
    before_failure = -1;
    UNTIL(driver, is_lost(driver));
    close(fds[0]);
    close(fds[1]);
    driver_close(driver);
}

static void a_full_endpoint_waits_for_room_though_memory_was_out(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    int fds[2], quiet[2];
    int32_t polls[4]; /* as many as the SQ holds, and none of them ends the sleep */
    SYSTEM(pipe(quiet));
    int32_t token = open_full(driver, fds);
    for (int i = 0; i < 4; i++)
        polls[i] = ul_operation_poll(driver->operations, quiet[0], POLLIN);
    before_failure = 0;
    failures = ALL;
    int64_t started = check_now_ns();
    CHECK_INT(ul_reactor_tick(driver->reactor, 3000 * MILLISECOND), ==, 0);
    before_failure = -1;
    CHECK_INT(check_now_ns() - started, <, 2000 * MILLISECOND);
    CHECK_UNTIL(ul_endpoint_queued(driver->endpoints, token) == 0, {
        while (recv(fds[1], data, sizeof data, MSG_DONTWAIT) > 0)
            continue;
        driver_tick(driver, MILLISECOND);
    });
    ul_endpoint_close(driver->endpoints, token);
    for (int i = 0; i < 4; i++)
        ul_operation_cancel(driver->operations, polls[i]);
    UNTIL(driver, is_lost(driver));
    for (int i = 0; i < 2; i++) {
        close(fds[i]);
        close(quiet[i]);
    }
    driver_close(driver);
}

static void a_listener_closed_without_memory_says_so(void) {
    struct driver *driver = driver_open(&tiny_setting->options);
    int listener = listen_on_loopback(1);
    int32_t token = ul_listener_open(driver->listeners, listener);
    driver_fence(driver);
    fill_the_ring(driver, listener);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, -ENOMEM);
    before_failure = -1;
    driver_fence(driver);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    UNTIL(driver, driver_report(driver).listeners == 0);
    close(listener);
    driver_close(driver);
}

static void *run_once(void *driver) {
    *(struct driver **)driver = driver_open(&tiny_setting->options);
    driver_fence(*(struct driver **)driver);
    ul_reactor_end((*(struct driver **)driver)->reactor);
    return NULL;
}

/* A loop that has changed its thread accepts one by one: every connection has to be followed by another request. */
static void a_connection_behind_which_there_is_no_memory_tells_it(void) {
    struct driver *driver;
    pthread_t thread;
    int listener = listen_on_loopback(2), clients[2];
    SYSTEM(pthread_create(&thread, NULL, run_once, &driver));
    SYSTEM(pthread_join(thread, NULL));
    int32_t token = ul_listener_open(driver->listeners, listener);
    CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
    driver_fence(driver);
    clients[0] = connect_to(listener);
    ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0); /* what the poll has found is there, and is taken in the next tick */
    fill_the_ring(driver, listener);
    const int32_t *event = ul_reactor_events(driver->reactor), *end = event + UL_EVENT_INTS * ul_reactor_tick(driver->reactor, 0);
    before_failure = -1;
    while (event < end && event[0] != UL_EVENT_ACCEPTED)
        event += UL_EVENT_INTS;
    CHECK(event < end);
    close(SYSTEM(event[2]));
    CHECK_INT(event[3], ==, -ENOMEM);
    driver_fence(driver);
    CHECK_INT(ul_listener_start(driver->listeners, token), ==, 0);
    clients[1] = connect_to(listener);
    UNTIL(driver, driver->accepted_count == 1);
    close(SYSTEM(driver->accepted[0].fd));
    close(clients[0]);
    close(clients[1]);
    CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
    close(listener);
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    RUN(any_allocation_may_fail);
    RUN(memory_may_run_out_at_any_time);
    RUN(write_that_is_half_sent_ends_the_stream);
    RUN(a_stream_closed_without_memory_is_lost);
    RUN(a_stream_that_could_not_leave_its_slot_is_lost);
    RUN(a_waiting_send_aborted_without_memory_is_over);
    RUN(an_operation_that_could_not_be_cancelled_can_be_later);
    RUN(operations_for_which_a_move_has_no_memory_are_over);
    RUN(a_wake_is_heard_after_memory_was_out);
    RUN(an_endpoint_closed_without_memory_is_lost);
    RUN(a_full_endpoint_aborted_without_memory_is_lost);
    RUN(a_full_endpoint_waits_for_room_though_memory_was_out);
    RUN(a_listener_closed_without_memory_says_so);
    RUN(a_connection_behind_which_there_is_no_memory_tells_it);
    return check_end();
}
