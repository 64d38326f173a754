/* The life of an endpoint: made, closed or aborted, its requests concluded, reported lost. See datagram.h for the states. */
#include "datagram_parts.h"

#include <netinet/in.h>
#include <string.h>

#define UL_DATAGRAM_GROUP 1 /* of provided buffers; the streams' is 0 */

void ul_endpoints_init(struct ul_endpoints *endpoints, struct ul_engine *engine, uint32_t buffer_count) {
    memset(endpoints, 0, sizeof *endpoints);
    endpoints->engine = engine;
    endpoints->buffer_count = buffer_count;
    ul_table_init(&endpoints->table, sizeof(struct ul_endpoint));
}

void ul_endpoints_destroy(struct ul_endpoints *endpoints) {
    uint32_t index = 0;
    struct ul_endpoint *endpoint;
    while ((endpoint = ul_table_next(&endpoints->table, &index)))
        ul_endpoint_drop_queue(endpoint);
    ul_table_destroy(&endpoints->table);
    ul_token_list_destroy(&endpoints->to_flush);
    ul_token_list_destroy(&endpoints->to_confirm);
    ul_token_list_destroy(&endpoints->starved);
    ul_token_list_destroy(&endpoints->lost);
}

/* --- requests ---------------------------------------------------------------------------------------------------------------------- */

struct io_uring_sqe *ul_endpoint_request(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, uint8_t opcode, enum ul_request request) {
    struct io_uring_sqe *sqe = ul_request(endpoints->engine, opcode, request, endpoint->entry.token);
    if (!sqe)
        return NULL;
    sqe->fd = endpoint->fd;
    if (ul_request_waits(request)) {
        endpoint->in_flight++;
        return sqe;
    }
    endpoint->asked_at = endpoints->engine->ring.enters;
    if (!endpoint->to_confirm) {
        endpoint->to_confirm = true;
        ul_token_list_push(&endpoints->to_confirm, endpoint->entry.token);
    }
    return sqe;
}

void ul_endpoint_list_for_flush(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    if (endpoint->to_flush)
        return;
    endpoint->to_flush = true;
    ul_token_list_push(&endpoints->to_flush, endpoint->entry.token);
}

void ul_endpoint_try_again(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    endpoints->urgent = true;
    ul_endpoint_list_for_flush(endpoints, endpoint);
}

void ul_endpoint_cancel(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, enum ul_request request) {
    if (ul_cancel(endpoints->engine, ul_user_data(request, endpoint->entry.token)) == 0)
        return;
    endpoint->cancel_due = true;
    ul_endpoint_try_again(endpoints, endpoint);
}

static void ul_endpoint_cancel_again(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    if (!endpoint->cancel_due)
        return;
    endpoint->cancel_due = false;
    if (endpoint->read_state == UL_ENDPOINT_READ_STOPPING)
        ul_endpoint_cancel(endpoints, endpoint, UL_REQUEST_RECVMSG);
    if (endpoint->life == UL_ENDPOINT_ABORTING && endpoint->send_state == UL_ENDPOINT_SEND_FULL)
        ul_endpoint_cancel(endpoints, endpoint, UL_REQUEST_DATAGRAM_ROOM);
}

void ul_endpoint_tell_error(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, int error) {
    endpoints->engine->stats.datagram_errors++;
    if (endpoint->life == UL_ENDPOINT_OPEN || endpoint->life == UL_ENDPOINT_CLOSING)
        ul_emit(endpoints->engine, UL_EVENT_ENDPOINT_ERROR, endpoint->entry.token, error, 0);
}

/* --- the beginning ----------------------------------------------------------------------------------------------------------------- */

static int ul_endpoints_reserve_lists(struct ul_endpoints *endpoints) {
    uint32_t live = endpoints->table.live;
    bool reserved = ul_token_list_reserve(&endpoints->to_flush, live) == 0 && ul_token_list_reserve(&endpoints->to_confirm, live) == 0 &&
                    ul_token_list_reserve(&endpoints->starved, live) == 0 && ul_token_list_reserve(&endpoints->lost, live) == 0;
    return reserved ? 0 : -ENOMEM;
}

static int ul_endpoints_open_buffers(struct ul_endpoints *endpoints) {
    if (endpoints->buffers.open)
        return 0;
    /* While the reactor moves, the ring is another thread's; the move registers the pool with the next one. */
    struct ul_ring *ring = endpoints->engine->moving ? NULL : &endpoints->engine->ring;
    /* Not incremental: what is left of a buffer would truncate the next datagram. */
    return ul_buffers_open(&endpoints->buffers, ring, UL_DATAGRAM_GROUP, endpoints->buffer_count, UL_DATAGRAM_BUFFER_BYTES, false);
}

static int ul_socket_option(int fd, int level, int name) {
    int value = 0;
    socklen_t length = sizeof value;
    return getsockopt(fd, level, name, &value, &length) == 0 ? value : 0;
}

/* Only UDP's, and those of which the owner has not told the kernel how to cut each: for what is joined that would not hold. */
static bool ul_may_join(int fd) {
    return ul_socket_option(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_UDP && ul_socket_option(fd, IPPROTO_UDP, UDP_SEGMENT) == 0;
}

int32_t ul_endpoint_open(struct ul_endpoints *endpoints, int fd, uint32_t overhead) {
    if (!endpoints->buffer_count)
        return -EOPNOTSUPP;
    int error = ul_endpoints_open_buffers(endpoints);
    if (error < 0)
        return error;
    struct ul_endpoint *endpoint = ul_table_allocate(&endpoints->table);
    if (!endpoint)
        return -ENOMEM;
    /* Room in the lists is made now, so that the way to the end cannot fail for want of memory. */
    if (ul_endpoints_reserve_lists(endpoints) < 0) {
        ul_table_free(&endpoints->table, endpoint);
        return -ENOMEM;
    }
    endpoint->fd = fd;
    endpoint->overhead = overhead;
    endpoint->join_below = ul_may_join(fd) ? UINT32_MAX : 0;
    endpoint->low_water = -1;
    return endpoint->entry.token;
}

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

static void ul_endpoint_settle(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    if (endpoint->life == UL_ENDPOINT_OPEN || endpoint->life == UL_ENDPOINT_LOST)
        return;
    if (endpoint->to_confirm)
        endpoints->urgent = true; /* no completion will end a sleep for it */
    if (endpoint->in_flight || endpoint->to_confirm || endpoint->first)
        return;
    endpoint->life = UL_ENDPOINT_LOST;
    ul_token_list_push(&endpoints->lost, endpoint->entry.token);
}

void ul_endpoints_report_lost(struct ul_endpoints *endpoints) {
    struct ul_engine *engine = endpoints->engine;
    int32_t token;
    while (engine->event_count < UL_EVENTS_MAX && ul_token_list_pop(&endpoints->lost, &token)) {
        struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
        if (!endpoint)
            continue;
        ul_emit(engine, UL_EVENT_ENDPOINT_LOST, token, 0, 0);
        ul_table_free(&endpoints->table, endpoint);
    }
}

int ul_endpoint_close(struct ul_endpoints *endpoints, int32_t token) {
    struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
    if (!endpoint)
        return -ENOENT;
    if (endpoint->life != UL_ENDPOINT_OPEN)
        return 0;
    endpoint->life = UL_ENDPOINT_CLOSING;
    ul_endpoint_stop_reading(endpoints, endpoint, UL_ENDPOINT_READ_ENDED);
    ul_endpoint_settle(endpoints, endpoint);
    return 0;
}

int ul_endpoint_abort(struct ul_endpoints *endpoints, int32_t token) {
    struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
    if (!endpoint)
        return -ENOENT;
    if (endpoint->life == UL_ENDPOINT_ABORTING || endpoint->life == UL_ENDPOINT_LOST)
        return 0;
    endpoint->life = UL_ENDPOINT_ABORTING;
    ul_endpoint_send_at_last(endpoints, endpoint);
    ul_endpoint_stop_reading(endpoints, endpoint, UL_ENDPOINT_READ_ENDED);
    if (endpoint->send_state == UL_ENDPOINT_SEND_FULL)
        ul_endpoint_cancel(endpoints, endpoint, UL_REQUEST_DATAGRAM_ROOM);
    if (endpoint->send_state != UL_ENDPOINT_SEND_OFFERED)
        ul_endpoint_drop_queue(endpoint); /* else it is being read from, and is dropped when that is over */
    ul_endpoint_settle(endpoints, endpoint);
    return 0;
}

/* --- the reactor's side ------------------------------------------------------------------------------------------------------------ */

static void ul_endpoint_tell_drained(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    if (endpoint->low_water < 0 || endpoint->queued > (uint64_t)endpoint->low_water)
        return;
    endpoint->low_water = -1;
    if (endpoint->life == UL_ENDPOINT_OPEN || endpoint->life == UL_ENDPOINT_CLOSING)
        ul_emit(endpoints->engine, UL_EVENT_ENDPOINT_DRAINED, endpoint->entry.token, 0, 0);
}

/* Send what is queued and tell what it leads to. A flush of one endpoint may make any number of events, so it may have to stop halfway. */
static void ul_endpoint_flush(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    bool done = ul_endpoint_send_queued(endpoints, endpoint) && endpoints->engine->event_count < UL_EVENTS_MAX;
    if (!done) {
        ul_endpoint_list_for_flush(endpoints, endpoint);
        return;
    }
    ul_endpoint_tell_drained(endpoints, endpoint);
    ul_endpoint_settle(endpoints, endpoint);
}

void ul_endpoints_flush(struct ul_endpoints *endpoints) {
    uint32_t count = endpoints->to_flush.count; /* one that is listed again has stopped for want of room for events */
    int32_t token;
    while (count-- && endpoints->engine->event_count < UL_EVENTS_MAX && ul_token_list_pop(&endpoints->to_flush, &token)) {
        struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
        if (!endpoint)
            continue;
        endpoint->to_flush = false;
        ul_endpoint_cancel_again(endpoints, endpoint);
        ul_endpoint_flush(endpoints, endpoint);
    }
    ul_endpoints_feed_starved(endpoints);
}

void ul_endpoints_send_early(struct ul_endpoints *endpoints) {
    int32_t token;
    for (uint32_t count = endpoints->to_flush.count; count && ul_token_list_pop(&endpoints->to_flush, &token); count--) {
        struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
        if (!endpoint)
            continue;
        ul_endpoint_send_what_goes(endpoints, endpoint);
        ul_token_list_push(&endpoints->to_flush, token); /* the tick that follows does the rest */
    }
}

void ul_endpoint_complete(struct ul_endpoints *endpoints, enum ul_request request, int32_t token, const struct io_uring_cqe *cqe) {
    struct ul_span span = ul_buffers_take(&endpoints->buffers, cqe->flags, cqe->res);
    struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
    if (!endpoint) {
        endpoints->engine->stats.stale_completions++;
        return;
    }
    if (ul_request_waits(request) && !(cqe->flags & IORING_CQE_F_MORE) && endpoint->in_flight)
        endpoint->in_flight--;
    if (request == UL_REQUEST_RECVMSG)
        ul_endpoint_on_recvmsg(endpoints, endpoint, cqe, span);
    else if (request == UL_REQUEST_DATAGRAM && endpoint->send_state == UL_ENDPOINT_SEND_OFFERED)
        ul_endpoint_on_offer_refused(endpoints, endpoint, cqe->res);
    else if (request == UL_REQUEST_DATAGRAM_ROOM && endpoint->send_state == UL_ENDPOINT_SEND_FULL)
        ul_endpoint_on_room(endpoints, endpoint);
    ul_endpoint_settle(endpoints, endpoint);
}

/* Every send that was offered and did not fail has been sent: that is known once all completions of the enter that submitted it are taken. */
void ul_endpoints_confirm(struct ul_endpoints *endpoints) {
    uint32_t count = endpoints->to_confirm.count;
    int32_t token;
    endpoints->urgent = false;
    while (count-- && ul_token_list_pop(&endpoints->to_confirm, &token)) {
        struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
        if (!endpoint)
            continue;
        if (endpoint->asked_at == endpoints->engine->ring.enters) { /* asked while completions were taken: the next enter submits it */
            ul_token_list_push(&endpoints->to_confirm, token);
            endpoints->urgent = true;
            continue;
        }
        endpoint->to_confirm = false;
        ul_endpoint_confirm_send(endpoint, &endpoints->engine->stats);
        if (endpoint->first || endpoint->low_water >= 0)
            ul_endpoint_list_for_flush(endpoints, endpoint);
        ul_endpoint_settle(endpoints, endpoint);
    }
}

void ul_endpoints_on_ring_lost(struct ul_endpoints *endpoints) {
    static const struct io_uring_cqe cancelled = {.res = -ECANCELED};
    uint32_t index = 0;
    struct ul_endpoint *endpoint;
    while ((endpoint = ul_table_next(&endpoints->table, &index))) {
        if (endpoint->send_state == UL_ENDPOINT_SEND_FULL)
            ul_endpoint_complete(endpoints, UL_REQUEST_DATAGRAM_ROOM, endpoint->entry.token, &cancelled);
        if (endpoint->read_state == UL_ENDPOINT_READ_ARMED || endpoint->read_state == UL_ENDPOINT_READ_STOPPING)
            ul_endpoint_complete(endpoints, UL_REQUEST_RECVMSG, endpoint->entry.token, &cancelled);
    }
}

void ul_endpoints_abandon(struct ul_endpoints *endpoints) {
    uint32_t index = 0;
    struct ul_endpoint *endpoint;
    while ((endpoint = ul_table_next(&endpoints->table, &index)))
        ul_endpoint_drop_queue(endpoint);
}

uint64_t ul_endpoints_queued(const struct ul_endpoints *endpoints) {
    uint64_t bytes = 0;
    uint32_t index = 0;
    const struct ul_endpoint *endpoint;
    while ((endpoint = ul_table_next(&endpoints->table, &index)))
        bytes += endpoint->queued;
    return bytes;
}
