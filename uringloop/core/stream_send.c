/* Sending: one request at a time, made of all that is queued at the end of the turn.
 *
 * Facts: a send request on a socket with room is done while it is submitted. With MSG_DONTWAIT it never waits, and with MSG_WAITALL a send
 * that took less than it was offered counts as failed; so with CQE_SKIP_SUCCESS a CQE comes for just those that were short.
 * So: a send is first offered that way. No CQE means that it is done when the enter returns, and its memory is free. What the socket did not
 * take is sent by a request that waits for room and has a CQE of its own.
 * Cost: a full socket takes two requests where one would do. Where a kernel is found not to tell short sends apart (see probe.py), all wait.
 */
#include <stdlib.h>
#include <sys/socket.h>

#include "ring_fault.h"
#include "stream_parts.h"

/* A write of this many bytes or more is offered to the socket at once: the system call costs less than the copy, and the bytes are still in
 * the cache. */
#define UL_OFFER_BYTES (8U * 1024U)
/* One send request offers no more than this; the kernel would cut it at 2 GiB anyway. */
#define UL_SEND_BYTES_MAX (1U << 30)

struct ul_gather {
    struct msghdr message;
    struct iovec iov[UL_GATHER_MAX];
};

static uint64_t ul_stream_fill_gather(struct ul_stream *stream, struct io_uring_sqe *sqe) {
    struct ul_gather *gather = stream->gather;
    uint64_t bytes = 0;
    int count = ul_sendqueue_gather(&stream->queue, gather->iov);
    for (int i = 0; i < count; i++)
        bytes += gather->iov[i].iov_len;
    gather->message = (struct msghdr){.msg_iov = gather->iov, .msg_iovlen = (size_t)count};
    sqe->addr = (uint64_t)(uintptr_t)&gather->message;
    sqe->len = 1;
    return bytes;
}

static uint64_t ul_stream_fill_single(struct ul_stream *stream, struct io_uring_sqe *sqe) {
    const struct ul_segment *first = stream->queue.first;
    sqe->addr = (uint64_t)(uintptr_t)first->data;
    sqe->len = first->length < UL_SEND_BYTES_MAX ? (uint32_t)first->length : UL_SEND_BYTES_MAX;
    return sqe->len;
}

static void ul_stream_submit_send(struct ul_streams *streams, struct ul_stream *stream, enum ul_request request) {
    bool several = stream->queue.first->next != NULL;
    if (several && !stream->gather)
        stream->gather = malloc(sizeof *stream->gather);
    bool gathered = several && stream->gather;
    ul_stream_take_slot(streams, stream);
    struct io_uring_sqe *sqe = ul_stream_request(streams, stream, gathered ? IORING_OP_SENDMSG : IORING_OP_SEND, request);
    if (!sqe) {
        ul_stream_fail(streams, stream, ENOMEM);
        return;
    }
    stream->offered = (gathered ? ul_stream_fill_gather : ul_stream_fill_single)(stream, sqe);
    stream->send_state = UL_SEND_WAITING;
    if (request == UL_REQUEST_SEND_INLINE) {
        sqe->op_flags = MSG_DONTWAIT | MSG_WAITALL;
        stream->send_state = UL_SEND_OFFERED;
    }
    streams->engine->stats.sends++;
    if (stream->life == UL_STREAM_CLOSING)
        ul_stream_leave_slot(streams, stream);
}

/* True if the end of this send matters to more than its memory. */
static bool ul_stream_send_is_awaited(const struct ul_stream *stream) {
    return stream->life != UL_STREAM_OPEN || stream->low_water >= 0 || stream->eof_state == UL_EOF_WANTED ||
           stream->queue.first->pinned || stream->queue.bytes > stream->offered;
}

/* To be asked whenever more comes to matter: the send may have been submitted before, and its end comes without a completion. */
static void ul_stream_await_send(struct ul_streams *streams, const struct ul_stream *stream) {
    bool offered = stream->send_state == UL_SEND_OFFERED && stream->queue.first; /* in a forked child the queue is dropped */
    if (offered && ul_stream_send_is_awaited(stream))
        streams->urgent = true;
}

void ul_stream_send(struct ul_streams *streams, struct ul_stream *stream) {
    bool may = stream->life == UL_STREAM_OPEN || stream->life == UL_STREAM_CLOSING;
    if (!may || stream->send_state != UL_SEND_IDLE || !stream->queue.first)
        return;
    bool waits = stream->socket_full || !streams->engine->inline_sends;
    ul_stream_submit_send(streams, stream, waits ? UL_REQUEST_SEND_WAITING : UL_REQUEST_SEND_INLINE);
    ul_stream_await_send(streams, stream);
}

static int ul_stream_finish_eof(struct ul_stream *stream) {
    if (stream->eof_state != UL_EOF_WANTED || stream->queue.bytes)
        return 0;
    stream->eof_state = UL_EOF_SENT;
    return shutdown(stream->fd, SHUT_WR) < 0 ? -errno : 0;
}

int ul_stream_write_eof(struct ul_streams *streams, int32_t token) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    if (stream->life != UL_STREAM_OPEN || stream->eof_state != UL_EOF_NONE)
        return 0;
    stream->eof_state = UL_EOF_WANTED;
    ul_stream_await_send(streams, stream);
    return ul_stream_finish_eof(stream);
}

/* The bytes are in the queue: see to it that they are sent. */
static int64_t ul_stream_queue_grew(struct ul_streams *streams, struct ul_stream *stream) {
    stream->unanswered = 0;
    if (stream->send_state == UL_SEND_IDLE && !stream->to_flush) {
        stream->to_flush = true;
        ul_token_list_push(&streams->to_flush, stream->entry.token);
    }
    ul_stream_await_send(streams, stream);
    return (int64_t)stream->queue.bytes;
}

static bool ul_stream_takes_writes(const struct ul_stream *stream) { return stream->life == UL_STREAM_OPEN || stream->life == UL_STREAM_CLOSING; }

/* Offer the bytes to the socket at once, if none are queued before them. How many it took. */
static size_t ul_stream_offer(struct ul_streams *streams, struct ul_stream *stream, const char *data, size_t length) {
    stream->unanswered = 0;
    if (stream->queue.bytes)
        return 0;
    size_t offered = UL_FAULT_LENGTH(&streams->engine->ring, SHORT_SEND, length);
    ssize_t sent = UL_FAULT(&streams->engine->ring, EAGAIN) ? -1 : send(stream->fd, data, offered, MSG_DONTWAIT | MSG_NOSIGNAL);
    stream->socket_full = sent < (ssize_t)length;
    if (sent < 0)
        return 0; /* a real error comes back from the send request that follows */
    streams->engine->stats.sends_direct++;
    streams->engine->stats.bytes_sent += (uint64_t)sent;
    return (size_t)sent;
}

void ul_stream_send_at_last(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->send_state != UL_SEND_IDLE || stream->socket_full)
        return;
    while (stream->queue.first) {
        struct iovec iov[UL_GATHER_MAX];
        struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)ul_sendqueue_gather(&stream->queue, iov)};
        ssize_t sent = sendmsg(stream->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        streams->engine->stats.sends_direct++;
        streams->engine->stats.bytes_sent += (uint64_t)sent;
        ul_sendqueue_advance(&stream->queue, &streams->blocks, (size_t)sent); /* its owner hears of what was pinned with LOST */
    }
}

int64_t ul_stream_write(struct ul_streams *streams, int32_t token, const char *data, size_t length) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    if (!ul_stream_takes_writes(stream))
        return -EPIPE;
    size_t sent = length >= UL_OFFER_BYTES ? ul_stream_offer(streams, stream, data, length) : 0;
    if (sent == length)
        return 0;
    int error = ul_sendqueue_copy(&stream->queue, &streams->blocks, data + sent, length - sent);
    if (!error)
        return ul_stream_queue_grew(streams, stream);
    if (sent)
        ul_stream_fail(streams, stream, -error); /* the peer has the first half of a write, and must not take the next one for the second */
    return error;
}

int64_t ul_stream_write_pinned(struct ul_streams *streams, int32_t token, const char *data, size_t length) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    if (!ul_stream_takes_writes(stream))
        return -EPIPE;
    int error = ul_sendqueue_pin(&stream->queue, data, length);
    return error < 0 ? error : ul_stream_queue_grew(streams, stream);
}

int64_t ul_stream_send_now(struct ul_streams *streams, int32_t token, const char *data, size_t length) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    return ul_stream_takes_writes(stream) ? (int64_t)ul_stream_offer(streams, stream, data, length) : -EPIPE;
}

int64_t ul_stream_queued(const struct ul_streams *streams, int32_t token) {
    const struct ul_stream *stream = ul_table_get(&streams->table, token);
    return stream ? (int64_t)stream->queue.bytes : 0;
}

uint64_t ul_streams_queued(const struct ul_streams *streams) {
    uint64_t bytes = 0;
    uint32_t index = 0;
    const struct ul_stream *stream;
    while ((stream = ul_table_next(&streams->table, &index)))
        bytes += stream->queue.bytes;
    return bytes;
}

int ul_stream_set_low_water(struct ul_streams *streams, int32_t token, int64_t bytes) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    stream->low_water = bytes;
    ul_stream_await_send(streams, stream);
    return 0;
}

static void ul_stream_report_drained(struct ul_streams *streams, struct ul_stream *stream, int released) {
    bool low = stream->low_water >= 0 && stream->queue.bytes <= (uint64_t)stream->low_water;
    if (!low && !released)
        return;
    if (low) {
        stream->low_water = -1;
        stream->awaits_owner = stream->life == UL_STREAM_CLOSING;
    }
    ul_emit(streams->engine, UL_EVENT_DRAINED, stream->entry.token, released, 0);
}

static void ul_stream_sent(struct ul_streams *streams, struct ul_stream *stream, uint64_t bytes) {
    streams->engine->stats.bytes_sent += bytes;
    int released = ul_sendqueue_advance(&stream->queue, &streams->blocks, bytes);
    ul_stream_report_drained(streams, stream, released);
    ul_stream_finish_eof(stream);
}

/* A send that waited is over, or one that was offered was not taken whole. */
void ul_stream_on_send(struct ul_streams *streams, struct ul_stream *stream, int32_t result) {
    stream->send_state = UL_SEND_IDLE;
    stream->socket_full = false;
    if (stream->life == UL_STREAM_ABORTING) {
        ul_sendqueue_clear(&stream->queue, &streams->blocks);
        return;
    }
    bool again = result >= 0 || result == -EINTR || result == -EAGAIN || ul_stream_forgives(stream, result);
    if (!again) {
        ul_stream_fail(streams, stream, -result);
        return;
    }
    streams->engine->stats.sends_short += result < 0 || (uint64_t)result < stream->offered;
    if (result > 0)
        ul_stream_sent(streams, stream, (uint64_t)result);
    if (stream->queue.bytes)
        ul_stream_submit_send(streams, stream, UL_REQUEST_SEND_WAITING);
}

/* The send that was offered was taken whole, if there was one and on_send has not heard otherwise. */
void ul_stream_confirm_send(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->send_state != UL_SEND_OFFERED)
        return;
    stream->send_state = UL_SEND_IDLE;
    if (stream->life == UL_STREAM_ABORTING) {
        ul_sendqueue_clear(&stream->queue, &streams->blocks);
        return;
    }
    ul_stream_sent(streams, stream, stream->offered);
    ul_stream_send(streams, stream);
}
