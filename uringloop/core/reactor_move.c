/* Another thread runs the loop.
 *
 * Facts: a ring with SINGLE_ISSUER is good for the thread that enabled it and for no other, which may not even cancel; what it had completed
 * stays readable. With DEFER_TASKRUN no request goes on unless that thread enters, so none reads or writes any more when the loop is run by
 * another.
 * So: take what is complete, make a new ring with the same pool and table of files, close the old one, whose requests the kernel then drops,
 * and make those that are in flight again. An inline send of which nothing was heard is done, unless it was never submitted, because the
 * enters of the old thread's end all failed: so those that are still in the old queue are made again too.
 * Cost: a ring for each change of threads, and a request for each that was waiting.
 */
#include "reactor_parts.h"
#include "restrictions.h"

static int ul_reactor_open_next_ring(struct ul_reactor *reactor, struct ul_ring *next) {
    const struct ul_options *options = &reactor->options;
    int error = ul_ring_open(next, options->sq_entries, options->cq_entries, options->without_flags);
    if (error)
        return error;
    error = ul_files_register(&reactor->engine.files, next);
    if (!error)
        error = ul_buffers_register(&reactor->engine.buffers, next);
    if (!error && reactor->endpoints.buffers.open)
        error = ul_buffers_register(&reactor->endpoints.buffers, next);
    if (!error && options->hardened)
        error = ul_restrictions_register(next);
    if (!error)
        error = ul_ring_enable(next);
    if (error)
        ul_ring_close(next);
    return error;
}

/* The sends that the last ring was never given. */
static void ul_reactor_send_again(struct ul_reactor *reactor, const struct ul_ring *last) {
    size_t count = ul_ring_unsubmitted(last);
    for (size_t i = 0; i < count; i++) {
        struct io_uring_cqe interrupted = {.user_data = ul_ring_unsubmitted_at(last, i)->user_data, .res = -EINTR};
        enum ul_request request = (enum ul_request)(interrupted.user_data >> 32);
        if (request == UL_REQUEST_SEND_INLINE || request == UL_REQUEST_DATAGRAM)
            ul_reactor_complete(reactor, &interrupted);
    }
}

int ul_reactor_move(struct ul_reactor *reactor) {
    struct ul_engine *engine = &reactor->engine;
    struct ul_ring last = engine->ring, next;
    int error = ul_reactor_open_next_ring(reactor, &next);
    reactor->move_failed = error != 0;
    if (error)
        return error;
    next.enters = engine->ring.enters;
    next.overflows = engine->ring.overflows;
    engine->ring = next;
    engine->in_flight = 0;
    engine->moving = false;
    reactor->state = UL_REACTOR_ENABLED;
    if (reactor->options.register_ring)
        ul_ring_register_self(&engine->ring);
    ul_reactor_arm_wake(reactor);
    ul_listeners_on_ring_lost(&reactor->listeners);
    ul_streams_on_ring_lost(&reactor->streams);
    ul_endpoints_on_ring_lost(&reactor->endpoints);
    ul_operations_on_ring_lost(&reactor->operations);
    ul_reactor_send_again(reactor, &last);
    ul_ring_close(&last);
    return 0;
}
