/* Random lives of many streams at once, on a model of each: every byte that arrives is the right one, none is missing after a close, memory
 * that is pinned is read until its release and not after it, and every life ends with one LOST. */
#include "check.h"
#include "driver.h"

#define STREAMS 24
#define STEPS 8000
#define STREAM_BYTES_MOST 300000 /* in each direction */
#define WRITE_MOST 60000
#define PINS_MOST 64

static const struct setting *setting; /* of the tests that are run now */
static enum family family;

struct life {
    bool begun;
    struct connection connection;
    uint32_t number;    /* of its pattern */
    size_t written;     /* by the owner */
    size_t sent;        /* by the peer */
    bool closed, ended; /* by the owner: write_eof or close */
    bool cut;           /* an end that may lose bytes: an abort, or the peer has gone */
    char *pinned[PINS_MOST];
    size_t pinned_lengths[PINS_MOST];
    uint32_t pins, pins_freed;
};

static struct driver *driver;
static struct life lives[STREAMS];
static uint32_t lives_begun, lives_over;

static struct heard *heard_of(const struct life *life) { return driver_heard(driver, life->connection.token); }

/* --- what an owner does ------------------------------------------------------------------------------------------------------------ */

static void begin(struct life *life) {
    *life = (struct life){.begun = true, .number = ++lives_begun};
    life->connection = (check_one_in(2) ? connection_open : connection_open_small)(driver, family);
}

static void write_some(struct life *life) {
    bool may = !life->ended && !life->closed && life->pins < PINS_MOST && life->written + WRITE_MOST < STREAM_BYTES_MOST;
    if (!may)
        return;
    size_t length = 1 + check_below(check_one_in(3) ? WRITE_MOST : 500);
    bool pin = check_one_in(2);
    char *data = malloc(length);
    pattern_fill(data, length, life->number, life->written);
    int64_t queued = (pin ? ul_stream_write_pinned : ul_stream_write)(driver->streams, life->connection.token, data, length);
    CHECK(queued >= 0 || queued == -EPIPE);
    life->written += queued >= 0 ? length : 0;
    if (pin && queued > 0) {
        life->pinned_lengths[life->pins] = length;
        life->pinned[life->pins++] = data;
    } else {
        memset(data, 'X', length);
        free(data);
    }
}

static void free_pinned(struct life *life, uint32_t released) {
    for (; life->pins_freed < released; life->pins_freed++) {
        CHECK_INT(life->pins_freed, <, life->pins);
        memset(life->pinned[life->pins_freed], 'X', life->pinned_lengths[life->pins_freed]);
        free(life->pinned[life->pins_freed]);
    }
}

static void close_it(struct life *life) {
    life->closed = true;
    CHECK_INT(ul_stream_close(driver->streams, life->connection.token), ==, 0);
}

static void abort_it(struct life *life) {
    life->cut = true;
    CHECK_INT(ul_stream_abort(driver->streams, life->connection.token, EIO), ==, 0);
}

static void shut_it(struct life *life) {
    life->ended = true;
    int error = ul_stream_write_eof(driver->streams, life->connection.token);
    CHECK(error == 0 || (error == -ENOTCONN && life->cut));
}

static void take_away_the_peer(struct life *life) {
    life->cut = true;
    peer_has(&life->connection.peer, 0);
    if (family == FAMILY_TCP && life->connection.peer.fd >= 0 && check_one_in(2))
        peer_reset(&life->connection.peer);
    peer_close(&life->connection.peer);
}

static void send_from_the_peer(struct life *life) {
    char data[20000];
    size_t length = 1 + check_below(check_one_in(3) ? sizeof data : 100);
    if (life->connection.peer.fd < 0 || life->sent + length > STREAM_BYTES_MOST)
        return;
    pattern_fill(data, length, life->number, life->sent);
    life->sent += peer_send(&life->connection.peer, data, length);
}

static void read_at_the_peer(struct life *life) {
    if (life->connection.peer.fd >= 0)
        peer_read(&life->connection.peer, 1 + check_below(50000));
}

static void act(struct life *life) {
    struct ul_streams *streams = driver->streams;
    int32_t token = life->connection.token;
    uint32_t chosen = check_below(100);
    if (chosen < 30)
        write_some(life);
    else if (chosen < 55)
        send_from_the_peer(life);
    else if (chosen < 70)
        read_at_the_peer(life);
    else if (chosen < 80)
        CHECK_INT(ul_stream_read(streams, token, check_below(4) > 0), ==, 0);
    else if (chosen < 85)
        CHECK_INT(ul_stream_set_low_water(streams, token, check_below(5000)), ==, 0);
    else if (chosen < 88)
        shut_it(life);
    else if (chosen < 94)
        close_it(life);
    else if (chosen < 96)
        abort_it(life);
    else if (chosen < 97)
        take_away_the_peer(life);
}

/* --- what must hold ---------------------------------------------------------------------------------------------------------------- */

static void finish(struct life *life) {
    struct peer *peer = &life->connection.peer;
    const struct heard *heard = heard_of(life);
    if (!life->cut)
        CHECK_INT(heard->error, ==, 0);
    CHECK_INT(heard->got.length, <=, life->sent);
    pattern_check(&heard->got, life->number);
    free_pinned(life, life->pins);
    if (peer->fd >= 0)
        peer_has(peer, 0);
    /* TCP resets a connection that is closed over unread bytes, and what was on its way to the peer is gone too. */
    life->cut |= family == FAMILY_TCP && heard->got.length < life->sent;
    close(life->connection.fd);
    CHECK_UNTIL(peer->fd < 0 || peer_is_at_the_end(peer), (void)0);
    CHECK_INT(peer->got.length, <=, life->written);
    if (!life->cut)
        CHECK_INT(peer->got.length, ==, life->written);
    pattern_check(&peer->got, life->number);
    peer_free(peer);
    life->begun = false;
    lives_over++;
}

/* What its owner does about what it has heard. */
static void attend(struct life *life) {
    const struct heard *heard = heard_of(life);
    if (heard->lost) {
        finish(life);
        return;
    }
    free_pinned(life, heard->released);
    if (life->closed && heard->drained) /* it may have been told that it is awaited */
        close_it(life);
}

static void turn(int64_t timeout_ns) {
    driver_tick(driver, timeout_ns);
    for (struct life *life = lives; life < lives + STREAMS; life++)
        if (life->begun)
            attend(life);
}

static bool all_are_over(void) {
    for (struct life *life = lives; life < lives + STREAMS; life++)
        if (life->begun)
            return false;
    return true;
}

static void read_at_all_peers(void) {
    for (struct life *life = lives; life < lives + STREAMS; life++)
        if (life->begun && life->connection.peer.fd >= 0)
            peer_has(&life->connection.peer, 0);
}

static void random_lives_are_as_in_the_model(void) {
    driver = driver_open(&setting->options);
    for (int step = 0; step < STEPS; step++) {
        struct life *life = &lives[check_below(STREAMS)];
        (life->begun ? act : begin)(life);
        if (check_one_in(3))
            turn(check_one_in(2) ? 0 : MILLISECOND / 20);
        if (check_one_in(50))
            CHECK_INT(ul_reactor_flush(driver->reactor), ==, 0);
    }
    for (struct life *life = lives; life < lives + STREAMS; life++)
        if (life->begun)
            close_it(life);
    CHECK_UNTIL(all_are_over(), {
        read_at_all_peers();
        turn(MILLISECOND);
    });
    CHECK_INT(lives_over, ==, lives_begun);
    CHECK_INT(lives_over, >, STREAMS);
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
            RUN(random_lives_are_as_in_the_model);
        }
    }
    return check_end();
}
