#include "driver.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/utsname.h>

/* --- settings ---------------------------------------------------------------------------------------------------------------------- */

#define RING(sq, cq) .sq_entries = sq, .cq_entries = cq
#define BUFFERS(count, size) .buffer_count = count, .buffer_size = size
#define USUAL RING(256, 1024), BUFFERS(64, 16384), .files = 1024, .register_ring = true, .datagram_buffers = 64

const struct setting settings[] = {
    {"usual", {USUAL, .inline_sends = true, .limited_receives = true}},
    {"tiny", {RING(4, 8), BUFFERS(2, 4096), .files = 16, .register_ring = true, .datagram_buffers = 2, .inline_sends = true}},
    {"incremental", {RING(64, 256), BUFFERS(2, 65536), .files = 16, .incremental = true, .datagram_buffers = 4, .inline_sends = true, .late_slots = true}},
    {"rewinding", {RING(64, 256), BUFFERS(2, 65536), .files = 16, .incremental = true, .rewinding = true, .datagram_buffers = 4, .inline_sends = true}},
    {"no table", {RING(256, 1024), BUFFERS(64, 16384), .inline_sends = true, .datagram_buffers = 16}},
    {"waiting sends", {USUAL}},
    /* What uringloop.Loop asks for where the kernel has all of it: see choose_options in loop.py. */
    {"as of the loop", {RING(256, 2048), BUFFERS(2, 524288), .files = 1024, .register_ring = true, .datagram_buffers = 64, .incremental = true,
                        .rewinding = true, .late_slots = true, .inline_sends = true, .limited_receives = true}},
    {"cooperative", {USUAL, .inline_sends = true, .without_flags = IORING_SETUP_DEFER_TASKRUN}},
};
const size_t settings_count = sizeof settings / sizeof *settings;
const struct setting *const usual_setting = &settings[0];
const struct setting *const tiny_setting = &settings[1];

static bool kernel_is_at_least(int wanted_major, int wanted_minor) {
    struct utsname name;
    int major = 0, minor = 0;
    SYSTEM(uname(&name));
    sscanf(name.release, "%d.%d", &major, &minor);
    return major > wanted_major || (major == wanted_major && minor >= wanted_minor);
}

struct ul_reactor *reactor_open(const struct ul_options *wanted) {
    struct ul_options options = *wanted;
    int error;
    if (!kernel_is_at_least(6, 13))
        options.files = 0; /* a file that has left the table is kept until older requests are done, which may be never */
    options.limited_receives &= kernel_is_at_least(6, 17);
    struct ul_reactor *reactor = ul_reactor_open(&options, &error);
    if (error == -EPERM || error == -ENOSYS)
        check_skip("no io_uring: %s", strerror(-error));
    if (error == -EINVAL && options.incremental)
        check_skip("no incremental buffers before Linux 6.12");
    CHECK_INT(error, ==, 0);
    return reactor;
}

struct driver *driver_open(const struct ul_options *options) {
    struct driver *driver = calloc(1, sizeof *driver);
    driver->reactor = reactor_open(options);
    driver->streams = ul_reactor_streams(driver->reactor);
    driver->listeners = ul_reactor_listeners(driver->reactor);
    driver->endpoints = ul_reactor_endpoints(driver->reactor);
    driver->operations = ul_reactor_operations(driver->reactor);
    CHECK_INT(ul_reactor_begin(driver->reactor), ==, 0);
    return driver;
}

static bool is_at_rest(const struct driver *driver) {
    struct ul_report report = driver_report(driver);
    return report.streams == 0 && report.listeners == 0 && report.endpoints == 0 && report.datagram_buffers_in_use == 0 &&
           report.operations == 0 && report.slots_in_use == 0 && report.buffers_in_use == 0 && report.in_flight == 1; /* the poll that waits for a wake */
}

void driver_close(struct driver *driver) {
    UNTIL(driver, is_at_rest(driver));
    CHECK_INT(driver_report(driver).stats.stale_completions, ==, 0); /* nothing was reported lost before it was over */
    ul_reactor_end(driver->reactor);
    CHECK_INT(ul_reactor_close(driver->reactor), ==, 0);
    for (size_t i = 0; i < driver->heard_count; i++)
        bytes_free(&driver->heard[i].got);
    for (size_t i = 0; i < driver->note_count; i++)
        bytes_free(&driver->notes[i].data);
    free(driver->notes);
    free(driver->heard);
    free(driver->accepted);
    free(driver->done);
    free(driver);
}

struct ul_report driver_report(const struct driver *driver) {
    struct ul_report report;
    ul_reactor_report(driver->reactor, &report);
    return report;
}

/* --- what is heard ----------------------------------------------------------------------------------------------------------------- */

struct heard *driver_heard(struct driver *driver, int32_t token) {
    size_t index = (size_t)token & ((1U << UL_INDEX_BITS) - 1);
    CHECK_INT(token, >=, 0);
    if (index >= driver->heard_count) {
        size_t count = index + 64;
        driver->heard = realloc(driver->heard, count * sizeof *driver->heard);
        memset(driver->heard + driver->heard_count, 0, (count - driver->heard_count) * sizeof *driver->heard);
        driver->heard_count = count;
    }
    struct heard *heard = &driver->heard[index];
    if (heard->token != token) { /* the first that is heard in this life of the entry */
        bytes_free(&heard->got);
        *heard = (struct heard){.token = token};
    }
    return heard;
}

static void hear_data(struct driver *driver, struct heard *heard, int32_t start, int32_t stop) {
    CHECK(!heard->eof);
    CHECK(start >= 0 && start < stop);
    CHECK_INT(stop, <=, ul_buffers_bytes(&driver->reactor->engine.buffers));
    bytes_append(&heard->got, ul_reactor_pool(driver->reactor) + start, (size_t)(stop - start));
}

static void hear_end(struct heard *heard) {
    CHECK(!heard->eof);
    heard->eof = true;
}

/* Receives as an owner does, unless the test does that. */
static void hear_readable(struct driver *driver, struct heard *heard, int32_t room) {
    heard->room = room;
    if (driver->holds_readable)
        return;
    static char received[UL_BULK_BYTES_MAX];
    CHECK(room > 0 && room <= (int32_t)sizeof received);
    const struct ul_stream *stream = ul_table_get(&driver->streams->table, heard->token);
    if (!stream)
        return;
    ssize_t length = stream->is_pipe ? read(stream->fd, received, (size_t)room) : recv(stream->fd, received, (size_t)room, MSG_DONTWAIT);
    if (length > 0)
        bytes_append(&heard->got, received, (size_t)length);
    driver_received(driver, heard->token, length < 0 ? -errno : (int32_t)length);
    if (length == 0)
        hear_end(heard);
}

void driver_received(struct driver *driver, int32_t token, int32_t result) {
    driver_heard(driver, token)->room = 0;
    ul_stream_received(driver->streams, token, result);
}

static void hear_of_stream(struct driver *driver, const int32_t *event) {
    struct heard *heard = driver_heard(driver, event[1]);
    CHECK(!heard->lost);
    switch (event[0]) {
    case UL_EVENT_DATA:
        hear_data(driver, heard, event[2], event[3]);
        break;
    case UL_EVENT_READABLE:
        hear_readable(driver, heard, event[2]);
        break;
    case UL_EVENT_EOF:
        hear_end(heard);
        break;
    case UL_EVENT_DRAINED:
        CHECK_INT(event[2], >=, 0);
        heard->drained++;
        heard->released += (uint32_t)event[2];
        break;
    case UL_EVENT_LOST:
        heard->lost = true;
        heard->error = event[2];
        break;
    default:
        check_fail(__FILE__, __LINE__, "event kind %d", event[0]);
    }
}

static void hear_of_endpoint(struct driver *driver, const int32_t *event) {
    driver->notes = realloc(driver->notes, (driver->note_count + 1) * sizeof *driver->notes);
    struct note *note = &driver->notes[driver->note_count++];
    *note = (struct note){.kind = event[0], .endpoint = event[1]};
    if (event[0] == UL_EVENT_ENDPOINT_ERROR)
        note->error = event[2];
    if (event[0] != UL_EVENT_DATAGRAM)
        return;
    uint32_t start = (uint32_t)event[2], length = (uint32_t)event[3] >> UL_NAME_BITS;
    CHECK_INT(start + length, <=, ul_buffers_bytes(&driver->endpoints->buffers));
    note->name_length = (uint32_t)event[3] & ((1U << UL_NAME_BITS) - 1);
    if (length)
        bytes_append(&note->data, ul_reactor_datagram_pool(driver->reactor) + start, length);
}

static void hear(struct driver *driver, const int32_t *event) {
    if (event[0] == UL_EVENT_ACCEPTED) {
        driver->accepted = realloc(driver->accepted, (driver->accepted_count + 1) * sizeof *driver->accepted);
        driver->accepted[driver->accepted_count++] = (struct accepted){event[1], event[2]};
    } else if (event[0] == UL_EVENT_DONE) {
        driver->done = realloc(driver->done, (driver->done_count + 1) * sizeof *driver->done);
        driver->done[driver->done_count++] = (struct done){event[1], event[2]};
    } else if (event[0] >= UL_EVENT_DATAGRAM && event[0] <= UL_EVENT_ENDPOINT_LOST) {
        hear_of_endpoint(driver, event);
    } else {
        hear_of_stream(driver, event);
    }
}

int driver_tick(struct driver *driver, int64_t timeout_ns) {
    int count = ul_reactor_tick(driver->reactor, timeout_ns);
    CHECK_INT(count, >=, 0);
    CHECK_INT(count, <=, UL_EVENTS_MAX);
    for (int i = 0; i < count; i++)
        hear(driver, ul_reactor_events(driver->reactor) + i * UL_EVENT_INTS);
    return count;
}

const struct done *driver_done(const struct driver *driver, int32_t operation) {
    for (size_t i = driver->done_count; i-- > 0;)
        if (driver->done[i].operation == operation)
            return &driver->done[i];
    return NULL;
}

size_t driver_done_times(const struct driver *driver, int32_t operation) {
    size_t times = 0;
    for (size_t i = 0; i < driver->done_count; i++)
        times += driver->done[i].operation == operation;
    return times;
}

/* What came before the fence was made has come before the fence does: three times, since one tick takes a limited number of completions. */
void driver_fence(struct driver *driver) {
    for (int i = 0; i < 3; i++) {
        int ends[2];
        SYSTEM(pipe2(ends, O_CLOEXEC));
        SYSTEM(write(ends[1], "x", 1));
        int32_t fence = ul_operation_start(driver->operations, IORING_OP_POLL_ADD, ends[0], 0, 0, 0, POLLIN, 0, 0);
        UNTIL(driver, driver_done(driver, fence));
        close(ends[0]);
        close(ends[1]);
    }
}

/* --- connections ------------------------------------------------------------------------------------------------------------------- */

struct connection connection_open(struct driver *driver, enum family family) {
    struct connection connection;
    connection.fd = peer_connect(&connection.peer, family);
    connection.token = ul_stream_open(driver->streams, connection.fd);
    CHECK_INT(connection.token, >=, 0);
    return connection;
}

struct connection connection_open_small(struct driver *driver, enum family family) {
    struct connection connection = connection_open(driver, family);
    shrink_send_buffer(connection.fd);
    return connection;
}

void connection_finish(struct driver *driver, struct connection *connection) {
    CHECK(driver_heard(driver, connection->token)->lost);
    close(connection->fd);
    /* No tick: whatever kept the file open is gone when LOST is told. */
    CHECK_UNTIL(connection->peer.fd < 0 || peer_is_at_the_end(&connection->peer), (void)0);
    peer_free(&connection->peer);
}

void connection_close(struct driver *driver, struct connection *connection) {
    if (!driver_heard(driver, connection->token)->lost)
        CHECK_INT(ul_stream_close(driver->streams, connection->token), ==, 0);
    CHECK_UNTIL(driver_heard(driver, connection->token)->lost, {
        peer_has(&connection->peer, 0); /* makes room for what is queued */
        driver_tick(driver, MILLISECOND);
    });
    connection_finish(driver, connection);
}
