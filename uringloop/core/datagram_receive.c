/* Receiving: one recvmsg armed for good, each datagram in a provided buffer of its own, behind a header and its sender's address.
 *
 * Facts: the kernel cuts a datagram that is larger than its buffer, and the rest is lost; a multishot recvmsg ends with every empty datagram,
 * which is delivered all the same, and with every error that the socket has to tell.
 * So: a buffer holds the largest datagram that asyncio would receive, and the request is armed again whatever it ended with.
 * Cost: address space. A page of a buffer takes memory only once a datagram was long enough to reach it.
 */
#include <string.h>

#include "datagram_parts.h"

/* Read by the kernel until submit. It says how much room there is for a name and, by leaving it out, that none is wanted for control data. */
static const struct msghdr layout = {.msg_namelen = UL_NAME_BYTES};

static void ul_endpoint_starve(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    endpoint->read_state = UL_ENDPOINT_READ_STARVED;
    if (endpoint->starved)
        return;
    endpoint->starved = true;
    ul_token_list_push(&endpoints->starved, endpoint->entry.token);
}

static void ul_endpoint_arm(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    struct io_uring_sqe *sqe = ul_endpoint_request(endpoints, endpoint, IORING_OP_RECVMSG, UL_REQUEST_RECVMSG);
    if (!sqe) {
        ul_endpoint_starve(endpoints, endpoint); /* of memory, for once */
        return;
    }
    sqe->addr = (uint64_t)(uintptr_t)&layout;
    sqe->len = 1;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = endpoints->buffers.group;
    endpoint->read_state = UL_ENDPOINT_READ_ARMED;
    endpoints->engine->stats.receive_arms++;
}

void ul_endpoint_stop_reading(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, enum ul_endpoint_read at_rest) {
    endpoint->read_wanted = false;
    if (endpoint->read_state == UL_ENDPOINT_READ_ARMED) {
        endpoint->read_state = UL_ENDPOINT_READ_STOPPING;
        ul_endpoint_cancel(endpoints, endpoint, UL_REQUEST_RECVMSG);
    } else if (endpoint->read_state != UL_ENDPOINT_READ_STOPPING && endpoint->read_state != UL_ENDPOINT_READ_ENDED) {
        endpoint->read_state = (uint8_t)at_rest;
    }
}

int ul_endpoint_read(struct ul_endpoints *endpoints, int32_t token, bool wanted) {
    struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
    if (!endpoint)
        return -ENOENT;
    if (endpoint->life != UL_ENDPOINT_OPEN)
        return 0;
    if (!wanted) {
        ul_endpoint_stop_reading(endpoints, endpoint, UL_ENDPOINT_READ_IDLE);
        return 0;
    }
    endpoint->read_wanted = true;
    if (endpoint->read_state == UL_ENDPOINT_READ_IDLE)
        ul_endpoint_arm(endpoints, endpoint);
    return 0;
}

/* These say that the request cannot be, not that something has happened to a datagram; made again it would fail again, without end. */
static bool ul_recvmsg_is_hopeless_after(int error) {
    return error == EBADF || error == ENOTSOCK || error == EOPNOTSUPP || error == EINVAL || error == EFAULT;
}

/* Its last completion. Everything that is no error, and ENOBUFS, which is ours, is nothing to speak of. */
static void ul_endpoint_on_recvmsg_end(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, int32_t result) {
    int error = result < 0 && result != -ECANCELED && result != -EINTR && result != -EAGAIN ? -result : 0;
    endpoint->read_state = UL_ENDPOINT_READ_IDLE;
    if (endpoint->life != UL_ENDPOINT_OPEN) {
        endpoint->read_state = UL_ENDPOINT_READ_ENDED;
        return;
    }
    if (endpoint->read_wanted)
        endpoints->engine->stats.receive_ends[ul_end_of(result)]++;
    if (error && error != ENOBUFS)
        ul_endpoint_tell_error(endpoints, endpoint, error);
    if (ul_recvmsg_is_hopeless_after(error)) {
        endpoint->read_state = UL_ENDPOINT_READ_ENDED;
    } else if (endpoint->read_wanted && error == ENOBUFS) {
        endpoints->engine->stats.receive_starved++;
        ul_endpoint_starve(endpoints, endpoint);
    } else if (endpoint->read_wanted) {
        endpoints->engine->stats.receive_rearms++;
        ul_endpoint_arm(endpoints, endpoint);
    }
}

static void ul_endpoint_on_datagram(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, struct ul_span span) {
    struct ul_engine *engine = endpoints->engine;
    struct io_uring_recvmsg_out header;
    uint32_t before = sizeof header + UL_NAME_BYTES;
    if (span.length < before)
        return; /* no buffer came with it, or what came cannot be true */
    memcpy(&header, endpoints->buffers.pool + span.start, sizeof header);
    uint32_t name_length = header.namelen <= UL_NAME_BYTES ? header.namelen : UL_NAME_BYTES;
    uint32_t length = span.length - before; /* of what is there; header.payloadlen is from before the kernel cut it */
    engine->stats.datagrams_received++;
    engine->stats.bytes_received += length;
    engine->stats.datagrams_truncated += (header.flags & MSG_TRUNC) != 0;
    if (endpoint->life == UL_ENDPOINT_OPEN)
        ul_emit(engine, UL_EVENT_DATAGRAM, endpoint->entry.token, (int32_t)(span.start + before), (int32_t)(length << UL_NAME_BITS | name_length));
}

void ul_endpoint_on_recvmsg(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, const struct io_uring_cqe *cqe, struct ul_span span) {
    ul_endpoint_on_datagram(endpoints, endpoint, span);
    if (!(cqe->flags & IORING_CQE_F_MORE))
        ul_endpoint_on_recvmsg_end(endpoints, endpoint, cqe->res);
}

void ul_endpoints_feed_starved(struct ul_endpoints *endpoints) {
    /* No more than there are buffers: an arm that finds none ends at once and would only come back here. One that finds no datagram leaves its
     * buffer to the others, so while any are left over there may be some with datagrams, and the loop must not sleep. */
    uint32_t budget = endpoints->buffers.kernel_count;
    bool any = budget > 0;
    int32_t token;
    while (budget && ul_token_list_pop(&endpoints->starved, &token)) {
        struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
        if (!endpoint)
            continue;
        endpoint->starved = false;
        if (endpoint->read_state != UL_ENDPOINT_READ_STARVED)
            continue;
        endpoints->engine->stats.receive_rearms++;
        ul_endpoint_arm(endpoints, endpoint);
        if (endpoint->starved)
            break; /* memory is out: another tick */
        budget--;
    }
    if (any && endpoints->starved.count)
        endpoints->urgent = true;
}
