/* Streams with large messages: they change to bulk mode, in which the core receives as much as one tick has room for, and back. */
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"

#define MESSAGE_BYTES 12000U /* fits one buffer of every setting but the tiny one */

static const struct setting *setting; /* of the tests that are run now */
static enum family family;

static char message[MESSAGE_BYTES];

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
        size_t length = large ? 9000 + check_below(3000) : 1 + check_below(100);
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

/* --- more than a tick has room for ------------------------------------------------------------------------------------------------- */

#define CROWD 12
#define LARGE 60000U /* less than a Unix socket holds; those of the crowd are several times what a tick takes */

static struct ul_stream *stream_of(const struct driver *driver, const struct connection *connection) {
    return ul_table_get(&driver->streams->table, connection->token);
}

static size_t got(struct driver *driver, const struct connection *connection) { return driver_heard(driver, connection->token)->got.length; }

static void send_large(struct driver *driver, struct connection *connection) {
    static char large[LARGE];
    pattern_fill(large, sizeof large, 1, got(driver, connection));
    CHECK_INT(peer_send(&connection->peer, large, sizeof large), ==, sizeof large);
}

/* Streams in bulk mode that all have much to receive, of which a tick has received a part. */
static struct driver *open_crowd(struct connection *crowd, size_t *before) {
    struct driver *driver = driver_open(&setting->options);
    for (int i = 0; i < CROWD; i++) {
        crowd[i] = connection_open(driver, family);
        ul_stream_read(driver->streams, crowd[i].token, true);
        CHECK_UNTIL(stream_of(driver, &crowd[i])->read_mode == UL_READ_BULK, exchange(driver, &crowd[i], MESSAGE_BYTES));
    }
    driver_fence(driver);
    for (int i = 0; i < CROWD; i++) {
        before[i] = got(driver, &crowd[i]);
        send_large(driver, &crowd[i]);
    }
    uint64_t bytes = driver_report(driver).stats.bytes_received;
    CHECK_UNTIL(driver_report(driver).stats.bytes_received > bytes, driver_tick(driver, MILLISECOND));
    CHECK_INT(driver_report(driver).stats.bytes_received - bytes, <=, UL_BULK_BYTES_MAX);
    return driver;
}

/* One of those that are still to be received from; the last in line. */
static int left_over(struct driver *driver, struct connection *crowd) {
    for (int i = CROWD - 1; i >= 0; i--)
        if (stream_of(driver, &crowd[i])->read_state == UL_READ_READABLE)
            return i;
    check_fail(__FILE__, __LINE__, "none is left over");
    return -1;
}

static void end_crowd(struct driver *driver, struct connection *crowd, int but) {
    for (int i = 0; i < CROWD; i++) {
        pattern_check(&driver_heard(driver, crowd[i].token)->got, 1);
        if (i != but)
            connection_close(driver, &crowd[i]);
    }
    driver_close(driver);
}

static void what_a_tick_has_no_room_for_comes_in_the_next(void) {
    struct connection crowd[CROWD];
    size_t before[CROWD];
    struct driver *driver = open_crowd(crowd, before);
    int left = left_over(driver, crowd);
    while (stream_of(driver, &crowd[left])->read_state == UL_READ_READABLE)
        driver_tick(driver, -1); /* does not sleep: some have bytes */
    for (int i = 0; i < CROWD; i++)
        UNTIL(driver, got(driver, &crowd[i]) == before[i] + LARGE);
    end_crowd(driver, crowd, -1);
}

static void one_that_stops_reading_before_its_turn_receives_nothing(void) {
    struct connection crowd[CROWD];
    size_t before[CROWD];
    struct driver *driver = open_crowd(crowd, before);
    int left = left_over(driver, crowd);
    ul_stream_read(driver->streams, crowd[left].token, false);
    driver_fence(driver);
    CHECK_INT(got(driver, &crowd[left]), ==, before[left]);
    ul_stream_read(driver->streams, crowd[left].token, true);
    UNTIL(driver, got(driver, &crowd[left]) == before[left] + LARGE);
    end_crowd(driver, crowd, -1);
}

static void one_that_stops_and_reads_again_before_its_turn_receives_once(void) {
    struct connection crowd[CROWD];
    size_t before[CROWD];
    struct driver *driver = open_crowd(crowd, before);
    int left = left_over(driver, crowd);
    for (int i = 0; i < 3; i++) {
        ul_stream_read(driver->streams, crowd[left].token, false);
        ul_stream_read(driver->streams, crowd[left].token, true);
    }
    UNTIL(driver, got(driver, &crowd[left]) == before[left] + LARGE);
    driver_fence(driver);
    CHECK_INT(driver->streams->readable.count, ==, 0);
    end_crowd(driver, crowd, -1);
}

static void one_that_closes_before_its_turn_receives_nothing(void) {
    struct connection crowd[CROWD];
    size_t before[CROWD];
    struct driver *driver = open_crowd(crowd, before);
    int left = left_over(driver, crowd);
    ul_stream_close(driver->streams, crowd[left].token);
    UNTIL(driver, driver_heard(driver, crowd[left].token)->lost);
    CHECK_INT(got(driver, &crowd[left]), ==, before[left]);
    close(crowd[left].fd);
    peer_free(&crowd[left].peer);
    end_crowd(driver, crowd, left);
}

/* A peer that sends without end takes all the room of each tick, but not for ever. */
static void the_others_have_their_turn(void) {
    static char much[UL_BULK_BYTES_MAX];
    struct connection greedy, modest;
    family = FAMILY_TCP; /* a Unix socket never has that much */
    struct driver *driver = open_bulk(&greedy);
    modest = connection_open(driver, family);
    ul_stream_read(driver->streams, modest.token, true);
    CHECK_UNTIL(stream_of(driver, &modest)->read_mode == UL_READ_BULK, exchange(driver, &modest, MESSAGE_BYTES));
    size_t sent = got(driver, &greedy), before = got(driver, &modest);
    int most_turns = 0;
    for (int i = 0; i < 200; i++) { /* until the kernel has made its buffers large enough, and some more */
        pattern_fill(much, sizeof much, 1, sent);
        sent += peer_send(&greedy.peer, much, sizeof much);
        driver_tick(driver, 0);
        if (stream_of(driver, &greedy)->turns > most_turns)
            most_turns = stream_of(driver, &greedy)->turns;
        if (i == 100)
            send_large(driver, &modest);
    }
    CHECK_INT(most_turns, >, 1);
    CHECK_INT(got(driver, &modest), ==, before + LARGE);
    UNTIL(driver, got(driver, &greedy) == sent);
    connection_close(driver, &modest);
    end(driver, &greedy);
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
            RUN(what_a_tick_has_no_room_for_comes_in_the_next);
            RUN(one_that_stops_reading_before_its_turn_receives_nothing);
            RUN(one_that_stops_and_reads_again_before_its_turn_receives_once);
            RUN(one_that_closes_before_its_turn_receives_nothing);
            RUN(the_end_of_the_peer_is_received_once);
        }
        check_section(setting->name);
        RUN(the_others_have_their_turn);
        RUN(a_reset_is_lost_with_its_error);
    }
    return check_end();
}
