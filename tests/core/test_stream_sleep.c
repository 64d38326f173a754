/* No tick sleeps over work: what can be done is done, and what is to be told is told, before or in spite of the sleep. Every tick here may sleep
 * longer than a test waits. */
#include <pthread.h>
#include <sched.h>

#include "check.h"
#include "driver.h"

static const struct setting *setting; /* of the tests that are run now */

static struct driver *open_driver(void) { return driver_open(&setting->options); }

/* All sends are short at first, and what is left of them does not fit the submission queue at once. Only one peer at a time reads. */
static void no_send_is_left_behind_when_a_tick_sleeps(void) {
    enum { SENDERS = 20, LENGTH = 400000 };
    static char data[LENGTH];
    struct driver *driver = driver_open(&tiny_setting->options);
    struct connection connections[SENDERS];
    for (int i = 0; i < SENDERS; i++) {
        connections[i] = connection_open_small(driver, FAMILY_UNIX);
        CHECK_INT(ul_stream_write_pinned(driver->streams, connections[i].token, data, LENGTH), >, 0);
    }
    driver_tick(driver, 0);
    for (int i = SENDERS - 1; i >= 0; i--) {
        struct peer *peer = &connections[i].peer;
        CHECK(peer_has(peer, 1));
        size_t before = peer->got.length;
        CHECK_UNTIL(peer_has(peer, before + 1), driver_tick(driver, CHECK_PATIENCE_NS));
    }
    for (int i = 0; i < SENDERS; i++)
        connection_close(driver, &connections[i]);
    driver_close(driver);
}

/* Buffers may come back without an event, from a stream that is closing; a stream that has waited for one gets it. */
static void no_stream_starves_while_a_tick_sleeps(void) {
    static char block[100000];
    struct driver *driver = driver_open(&tiny_setting->options);
    struct connection closing = connection_open_small(driver, FAMILY_UNIX), hungry = connection_open(driver, FAMILY_UNIX);
    ul_stream_read(driver->streams, closing.token, true);
    ul_stream_read(driver->streams, hungry.token, true);
    ul_stream_write_pinned(driver->streams, closing.token, block, sizeof block); /* its peer does not read, so it is not lost soon */
    driver_fence(driver);
    CHECK_INT(peer_send(&closing.peer, block, 4096), ==, 4096);
    CHECK_INT(peer_send(&closing.peer, block, 4096), ==, 4096); /* the pool is used up */
    CHECK_INT(peer_send(&hungry.peer, block, 100), ==, 100);
    ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0); /* completions come, but are not taken */
    ul_stream_close(driver->streams, closing.token);
    CHECK_UNTIL(driver_heard(driver, hungry.token)->got.length == 100, driver_tick(driver, CHECK_PATIENCE_NS));
    CHECK_INT(driver_report(driver).stats.receive_starved, >, 0);
    connection_close(driver, &closing);
    connection_close(driver, &hungry);
    driver_close(driver);
}

/* Streams that have nothing to read are armed first, and take no buffer: those behind them are armed too before the tick sleeps. */
static void no_starved_stream_waits_behind_others_while_a_tick_sleeps(void) {
    static char block[4096];
    struct driver *driver = driver_open(&tiny_setting->options);
    struct connection eater = connection_open(driver, FAMILY_UNIX), others[5];
    ul_stream_read(driver->streams, eater.token, true);
    driver_fence(driver);
    for (int i = 0; i < 2; i++)
        CHECK_INT(peer_send(&eater.peer, block, sizeof block), ==, sizeof block); /* the pool is used up */
    ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0);
    for (int i = 0; i < 5; i++) {
        others[i] = connection_open(driver, FAMILY_UNIX);
        ul_stream_read(driver->streams, others[i].token, true);
    }
    CHECK_INT(peer_send(&others[4].peer, block, 100), ==, 100);
    CHECK_UNTIL(driver_heard(driver, others[4].token)->got.length == 100, driver_tick(driver, CHECK_PATIENCE_NS));
    CHECK_INT(driver_report(driver).stats.receive_starved, >=, 5);
    connection_close(driver, &eater);
    for (int i = 0; i < 5; i++)
        connection_close(driver, &others[i]);
    driver_close(driver);
}

/* What the owner waits for is told in the tick that sends: a send has no completion that would end its sleep. */

static void a_release_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    driver_fence(driver);
    CHECK_INT(ul_stream_write_pinned(driver->streams, connection.token, "pinned", 6), ==, 6);
    CHECK_UNTIL(driver_heard(driver, connection.token)->released == 1, driver_tick(driver, CHECK_PATIENCE_NS));
    connection_close(driver, &connection);
    driver_close(driver);
}

static void low_water_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    driver_fence(driver);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "copied", 6), ==, 6);
    CHECK_INT(ul_stream_set_low_water(driver->streams, connection.token, 0), ==, 0);
    CHECK_UNTIL(driver_heard(driver, connection.token)->drained == 1, driver_tick(driver, CHECK_PATIENCE_NS));
    connection_close(driver, &connection);
    driver_close(driver);
}

/* More segments than one send takes; the copied one comes last. */
static void the_rest_of_a_long_queue_does_not_wait_for_the_end_of_a_sleep(void) {
    enum { WRITES = 3 * UL_GATHER_MAX };
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    driver_fence(driver);
    for (int i = 0; i < WRITES; i++)
        CHECK_INT((i % 2 == 0 ? ul_stream_write_pinned : ul_stream_write)(driver->streams, connection.token, "ab", 2), ==, 2 * (i + 1));
    CHECK_UNTIL(peer_has(&connection.peer, 2 * WRITES), driver_tick(driver, CHECK_PATIENCE_NS));
    connection_close(driver, &connection);
    driver_close(driver);
}

/* A flush submits, and takes no completion: what is asked for after it must not wait for the end of a sleep. */

static struct connection write_and_flush(struct driver *driver) {
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    driver_fence(driver);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "ping", 4), ==, 4);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0);
    return connection;
}

static void a_close_after_a_flush_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = write_and_flush(driver);
    CHECK_INT(ul_stream_close(driver->streams, connection.token), ==, 0);
    CHECK_UNTIL(driver_heard(driver, connection.token)->lost, driver_tick(driver, CHECK_PATIENCE_NS));
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void low_water_after_a_flush_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = write_and_flush(driver);
    CHECK_INT(ul_stream_set_low_water(driver->streams, connection.token, 0), ==, 0);
    CHECK_UNTIL(driver_heard(driver, connection.token)->drained, driver_tick(driver, CHECK_PATIENCE_NS));
    connection_close(driver, &connection);
    driver_close(driver);
}

/* The same, and behind the flush there is a request that does not end: the tick cannot tell from the completions before its enter that the send is over. */

static struct connection open_silent(struct driver *driver) {
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    CHECK_INT(ul_stream_read(driver->streams, connection.token, true), ==, 0);
    return connection;
}

static void bytes_after_a_flush_do_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = write_and_flush(driver);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "pong", 4), >=, 4);
    struct connection silent = open_silent(driver);
    CHECK_UNTIL(peer_has(&connection.peer, 8), driver_tick(driver, CHECK_PATIENCE_NS));
    connection_close(driver, &silent);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void low_water_behind_a_request_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = write_and_flush(driver);
    CHECK_INT(ul_stream_set_low_water(driver->streams, connection.token, 0), ==, 0);
    struct connection silent = open_silent(driver);
    CHECK_UNTIL(driver_heard(driver, connection.token)->drained, driver_tick(driver, CHECK_PATIENCE_NS));
    connection_close(driver, &silent);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void a_close_behind_a_request_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = write_and_flush(driver);
    CHECK_INT(ul_stream_close(driver->streams, connection.token), ==, 0);
    struct connection silent = open_silent(driver);
    CHECK_UNTIL(driver_heard(driver, connection.token)->lost, driver_tick(driver, CHECK_PATIENCE_NS));
    connection_finish(driver, &connection);
    connection_close(driver, &silent);
    driver_close(driver);
}

struct watched {
    struct ul_reactor *reactor;
    struct peer *peer;
};

static void *wake_when_the_peer_is_at_the_end(void *argument) {
    struct watched *watched = argument;
    CHECK_UNTIL(peer_is_at_the_end(watched->peer), sched_yield());
    ul_wake(watched->reactor->wake);
    return NULL;
}

static void watch_the_peer_see_the_end_of(struct driver *driver, struct connection *connection) {
    struct watched watched = {driver->reactor, &connection->peer};
    pthread_t thread;
    CHECK_INT(ul_stream_write_eof(driver->streams, connection->token), ==, 0);
    CHECK_INT(pthread_create(&thread, NULL, wake_when_the_peer_is_at_the_end, &watched), ==, 0);
    driver_tick(driver, 2 * CHECK_PATIENCE_NS);
    CHECK_INT(pthread_join(thread, NULL), ==, 0);
}

static void check_that_the_peer_sees_the_end_of(struct driver *driver, struct connection *connection) {
    watch_the_peer_see_the_end_of(driver, connection);
    connection_close(driver, connection);
    driver_close(driver);
}

static void an_end_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    driver_fence(driver);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "last", 4), ==, 4);
    check_that_the_peer_sees_the_end_of(driver, &connection);
}

static void an_end_after_a_flush_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = write_and_flush(driver);
    check_that_the_peer_sees_the_end_of(driver, &connection);
}

static void an_end_behind_a_request_does_not_wait_for_the_end_of_a_sleep(void) {
    struct driver *driver = open_driver();
    struct connection connection = write_and_flush(driver);
    struct connection silent = open_silent(driver);
    watch_the_peer_see_the_end_of(driver, &connection);
    connection_close(driver, &silent);
    connection_close(driver, &connection);
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(a_release_does_not_wait_for_the_end_of_a_sleep);
        RUN(low_water_does_not_wait_for_the_end_of_a_sleep);
        RUN(the_rest_of_a_long_queue_does_not_wait_for_the_end_of_a_sleep);
        RUN(an_end_does_not_wait_for_the_end_of_a_sleep);
        RUN(a_close_after_a_flush_does_not_wait_for_the_end_of_a_sleep);
        RUN(low_water_after_a_flush_does_not_wait_for_the_end_of_a_sleep);
        RUN(an_end_after_a_flush_does_not_wait_for_the_end_of_a_sleep);
        RUN(bytes_after_a_flush_do_not_wait_for_the_end_of_a_sleep);
        RUN(low_water_behind_a_request_does_not_wait_for_the_end_of_a_sleep);
        RUN(a_close_behind_a_request_does_not_wait_for_the_end_of_a_sleep);
        RUN(an_end_behind_a_request_does_not_wait_for_the_end_of_a_sleep);
    }
    check_section("");
    RUN(no_send_is_left_behind_when_a_tick_sleeps);
    RUN(no_stream_starves_while_a_tick_sleeps);
    RUN(no_starved_stream_waits_behind_others_while_a_tick_sleeps);
    return check_end();
}
