/* Streams with large messages: they change to bulk mode, in which their owner receives, and back. */
#include <errno.h>

#include "check.h"
#include "driver.h"

/* Of a buffer of each setting but the tiny one, most: enough for bulk mode. */
#define MESSAGE_BYTES (setting->options.incremental ? MESSAGE_BYTES_MAX : 12000U)
#define MESSAGE_BYTES_MAX 36000U

static const struct setting *setting; /* of the tests that are run now */
static enum family family;

static char message[MESSAGE_BYTES_MAX];

/* The peer sends the next bytes of the pattern, and they arrive. */
static void exchange(struct driver *driver, struct connection *connection, size_t length) {
    struct heard *heard = driver_heard(driver, connection->token);
    size_t before = heard->got.length;
    pattern_fill(message, length, 1, before);
    CHECK_INT(peer_send(&connection->peer, message, length), ==, length);
    UNTIL(driver, heard->got.length == before + length);
}

static uint64_t bulk_receives(const struct driver *driver) { return driver_report(driver).stats.receives_bulk; }

/* A stream in bulk mode that has been given all there was. */
static struct driver *open_bulk(struct connection *connection) {
    struct driver *driver = driver_open(&setting->options);
    *connection = connection_open(driver, family);
    ul_stream_read(driver->streams, connection->token, true);
    CHECK_UNTIL(bulk_receives(driver) > 0, exchange(driver, connection, MESSAGE_BYTES));
    driver_fence(driver);
    return driver;
}

static void end(struct driver *driver, struct connection *connection) {
    pattern_check(&driver_heard(driver, connection->token)->got, 1);
    connection_close(driver, connection);
    driver_close(driver);
}

static void large_messages_change_the_mode_and_small_ones_change_it_back(void) {
    struct connection connection;
    struct driver *driver = open_bulk(&connection);
    uint64_t arms = driver_report(driver).stats.receive_arms;
    CHECK_UNTIL(driver_report(driver).stats.receive_arms > arms, exchange(driver, &connection, 100));
    uint64_t before = bulk_receives(driver);
    for (int i = 0; i < 20; i++)
        exchange(driver, &connection, 100);
    CHECK_INT(bulk_receives(driver), ==, before);
    end(driver, &connection);
}

static uint8_t mode_of(const struct driver *driver, const struct connection *connection) {
    const struct ul_stream *stream = ul_table_get(&driver->streams->table, connection->token);
    return stream->read_mode;
}

/* Messages count anew after each change. */
static void one_message_does_not_change_the_mode(void) {
    struct driver *driver = driver_open(&setting->options);
    struct connection connection = connection_open(driver, family);
    ul_stream_read(driver->streams, connection.token, true);
    exchange(driver, &connection, MESSAGE_BYTES);
    CHECK_INT(mode_of(driver, &connection), ==, UL_READ_MULTISHOT);
    CHECK_UNTIL(mode_of(driver, &connection) == UL_READ_BULK, exchange(driver, &connection, MESSAGE_BYTES));
    exchange(driver, &connection, 100);
    CHECK_INT(mode_of(driver, &connection), ==, UL_READ_BULK);
    CHECK_UNTIL(mode_of(driver, &connection) == UL_READ_MULTISHOT, exchange(driver, &connection, 100));
    exchange(driver, &connection, MESSAGE_BYTES);
    CHECK_INT(mode_of(driver, &connection), ==, UL_READ_MULTISHOT);
    end(driver, &connection);
}

static void changes_of_mode_at_random_lose_nothing(void) {
    struct driver *driver = driver_open(&setting->options);
    struct connection connection = connection_open(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    size_t sent = 0;
    ul_stream_read(driver->streams, connection.token, true);
    for (int i = 0; i < 2000; i++) {
        bool large = i / 8 % 2;
        size_t length = large ? MESSAGE_BYTES - check_below(3000) : 1 + check_below(100);
        pattern_fill(message, length, 1, sent);
        sent += peer_send(&connection.peer, message, length);
        if (check_one_in(10))
            ul_stream_read(driver->streams, connection.token, false);
        if (check_one_in(2))
            driver_tick(driver, 0);
        ul_stream_read(driver->streams, connection.token, true);
    }
    UNTIL(driver, heard->got.length == sent);
    CHECK_INT(bulk_receives(driver), >, 0);
    CHECK_INT(driver_report(driver).stats.receives, >, bulk_receives(driver));
    end(driver, &connection);
}

/* --- between the event and the receive ---------------------------------------------------------------------------------------------- */

static struct heard *open_told(struct driver **driver, struct connection *connection) {
    *driver = open_bulk(connection);
    struct heard *heard = driver_heard(*driver, connection->token);
    (*driver)->holds_readable = true;
    pattern_fill(message, MESSAGE_BYTES, 1, heard->got.length);
    CHECK_INT(peer_send(&connection->peer, message, MESSAGE_BYTES), ==, MESSAGE_BYTES);
    UNTIL(*driver, heard->room);
    return heard;
}

static void end_told(struct driver *driver, struct connection *connection, size_t before) {
    driver->holds_readable = false;
    UNTIL(driver, driver_heard(driver, connection->token)->got.length == before + MESSAGE_BYTES);
    exchange(driver, connection, MESSAGE_BYTES);
    end(driver, connection);
}

static void it_is_told_once(void) {
    struct driver *driver;
    struct connection connection;
    struct heard *heard = open_told(&driver, &connection);
    heard->room = 0;
    driver_fence(driver);
    CHECK_INT(heard->room, ==, 0);
    CHECK_INT(driver_report(driver).in_flight, ==, 1); /* nothing waits for more of it */
    driver_received(driver, connection.token, -EAGAIN); /* armed again, it fires again */
    end_told(driver, &connection, heard->got.length);
}

static void one_that_stops_reading_then_hears_of_it_when_it_reads_again(void) {
    struct driver *driver;
    struct connection connection;
    struct heard *heard = open_told(&driver, &connection);
    ul_stream_read(driver->streams, connection.token, false);
    heard->room = 0;
    driver_fence(driver);
    CHECK_INT(heard->room, ==, 0);
    driver_received(driver, connection.token, 100); /* an answer that nobody waits for any more */
    CHECK_INT(driver_report(driver).stats.bytes_received, ==, heard->got.length);
    ul_stream_read(driver->streams, connection.token, true);
    end_told(driver, &connection, heard->got.length);
}

static void one_that_closes_then_is_lost(void) {
    struct driver *driver;
    struct connection connection;
    struct heard *heard = open_told(&driver, &connection);
    ul_stream_close(driver->streams, connection.token);
    driver_received(driver, connection.token, 100);
    UNTIL(driver, heard->lost);
    CHECK_INT(heard->error, ==, 0);
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void one_that_has_received_all_it_could_is_told_again_at_once(void) {
    struct driver *driver;
    struct connection connection;
    struct heard *heard = open_told(&driver, &connection);
    driver_received(driver, connection.token, UL_BULK_BYTES_MAX);
    driver_tick(driver, -1); /* does not sleep, though no poll is armed */
    CHECK_INT(heard->room, >, 0);
    driver_received(driver, connection.token, -EAGAIN);
    end_told(driver, &connection, heard->got.length);
}

static void a_failed_receive_ends_it(void) {
    struct driver *driver;
    struct connection connection;
    struct heard *heard = open_told(&driver, &connection);
    driver_received(driver, connection.token, -ETIMEDOUT);
    UNTIL(driver, heard->lost);
    CHECK_INT(heard->error, ==, ETIMEDOUT);
    connection_finish(driver, &connection);
    driver_close(driver);
}

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

static void the_end_of_the_peer_is_received_once(void) {
    struct connection connection;
    struct driver *driver = open_bulk(&connection);
    struct heard *heard = driver_heard(driver, connection.token);
    exchange(driver, &connection, MESSAGE_BYTES);
    peer_shut(&connection.peer);
    UNTIL(driver, heard->eof);
    driver_fence(driver);
    CHECK_INT(driver_report(driver).in_flight, ==, 1); /* nothing waits for more of it */
    end(driver, &connection);
}

static void a_reset_is_lost_with_its_error(void) {
    struct connection connection;
    family = FAMILY_TCP;
    struct driver *driver = open_bulk(&connection);
    peer_reset(&connection.peer);
    UNTIL(driver, driver_heard(driver, connection.token)->lost);
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, ECONNRESET);
    connection_finish(driver, &connection);
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    check_seed();
    for (setting = settings; setting < settings + settings_count; setting++) {
        if (setting == tiny_setting)
            continue; /* its buffers are too small for a receive to be large */
        for (family = FAMILY_UNIX; family <= FAMILY_TCP; family++) {
            char section[40];
            snprintf(section, sizeof section, "%s, %s", setting->name, family_names[family]);
            check_section(section);
            RUN(large_messages_change_the_mode_and_small_ones_change_it_back);
            RUN(one_message_does_not_change_the_mode);
            RUN(changes_of_mode_at_random_lose_nothing);
            RUN(it_is_told_once);
            RUN(one_that_stops_reading_then_hears_of_it_when_it_reads_again);
            RUN(one_that_closes_then_is_lost);
            RUN(one_that_has_received_all_it_could_is_told_again_at_once);
            RUN(a_failed_receive_ends_it);
            RUN(the_end_of_the_peer_is_received_once);
        }
        check_section(setting->name);
        RUN(a_reset_is_lost_with_its_error);
    }
    return check_end();
}
