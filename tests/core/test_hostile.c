/* Completions that no kernel would send: any owner, any result, any flags, at any time, between calls of the owner on any token. Whatever comes
 * of it, no memory is touched that is not the engine's own (the sanitizers watch), and what is told stays inside the pool.
 *
 * The ring is never enabled, so nothing reaches the kernel, and every completion is made up.
 */
#include <sys/socket.h>

#include "check.h"
#include "driver.h"

#define STEPS 300000
#define STREAMS 20
#define NOT_OPEN 1000000 /* a descriptor that is not open, and may be closed */

static const struct setting *setting; /* of the tests that are run now */
static struct ul_reactor *reactor;
static struct ul_engine *engine;
static char data[20000];

static void open_reactor(void) {
    reactor = reactor_open(&setting->options);
    engine = &reactor->engine;
}

static void close_reactor(void) { CHECK_INT(ul_reactor_close(reactor), ==, 0); }

static int32_t arbitrary_token(const int32_t *known, int count) {
    switch (check_below(8)) {
    case 0:
        return (int32_t)check_random();
    case 1: /* of the right entry, in another life */
        return known[check_below((uint32_t)count)] ^ (int32_t)(check_below(1U << UL_GENERATION_BITS) << UL_INDEX_BITS);
    default:
        return known[check_below((uint32_t)count)];
    }
}

static struct io_uring_cqe arbitrary_completion(enum ul_request request, int32_t token) {
    struct io_uring_cqe cqe = {.user_data = ul_user_data(request, token), .flags = check_below(16)};
    static const int32_t errors[] = {-ECANCELED, -EAGAIN, -EINTR, -ENOBUFS, -EBADF, -EPIPE, -ECONNRESET, -EMFILE, -INT32_MAX, -1};
    switch (check_below(4)) {
    case 0:
        cqe.res = errors[check_below(sizeof errors / sizeof *errors)];
        break;
    case 1:
        cqe.res = 0;
        break;
    case 2:
        cqe.res = (int32_t)check_below(sizeof data);
        break;
    default:
        cqe.res = (int32_t)((int64_t)check_below(UINT32_MAX) - INT32_MAX); /* all but the one that has no positive */
    }
    cqe.flags |= check_one_in(2) ? IORING_CQE_F_BUF_MORE : 0;
    cqe.flags |= (check_one_in(4) ? (uint32_t)check_random() : check_below(setting->options.buffer_count)) << IORING_CQE_BUFFER_SHIFT;
    return cqe;
}

/* What the reactor does between completions, so that the made-up time goes on. */
static void turn(void) {
    CHECK_INT(engine->buffers.kernel_count + engine->buffers.returned_count, ==, engine->buffers.count);
    ul_buffers_recycle(&engine->buffers);
    ul_streams_flush(&reactor->streams);
    engine->ring.enters++;
    engine->ring.sq_tail = 0; /* as if all had been submitted */
    engine->ring.spill_count = 0;
    ul_streams_confirm(&reactor->streams);
    ul_streams_report_lost(&reactor->streams);
}

static void check_events(void) {
    for (uint32_t i = 0; i < engine->event_count; i++) {
        const int32_t *event = engine->events + i * UL_EVENT_INTS;
        CHECK((event[0] >= UL_EVENT_DATA && event[0] <= UL_EVENT_DONE) || event[0] == UL_EVENT_READABLE);
        CHECK_INT(event[1], >=, 0);
        if (event[0] == UL_EVENT_DATA) {
            CHECK(event[2] >= 0 && event[2] < event[3]);
            CHECK_INT(event[3], <=, ul_buffers_bytes(&engine->buffers));
        }
    }
    engine->event_count = 0;
}

/* --- streams ----------------------------------------------------------------------------------------------------------------------- */

static int ends[STREAMS][2];
static int32_t tokens[STREAMS];

static void call_the_stream(int32_t token) {
    struct ul_streams *streams = &reactor->streams;
    switch (check_below(12)) {
    case 0:
        ul_stream_close(streams, token);
        break;
    case 1:
        ul_stream_abort(streams, token, EIO);
        break;
    case 2:
    case 3:
        ul_stream_read(streams, token, check_one_in(2));
        break;
    case 4:
    case 5:
    case 6:
        (check_one_in(2) ? ul_stream_write_pinned : ul_stream_write)(streams, token, data, check_below(sizeof data));
        break;
    case 7:
        ul_stream_set_low_water(streams, token, (int64_t)check_random() >> check_below(64));
        break;
    case 8:
        CHECK_INT(ul_stream_queued(streams, token), >=, 0);
        break;
    case 9:
        ul_streams_tell_readable(streams);
        ul_stream_received(streams, token, (int32_t)check_random() >> check_below(32));
        break;
    case 10:
        if (check_one_in(20))
            ul_stream_write_eof(streams, token);
        break;
    default:
        turn();
    }
}

static void arbitrary_completions_of_streams_are_harmless(void) {
    open_reactor();
    for (int i = 0; i < STREAMS; i++) {
        SYSTEM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends[i]));
        tokens[i] = ul_stream_open(&reactor->streams, ends[i][0]);
    }
    for (int step = 0; step < STEPS; step++) {
        int32_t token = arbitrary_token(tokens, STREAMS);
        if (check_one_in(2)) {
            call_the_stream(token);
        } else {
            enum ul_request request = (enum ul_request)check_below(UL_REQUEST_WAKE + 3);
            struct io_uring_cqe cqe = arbitrary_completion(request, token);
            ul_stream_complete(&reactor->streams, request, token, &cqe);
        }
        check_events();
        int any = (int)check_below(STREAMS);
        if (!ul_table_get(&reactor->streams.table, tokens[any]))
            tokens[any] = ul_stream_open(&reactor->streams, ends[any][0]);
    }
    CHECK_INT(engine->stats.stale_completions, >, 0);
    CHECK_INT(engine->stats.bytes_received, >, 0);
    close_reactor();
    for (int i = 0; i < STREAMS; i++) {
        close(ends[i][0]);
        close(ends[i][1]);
    }
}

/* --- listeners and operations ------------------------------------------------------------------------------------------------------ */

enum { OWNERS = 8 };

static void arbitrary_completions_of_listeners_are_harmless(void) {
    int32_t listeners[OWNERS];
    open_reactor();
    int fd = listen_on_loopback(1);
    for (int i = 0; i < OWNERS; i++)
        listeners[i] = ul_listener_open(&reactor->listeners, fd);
    for (int step = 0; step < STEPS; step++) {
        int32_t token = arbitrary_token(listeners, OWNERS);
        struct io_uring_cqe cqe = arbitrary_completion(UL_REQUEST_ACCEPT, token);
        if (cqe.res >= 0)
            cqe.res = NOT_OPEN;
        ul_listener_complete(&reactor->listeners, UL_REQUEST_ACCEPT, token, &cqe);
        if (check_one_in(10))
            ul_listener_start(&reactor->listeners, token);
        if (check_one_in(10))
            ul_listener_close(&reactor->listeners, token);
        if (check_one_in(10))
            turn();
        check_events();
        int any = (int)check_below(OWNERS);
        if (!ul_table_get(&reactor->listeners.table, listeners[any]))
            listeners[any] = ul_listener_open(&reactor->listeners, fd);
    }
    close_reactor();
    close(fd);
}

static void arbitrary_completions_of_operations_are_harmless(void) {
    int32_t operations[OWNERS];
    open_reactor();
    for (int i = 0; i < OWNERS; i++)
        operations[i] = ul_operation_start(&reactor->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    for (int step = 0; step < STEPS; step++) {
        int32_t token = arbitrary_token(operations, OWNERS);
        struct io_uring_cqe cqe = arbitrary_completion(UL_REQUEST_OPERATION, token);
        ul_operation_complete(&reactor->operations, token, &cqe);
        if (check_one_in(5))
            ul_operation_cancel(&reactor->operations, token);
        if (check_one_in(10))
            turn();
        check_events();
        int any = (int)check_below(OWNERS);
        if (!ul_table_get(&reactor->operations.table, operations[any]))
            operations[any] = ul_operation_start(&reactor->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0);
    }
    close_reactor();
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    check_seed();
    for (setting = settings; setting < settings + settings_count; setting++) {
        check_section(setting->name);
        RUN(arbitrary_completions_of_streams_are_harmless);
        RUN(arbitrary_completions_of_listeners_are_harmless);
        RUN(arbitrary_completions_of_operations_are_harmless);
    }
    return check_end();
}
