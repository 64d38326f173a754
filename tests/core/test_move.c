/* A reactor that is run by several threads in turn: whoever begins next gets a ring of its own, and nothing that was under way is lost. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"

#define LARGE (4U * 1024U * 1024U) /* no socket takes it at once */
#define STREAMS 20

static const struct setting *setting; /* of the tests that are run now */

struct work {
    struct driver *driver;
    void (*does)(void *);
    void *with;
};

static void *run(void *argument) {
    struct work *work = argument;
    CHECK_INT(ul_reactor_begin(work->driver->reactor), ==, 0);
    work->does(work->with);
    ul_reactor_end(work->driver->reactor);
    return NULL;
}

/* Between two runs of this one. */
static void let_another_thread_run(struct driver *driver, void (*does)(void *), void *with) {
    struct work work = {.driver = driver, .does = does, .with = with};
    pthread_t thread;
    CHECK_INT(pthread_create(&thread, NULL, run, &work), ==, 0);
    CHECK_INT(pthread_join(thread, NULL), ==, 0);
    CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
}

static void in_another_thread(struct driver *driver, void (*does)(void *), void *with) {
    ul_reactor_end(driver->reactor);
    let_another_thread_run(driver, does, with);
}

struct talk {
    struct driver *driver;
    struct connection *connections;
    int count;
};

static void everyone_talks(void *with) {
    struct talk *talk = with;
    for (int i = 0; i < talk->count; i++) {
        struct connection *connection = &talk->connections[i];
        size_t heard = driver_heard(talk->driver, connection->token)->got.length, told = connection->peer.got.length;
        CHECK_INT(peer_send(&connection->peer, "ping", 4), ==, 4);
        CHECK_INT(ul_stream_write(talk->driver->streams, connection->token, "pong!", 5), >, 0);
        UNTIL(talk->driver, driver_heard(talk->driver, connection->token)->got.length == heard + 4 && peer_has(&connection->peer, told + 5));
    }
}

static void connections_go_on(void) {
    struct driver *driver = driver_open(&setting->options);
    struct connection connections[STREAMS];
    struct talk talk = {.driver = driver, .connections = connections, .count = STREAMS};
    for (int i = 0; i < STREAMS; i++) {
        connections[i] = connection_open(driver, i % 2 ? FAMILY_TCP : FAMILY_UNIX);
        ul_stream_read(driver->streams, connections[i].token, true);
    }
    everyone_talks(&talk);
    everyone_talks(&talk); /* the second send takes the slot */
    uint32_t slots = driver_report(driver).slots_in_use;
    CHECK(slots > 0 || !driver_report(driver).files);
    for (int turn = 0; turn < 3; turn++) {
        everyone_talks(&talk);
        in_another_thread(driver, everyone_talks, &talk);
        CHECK_INT(driver_report(driver).slots_in_use, ==, slots);
    }
    everyone_talks(&talk);
    for (int i = 0; i < STREAMS; i++)
        connection_close(driver, &connections[i]);
    driver_close(driver);
}

static void a_tick(void *with) { driver_tick(with, 0); }

static void counts_go_on(void) {
    struct driver *driver = driver_open(&setting->options);
    for (int i = 0; i < 20; i++)
        CHECK_INT(ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0) >= 0 && driver_tick(driver, 0) >= 0, ==, true);
    UNTIL(driver, driver_report(driver).operations == 0);
    struct ul_report before = driver_report(driver);
    in_another_thread(driver, a_tick, driver);
    struct ul_report after = driver_report(driver);
    CHECK_INT(after.enters, >, before.enters);
    CHECK_INT(after.completions, >=, before.completions);
    CHECK_INT(after.stats.ticks, ==, before.stats.ticks + 1);
    driver_close(driver);
}

/* Bytes that were received, and completed, but not taken before the thread changed. */
static void what_was_complete_is_told(void) {
    struct driver *driver = driver_open(&setting->options);
    struct connection connections[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        connections[i] = connection_open(driver, FAMILY_UNIX);
        ul_stream_read(driver->streams, connections[i].token, true);
    }
    driver_fence(driver);
    for (int i = 0; i < STREAMS; i++)
        CHECK_INT(peer_send(&connections[i].peer, "ping", 4), ==, 4);
    ul_reactor_flush(driver->reactor); /* may complete some, and takes none */
    in_another_thread(driver, a_tick, driver);
    for (int i = 0; i < STREAMS; i++) {
        struct heard *heard = driver_heard(driver, connections[i].token);
        UNTIL(driver, heard->got.length == 4);
        CHECK(memcmp(heard->got.data, "ping", 4) == 0);
        connection_close(driver, &connections[i]);
    }
    driver_close(driver);
}

static void a_send_that_waits_goes_on(void) {
    struct driver *driver = driver_open(&setting->options);
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    char *large = malloc(LARGE);
    pattern_fill(large, LARGE, 1, 0);
    CHECK_INT(ul_stream_write_pinned(driver->streams, connection.token, large, LARGE), >, 0);
    driver_fence(driver);
    for (int turn = 0; turn < 3; turn++)
        in_another_thread(driver, a_tick, driver);
    UNTIL(driver, peer_has(&connection.peer, LARGE));
    CHECK(memcmp(connection.peer.got.data, large, LARGE) == 0);
    CHECK_INT(driver_heard(driver, connection.token)->released, ==, 1);
    connection_close(driver, &connection);
    driver_close(driver);
    free(large);
}

/* As when the kernel had no memory for any of the enters of the end. */
static void end_without_submitting(struct driver *driver) {
    CHECK(ul_ring_unsubmitted(&driver->reactor->engine.ring) > 0 || !driver->reactor->options.inline_sends);
    ul_ring_unregister_self(&driver->reactor->engine.ring);
    driver->reactor->begun = false;
}

/* A send that was offered is taken for done if nothing is heard of it, which holds only if it was submitted. */
static void sends_that_were_not_submitted_go_on(void) {
    struct driver *driver = driver_open(&setting->options);
    struct connection connections[STREAMS];
    struct talk talk = {.driver = driver, .connections = connections, .count = STREAMS};
    for (int i = 0; i < STREAMS; i++) {
        connections[i] = connection_open(driver, i % 2 ? FAMILY_TCP : FAMILY_UNIX);
        ul_stream_read(driver->streams, connections[i].token, true);
    }
    everyone_talks(&talk);
    everyone_talks(&talk); /* from now on, by slots */
    for (int i = 0; i < STREAMS; i++)
        ul_stream_write(driver->streams, connections[i].token, "again", 5);
    ul_streams_flush(driver->streams);
    for (int i = 0; i < STREAMS / 2; i++)
        CHECK_INT(ul_stream_close(driver->streams, connections[i].token), ==, 0);
    end_without_submitting(driver);
    let_another_thread_run(driver, a_tick, driver);
    for (int i = 0; i < STREAMS; i++) {
        UNTIL(driver, peer_has(&connections[i].peer, 15));
        CHECK(memcmp(connections[i].peer.got.data, "pong!pong!again", 15) == 0);
    }
    for (int i = 0; i < STREAMS / 2; i++) {
        UNTIL(driver, driver_heard(driver, connections[i].token)->lost);
        CHECK_INT(driver_heard(driver, connections[i].token)->error, ==, 0);
        connection_finish(driver, &connections[i]);
    }
    for (int i = STREAMS / 2; i < STREAMS; i++)
        connection_close(driver, &connections[i]);
    driver_close(driver);
}

static void a_datagram_that_was_not_submitted_goes(void) {
    struct driver *driver = driver_open(&setting->options);
    int fds[2];
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, fds));
    int32_t token = ul_endpoint_open(driver->endpoints, fds[0], 0);
    CHECK_INT(token, >=, 0);
    driver_fence(driver);
    CHECK_INT(ul_endpoint_write(driver->endpoints, token, "ping", 4, "", 0), >, 0);
    ul_endpoints_flush(driver->endpoints);
    end_without_submitting(driver);
    let_another_thread_run(driver, a_tick, driver);
    char got[5];
    CHECK_INT(recv(fds[1], got, sizeof got, MSG_DONTWAIT), ==, 4);
    driver_fence(driver);
    ul_endpoint_close(driver->endpoints, token);
    UNTIL(driver, driver->note_count == 1);
    driver_close(driver);
    close(fds[0]);
    close(fds[1]);
}

static void operations_go_on_and_end_when_cancelled(void) {
    struct driver *driver = driver_open(&setting->options);
    int ends[2];
    SYSTEM(pipe2(ends, O_CLOEXEC));
    int32_t waits = ul_operation_start(driver->operations, IORING_OP_POLL_ADD, ends[0], 0, 0, 0, POLLIN, 0, 0);
    int32_t cancelled = ul_operation_start(driver->operations, IORING_OP_POLL_ADD, ends[0], 0, 0, 0, POLLIN, 0, 0);
    driver_fence(driver);
    in_another_thread(driver, a_tick, driver);
    CHECK(!driver_done(driver, waits));
    ul_operation_cancel(driver->operations, cancelled);
    in_another_thread(driver, a_tick, driver);
    UNTIL(driver, driver_done(driver, cancelled));
    CHECK_INT(driver_done(driver, cancelled)->result, ==, -ECANCELED);
    CHECK(!driver_done(driver, waits));
    CHECK_INT(write(ends[1], "x", 1), ==, 1);
    UNTIL(driver, driver_done(driver, waits));
    CHECK_INT(driver_done(driver, waits)->result, ==, POLLIN);
    driver_close(driver);
    close(ends[0]);
    close(ends[1]);
}

enum { SENDS = UL_EVENTS_MAX + 500 };

static void all_are_done(void *with) {
    struct driver *driver = with;
    UNTIL(driver, driver->done_count == SENDS);
}

/* More completions than the CQ has room for, or a tick tells of: they do not go with the ring. */
static void what_is_done_is_not_done_again(void) {
    struct ul_options options = setting->options;
    options.sq_entries = 4;
    options.cq_entries = 8;
    struct driver *driver = driver_open(&options);
    struct connection connection = connection_open(driver, FAMILY_TCP);
    for (int i = 0; i < SENDS; i++)
        CHECK_INT(ul_operation_start(driver->operations, IORING_OP_SEND, connection.fd, (uint64_t)(uintptr_t) "x", 1, 0, 0, 0, 0), >=, 0);
    in_another_thread(driver, all_are_done, driver);
    CHECK(peer_has(&connection.peer, SENDS));
    CHECK_INT(connection.peer.got.length, ==, SENDS);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void a_wake_is_heard(void) {
    struct driver *driver = driver_open(&setting->options);
    for (int turn = 0; turn < 3; turn++) {
        ul_wake(driver->reactor->wake);
        in_another_thread(driver, a_tick, driver);
        int64_t started = check_now_ns();
        ul_wake(driver->reactor->wake);
        driver_tick(driver, 5000 * MILLISECOND);
        CHECK_INT(check_now_ns() - started, <, 2000 * MILLISECOND);
    }
    driver_close(driver);
}

static void what_ends_in_another_thread_leaves_nothing(void) {
    struct driver *driver = driver_open(&setting->options);
    struct connection connection = connection_open(driver, FAMILY_TCP);
    ul_stream_read(driver->streams, connection.token, true);
    driver_fence(driver);
    ul_reactor_end(driver->reactor);
    ul_stream_close(driver->streams, connection.token); /* between the runs */
    CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
    in_another_thread(driver, a_tick, driver);
    struct heard *heard = driver_heard(driver, connection.token);
    UNTIL(driver, heard->lost);
    CHECK_INT(driver_report(driver).slots_in_use, ==, 0);
    close(connection.fd);
    peer_free(&connection.peer);
    driver_close(driver);
}

/* --- while the reactor moves ------------------------------------------------------------------------------------------------------- */

struct opening {
    struct driver *driver;
    int fds[2];
    int32_t token;
};

static void open_an_endpoint(void *with) {
    struct opening *opening = with;
    opening->token = ul_endpoint_open(opening->driver->endpoints, opening->fds[0], 0);
    CHECK_INT(opening->token, >=, 0);
    CHECK_INT(ul_endpoint_read(opening->driver->endpoints, opening->token, true), ==, 0);
    CHECK_INT(send(opening->fds[1], "ping", 4, 0), ==, 4);
    UNTIL(opening->driver, opening->driver->note_count == 1);
}

/* The first of all, which makes the pool: the ring is still another thread's then. */
static void an_endpoint_may_be_opened(void) {
    struct opening opening = {.driver = driver_open(&setting->options)};
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, opening.fds));
    driver_fence(opening.driver);
    in_another_thread(opening.driver, open_an_endpoint, &opening);
    const struct note *note = &opening.driver->notes[0];
    CHECK_INT(note->kind, ==, UL_EVENT_DATAGRAM);
    CHECK_INT(note->data.length, ==, 4);
    ul_endpoint_close(opening.driver->endpoints, opening.token);
    UNTIL(opening.driver, opening.driver->note_count == 2);
    driver_close(opening.driver);
    close(opening.fds[0]);
    close(opening.fds[1]);
}

/* The same once the move is over: the ring is this thread's own, and the pool is registered with it when it is made. */
static void an_endpoint_may_be_opened_after_it(void) {
    struct opening opening = {.driver = driver_open(&setting->options)};
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, opening.fds));
    in_another_thread(opening.driver, a_tick, opening.driver);
    driver_fence(opening.driver);
    open_an_endpoint(&opening);
    ul_endpoint_close(opening.driver->endpoints, opening.token);
    UNTIL(opening.driver, opening.driver->note_count == 2);
    driver_close(opening.driver);
    close(opening.fds[0]);
    close(opening.fds[1]);
}

static void open_an_endpoint_only(void *with) {
    struct opening *opening = with;
    opening->token = ul_endpoint_open(opening->driver->endpoints, opening->fds[0], 0);
    CHECK_INT(ul_endpoint_read(opening->driver->endpoints, opening->token, true), ==, 0);
}

/* The pool was made for a ring that never was. */
static void an_endpoint_of_a_move_that_is_not_over_receives(void) {
    struct opening opening = {.driver = driver_open(&setting->options)};
    SYSTEM(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, opening.fds));
    driver_fence(opening.driver);
    in_another_thread(opening.driver, open_an_endpoint_only, &opening);
    CHECK_INT(send(opening.fds[1], "ping", 4, 0), ==, 4);
    UNTIL(opening.driver, opening.driver->note_count == 1);
    ul_endpoint_close(opening.driver->endpoints, opening.token);
    UNTIL(opening.driver, opening.driver->note_count == 2);
    driver_close(opening.driver);
    close(opening.fds[0]);
    close(opening.fds[1]);
}

static void nothing(void *with) { (void)with; }

/* The accept of the old ring is there for some time after that is closed, and would be woken in the place of the new one. */
static void connections_are_accepted(void) {
    for (int turn = 0; turn < 50; turn++) {
        struct driver *driver = driver_open(&setting->options);
        int listener = listen_on_loopback(8);
        int32_t token = ul_listener_open(driver->listeners, listener);
        driver_fence(driver);
        in_another_thread(driver, a_tick, driver);
        in_another_thread(driver, a_tick, driver);
        driver_tick(driver, 0);
        int client = connect_to(listener);
        UNTIL(driver, driver->accepted_count == 1);
        close(SYSTEM(driver->accepted[0].fd));
        CHECK_INT(ul_listener_close(driver->listeners, token), ==, 0);
        driver_close(driver);
        close(client);
        close(listener);
    }
}

/* Another thread began and ended before the move was over: it goes on in this one. */
static void a_move_that_is_not_over_goes_on(void) {
    struct driver *driver = driver_open(&setting->options);
    struct connection connection = connection_open(driver, FAMILY_TCP);
    struct talk talk = {.driver = driver, .connections = &connection, .count = 1};
    ul_stream_read(driver->streams, connection.token, true);
    everyone_talks(&talk);
    in_another_thread(driver, nothing, NULL);
    everyone_talks(&talk);
    connection_close(driver, &connection);
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(connections_go_on);
        RUN(counts_go_on);
        RUN(what_was_complete_is_told);
        RUN(a_send_that_waits_goes_on);
        RUN(sends_that_were_not_submitted_go_on);
        RUN(a_datagram_that_was_not_submitted_goes);
        RUN(operations_go_on_and_end_when_cancelled);
        RUN(what_is_done_is_not_done_again);
        RUN(a_wake_is_heard);
        RUN(what_ends_in_another_thread_leaves_nothing);
        RUN(an_endpoint_may_be_opened);
        RUN(an_endpoint_may_be_opened_after_it);
        RUN(an_endpoint_of_a_move_that_is_not_over_receives);
        RUN(connections_are_accepted);
        RUN(a_move_that_is_not_over_goes_on);
    }
    return check_end();
}
