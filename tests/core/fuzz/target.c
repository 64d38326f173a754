/* The core under libFuzzer: the input says what the owner calls and what the kernel answers, in what order.
 *
 * Whatever it is, no memory is touched that is not the core's (the sanitizers watch), every span that is told lies in its pool, and after
 * close nothing is left that was not counted as left to the kernel. On the honest kernel all is given back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "reactor.h"

enum { KNOWN = 16, STEPS_MAX = 4096, DATA_BYTES = 70000, FAKE_SOCKET = 3000 };

#define REQUIRE(condition) ((condition) ? (void)0 : fail(__LINE__, #condition))

static _Noreturn void fail(int line, const char *condition) {
    fprintf(stderr, "target.c:%d: not %s\n", line, condition);
    abort();
}

/* --- the owner --------------------------------------------------------------------------------------------------------------------- */

/* Memory that was pinned for a stream and not released yet, oldest first. */
struct pinned {
    struct pinned *next;
    int32_t token;
    char *data;
};

struct tokens {
    int32_t known[KNOWN];
    uint32_t count;
};

static struct ul_reactor *reactor;
static struct ul_engine *engine;
static struct tokens streams, listeners, endpoints, operations;
static struct pinned *pinned;
static char data[DATA_BYTES];
static bool begun;

static void remember(struct tokens *tokens, int32_t token) {
    if (token >= 0)
        tokens->known[tokens->count++ % KNOWN] = token;
}

/* Mostly one that is or was in use; now and then anything. */
static int32_t any_token(const struct tokens *tokens) {
    uint8_t which = input_byte();
    if (which >= 250)
        return (int32_t)input_word();
    uint32_t count = tokens->count < KNOWN ? tokens->count : KNOWN;
    return count ? tokens->known[which % count] : -1;
}

static void pin(int32_t token, size_t length) {
    struct pinned *entry = malloc(sizeof *entry);
    *entry = (struct pinned){.token = token, .data = calloc(1, length)};
    int64_t queued = ul_stream_write_pinned(&reactor->streams, token, entry->data, length);
    if (queued <= 0) {
        free(entry->data);
        free(entry);
        return;
    }
    struct pinned **last = &pinned;
    while (*last)
        last = &(*last)->next;
    *last = entry;
}

/* The oldest `count` of this stream, or of all streams. */
static int release(int32_t token, bool of_all, int count) {
    struct pinned **at = &pinned;
    int released = 0;
    while (*at && released < count) {
        struct pinned *entry = *at;
        if (!of_all && entry->token != token) {
            at = &entry->next;
            continue;
        }
        *at = entry->next;
        free(entry->data);
        free(entry);
        released++;
    }
    return released;
}

/* --- what the core tells ----------------------------------------------------------------------------------------------------------- */

static void hear_data(const int32_t *event) {
    REQUIRE(event[2] >= 0 && event[2] < event[3]);
    REQUIRE((size_t)event[3] <= ul_buffers_bytes(&engine->buffers));
    const char *bytes = ul_reactor_pool(reactor) + event[2];
    for (int32_t i = 1; !kernel.hostile && i < event[3] - event[2]; i++)
        REQUIRE(bytes[i] == bytes[0]); /* as one receive has filled them */
}

static void hear_datagram(const int32_t *event) {
    size_t length = (uint32_t)event[3] >> UL_NAME_BITS, name_length = (uint32_t)event[3] & ((1U << UL_NAME_BITS) - 1);
    REQUIRE(event[2] >= (int32_t)UL_NAME_BYTES && name_length <= UL_NAME_BYTES);
    REQUIRE((size_t)event[2] + length <= ul_buffers_bytes(&reactor->endpoints.buffers));
}

/* The owner receives, or leaves it to a later event, or to none. */
static void hear_readable(const int32_t *event) {
    REQUIRE(event[2] > 0 && event[2] <= UL_BULK_BYTES_MAX);
    if (input_one_in(4))
        return;
    int32_t received = (int32_t)(input_word() % ((uint32_t)event[2] + 1));
    ul_stream_received(&reactor->streams, event[1], input_one_in(4) ? -EAGAIN : input_one_in(8) ? -ECONNRESET : input_one_in(2) ? event[2] : received);
}

static void hear(const int32_t *event) {
    REQUIRE(event[1] >= 0);
    switch (event[0]) {
    case UL_EVENT_DATA:
        hear_data(event);
        break;
    case UL_EVENT_DATAGRAM:
        hear_datagram(event);
        break;
    case UL_EVENT_READABLE:
        hear_readable(event);
        break;
    case UL_EVENT_DRAINED:
        REQUIRE(release(event[1], false, event[2]) == event[2]);
        break;
    case UL_EVENT_LOST:
        release(event[1], false, INT32_MAX);
        REQUIRE(!ul_table_get(&reactor->streams.table, event[1]));
        break;
    default:
        REQUIRE(event[0] > UL_EVENT_DATA && event[0] <= UL_EVENT_ENDPOINT_LOST);
    }
}

static void tick(int64_t timeout_ns) {
    kernel.datagram_pool = ul_reactor_datagram_pool(reactor);
    kernel.datagram_bytes = ul_buffers_bytes(&reactor->endpoints.buffers);
    bool rests = timeout_ns == 0 && !ul_reactor_glance(reactor);
    int count = ul_reactor_tick(reactor, timeout_ns);
    REQUIRE(!rests || count == 0);
    REQUIRE(count <= UL_EVENTS_MAX);
    const int32_t *events = ul_reactor_events(reactor);
    for (int i = 0; i < count; i++)
        hear(events + i * UL_EVENT_INTS);
    REQUIRE(engine->buffers.kernel_count + engine->buffers.returned_count == engine->buffers.count);
}

/* --- what the owner calls ---------------------------------------------------------------------------------------------------------- */

static void call_stream(uint32_t what) {
    struct ul_streams *all = &reactor->streams;
    if (what == 0) {
        remember(&streams, input_one_in(4) ? ul_stream_open_pipe(all, FAKE_SOCKET) : ul_stream_open(all, FAKE_SOCKET));
        return;
    }
    int32_t token = any_token(&streams);
    switch (what) {
    case 1:
        ul_stream_read(all, token, !input_one_in(3));
        break;
    case 2:
        ul_stream_write(all, token, data, 1 + input_word() % 20000);
        break;
    case 3:
        pin(token, 1 + input_word() % DATA_BYTES);
        break;
    case 4:
        ul_stream_set_low_water(all, token, (int32_t)input_word());
        break;
    case 5:
        ul_stream_write_eof(all, token);
        break;
    case 6:
        ul_stream_close(all, token);
        break;
    case 7:
        ul_stream_abort(all, token, EIO);
        break;
    case 8:
        REQUIRE(ul_stream_send_now(all, token, data, 1 + input_word() % DATA_BYTES) <= DATA_BYTES);
        break;
    default:
        REQUIRE(ul_stream_queued(all, token) >= 0);
    }
}

static void call_endpoint(uint32_t what) {
    struct ul_endpoints *all = &reactor->endpoints;
    if (what == 0) {
        remember(&endpoints, ul_endpoint_open(all, FAKE_SOCKET, input_byte()));
        return;
    }
    int32_t token = any_token(&endpoints);
    switch (what) {
    case 1:
        ul_endpoint_read(all, token, !input_one_in(3));
        break;
    case 2:
        ul_endpoint_write(all, token, data, input_word() % 2000, data, input_byte());
        break;
    case 3:
        ul_endpoint_set_low_water(all, token, (int32_t)input_word());
        break;
    case 4:
        ul_endpoint_close(all, token);
        break;
    default:
        ul_endpoint_abort(all, token);
    }
}

static void call_listener_or_operation(uint32_t what) {
    switch (what) {
    case 0:
        remember(&listeners, ul_listener_open(&reactor->listeners, FAKE_SOCKET));
        break;
    case 1:
        ul_listener_start(&reactor->listeners, any_token(&listeners));
        break;
    case 2:
        ul_listener_close(&reactor->listeners, any_token(&listeners));
        break;
    case 3:
        remember(&operations, ul_operation_start(&reactor->operations, IORING_OP_NOP, -1, 0, 0, 0, 0, 0, 0));
        break;
    default:
        ul_operation_cancel(&reactor->operations, any_token(&operations));
    }
}

static void end(void) {
    if (begun)
        ul_reactor_end(reactor);
    begun = false;
}

static void begin(void) { begun = begun || ul_reactor_begin(reactor) == 0; }

static void call_reactor(uint32_t what) {
    struct ul_report report;
    switch (what) {
    case 0:
        ul_reactor_flush(reactor);
        break;
    case 1:
        end();
        begin();
        break;
    case 2:
        end();
        kernel.thread = input_one_in(2);
        begin();
        break;
    case 3:
        ul_wake(reactor->wake);
        break;
    case 4:
        kernel.allocations = 1 + input_byte();
        break;
    default:
        ul_reactor_report(reactor, &report);
    }
}

static void step(void) {
    uint32_t what = input_below(40);
    if (what < 10)
        call_stream(what);
    else if (what < 16)
        call_endpoint(what - 10);
    else if (what < 21)
        call_listener_or_operation(what - 16);
    else if (what < 27)
        call_reactor(what - 21);
    else if (begun)
        tick(what < 35 ? 0 : -1);
}

/* --- the beginning and the end ------------------------------------------------------------------------------------------------------ */

static struct ul_options some_options(void) {
    uint8_t bits = input_byte();
    kernel.hostile = bits & 1;
    kernel.old = bits & 2;
    bool incremental = bits & 4 && !kernel.old;
    return (struct ul_options){
        .sq_entries = bits & 8 ? 4 : 64,
        .cq_entries = bits & 8 ? 8 : 256,
        .buffer_count = bits & 16 ? 2 : 16,
        .buffer_size = bits & 16 ? 64 : 4096,
        .datagram_buffers = bits & 32 ? 2 : 0,
        .files = bits & 64 ? 4 : 0,
        .incremental = incremental,
        .rewinding = bits & 128,
        .register_ring = true,
        .limited_receives = !kernel.old,
        .inline_sends = bits & 128,
        .late_slots = bits & 16,
    };
}

static void close_reactor(void) {
    end();
    bool abandons = input_one_in(32);
    if (abandons)
        ul_reactor_abandon(reactor);
    if (kernel.hostile)
        engine->in_flight = 0; /* lies have made it wrong: let it be freed as if all were well, which goes through more of the core */
    bool foreign = reactor->state == UL_REACTOR_MOVING;
    uint64_t leaked = ul_reactor_close(reactor);
    release(0, true, INT32_MAX);
    bool excused = kernel.hostile || kernel.memory_failed || foreign || abandons;
    REQUIRE(excused || leaked == 0);
    size_t left = kernel_end();
    REQUIRE(leaked || abandons || left == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    int error;
    input_begin(input, size);
    kernel_begin();
    streams.count = listeners.count = endpoints.count = operations.count = 0;
    begun = false;
    kernel.datagram_buffer_bytes = UL_DATAGRAM_BUFFER_BYTES;
    struct ul_options options = some_options();
    if (input_one_in(16))
        kernel.allocations = 1 + input_below(32);
    reactor = ul_reactor_open(&options, &error);
    if (!reactor) {
        REQUIRE(error < 0 && kernel.memory_failed);
        REQUIRE(kernel_end() == 0);
        return 0;
    }
    engine = &reactor->engine;
    begin();
    for (int steps = 0; steps < STEPS_MAX && input_left(); steps++)
        step();
    close_reactor();
    return 0;
}
