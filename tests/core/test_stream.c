/* Streams at work: bytes go both ways over real sockets, on every setting of the reactor. How streams end is in test_stream_end.c. */
#include <sys/socket.h>

#include "check.h"
#include "driver.h"

#define MANY_BYTES (512U * 1024U)
#define STREAMS 8

static const struct setting *setting; /* of the tests that are run now */
static enum family family;

static struct driver *open_driver(void) { return driver_open(&setting->options); }

/* --- receiving --------------------------------------------------------------------------------------------------------------------- */

static void bytes_come_and_go(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    CHECK_INT(ul_stream_read(driver->streams, connection.token, true), ==, 0);
    CHECK_INT(peer_send(&connection.peer, "ping", 4), ==, 4);
    UNTIL(driver, heard->got.length == 4);
    CHECK(memcmp(heard->got.data, "ping", 4) == 0);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "pong!", 5), ==, 5);
    UNTIL(driver, peer_has(&connection.peer, 5));
    CHECK(memcmp(connection.peer.got.data, "pong!", 5) == 0);
    connection_close(driver, &connection);
    driver_close(driver);
}

/* A sender of the pattern that never sends more than the socket takes. */
static void send_some(struct peer *peer, uint32_t stream, size_t *sent, size_t total) {
    static char piece[30000];
    size_t length = total - *sent < sizeof piece ? total - *sent : sizeof piece;
    pattern_fill(piece, length, stream, *sent);
    *sent += peer_send(peer, piece, length);
}

static void a_long_stream_arrives_whole(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    size_t sent = 0;
    ul_stream_read(driver->streams, connection.token, true);
    CHECK_UNTIL(heard->got.length == MANY_BYTES, {
        send_some(&connection.peer, 1, &sent, MANY_BYTES);
        driver_tick(driver, MILLISECOND);
    });
    pattern_check(&heard->got, 1);
    connection_close(driver, &connection);
    driver_close(driver);
}

/* Reading stops where it is told to, and starts again with what has waited in the socket. */
static void what_comes_while_reading_is_stopped_comes_when_it_starts(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    ul_stream_read(driver->streams, connection.token, true);
    driver_fence(driver);
    ul_stream_read(driver->streams, connection.token, false);
    driver_fence(driver);
    CHECK_INT(driver_report(driver).in_flight, ==, 1); /* the receive is gone */
    CHECK_INT(peer_send(&connection.peer, "parked", 6), ==, 6);
    driver_fence(driver);
    CHECK_INT(heard->got.length, ==, 0);
    ul_stream_read(driver->streams, connection.token, true);
    UNTIL(driver, heard->got.length == 6);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void stops_and_starts_at_random_lose_nothing(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    size_t sent = 0;
    CHECK_UNTIL(heard->got.length == MANY_BYTES, {
        for (uint32_t i = check_below(4); i > 0; i--)
            ul_stream_read(driver->streams, connection.token, check_one_in(2));
        if (check_one_in(2))
            send_some(&connection.peer, 1, &sent, MANY_BYTES);
        driver_tick(driver, check_one_in(2) ? 0 : MILLISECOND / 10);
    });
    pattern_check(&heard->got, 1);
    connection_close(driver, &connection);
    driver_close(driver);
}

static bool all_have(struct driver *driver, const struct connection *connections, size_t length) {
    for (int i = 0; i < STREAMS; i++)
        if (driver_heard(driver, connections[i].token)->got.length < length)
            return false;
    return true;
}

/* More bytes are there when reading starts than the pool has room for. */
static void an_empty_pool_is_waited_out(void) {
    static char burst[65536];
    struct driver *driver = open_driver();
    struct connection connections[STREAMS];
    size_t arrived = sizeof burst;
    for (uint32_t i = 0; i < STREAMS; i++) {
        connections[i] = connection_open(driver, family);
        pattern_fill(burst, sizeof burst, i, 0);
        size_t sent = peer_send(&connections[i].peer, burst, sizeof burst);
        arrived = sent < arrived ? sent : arrived;
        ul_stream_read(driver->streams, connections[i].token, true);
    }
    CHECK_INT(arrived, >, 16384);
    UNTIL(driver, all_have(driver, connections, arrived));
    if (setting == tiny_setting)
        CHECK_INT(driver_report(driver).stats.receive_starved, >, 0);
    for (uint32_t i = 0; i < STREAMS; i++) {
        pattern_check(&driver_heard(driver, connections[i].token)->got, i);
        connection_close(driver, &connections[i]);
    }
    driver_close(driver);
}

static void the_end_of_the_peer_is_told_once_and_writing_goes_on(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    ul_stream_read(driver->streams, connection.token, true);
    peer_send(&connection.peer, "last", 4);
    peer_shut(&connection.peer);
    UNTIL(driver, heard->eof);
    CHECK_INT(heard->got.length, ==, 4);
    ul_stream_read(driver->streams, connection.token, true); /* nothing more can come */
    driver_fence(driver);
    CHECK(!heard->lost);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "answer", 6), ==, 6);
    UNTIL(driver, peer_has(&connection.peer, 6));
    connection_close(driver, &connection);
    driver_close(driver);
}

/* --- sending ----------------------------------------------------------------------------------------------------------------------- */

static void small_writes_of_a_turn_go_out_in_one_send(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    for (int64_t i = 1; i <= 10; i++)
        CHECK_INT(ul_stream_write(driver->streams, connection.token, "0123456789", 10), ==, i * 10);
    CHECK_INT(ul_stream_queued(driver->streams, connection.token), ==, 100);
    UNTIL(driver, peer_has(&connection.peer, 100));
    CHECK_INT(driver_report(driver).stats.sends, ==, 1);
    UNTIL(driver, ul_stream_queued(driver->streams, connection.token) == 0);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void a_copied_write_is_the_callers_at_once(void) {
    char lent[] = "mine";
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    ul_stream_write(driver->streams, connection.token, lent, 4);
    memset(lent, 'X', 4);
    UNTIL(driver, peer_has(&connection.peer, 4));
    CHECK(memcmp(connection.peer.got.data, "mine", 4) == 0);
    connection_close(driver, &connection);
    driver_close(driver);
}

/* Writes the next bytes of the stream; what is pinned stays, and is freed by free_written. */
static char *write_next(struct driver *driver, int32_t token, size_t length, uint64_t at, bool pin, uint32_t *pinned) {
    char *data = malloc(length);
    pattern_fill(data, length, 1, at);
    int64_t queued = (pin ? ul_stream_write_pinned : ul_stream_write)(driver->streams, token, data, length);
    CHECK_INT(queued, >=, 0);
    *pinned += pin && queued > 0;
    return data;
}

/* The peer takes little at a time, so sends are short and have to wait; copied and pinned writes keep their order. */
static void a_slow_reader_gets_everything(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open_small(driver, family);
    char *written[100] = {NULL};
    uint32_t pinned = 0;
    size_t total = 0;
    for (int i = 0; i < 100; i++) {
        size_t length = i % 10 ? 1 + check_below(2000) : 60000; /* in all more than the receiver's buffer, over TCP, has room for */
        written[i] = write_next(driver, connection.token, length, total, check_one_in(2), &pinned);
        total += length;
        if (check_one_in(4))
            driver_tick(driver, 0);
    }
    CHECK_UNTIL(connection.peer.got.length == total, {
        peer_read(&connection.peer, 1 + check_below(5000));
        driver_tick(driver, MILLISECOND / 10);
    });
    pattern_check(&connection.peer.got, 1);
    UNTIL(driver, driver_heard(driver, connection.token)->released == pinned);
    CHECK_INT(driver_report(driver).stats.sends_short, >, 0);
    CHECK_INT(driver_report(driver).stats.bytes_sent, ==, total);
    connection_close(driver, &connection);
    driver_close(driver);
    for (int i = 0; i < 100; i++)
        free(written[i]);
}

static void what_is_written_behind_a_send_does_not_make_it_short(void) {
    static const char filler[4096];
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    size_t filled = 0;
    ssize_t taken;
    while ((taken = send(connection.fd, filler, sizeof filler, MSG_DONTWAIT)) > 0)
        filled += (size_t)taken;
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "first", 5), ==, 5);
    driver_fence(driver); /* it has been offered, and waits */
    ul_stream_write(driver->streams, connection.token, "second", 6);
    UNTIL(driver, peer_has(&connection.peer, filled + 11));
    driver_fence(driver);
    CHECK_INT(driver_report(driver).stats.sends_short, <=, 1); /* the first when it was offered; TCP may have found room by then */
    connection_close(driver, &connection);
    driver_close(driver);
}

/* Memory that is scribbled on as soon as it is said to be released, so that a release before its time shows in the bytes. */
static void pinned_writes_are_not_read_after_their_release(void) {
    enum { WRITES = 40, LENGTH = 20000 };
    struct driver *driver = open_driver();
    struct connection connection = connection_open_small(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    char *written[WRITES];
    uint32_t pinned = 0, freed = 0;
    for (uint32_t i = 0; i < WRITES; i++)
        written[i] = write_next(driver, connection.token, LENGTH, i * LENGTH, true, &pinned);
    CHECK_INT(pinned, ==, WRITES);
    CHECK_UNTIL(connection.peer.got.length == WRITES * LENGTH, {
        peer_read(&connection.peer, 7000);
        driver_tick(driver, 0);
        for (; freed < heard->released; freed++) {
            memset(written[freed], 'X', LENGTH);
            free(written[freed]);
        }
    });
    pattern_check(&connection.peer.got, 1);
    UNTIL(driver, heard->released == WRITES);
    for (; freed < WRITES; freed++)
        free(written[freed]);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void a_large_write_that_fits_is_not_pinned(void) {
    static char large[40000];
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    pattern_fill(large, sizeof large, 1, 0);
    CHECK_INT(ul_stream_send_now(driver->streams, connection.token, large, sizeof large), ==, sizeof large);
    memset(large, 'X', sizeof large);
    CHECK_INT(driver_report(driver).stats.sends_direct, ==, 1);
    UNTIL(driver, peer_has(&connection.peer, sizeof large));
    pattern_check(&connection.peer.got, 1);
    CHECK_INT(driver_heard(driver, connection.token)->released, ==, 0);
    connection_close(driver, &connection);
    driver_close(driver);
}

static void low_water_is_told_once(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open_small(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    char *data = calloc(1, MANY_BYTES);
    CHECK_INT(ul_stream_set_low_water(driver->streams, connection.token, 1000), ==, 0);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, data, MANY_BYTES), >, 1000);
    driver_fence(driver);
    CHECK_INT(heard->drained, ==, 0);
    CHECK_UNTIL(connection.peer.got.length == MANY_BYTES, {
        peer_read(&connection.peer, 50000);
        driver_tick(driver, MILLISECOND / 10);
        CHECK(heard->drained == 0 || ul_stream_queued(driver->streams, connection.token) <= 1000);
    });
    UNTIL(driver, heard->drained == 1);
    CHECK_INT(ul_stream_queued(driver->streams, connection.token), <=, 1000);
    ul_stream_write(driver->streams, connection.token, "more", 4);
    driver_fence(driver);
    CHECK_INT(heard->drained, ==, 1);
    connection_close(driver, &connection);
    driver_close(driver);
    free(data);
}

static void the_sending_side_is_shut_after_what_is_queued(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open_small(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    uint32_t pinned = 0;
    char *data = write_next(driver, connection.token, MANY_BYTES, 0, false, &pinned);
    CHECK_INT(ul_stream_write_eof(driver->streams, connection.token), ==, 0);
    UNTIL(driver, peer_is_at_the_end(&connection.peer));
    CHECK_INT(connection.peer.error, ==, 0);
    CHECK_INT(connection.peer.got.length, ==, MANY_BYTES);
    pattern_check(&connection.peer.got, 1);
    ul_stream_read(driver->streams, connection.token, true); /* the other direction is open */
    peer_send(&connection.peer, "still here", 10);
    UNTIL(driver, heard->got.length == 10);
    connection_close(driver, &connection);
    driver_close(driver);
    free(data);
}

static void an_idle_sending_side_is_shut_at_once(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    CHECK_INT(ul_stream_write_eof(driver->streams, connection.token), ==, 0);
    CHECK(peer_is_at_the_end(&connection.peer));
    connection_close(driver, &connection);
    driver_close(driver);
}

/* --- both, on many ----------------------------------------------------------------------------------------------------------------- */

static bool echo(struct driver *driver, struct connection *connections, size_t *echoed, size_t total) {
    bool complete = true;
    for (uint32_t i = 0; i < STREAMS; i++) {
        struct bytes *got = &driver_heard(driver, connections[i].token)->got;
        size_t length = got->length - echoed[i];
        if (length)
            CHECK_INT(ul_stream_write(driver->streams, connections[i].token, got->data + echoed[i], length), >=, 0);
        echoed[i] += length;
        complete &= peer_has(&connections[i].peer, total);
    }
    return complete;
}

static void many_streams_echo_without_mixing(void) {
    struct driver *driver = open_driver();
    struct connection connections[STREAMS];
    size_t sent[STREAMS] = {0}, echoed[STREAMS] = {0};
    const size_t total = 200000;
    for (int i = 0; i < STREAMS; i++) {
        connections[i] = connection_open(driver, family);
        ul_stream_read(driver->streams, connections[i].token, true);
    }
    CHECK_UNTIL(echo(driver, connections, echoed, total), {
        for (uint32_t i = 0; i < STREAMS; i++)
            send_some(&connections[i].peer, i, &sent[i], total);
        driver_tick(driver, MILLISECOND);
    });
    for (uint32_t i = 0; i < STREAMS; i++) {
        CHECK_INT(connections[i].peer.got.length, ==, total);
        pattern_check(&connections[i].peer.got, i);
        connection_close(driver, &connections[i]);
    }
    driver_close(driver);
}

/* The kernel keeps completions for which the queue has no room, while the bytes that they name are in the pool. */
static void bytes_that_wait_for_the_queue_are_not_overwritten(void) {
    enum { CROWD = 100, ROUNDS = 5, MESSAGE = 100 };
    struct ul_options options = setting->options;
    options.sq_entries = 4;
    options.cq_entries = 8;
    struct driver *driver = driver_open(&options);
    struct connection connections[CROWD];
    size_t sent[CROWD] = {0};
    for (int i = 0; i < CROWD; i++) {
        connections[i] = connection_open(driver, family);
        ul_stream_read(driver->streams, connections[i].token, true);
    }
    driver_fence(driver);
    for (size_t round = 1; round <= ROUNDS; round++) {
        for (uint32_t i = 0; i < CROWD; i++)
            send_some(&connections[i].peer, i, &sent[i], round * MESSAGE);
        for (uint32_t i = 0; i < CROWD; i++)
            UNTIL(driver, driver_heard(driver, connections[i].token)->got.length == round * MESSAGE);
    }
    CHECK(driver_report(driver).overflows > 0);
    for (uint32_t i = 0; i < CROWD; i++) {
        pattern_check(&driver_heard(driver, connections[i].token)->got, i);
        connection_close(driver, &connections[i]);
    }
    driver_close(driver);
}

/* What is written on others meanwhile must not go where they are. */
static void the_bytes_of_a_send_that_is_offered_stay_though_the_stream_fails(void) {
    struct driver *driver = driver_open(&usual_setting->options);
    struct connection failing = connection_open(driver, FAMILY_UNIX), other = connection_open(driver, FAMILY_UNIX);
    driver_fence(driver);
    CHECK_INT(ul_stream_write(driver->streams, failing.token, "ping", 4), ==, 4);
    ul_streams_flush(driver->streams); /* it is to be submitted */
    CHECK_INT(ul_stream_abort(driver->streams, failing.token, EIO), ==, 0);
    CHECK_INT(ul_stream_write(driver->streams, other.token, "pong", 4), ==, 4);
    UNTIL(driver, driver_heard(driver, failing.token)->lost && peer_has(&other.peer, 4));
    CHECK(peer_has(&failing.peer, 4));
    CHECK(memcmp(failing.peer.got.data, "ping", 4) == 0);
    connection_finish(driver, &failing);
    connection_close(driver, &other);
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    check_seed();
    for (setting = settings; setting < settings + settings_count; setting++) {
        for (family = FAMILY_UNIX; family <= FAMILY_TCP; family++) {
            char section[40];
            snprintf(section, sizeof section, "%s, %s", setting->name, family_names[family]);
            check_section(section);
            RUN(bytes_come_and_go);
            RUN(a_long_stream_arrives_whole);
            RUN(what_comes_while_reading_is_stopped_comes_when_it_starts);
            RUN(stops_and_starts_at_random_lose_nothing);
            RUN(an_empty_pool_is_waited_out);
            RUN(the_end_of_the_peer_is_told_once_and_writing_goes_on);
            RUN(small_writes_of_a_turn_go_out_in_one_send);
            RUN(a_copied_write_is_the_callers_at_once);
            RUN(a_slow_reader_gets_everything);
            RUN(what_is_written_behind_a_send_does_not_make_it_short);
            RUN(pinned_writes_are_not_read_after_their_release);
            RUN(a_large_write_that_fits_is_not_pinned);
            RUN(low_water_is_told_once);
            RUN(the_sending_side_is_shut_after_what_is_queued);
            RUN(an_idle_sending_side_is_shut_at_once);
            RUN(many_streams_echo_without_mixing);
            RUN(bytes_that_wait_for_the_queue_are_not_overwritten);
        }
    }
    RUN(the_bytes_of_a_send_that_is_offered_stay_though_the_stream_fails);
    return check_end();
}
