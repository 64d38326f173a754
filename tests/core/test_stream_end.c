/* How streams end: whatever they were at, what was queued arrives or is dropped as asked, LOST is told once, and the peer sees the end. */
#include <sys/socket.h>

#include "check.h"
#include "driver.h"

static const struct setting *setting; /* of the tests that are run now */
static enum family family;

static struct driver *open_driver(void) { return driver_open(&setting->options); }

/* More than any socket takes, so that some of it is still queued when the stream ends. */
#define LARGE (512 << 10)
static char large[LARGE + 51000];

/* --- every way of ending ----------------------------------------------------------------------------------------------------------- */

/* What a stream is at when it ends. */

static void be_new(struct driver *driver, struct connection *connection) {
    (void)driver;
    (void)connection;
}

static void be_idle(struct driver *driver, struct connection *connection) {
    (void)connection;
    driver_fence(driver);
}

static void read_nothing(struct driver *driver, struct connection *connection) {
    ul_stream_read(driver->streams, connection->token, true);
    driver_fence(driver);
}

static void start_to_read(struct driver *driver, struct connection *connection) { ul_stream_read(driver->streams, connection->token, true); }

static void stop_reading(struct driver *driver, struct connection *connection) {
    read_nothing(driver, connection);
    ul_stream_read(driver->streams, connection->token, false);
}

static void leave_bytes_unread(struct driver *driver, struct connection *connection) {
    peer_send(&connection->peer, "unread", 6);
    driver_fence(driver);
}

static void have_bytes_coming(struct driver *driver, struct connection *connection) {
    read_nothing(driver, connection);
    peer_send(&connection->peer, "coming", 6);
}

static void have_more_bytes_coming_than_buffers(struct driver *driver, struct connection *connection) {
    ul_stream_read(driver->streams, connection->token, true);
    peer_send(&connection->peer, large, 100000);
    driver_tick(driver, 0);
}

static void write_a_little(struct driver *driver, struct connection *connection) {
    read_nothing(driver, connection);
    ul_stream_write(driver->streams, connection->token, large, 1000);
}

static void write_a_little_when_new(struct driver *driver, struct connection *connection) {
    ul_stream_read(driver->streams, connection->token, true);
    ul_stream_write(driver->streams, connection->token, large, 1000);
}

static void block_a_send(struct driver *driver, struct connection *connection) {
    read_nothing(driver, connection);
    ul_stream_write_pinned(driver->streams, connection->token, large, LARGE);
    driver_fence(driver);
}

static void block_a_send_and_write_more(struct driver *driver, struct connection *connection) {
    block_a_send(driver, connection);
    ul_stream_write(driver->streams, connection->token, large + LARGE, 1000);
    ul_stream_write_pinned(driver->streams, connection->token, large + LARGE + 1000, 50000);
}

static void write_large_when_new(struct driver *driver, struct connection *connection) {
    ul_stream_write_pinned(driver->streams, connection->token, large, LARGE);
}

static void shut_the_sending_side(struct driver *driver, struct connection *connection) {
    read_nothing(driver, connection);
    ul_stream_write(driver->streams, connection->token, large, 1000);
    ul_stream_write_eof(driver->streams, connection->token);
}

static void hear_the_end(struct driver *driver, struct connection *connection) {
    ul_stream_read(driver->streams, connection->token, true);
    peer_shut(&connection->peer);
    UNTIL(driver, driver_heard(driver, connection->token)->eof);
}

static void write_nothing(struct driver *driver, struct connection *connection) {
    driver_fence(driver);
    ul_stream_write(driver->streams, connection->token, "", 0);
}

static const struct state {
    const char *name;
    void (*enter)(struct driver *driver, struct connection *connection);
    size_t written;
} states[] = {
    {"be_new", be_new, 0},
    {"be_idle", be_idle, 0},
    {"start_to_read", start_to_read, 0},
    {"read_nothing", read_nothing, 0},
    {"stop_reading", stop_reading, 0},
    {"leave_bytes_unread", leave_bytes_unread, 0},
    {"have_bytes_coming", have_bytes_coming, 0},
    {"have_more_bytes_coming_than_buffers", have_more_bytes_coming_than_buffers, 0},
    {"write_a_little", write_a_little, 1000},
    {"write_a_little_when_new", write_a_little_when_new, 1000},
    {"block_a_send", block_a_send, LARGE},
    {"block_a_send_and_write_more", block_a_send_and_write_more, LARGE + 51000},
    {"write_large_when_new", write_large_when_new, LARGE},
    {"shut_the_sending_side", shut_the_sending_side, 1000},
    {"hear_the_end", hear_the_end, 0},
    {"write_nothing", write_nothing, 0},
};
#define STATES (sizeof states / sizeof *states)

static const struct state *state; /* of the test that is run now */
static size_t heard_before;       /* bytes, when it begins to end */

static bool is_lost(struct driver *driver, const struct connection *connection) { return driver_heard(driver, connection->token)->lost; }

static void check_void(struct driver *driver, int32_t token) {
    CHECK_INT(ul_stream_close(driver->streams, token), ==, -ENOENT);
    CHECK_INT(ul_stream_abort(driver->streams, token, 1), ==, -ENOENT);
    CHECK_INT(ul_stream_read(driver->streams, token, true), ==, -ENOENT);
    CHECK_INT(ul_stream_write(driver->streams, token, "x", 1), ==, -ENOENT);
    CHECK_INT(ul_stream_write_eof(driver->streams, token), ==, -ENOENT);
    CHECK_INT(ul_stream_set_low_water(driver->streams, token, 0), ==, -ENOENT);
    CHECK_INT(ul_stream_queued(driver->streams, token), ==, 0);
}

static struct driver *enter_state(struct connection *connection) {
    struct driver *driver = open_driver();
    pattern_fill(large, sizeof large, 1, 0);
    *connection = connection_open_small(driver, family);
    state->enter(driver, connection);
    CHECK(!is_lost(driver, connection));
    heard_before = driver_heard(driver, connection->token)->got.length;
    return driver;
}

static void leave_state(struct driver *driver, struct connection *connection) {
    check_void(driver, connection->token);
    CHECK_INT(driver_heard(driver, connection->token)->got.length, ==, heard_before); /* who has closed hears of no more bytes */
    CHECK_INT(connection->peer.got.length, <=, state->written);
    pattern_check(&connection->peer.got, 1);
    connection_finish(driver, connection);
    driver_close(driver);
}

static void a_close_sends_all_before_it_is_lost(void) {
    struct connection connection;
    struct driver *driver = enter_state(&connection);
    CHECK_INT(ul_stream_close(driver->streams, connection.token), ==, 0);
    CHECK(!is_lost(driver, &connection));
    CHECK_INT(ul_stream_close(driver->streams, connection.token), ==, 0); /* a second time changes nothing */
    CHECK_UNTIL(is_lost(driver, &connection), {
        peer_has(&connection.peer, 0);
        driver_tick(driver, MILLISECOND);
    });
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, 0);
    CHECK(peer_has(&connection.peer, state->written));
    leave_state(driver, &connection);
}

/* The peer does not read, so what is queued cannot be what LOST waits for. */
static void an_abort_drops_what_is_queued(void) {
    struct connection connection;
    struct driver *driver = enter_state(&connection);
    CHECK_INT(ul_stream_abort(driver->streams, connection.token, ENOTCONN), ==, 0);
    CHECK_INT(ul_stream_abort(driver->streams, connection.token, EIO), ==, 0); /* the first reason stands */
    CHECK_INT(ul_stream_close(driver->streams, connection.token), ==, 0);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, ENOTCONN);
    memset(large, 'X', sizeof large); /* what was pinned is not read any more */
    peer_has(&connection.peer, 0);
    leave_state(driver, &connection);
}

/* What it sends at last is the beginning of the queue, and is sent when it returns. */
static void an_abort_without_a_reason_sends_what_there_is_room_for(void) {
    struct connection connection;
    struct driver *driver = enter_state(&connection);
    CHECK_INT(ul_stream_abort(driver->streams, connection.token, 0), ==, 0);
    memset(large, 'X', sizeof large);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, 0);
    peer_has(&connection.peer, 0);
    leave_state(driver, &connection);
}

/* More segments than one send takes. */
static void an_abort_sends_all_that_there_is_room_for(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_TCP);
    driver_fence(driver);
    for (int i = 0; i < 6; i++) {
        ul_stream_write(driver->streams, connection.token, large, 100);
        ul_stream_write_pinned(driver->streams, connection.token, large, 10000);
    }
    ul_stream_abort(driver->streams, connection.token, 0);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK(peer_has(&connection.peer, 6 * 10100));
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void an_abort_cuts_a_close_short(void) {
    struct connection connection;
    struct driver *driver = enter_state(&connection);
    CHECK_INT(ul_stream_close(driver->streams, connection.token), ==, 0);
    CHECK_INT(ul_stream_abort(driver->streams, connection.token, EIO), ==, 0);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK(driver_heard(driver, connection.token)->error == EIO || state->written == 0);
    peer_has(&connection.peer, 0);
    leave_state(driver, &connection);
}

static void the_peer_goes_away(void) {
    struct connection connection;
    struct driver *driver = enter_state(&connection);
    peer_has(&connection.peer, 0);
    if (family == FAMILY_TCP)
        peer_reset(&connection.peer);
    peer_close(&connection.peer);
    ul_stream_close(driver->streams, connection.token); /* without it nothing but an armed receive would tell */
    UNTIL(driver, is_lost(driver, &connection));
    leave_state(driver, &connection);
}

/* --- what the peer does ------------------------------------------------------------------------------------------------------------ */

static void a_reset_while_reading_is_lost_with_its_error(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_TCP);
    ul_stream_read(driver->streams, connection.token, true);
    driver_fence(driver);
    peer_reset(&connection.peer);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, ECONNRESET);
    CHECK(!driver_heard(driver, connection.token)->eof);
    connection_finish(driver, &connection);
    driver_close(driver);
}

/* The receive has failed when reading is stopped, but that has not been heard yet. */
static void a_reset_while_reading_is_stopped_is_told_when_it_starts(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_TCP);
    ul_stream_read(driver->streams, connection.token, true);
    driver_fence(driver);
    peer_reset(&connection.peer);
    ul_operation_start(driver->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0);
    ul_stream_read(driver->streams, connection.token, false);
    driver_fence(driver);
    CHECK(!is_lost(driver, &connection));
    ul_stream_read(driver->streams, connection.token, true);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, ECONNRESET);
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void a_reset_while_sending_is_lost_with_its_error(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open_small(driver, FAMILY_TCP);
    CHECK_INT(ul_stream_write_pinned(driver->streams, connection.token, large, LARGE), >, 0);
    driver_fence(driver);
    peer_reset(&connection.peer);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, ECONNRESET);
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void a_write_to_a_peer_that_is_gone_is_lost_without_a_signal(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, FAMILY_UNIX);
    driver_fence(driver);
    peer_close(&connection.peer);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "x", 1), ==, 1);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, EPIPE);
    connection_finish(driver, &connection);
    driver_close(driver);
}

/* --- a close that the owner may still write to ------------------------------------------------------------------------------------- */

static void an_owner_told_that_its_closing_stream_is_drained_may_write_more(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    driver_fence(driver);
    ul_stream_set_low_water(driver->streams, connection.token, 0);
    ul_stream_write(driver->streams, connection.token, "first ", 6);
    ul_stream_close(driver->streams, connection.token);
    UNTIL(driver, heard->drained == 1);
    driver_fence(driver);
    CHECK(!heard->lost);
    CHECK_INT(ul_stream_write(driver->streams, connection.token, "second", 6), ==, 6);
    driver_fence(driver);
    CHECK(!heard->lost);
    ul_stream_close(driver->streams, connection.token);
    UNTIL(driver, heard->lost);
    CHECK(peer_has(&connection.peer, 12));
    CHECK(memcmp(connection.peer.got.data, "first second", 12) == 0);
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void an_owner_that_is_awaited_may_abort(void) {
    struct driver *driver = open_driver();
    struct connection connection = connection_open(driver, family);
    struct heard *heard = driver_heard(driver, connection.token);
    driver_fence(driver);
    ul_stream_set_low_water(driver->streams, connection.token, 0);
    ul_stream_write(driver->streams, connection.token, "first", 5);
    ul_stream_close(driver->streams, connection.token);
    UNTIL(driver, heard->drained == 1);
    ul_stream_abort(driver->streams, connection.token, EIO);
    UNTIL(driver, heard->lost);
    CHECK_INT(heard->error, ==, EIO);
    connection_finish(driver, &connection);
    driver_close(driver);
}

/* --- slots ------------------------------------------------------------------------------------------------------------------------- */

static struct driver *open_with_table(const struct setting *with) {
    struct driver *driver = driver_open(&with->options);
    if (!driver_report(driver).files)
        check_skip("a table of fixed files leaks before Linux 6.13");
    return driver;
}

static void streams_beyond_the_table_run_on_their_descriptors(void) {
    enum { STREAMS = 20 };
    struct driver *driver = open_with_table(tiny_setting);
    const uint32_t slots = (uint32_t)tiny_setting->options.files;
    struct connection connections[STREAMS];
    for (int i = 0; i < STREAMS; i++) {
        connections[i] = connection_open(driver, family);
        ul_stream_read(driver->streams, connections[i].token, true);
        ul_stream_write(driver->streams, connections[i].token, "ping", 4);
        peer_send(&connections[i].peer, "pong", 4);
    }
    driver_tick(driver, 0);
    CHECK_INT(driver_report(driver).slots_in_use, ==, slots);
    CHECK_INT(driver_report(driver).stats.fixed_file_fallbacks, ==, STREAMS - slots);
    for (int i = 0; i < STREAMS; i++)
        UNTIL(driver, peer_has(&connections[i].peer, 4) && driver_heard(driver, connections[i].token)->got.length == 4);
    for (int i = 0; i < STREAMS; i++)
        connection_close(driver, &connections[i]);
    struct connection after = connection_open(driver, family);
    ul_stream_write(driver->streams, after.token, "ping", 4);
    driver_tick(driver, 0);
    CHECK_INT(driver_report(driver).slots_in_use, ==, 1);
    connection_close(driver, &after);
    driver_close(driver);
}

/* One answer is not worth a slot, two are. */
static void a_late_slot_is_taken_with_the_second_send(void) {
    struct setting late = *usual_setting;
    late.options.late_slots = true;
    struct driver *driver = open_with_table(&late);
    struct connection connection = connection_open(driver, family);
    ul_stream_read(driver->streams, connection.token, true);
    for (size_t sends = 1; sends <= 3; sends++) {
        ul_stream_write(driver->streams, connection.token, "ping", 4);
        UNTIL(driver, peer_has(&connection.peer, 4 * sends));
        CHECK_INT(driver_report(driver).slots_in_use, ==, sends >= 2);
    }
    CHECK_INT(driver_report(driver).stats.fixed_file_fallbacks, ==, 0);
    connection_close(driver, &connection);
    driver_close(driver);
}

/* The kernel refuses: as it sees it, the descriptor is not open. */
static void refuse_slots(struct driver *driver) {
    struct ul_files *files = &driver->reactor->engine.files;
    for (int slot = 0; slot < files->capacity; slot++)
        files->fds[slot] = 987654;
}

/* Requests made before it was known that the slot is refused are made again. */
static void a_stream_that_is_refused_its_slot_runs_on_its_descriptor(void) {
    struct driver *driver = open_with_table(usual_setting);
    struct connection connection = connection_open(driver, family);
    ul_stream_write(driver->streams, connection.token, "ping", 4);
    ul_streams_flush(driver->streams); /* the slot, and the send by it, are to be submitted */
    ul_stream_read(driver->streams, connection.token, true);
    refuse_slots(driver);
    peer_send(&connection.peer, "pong", 4);
    UNTIL(driver, peer_has(&connection.peer, 4) && driver_heard(driver, connection.token)->got.length == 4);
    CHECK_INT(driver_report(driver).slots_in_use, ==, 0);
    CHECK_INT(driver_report(driver).stats.fixed_file_fallbacks, ==, 1);
    connection_close(driver, &connection);
    driver_close(driver);
}

/* Filling the slot, the send by it and emptying it are in one batch. */
static void a_stream_that_closes_before_its_slot_is_refused_sends_all(void) {
    struct driver *driver = open_with_table(usual_setting);
    struct connection connection = connection_open(driver, family);
    ul_stream_write(driver->streams, connection.token, "ping", 4);
    ul_streams_flush(driver->streams);
    ul_stream_close(driver->streams, connection.token);
    refuse_slots(driver);
    UNTIL(driver, is_lost(driver, &connection));
    CHECK_INT(driver_heard(driver, connection.token)->error, ==, 0);
    CHECK(peer_has(&connection.peer, 4));
    CHECK_INT(driver_report(driver).slots_in_use, ==, 0);
    CHECK_INT(driver_report(driver).stats.fixed_file_fallbacks, ==, 1);
    connection_finish(driver, &connection);
    driver_close(driver);
}

static void a_stream_on_a_descriptor_that_is_not_open_is_lost(void) {
    struct driver *driver = driver_open(&usual_setting->options);
    int32_t token = ul_stream_open(driver->streams, 987654);
    ul_stream_read(driver->streams, token, true);
    ul_stream_write(driver->streams, token, "ping", 4); /* by a slot, which is refused: that is forgiven some times, and no more */
    UNTIL(driver, driver_heard(driver, token)->lost);
    CHECK_INT(driver_heard(driver, token)->error, ==, EBADF);
    driver_close(driver);
}

static void ten_thousand_connections_leave_nothing(void) {
    struct driver *driver = driver_open(&usual_setting->options);
    for (int i = 0; i < 10000; i++) {
        struct connection connection = connection_open(driver, FAMILY_UNIX);
        ul_stream_read(driver->streams, connection.token, true);
        driver_tick(driver, 0);
        ul_stream_close(driver->streams, connection.token);
        UNTIL(driver, is_lost(driver, &connection));
        connection_finish(driver, &connection);
    }
    CHECK_INT(driver->streams->table.chunk_count, ==, 1);
    driver_close(driver);
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    char section[100];
    for (setting = settings; setting < settings + settings_count; setting++) {
        for (family = FAMILY_UNIX; family <= FAMILY_TCP; family++) {
            for (state = states; state < states + STATES; state++) {
                snprintf(section, sizeof section, "%s, %s, %s", setting->name, family_names[family], state->name);
                check_section(section);
                RUN(a_close_sends_all_before_it_is_lost);
                RUN(an_abort_drops_what_is_queued);
                RUN(an_abort_without_a_reason_sends_what_there_is_room_for);
                RUN(an_abort_cuts_a_close_short);
                RUN(the_peer_goes_away);
            }
            snprintf(section, sizeof section, "%s, %s", setting->name, family_names[family]);
            check_section(section);
            RUN(an_owner_told_that_its_closing_stream_is_drained_may_write_more);
            RUN(an_owner_that_is_awaited_may_abort);
        }
        check_section(setting->name);
        RUN(an_abort_sends_all_that_there_is_room_for);
        RUN(a_reset_while_reading_is_lost_with_its_error);
        RUN(a_reset_while_reading_is_stopped_is_told_when_it_starts);
        RUN(a_reset_while_sending_is_lost_with_its_error);
        RUN(a_write_to_a_peer_that_is_gone_is_lost_without_a_signal);
    }
    family = FAMILY_TCP;
    check_section("");
    RUN(streams_beyond_the_table_run_on_their_descriptors);
    RUN(a_late_slot_is_taken_with_the_second_send);
    RUN(a_stream_that_is_refused_its_slot_runs_on_its_descriptor);
    RUN(a_stream_that_closes_before_its_slot_is_refused_sends_all);
    RUN(a_stream_on_a_descriptor_that_is_not_open_is_lost);
    RUN(ten_thousand_connections_leave_nothing);
    return check_end();
}
