#include "reactor_parts.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "restrictions.h"

/* How long close waits in vain for the kernel to give everything back, milliseconds. Cancels run at once; what takes longer is stuck. */
#define UL_DRAIN_MS 1000
#define UL_DRAIN_STEP_NS 10000000
/* After that many enters of 20 completions each, what was found is handed to Python before more is fetched. */
#define UL_CATCH_UP_ENTERS 4
/* So many enters in a row may bring nothing, as without memory, before the end of a run gives up on what the kernel still holds. */
#define UL_FRUITLESS_ENTERS 64
/* An enter may submit a part of what there is, or nothing (EAGAIN, ENOMEM). What is still left after so many goes with the next tick. */
#define UL_FLUSH_ENTERS 4

_Static_assert(UL_TURN_DUE > UL_EVENTS_MAX, "a turn tells the number of its events and the flag in one");

/* --- life -------------------------------------------------------------------------------------------------------------------------- */

static int ul_reactor_setup(struct ul_reactor *reactor) {
    const struct ul_options *options = &reactor->options;
    struct ul_engine *engine = &reactor->engine;
    engine->limited_receives = options->limited_receives;
    engine->inline_sends = options->inline_sends;
    engine->late_slots = options->late_slots;
    int error = ul_ring_open(&engine->ring, options->sq_entries, options->cq_entries, options->without_flags);
    if (error)
        return error;
    reactor->rewinds = options->incremental && options->rewinding && engine->ring.setup_flags & IORING_SETUP_DEFER_TASKRUN;
    reactor->wake = ul_wake_open(&error);
    if (!reactor->wake)
        return error;
    engine->events = malloc(UL_EVENTS_MAX * UL_EVENT_INTS * sizeof *engine->events);
    if (!engine->events)
        return -ENOMEM;
    error = ul_files_open(&engine->files, &engine->ring, options->files);
    if (error)
        return error;
    error = ul_buffers_open(&engine->buffers, &engine->ring, 0, options->buffer_count, options->buffer_size, options->incremental);
    return error || !options->hardened ? error : ul_restrictions_register(&engine->ring);
}

static void ul_reactor_free(struct ul_reactor *reactor, bool leak) {
    struct ul_engine *engine = &reactor->engine;
    ul_ring_unregister_self(&engine->ring); /* where ul_reactor_end was not called */
    ul_buffers_close(&engine->buffers, &engine->ring, leak);
    ul_buffers_close(&reactor->endpoints.buffers, &engine->ring, leak);
    if (engine->files.capacity && engine->ring.fd >= 0)
        ul_ring_register(&engine->ring, IORING_UNREGISTER_FILES, NULL, 0); /* now: closing the ring would let go of them some time later */
    ul_ring_close(&engine->ring);
    if (reactor->wake)
        ul_wake_release(reactor->wake);
    if (leak)
        return; /* send queues, datagrams and gather lists may still be read or written: all of it stays */
    ul_files_close(&engine->files);
    ul_streams_destroy(&reactor->streams);
    ul_listeners_destroy(&reactor->listeners);
    ul_endpoints_destroy(&reactor->endpoints);
    ul_operations_destroy(&reactor->operations);
    free(engine->events);
    free(reactor);
}

struct ul_reactor *ul_reactor_open(const struct ul_options *options, int *error) {
    struct ul_reactor *reactor = calloc(1, sizeof *reactor);
    if (!reactor) {
        *error = -ENOMEM;
        return NULL;
    }
    reactor->options = *options;
    reactor->engine.ring.fd = -1;
    reactor->deadline_ns = -1;
    ul_streams_init(&reactor->streams, &reactor->engine);
    ul_listeners_init(&reactor->listeners, &reactor->engine);
    ul_endpoints_init(&reactor->endpoints, &reactor->engine, options->datagram_buffers);
    ul_operations_init(&reactor->operations, &reactor->engine);
    *error = ul_reactor_setup(reactor);
    if (*error) {
        ul_reactor_free(reactor, false);
        return NULL;
    }
    return reactor;
}

/* Errors of an enter that mean no more than: reap, and come again. That memory is out is said by EAGAIN for a request and by ENOMEM for what a
 * thread needs at its first enter; in both cases nothing was submitted, and all of it still is when there is memory again. */
static int ul_reactor_real_error(int error) {
    return error == -ETIME || error == -EINTR || error == -EBUSY || error == -EAGAIN || error == -ENOMEM ? 0 : error;
}

void ul_reactor_arm_wake(struct ul_reactor *reactor) {
    bool may = reactor->state == UL_REACTOR_ENABLED;
    struct io_uring_sqe *sqe = may ? ul_request(&reactor->engine, IORING_OP_POLL_ADD, UL_REQUEST_WAKE, 0) : NULL;
    reactor->wake_due = may && !sqe;
    if (!sqe)
        return;
    sqe->fd = reactor->wake->fd;
    sqe->len = IORING_POLL_ADD_MULTI;
    sqe->op_flags = POLLIN;
}

int ul_reactor_begin(struct ul_reactor *reactor) {
    struct ul_ring *ring = &reactor->engine.ring;
    if (reactor->state == UL_REACTOR_ABANDONED)
        return -EOWNERDEAD;
    if (reactor->begun)
        return -EBUSY;
    if (reactor->state == UL_REACTOR_DISABLED) {
        int error = ul_ring_enable(ring);
        if (error < 0)
            return error;
        reactor->state = UL_REACTOR_ENABLED;
        ul_reactor_arm_wake(reactor);
    }
    /* Sixteen a thread at the most: without it everything works the same. But the kernel refuses it on another thread's ring. */
    bool foreign = reactor->move_failed || ul_ring_register_self(ring) == -EEXIST;
    if (!reactor->options.register_ring)
        ul_ring_unregister_self(ring);
    int error = foreign ? 0 : ul_reactor_real_error(ul_ring_enter(ring, 0, 0));
    if (!error && !foreign && reactor->endpoints.buffers.open && !reactor->endpoints.buffers.registered)
        error = ul_buffers_register(&reactor->endpoints.buffers, ring); /* made for a move that did not come to its end */
    if (error) {
        ul_ring_unregister_self(ring);
        return error;
    }
    reactor->begun = true;
    reactor->state = foreign ? UL_REACTOR_MOVING : UL_REACTOR_ENABLED;
    reactor->engine.moving = foreign;
    return 0;
}

void ul_reactor_abandon(struct ul_reactor *reactor) {
    reactor->state = UL_REACTOR_ABANDONED;
    ul_streams_abandon(&reactor->streams);
    ul_endpoints_abandon(&reactor->endpoints);
    ul_ring_abandon(&reactor->engine.ring);
    ul_buffers_abandon(&reactor->engine.buffers);
    ul_buffers_abandon(&reactor->endpoints.buffers);
}

/* --- the tick ---------------------------------------------------------------------------------------------------------------------- */

void ul_reactor_complete(struct ul_reactor *reactor, const struct io_uring_cqe *cqe) {
    struct ul_engine *engine = &reactor->engine;
    enum ul_request request = (enum ul_request)(cqe->user_data >> 32);
    int32_t token = (int32_t)(uint32_t)cqe->user_data;
    if ((uint32_t)request < UL_REQUEST_KINDS)
        engine->stats.completions[request]++;
    if (ul_request_waits(request) && !(cqe->flags & IORING_CQE_F_MORE))
        engine->in_flight--;
    switch (request) {
    case UL_REQUEST_RECV:
    case UL_REQUEST_READABLE:
    case UL_REQUEST_SEND_INLINE:
    case UL_REQUEST_SEND_WAITING:
    case UL_REQUEST_SLOT_FILL:
    case UL_REQUEST_SLOT_CLEAR:
        ul_stream_complete(&reactor->streams, request, token, cqe);
        break;
    case UL_REQUEST_ACCEPT:
    case UL_REQUEST_ACCEPTABLE:
        ul_listener_complete(&reactor->listeners, request, token, cqe);
        break;
    case UL_REQUEST_RECVMSG:
    case UL_REQUEST_DATAGRAM:
    case UL_REQUEST_DATAGRAM_ROOM:
        ul_endpoint_complete(&reactor->endpoints, request, token, cqe);
        break;
    case UL_REQUEST_OPERATION:
        ul_operation_complete(&reactor->operations, token, cqe);
        break;
    case UL_REQUEST_WAKE:
        if (!(cqe->flags & IORING_CQE_F_MORE)) { /* as when the completion queue overflowed */
            ul_wake_empty(reactor->wake);        /* else the next poll would tell of it again */
            ul_reactor_arm_wake(reactor);
        }
        ul_wake_taken(reactor->wake);
        reactor->woken = true;
        break;
    case UL_REQUEST_CANCEL: /* it came too late: what it was to cancel has reported for itself */
    case UL_REQUEST_KINDS:
        break;
    }
}

/* True if every completion of what has been submitted is taken. */
static bool ul_reactor_is_up_to_date(struct ul_reactor *reactor) {
    struct ul_ring *ring = &reactor->engine.ring;
    return ul_ring_unsubmitted(ring) == 0 && ul_ring_ready(ring) == 0 && !ul_ring_has_overflown(ring);
}

static void ul_reactor_reap(struct ul_reactor *reactor) {
    struct ul_engine *engine = &reactor->engine;
    struct ul_ring *ring = &engine->ring;
    bool all_submitted = ul_ring_unsubmitted(ring) == 0;
    uint32_t ready = ul_ring_ready(ring), taken = 0;
    /* A completion makes one event at the most. */
    while (taken < ready && engine->event_count < UL_EVENTS_MAX)
        ul_reactor_complete(reactor, ul_ring_ready_at(ring, taken++));
    if (taken)
        ul_ring_release_cqes(ring, taken);
    /* Checked before the completions were handled: what they submit anew is not confirmed by this enter. */
    if (all_submitted && taken == ready && !ul_ring_has_overflown(ring)) {
        ul_streams_confirm(&reactor->streams);
        ul_endpoints_confirm(&reactor->endpoints);
    }
    ul_streams_report_lost(&reactor->streams);
    ul_endpoints_report_lost(&reactor->endpoints);
}

static bool ul_reactor_has_something_to_tell(const struct ul_reactor *reactor) {
    return reactor->engine.event_count || reactor->woken || reactor->streams.lost.count || reactor->endpoints.lost.count;
}

/* True if the next enter must not sleep. */
static bool ul_reactor_is_urgent(const struct ul_reactor *reactor) { return reactor->streams.urgent || reactor->endpoints.urgent; }

static int ul_reactor_enter(struct ul_reactor *reactor, uint32_t min_complete, int64_t timeout_ns) {
    int error = ul_ring_enter(&reactor->engine.ring, min_complete, timeout_ns);
    ul_reactor_reap(reactor);
    return ul_reactor_real_error(error);
}

static int ul_reactor_sleep(struct ul_reactor *reactor, int64_t timeout_ns) {
    uint32_t coalesce_us = ul_streams_coalesce_us(&reactor->streams);
    bool timer_is_near = timeout_ns >= 0 && timeout_ns <= (int64_t)coalesce_us * 1000; /* it would be late */
    if (!coalesce_us || timer_is_near || !ul_ring_can_coalesce(&reactor->engine.ring))
        return ul_reactor_enter(reactor, 1, timeout_ns);
    reactor->engine.stats.sleeps_coalesced++;
    int error = ul_ring_enter_coalescing(&reactor->engine.ring, timeout_ns, coalesce_us);
    ul_reactor_reap(reactor);
    return ul_reactor_real_error(error);
}

/* Run the completions that are due (the kernel hands over 20 an enter since 6.13, and after a sleep just one), and confirm what must be. */
static int ul_reactor_catch_up(struct ul_reactor *reactor) {
    int error = 0;
    for (int enters = 0; !error && enters < UL_CATCH_UP_ENTERS && reactor->engine.event_count < UL_EVENTS_MAX; enters++) {
        ul_streams_feed_starved(&reactor->streams);
        ul_endpoints_flush(&reactor->endpoints);
        if (!ul_ring_has_work(&reactor->engine.ring) && !ul_reactor_is_urgent(reactor))
            break;
        error = ul_reactor_enter(reactor, 0, 0);
    }
    return error;
}

/* What the last tick told has been processed; if nothing came since, the bytes that were received are not needed any more. */
static void ul_reactor_recycle(struct ul_reactor *reactor) {
    struct ul_engine *engine = &reactor->engine;
    ul_buffers_recycle(&engine->buffers);
    ul_buffers_recycle(&reactor->endpoints.buffers);
    if (reactor->rewinds && !ul_ring_ready(&engine->ring) && !ul_ring_has_overflown(&engine->ring))
        ul_buffers_rewind(&engine->buffers);
}

static bool ul_reactor_is_running(const struct ul_reactor *reactor) {
    return reactor->state == UL_REACTOR_ENABLED || reactor->state == UL_REACTOR_MOVING;
}

int ul_reactor_tick(struct ul_reactor *reactor, int64_t timeout_ns) {
    struct ul_engine *engine = &reactor->engine;
    if (!ul_reactor_is_running(reactor))
        return reactor->state == UL_REACTOR_ABANDONED ? -EOWNERDEAD : -EBADFD;
    engine->stats.ticks++;
    if (reactor->untold) {
        reactor->untold = false;
        return (int)engine->event_count;
    }
    engine->event_count = 0;
    reactor->woken = false;
    ul_reactor_recycle(reactor);
    ul_reactor_reap(reactor); /* of what was submitted between the ticks; it may have something to tell */
    if (reactor->state == UL_REACTOR_MOVING) {
        if (engine->event_count)
            return (int)engine->event_count;
        int moved = ul_reactor_move(reactor);
        if (moved)
            return moved;
    }
    ul_streams_flush(&reactor->streams);
    ul_endpoints_flush(&reactor->endpoints);
    if (reactor->wake_due)
        ul_reactor_arm_wake(reactor);
    int error = 0;
    bool sleeps = timeout_ns && !reactor->wake_due && !ul_reactor_is_urgent(reactor) && !reactor->streams.readable.count;
    if (sleeps && !ul_reactor_has_something_to_tell(reactor) && !ul_ring_ready(&engine->ring))
        error = ul_reactor_sleep(reactor, timeout_ns);
    else if (ul_ring_unsubmitted(&engine->ring) || ul_ring_has_work(&engine->ring))
        error = ul_reactor_enter(reactor, 0, 0);
    else
        ul_reactor_reap(reactor);
    if (!error)
        error = ul_reactor_catch_up(reactor);
    ul_streams_tell_readable(&reactor->streams);
    if (error && !ul_reactor_has_something_to_tell(reactor))
        return error;
    return (int)engine->event_count;
}

static int64_t ul_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void ul_reactor_set_deadline(struct ul_reactor *reactor, int64_t deadline_ns) { reactor->deadline_ns = deadline_ns; }

static int ul_reactor_with_due(const struct ul_reactor *reactor, int count) {
    return count >= 0 && reactor->deadline_ns >= 0 && ul_now_ns() >= reactor->deadline_ns ? count | UL_TURN_DUE : count;
}

int ul_reactor_wait(struct ul_reactor *reactor) {
    int64_t left_ns = -1;
    if (reactor->deadline_ns >= 0) {
        left_ns = reactor->deadline_ns - ul_now_ns();
        left_ns = left_ns > 0 ? left_ns : 0;
    }
    return ul_reactor_with_due(reactor, ul_reactor_tick(reactor, left_ns));
}

int ul_reactor_glance(struct ul_reactor *reactor) {
    struct ul_engine *engine = &reactor->engine;
    const struct ul_streams *streams = &reactor->streams;
    const struct ul_endpoints *endpoints = &reactor->endpoints;
    bool to_do = engine->buffers.returned_count || endpoints->buffers.returned_count || streams->to_flush.count || endpoints->to_flush.count ||
                 streams->starved.count || endpoints->starved.count || streams->readable.count;
    bool to_take = ul_ring_unsubmitted(&engine->ring) || ul_ring_ready(&engine->ring) || ul_ring_has_work(&engine->ring) ||
                   streams->to_confirm.count || endpoints->to_confirm.count;
    bool special = reactor->state != UL_REACTOR_ENABLED || reactor->untold || reactor->wake_due || ul_reactor_has_something_to_tell(reactor) ||
                   ul_reactor_is_urgent(reactor);
    if (to_do || to_take || special || ul_reactor_with_due(reactor, 0))
        return 1;
    engine->stats.ticks++;
    return 0;
}

int ul_reactor_look(struct ul_reactor *reactor) { return ul_reactor_with_due(reactor, ul_reactor_tick(reactor, 0)); }

void ul_reactor_keep_events(struct ul_reactor *reactor) { reactor->untold = true; }

int ul_reactor_flush(struct ul_reactor *reactor) {
    if (reactor->state != UL_REACTOR_ENABLED)
        return 0;
    ul_streams_flush(&reactor->streams);
    ul_endpoints_send_early(&reactor->endpoints);
    int error = 0;
    for (int enters = 0; !error && enters < UL_FLUSH_ENTERS && ul_ring_unsubmitted(&reactor->engine.ring); enters++)
        error = ul_reactor_real_error(ul_ring_enter(&reactor->engine.ring, 0, 0));
    return error;
}

/* Should another thread run it next, then what the kernel holds for want of room in the CQ would go with the ring. */
static void ul_reactor_set_overflow_aside(struct ul_ring *ring) {
    int fruitless = 0;
    while (fruitless < UL_FRUITLESS_ENTERS && ul_ring_has_overflown(ring)) {
        uint32_t before = ul_ring_ready(ring);
        if (ul_ring_set_aside(ring) || ul_reactor_real_error(ul_ring_enter(ring, 0, 0)))
            return;
        fruitless = ul_ring_ready(ring) > before ? 0 : fruitless + 1;
    }
}

void ul_reactor_end(struct ul_reactor *reactor) {
    struct ul_ring *ring = &reactor->engine.ring;
    reactor->begun = false;
    ul_reactor_flush(reactor);
    if (reactor->state == UL_REACTOR_ENABLED)
        ul_reactor_set_overflow_aside(ring);
    ul_ring_unregister_self(ring);
}

struct ul_wake *ul_reactor_waker(struct ul_reactor *reactor) { return ul_wake_retain(reactor->wake); }

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

static void ul_reactor_cancel_everything(struct ul_reactor *reactor) {
    struct io_uring_sqe *sqe = ul_request(&reactor->engine, IORING_OP_ASYNC_CANCEL, UL_REQUEST_CANCEL, 0);
    if (!sqe)
        return;
    sqe->fd = -1;
    sqe->op_flags = IORING_ASYNC_CANCEL_ALL | IORING_ASYNC_CANCEL_ANY;
}

/* What was written since the last run is sent, as far as there is room: elsewhere each write is a system call. */
static void ul_reactor_end_all(struct ul_reactor *reactor) {
    uint32_t index = 0;
    struct ul_stream *stream;
    while ((stream = ul_table_next(&reactor->streams.table, &index)))
        ul_stream_abort(&reactor->streams, stream->entry.token, 0);
    ul_reactor_flush(reactor);
    reactor->state = UL_REACTOR_CLOSING;
    reactor->engine.closing = true;
    index = 0;
    struct ul_listener *listener;
    while ((listener = ul_table_next(&reactor->listeners.table, &index)))
        ul_listener_close(&reactor->listeners, listener->entry.token);
    index = 0;
    struct ul_endpoint *endpoint;
    while ((endpoint = ul_table_next(&reactor->endpoints.table, &index)))
        ul_endpoint_abort(&reactor->endpoints, endpoint->entry.token);
}

static bool ul_reactor_is_anothers(struct ul_reactor *reactor) {
    struct ul_ring *ring = &reactor->engine.ring;
    bool refused = ring->registered_index < 0 && ul_ring_register_self(ring) == -EEXIST;
    return refused || reactor->state == UL_REACTOR_MOVING;
}

/* True when no request is left in the kernel. */
static bool ul_reactor_drain(struct ul_reactor *reactor) {
    struct ul_engine *engine = &reactor->engine;
    if (reactor->state == UL_REACTOR_DISABLED)
        return true; /* nothing was ever submitted */
    bool anothers = ul_reactor_is_anothers(reactor);
    ul_reactor_end_all(reactor);
    if (anothers) /* only the thread that owns it can empty it, but without that thread nothing of it goes on */
        return !reactor->begun && !ul_operations_use_memory(&reactor->operations);
    ul_reactor_cancel_everything(reactor);
    for (int waited_ms = 0; waited_ms < UL_DRAIN_MS;) {
        uint64_t before = ul_completions_of_all_kinds(&engine->stats);
        engine->event_count = 0;
        ul_buffers_recycle(&engine->buffers);
        ul_buffers_recycle(&reactor->endpoints.buffers);
        int error = ul_reactor_enter(reactor, 0, 0);
        if (engine->in_flight == 0 && ul_reactor_is_up_to_date(reactor))
            return true;
        if (error)
            return false;
        engine->event_count = 0;
        if (ul_reactor_enter(reactor, 1, UL_DRAIN_STEP_NS))
            return false;
        if (ul_completions_of_all_kinds(&engine->stats) == before) /* else it is on its way: more than the CQ holds may have to come */
            waited_ms += UL_DRAIN_STEP_NS / 1000000;
    }
    return false;
}

/* Files that a ring which could not be emptied had accepted or opened, and that nobody will hear of any more. */
static void ul_reactor_close_completed_files(struct ul_reactor *reactor) {
    struct ul_ring *ring = &reactor->engine.ring;
    uint32_t ready = ul_ring_ready(ring);
    for (uint32_t i = 0; i < ready; i++) {
        const struct io_uring_cqe *cqe = ul_ring_ready_at(ring, i);
        enum ul_request request = (enum ul_request)(cqe->user_data >> 32);
        bool opened = request == UL_REQUEST_OPERATION && ul_operation_opens(&reactor->operations, (int32_t)(uint32_t)cqe->user_data);
        if ((request == UL_REQUEST_ACCEPT || opened) && cqe->res >= 0)
            close(cqe->res);
    }
    ul_ring_release_cqes(ring, ready);
}

/* Of events that nobody will hear any more. */
static void ul_reactor_drop_untold(struct ul_reactor *reactor) {
    const int32_t *event = reactor->engine.events;
    for (uint32_t i = 0; reactor->untold && i < reactor->engine.event_count; i++, event += UL_EVENT_INTS)
        if (event[0] == UL_EVENT_ACCEPTED && event[2] >= 0)
            close(event[2]);
    reactor->untold = false;
}

uint64_t ul_reactor_close(struct ul_reactor *reactor) {
    struct ul_engine *engine = &reactor->engine;
    ul_reactor_drop_untold(reactor);
    bool abandoned = reactor->state == UL_REACTOR_ABANDONED;
    bool drained = abandoned || ul_reactor_drain(reactor);
    if (!abandoned)
        ul_reactor_close_completed_files(reactor);
    if (drained) {
        ul_reactor_free(reactor, false);
        return 0;
    }
    uint64_t leaked = sizeof *reactor + ul_buffers_bytes(&engine->buffers) + ul_streams_queued(&reactor->streams) +
                      ul_buffers_bytes(&reactor->endpoints.buffers) + ul_endpoints_queued(&reactor->endpoints);
    ul_reactor_free(reactor, true);
    return leaked;
}

/* --- its parts ------------------------------------------------------------------------------------------------------- */

bool ul_reactor_has(const struct ul_reactor *reactor, uint8_t opcode) {
    return (!reactor->options.hardened || ul_restrictions_allow(opcode)) && ul_ring_has(&reactor->engine.ring, opcode);
}

struct ul_streams *ul_reactor_streams(struct ul_reactor *reactor) { return &reactor->streams; }
struct ul_listeners *ul_reactor_listeners(struct ul_reactor *reactor) { return &reactor->listeners; }
struct ul_endpoints *ul_reactor_endpoints(struct ul_reactor *reactor) { return &reactor->endpoints; }
struct ul_operations *ul_reactor_operations(struct ul_reactor *reactor) { return &reactor->operations; }
const int32_t *ul_reactor_events(const struct ul_reactor *reactor) { return reactor->engine.events; }
char *ul_reactor_pool(const struct ul_reactor *reactor) { return reactor->engine.buffers.pool; }
char *ul_reactor_datagram_pool(const struct ul_reactor *reactor) { return reactor->endpoints.buffers.pool; }
