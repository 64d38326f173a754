/* See stream.h for the states. Functions named ul_stream_on_... take a completion; ul_stream_settle is where an ending stream ends. */
#include "stream.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* A write of this many bytes or more to an idle stream is offered to the socket at once: the system call is small beside the copy, the
 * bytes are still in the cache, and what the socket takes need not be pinned. */
#define UL_DIRECT_SEND_BYTES (32U * 1024U)
/* One send request offers no more than this; the kernel would cut it at 2 GiB anyway. */
#define UL_SEND_BYTES_MAX (1U << 30)

struct ul_gather {
    struct msghdr message;
    struct iovec iov[UL_GATHER_MAX];
};

void ul_streams_init(struct ul_streams *streams, struct ul_engine *engine) {
    memset(streams, 0, sizeof *streams);
    streams->engine = engine;
    ul_table_init(&streams->table, sizeof(struct ul_stream));
}

static void ul_stream_release(struct ul_streams *streams, struct ul_stream *stream) {
    ul_sendqueue_clear(&stream->queue, &streams->blocks);
    free(stream->gather);
    ul_table_free(&streams->table, stream);
}

void ul_streams_destroy(struct ul_streams *streams) {
    uint32_t index = 0;
    struct ul_stream *stream;
    while ((stream = ul_table_next(&streams->table, &index)))
        ul_stream_release(streams, stream);
    ul_table_destroy(&streams->table);
    ul_blocks_destroy(&streams->blocks);
    ul_token_list_destroy(&streams->to_send);
    ul_token_list_destroy(&streams->starved);
    ul_token_list_destroy(&streams->lost);
}

static struct io_uring_sqe *ul_stream_request(struct ul_streams *streams, struct ul_stream *stream, uint8_t opcode, enum ul_request request) {
    struct io_uring_sqe *sqe = ul_request(streams->engine, opcode, request, stream->entry.token);
    if (!sqe)
        return NULL;
    stream->in_flight++;
    sqe->fd = stream->fd;
    if (stream->slot_state == UL_SLOT_HELD) {
        sqe->fd = stream->slot;
        sqe->flags = IOSQE_FIXED_FILE;
    }
    return sqe;
}

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

static void ul_stream_update_slot(struct ul_streams *streams, struct ul_stream *stream, int fd, enum ul_request request) {
    struct ul_engine *engine = streams->engine;
    uint64_t user_data = ul_user_data(request, stream->entry.token);
    if (ul_files_update(&engine->files, &engine->ring, stream->slot, fd, user_data) == 0) {
        engine->in_flight++;
        stream->in_flight++;
    }
}

/* Empty the slot of an ending stream. Requests submitted before this hold the file for themselves, so it rides in one batch with the last
 * send; should that be short, the rest goes out on the plain fd. */
static void ul_stream_leave_slot(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->slot_state != UL_SLOT_HELD)
        return;
    stream->slot_state = UL_SLOT_CLEARING;
    ul_stream_update_slot(streams, stream, -1, UL_REQUEST_SLOT_CLEAR);
}

static void ul_stream_settle(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->life == UL_STREAM_OPEN || stream->life == UL_STREAM_LOST)
        return;
    if (stream->in_flight || (stream->life == UL_STREAM_CLOSING && (stream->queue.bytes || stream->awaits_owner)))
        return;
    stream->life = UL_STREAM_LOST;
    ul_token_list_push(&streams->lost, stream->entry.token);
}

void ul_streams_report_lost(struct ul_streams *streams) {
    struct ul_engine *engine = streams->engine;
    int32_t token;
    while (engine->event_count < UL_EVENTS_MAX && ul_token_list_pop(&streams->lost, &token)) {
        struct ul_stream *stream = ul_table_get(&streams->table, token);
        if (!stream)
            continue;
        ul_emit(engine, UL_EVENT_LOST, token, stream->error, 0);
        ul_stream_release(streams, stream);
    }
}

static void ul_stream_cancel(struct ul_streams *streams, struct ul_stream *stream, enum ul_request request) {
    uint64_t user_data = ul_user_data(request, stream->entry.token);
    if (ul_cancel(streams->engine, user_data, UL_REQUEST_STREAM_CANCEL, stream->entry.token) == 0)
        stream->in_flight++;
}

static void ul_stream_stop_reading(struct ul_streams *streams, struct ul_stream *stream, enum ul_read_state at_rest) {
    stream->read_wanted = false;
    if (stream->read_state == UL_READ_ARMED) {
        stream->read_state = UL_READ_STOPPING;
        ul_stream_cancel(streams, stream, UL_REQUEST_RECV);
    } else if (stream->read_state != UL_READ_STOPPING && stream->read_state != UL_READ_ENDED) {
        stream->read_state = (uint8_t)at_rest;
    }
}

static void ul_stream_fail(struct ul_streams *streams, struct ul_stream *stream, int error) {
    if (stream->life == UL_STREAM_ABORTING || stream->life == UL_STREAM_LOST)
        return;
    stream->life = UL_STREAM_ABORTING;
    stream->error = error;
    ul_stream_stop_reading(streams, stream, UL_READ_ENDED);
    if (stream->sending)
        ul_stream_cancel(streams, stream, UL_REQUEST_SEND); /* the queue is what it reads from: dropped at its completion */
    else
        ul_sendqueue_clear(&stream->queue, &streams->blocks);
    ul_stream_leave_slot(streams, stream);
    ul_stream_settle(streams, stream);
}

int ul_stream_close(struct ul_streams *streams, int32_t token) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    if (stream->life == UL_STREAM_OPEN) {
        stream->life = UL_STREAM_CLOSING;
        ul_stream_stop_reading(streams, stream, UL_READ_ENDED);
        if (!stream->queued_for_flush)
            ul_stream_leave_slot(streams, stream);
    }
    stream->awaits_owner = false;
    ul_stream_settle(streams, stream);
    return 0;
}

int ul_stream_abort(struct ul_streams *streams, int32_t token, int error) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    ul_stream_fail(streams, stream, error);
    return 0;
}

/* --- receiving --------------------------------------------------------------------------------------------------------------------- */

int32_t ul_stream_open(struct ul_streams *streams, int fd) {
    struct ul_stream *stream = ul_table_allocate(&streams->table);
    if (!stream)
        return -ENOMEM;
    /* A stream stands in each of these lists once at the most: with the room made now, its way to the end cannot fail for memory. */
    uint32_t live = streams->table.live;
    if (ul_token_list_reserve(&streams->lost, live) < 0 || ul_token_list_reserve(&streams->to_send, live) < 0) {
        ul_table_free(&streams->table, stream);
        return -ENOMEM;
    }
    stream->fd = fd;
    stream->low_water = -1;
    stream->slot = ul_files_take(&streams->engine->files);
    if (stream->slot == UL_NO_SLOT) {
        streams->engine->stats.fixed_file_fallbacks++;
    } else {
        ul_stream_update_slot(streams, stream, fd, UL_REQUEST_SLOT_FILL);
        stream->slot_state = UL_SLOT_HELD;
    }
    return stream->entry.token;
}

static void ul_stream_arm(struct ul_streams *streams, struct ul_stream *stream) {
    struct io_uring_sqe *sqe = ul_stream_request(streams, stream, IORING_OP_RECV, UL_REQUEST_RECV);
    if (!sqe) {
        ul_stream_fail(streams, stream, ENOMEM);
        return;
    }
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = streams->engine->buffers.group;
    stream->read_state = UL_READ_ARMED;
    streams->engine->stats.receive_arms++;
}

int ul_stream_read(struct ul_streams *streams, int32_t token, bool wanted) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    if (stream->life != UL_STREAM_OPEN)
        return 0;
    if (!wanted) {
        ul_stream_stop_reading(streams, stream, UL_READ_IDLE);
        return 0;
    }
    stream->read_wanted = true;
    if (stream->read_state == UL_READ_IDLE)
        ul_stream_arm(streams, stream);
    return 0;
}

static void ul_stream_starve(struct ul_streams *streams, struct ul_stream *stream) {
    streams->engine->stats.receive_starved++;
    stream->read_state = UL_READ_STARVED;
    if (ul_token_list_push(&streams->starved, stream->entry.token) < 0)
        ul_stream_fail(streams, stream, ENOMEM);
}

/* True if this request failed only because it was made on a slot that the kernel then refused to fill. */
static bool ul_stream_forgives(struct ul_stream *stream, int32_t result) {
    if (result != -EBADF || !stream->slot_retries)
        return false;
    stream->slot_retries--;
    return true;
}

/* A multishot recv ends by itself for many reasons, with or without bytes; every last completion comes through here. */
static void ul_stream_recv_ended(struct ul_streams *streams, struct ul_stream *stream, int32_t result) {
    bool refused = ul_stream_forgives(stream, result);
    stream->read_state = UL_READ_IDLE;
    if (stream->life != UL_STREAM_OPEN) {
        stream->read_state = UL_READ_ENDED;
    } else if (result == 0) {
        stream->read_state = UL_READ_ENDED;
        ul_emit(streams->engine, UL_EVENT_EOF, stream->entry.token, 0, 0);
    } else if (result == -ENOBUFS) {
        if (stream->read_wanted)
            ul_stream_starve(streams, stream);
    } else if (result > 0 || result == -ECANCELED || result == -EINTR || result == -EAGAIN || refused) {
        if (stream->read_wanted) {
            streams->engine->stats.receive_rearms++;
            ul_stream_arm(streams, stream);
        }
    } else {
        ul_stream_fail(streams, stream, -result);
    }
}

static void ul_stream_on_recv(struct ul_streams *streams, struct ul_stream *stream, const struct io_uring_cqe *cqe, struct ul_span span) {
    struct ul_engine *engine = streams->engine;
    if (span.length) {
        engine->stats.receives++;
        engine->stats.bytes_received += span.length;
        if (stream->life == UL_STREAM_OPEN)
            ul_emit(engine, UL_EVENT_DATA, stream->entry.token, (int32_t)span.start, (int32_t)(span.start + span.length));
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        ul_stream_recv_ended(streams, stream, cqe->res);
}

static void ul_streams_feed_starved(struct ul_streams *streams) {
    /* No more than there are buffers: an arm that finds none ends at once and would only come back here. */
    uint32_t budget = streams->engine->buffers.kernel_count;
    int32_t token;
    while (budget && ul_token_list_pop(&streams->starved, &token)) {
        struct ul_stream *stream = ul_table_get(&streams->table, token);
        if (!stream || stream->read_state != UL_READ_STARVED)
            continue;
        streams->engine->stats.receive_rearms++;
        ul_stream_arm(streams, stream);
        budget--;
    }
}

/* --- sending ----------------------------------------------------------------------------------------------------------------------- */

static void ul_stream_fill_gather(struct ul_stream *stream, struct io_uring_sqe *sqe) {
    struct ul_gather *gather = stream->gather;
    gather->message = (struct msghdr){.msg_iov = gather->iov};
    gather->message.msg_iovlen = (size_t)ul_sendqueue_gather(&stream->queue, gather->iov);
    sqe->addr = (uint64_t)(uintptr_t)&gather->message;
    sqe->len = 1;
}

static void ul_stream_send(struct ul_streams *streams, struct ul_stream *stream) {
    const struct ul_segment *first = stream->queue.first;
    if (stream->sending || !first || stream->life == UL_STREAM_ABORTING || stream->life == UL_STREAM_LOST)
        return;
    bool several = first->next != NULL;
    if (several && !stream->gather)
        stream->gather = malloc(sizeof *stream->gather);
    uint8_t opcode = several && stream->gather ? IORING_OP_SENDMSG : IORING_OP_SEND;
    struct io_uring_sqe *sqe = ul_stream_request(streams, stream, opcode, UL_REQUEST_SEND);
    if (!sqe) {
        ul_stream_fail(streams, stream, ENOMEM);
        return;
    }
    if (opcode == IORING_OP_SENDMSG) {
        ul_stream_fill_gather(stream, sqe);
    } else {
        sqe->addr = (uint64_t)(uintptr_t)first->data;
        sqe->len = first->length < UL_SEND_BYTES_MAX ? (uint32_t)first->length : UL_SEND_BYTES_MAX;
    }
    stream->sending = true;
    streams->engine->stats.sends++;
    if (stream->life == UL_STREAM_CLOSING)
        ul_stream_leave_slot(streams, stream);
}

static int ul_stream_finish_eof(struct ul_stream *stream) {
    if (stream->eof_state != UL_EOF_WANTED || stream->sending || stream->queue.bytes)
        return 0;
    stream->eof_state = UL_EOF_SENT;
    return shutdown(stream->fd, SHUT_WR) < 0 ? -errno : 0;
}

int ul_stream_write_eof(struct ul_streams *streams, int32_t token) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    if (stream->life != UL_STREAM_OPEN || stream->eof_state != UL_EOF_NO)
        return 0;
    stream->eof_state = UL_EOF_WANTED;
    return ul_stream_finish_eof(stream);
}

/* Offer a large write to the socket now. The bytes taken, or 0 where only the usual way is open. */
static size_t ul_stream_send_direct(struct ul_streams *streams, struct ul_stream *stream, const char *data, size_t length) {
    ssize_t sent = send(stream->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0)
        return 0; /* a real error comes back from the send request that follows */
    streams->engine->stats.sends_direct++;
    streams->engine->stats.bytes_sent += (uint64_t)sent;
    return (size_t)sent;
}

static void ul_stream_schedule_send(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->sending || stream->queued_for_flush)
        return;
    ul_token_list_push(&streams->to_send, stream->entry.token);
    stream->queued_for_flush = true;
}

int64_t ul_stream_write(struct ul_streams *streams, int32_t token, const char *data, size_t length, bool pin) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    if (stream->life != UL_STREAM_OPEN && stream->life != UL_STREAM_CLOSING)
        return 0;
    if (length >= UL_DIRECT_SEND_BYTES && stream->queue.bytes == 0) {
        size_t sent = ul_stream_send_direct(streams, stream, data, length);
        if (sent == length)
            return 0;
        data += sent;
        length -= sent;
    }
    int error = pin ? ul_sendqueue_pin(&stream->queue, data, length) : ul_sendqueue_copy(&stream->queue, &streams->blocks, data, length);
    if (error < 0)
        return error;
    ul_stream_schedule_send(streams, stream);
    return (int64_t)stream->queue.bytes;
}

int64_t ul_stream_queued(const struct ul_streams *streams, int32_t token) {
    const struct ul_stream *stream = ul_table_get(&streams->table, token);
    return stream ? (int64_t)stream->queue.bytes : 0;
}

int ul_stream_set_low_water(struct ul_streams *streams, int32_t token, int64_t bytes) {
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream)
        return -ENOENT;
    stream->low_water = bytes;
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
    uint64_t left = stream->queue.bytes;
    ul_emit(streams->engine, UL_EVENT_DRAINED, stream->entry.token, left < INT32_MAX ? (int32_t)left : INT32_MAX, released);
}

static void ul_stream_on_send(struct ul_streams *streams, struct ul_stream *stream, int32_t result) {
    stream->sending = false;
    if (stream->life == UL_STREAM_ABORTING) {
        ul_sendqueue_clear(&stream->queue, &streams->blocks);
        return;
    }
    if (result < 0) {
        bool again = result == -EINTR || result == -EAGAIN || ul_stream_forgives(stream, result);
        if (again)
            ul_stream_send(streams, stream);
        else
            ul_stream_fail(streams, stream, -result);
        return;
    }
    streams->engine->stats.bytes_sent += (uint64_t)result;
    int released = ul_sendqueue_advance(&stream->queue, &streams->blocks, (size_t)result);
    ul_stream_report_drained(streams, stream, released);
    if (stream->queue.bytes) {
        streams->engine->stats.sends_short++;
        ul_stream_send(streams, stream);
    } else {
        ul_stream_finish_eof(stream);
    }
}

/* --- the reactor's side ------------------------------------------------------------------------------------------------------------ */

void ul_streams_flush(struct ul_streams *streams) {
    int32_t token;
    while (ul_token_list_pop(&streams->to_send, &token)) {
        struct ul_stream *stream = ul_table_get(&streams->table, token);
        if (!stream)
            continue;
        stream->queued_for_flush = false;
        ul_stream_send(streams, stream);
    }
    ul_streams_feed_starved(streams);
}

static void ul_stream_on_slot_fill(struct ul_streams *streams, struct ul_stream *stream, int32_t result) {
    if (result == 1 || stream->slot_state != UL_SLOT_HELD)
        return;
    ul_files_give_back(&streams->engine->files, stream->slot);
    stream->slot_state = UL_SLOT_NONE;
    stream->slot_retries = 2; /* a recv and a send may have been submitted with it */
    streams->engine->stats.fixed_file_fallbacks++;
}

static void ul_stream_on_slot_clear(struct ul_streams *streams, struct ul_stream *stream) {
    ul_files_give_back(&streams->engine->files, stream->slot);
    stream->slot_state = UL_SLOT_NONE;
}

void ul_stream_complete(struct ul_streams *streams, enum ul_request request, int32_t token, const struct io_uring_cqe *cqe) {
    struct ul_span span = ul_buffers_take(&streams->engine->buffers, cqe->flags, cqe->res);
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream) {
        streams->engine->stats.stale_completions++;
        return;
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        stream->in_flight--;
    switch (request) {
    case UL_REQUEST_RECV:
        ul_stream_on_recv(streams, stream, cqe, span);
        break;
    case UL_REQUEST_SEND:
        ul_stream_on_send(streams, stream, cqe->res);
        break;
    case UL_REQUEST_SLOT_FILL:
        ul_stream_on_slot_fill(streams, stream, cqe->res);
        break;
    case UL_REQUEST_SLOT_CLEAR:
        ul_stream_on_slot_clear(streams, stream);
        break;
    default: /* a cancel: what it cancelled reports for itself */
        break;
    }
    ul_stream_settle(streams, stream);
}
