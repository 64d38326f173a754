/* Receiving, in one of two modes.
 *
 * Multishot: one recv armed for good, fed from the provided buffers; no system call and no request a message. But what one batch reads is
 * processed only after all of it has been read, and large messages of many streams have left the cache by then.
 * Bulk: the core waits for readiness, and tells the owner, who takes the bytes with read(2) to where they are to be, and has processed them
 * before the next owner does. A system call a message, which is little beside copying it. Also, what is not read stays in the socket.
 * A stream begins in multishot mode, and changes when its usual receive would be better off in the other.
 * What is no socket is always read in bulk mode: multishot reads (6.7) would cost some percent less, but take a FIFO that no writer has opened
 * yet for ended, and of a pipe in packet mode they lose what does not fit the rest of a buffer. A reader cannot tell that it is one.
 *
 * A stream to which much comes one way (an upload, a download) wakes a loop that has little else to do for each piece, and is done with it before
 * the next one comes: most of what a piece of 64 KiB costs is the sleep before it. So the loop coalesces, as network cards do with interrupts: a
 * sleep behind such a receive ends with its second completion, or with the first that comes after UL_COALESCE_US. What comes less often than that
 * is not late; the last piece is, by that much at the most. CPU time 0.6 of what it was, and the rate 1.4 times as high.
 */
#include <poll.h>
#include <sys/socket.h>

#include "ring_fault.h"
#include "stream_parts.h"

/* An incremental buffer serves many receives, one for each so many bytes: most are smaller, and messages of 16 KiB are already large. */
#define UL_ARM_BYTES (8U * 1024U)
/* A usual receive of so many bytes asks for bulk mode. Echoing over 50 connections both cost the same at 12 KiB on one machine, and at 24 on
 * another. Of plain buffers a receive brings no more than one, of 16 KiB, however large the message is. The other way, less than half of it asks
 * for multishot mode; they differ because a change costs a cancel and two requests. */
#define UL_BULK_FROM_BYTES (16U * 1024U)
#define UL_BULK_FROM_BYTES_PLAIN (8U * 1024U)
/* A multishot recv ends after so many bytes, where the kernel can end it, and is armed again. Otherwise one whose peer never stops takes the
 * whole pool before its owner has been asked whether it wants to go on: 1 MiB to keep for each connection whose protocol pauses, and a long
 * turn. Arming again costs little beside so many bytes. */
#define UL_RECEIVE_BYTES_MAX (64 * 1024)
/* Microseconds. Of a peer that sends 2 GB a second 300 KB gather in that time. */
#define UL_COALESCE_US 150
/* So many bulk receives with nothing sent between them are many: the peer awaits no answer. Of 64 KiB each they are 1 MiB. */
#define UL_UNANSWERED_MANY 16
/* A peer that has filled a smaller receive buffer than this might wait for us. Of TCP sockets the kernel lets it grow, up to 6 MiB and more, with
 * what they receive; of Unix sockets it does not, and they may hold less than what gathers. */
#define UL_COALESCE_ROOM_BYTES (1024 * 1024)
/* What is usual changes by this part of what is new. */
#define UL_USUAL_SHARE 4

void ul_stream_stop_reading(struct ul_streams *streams, struct ul_stream *stream, enum ul_read_state at_rest) {
    stream->read_wanted = false;
    if (stream->read_state == UL_READ_ARMED) {
        stream->read_state = UL_READ_STOPPING;
        /* Of both modes: the one armed may be the other than the one chosen. */
        ul_stream_cancel(streams, stream, UL_REQUEST_RECV);
        ul_stream_cancel(streams, stream, UL_REQUEST_READABLE);
    } else if (stream->read_state != UL_READ_STOPPING && stream->read_state != UL_READ_ENDED) {
        stream->read_state = (uint8_t)at_rest;
    }
}

/* Choose the mode again after a receive; true if it is another. */
static bool ul_stream_outgrows_mode(const struct ul_streams *streams, struct ul_stream *stream, uint32_t bytes) {
    uint32_t from = streams->engine->buffers.incremental ? UL_BULK_FROM_BYTES : UL_BULK_FROM_BYTES_PLAIN;
    stream->usual = stream->usual - stream->usual / UL_USUAL_SHARE + bytes / UL_USUAL_SHARE;
    enum ul_read_mode before = stream->read_mode;
    if (stream->is_pipe || stream->usual >= from)
        stream->read_mode = UL_READ_BULK;
    else if (stream->usual < from / 2)
        stream->read_mode = UL_READ_MULTISHOT;
    return stream->read_mode != before;
}

static void ul_stream_arm_bulk(struct ul_streams *streams, struct ul_stream *stream) {
    struct io_uring_sqe *sqe = ul_stream_request(streams, stream, IORING_OP_POLL_ADD, UL_REQUEST_READABLE);
    if (!sqe) {
        ul_stream_fail(streams, stream, ENOMEM);
        return;
    }
    sqe->op_flags = POLLIN;
    stream->read_state = UL_READ_ARMED;
}

static void ul_stream_arm(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->read_mode == UL_READ_BULK) {
        ul_stream_arm_bulk(streams, stream);
        return;
    }
    struct io_uring_sqe *sqe = ul_stream_request(streams, stream, IORING_OP_RECV, UL_REQUEST_RECV);
    if (!sqe) {
        ul_stream_fail(streams, stream, ENOMEM);
        return;
    }
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = streams->engine->buffers.group;
    if (streams->engine->limited_receives)
        sqe->file_index = UL_RECEIVE_BYTES_MAX;
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
    if (stream->receive_error)
        ul_stream_fail(streams, stream, stream->receive_error);
    else if (stream->read_state == UL_READ_IDLE)
        ul_stream_arm(streams, stream);
    return 0;
}

static void ul_stream_arm_again(struct ul_streams *streams, struct ul_stream *stream) {
    streams->engine->stats.receive_rearms++;
    ul_stream_arm(streams, stream);
}

static void ul_stream_starve(struct ul_streams *streams, struct ul_stream *stream) {
    streams->engine->stats.receive_starved++;
    stream->read_state = UL_READ_STARVED;
    if (ul_token_list_push(&streams->starved, stream->entry.token) < 0)
        ul_stream_fail(streams, stream, ENOMEM);
}

/* A multishot recv ends by itself for many reasons, with or without bytes; every last completion comes through here. */
static void ul_stream_on_recv_end(struct ul_streams *streams, struct ul_stream *stream, int32_t result) {
    bool again = result > 0 || result == -ECANCELED || result == -EINTR || result == -EAGAIN || ul_stream_forgives(stream, result);
    stream->read_state = UL_READ_IDLE;
    if (stream->life != UL_STREAM_OPEN) {
        stream->read_state = UL_READ_ENDED;
    } else if (result == 0) {
        stream->read_state = UL_READ_ENDED;
        ul_emit(streams->engine, UL_EVENT_EOF, stream->entry.token, 0, 0);
    } else if (result == -ENOBUFS || again) {
        if (stream->read_wanted) {
            streams->engine->stats.receive_ends[ul_end_of(result)]++;
            (again ? ul_stream_arm_again : ul_stream_starve)(streams, stream);
        }
    } else if (stream->read_wanted) {
        ul_stream_fail(streams, stream, -result);
    } else {
        stream->receive_error = -result; /* an owner that does not read hears of it when it reads again, as on asyncio */
    }
}

/* Its last completion, which is on its way, arms the stream in the new mode. */
static void ul_stream_change_mode(struct ul_streams *streams, struct ul_stream *stream) {
    bool wanted = stream->read_wanted;
    ul_stream_stop_reading(streams, stream, UL_READ_IDLE);
    stream->read_wanted = wanted;
}

void ul_stream_on_recv(struct ul_streams *streams, struct ul_stream *stream, const struct io_uring_cqe *cqe, struct ul_span span) {
    struct ul_engine *engine = streams->engine;
    if (span.length) {
        engine->stats.receives++;
        engine->stats.bytes_received += span.length;
        bool changes = ul_stream_outgrows_mode(streams, stream, span.length);
        if (changes && stream->read_state == UL_READ_ARMED && cqe->flags & IORING_CQE_F_MORE)
            ul_stream_change_mode(streams, stream);
        if (stream->life == UL_STREAM_OPEN)
            ul_emit(engine, UL_EVENT_DATA, stream->entry.token, (int32_t)span.start, (int32_t)(span.start + span.length));
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        ul_stream_on_recv_end(streams, stream, cqe->res);
}

static void ul_stream_list_readable(struct ul_streams *streams, struct ul_stream *stream) {
    stream->read_state = UL_READ_READABLE;
    if (stream->in_readable)
        return;
    stream->in_readable = true;
    ul_token_list_push(&streams->readable, stream->entry.token); /* there is room, see ul_streams_reserve_lists */
}

void ul_stream_on_readable(struct ul_streams *streams, struct ul_stream *stream, int32_t result) {
    if (stream->life != UL_STREAM_OPEN)
        stream->read_state = UL_READ_ENDED;
    else if (result < 0)
        ul_stream_on_recv_end(streams, stream, result);
    else if (stream->read_wanted)
        ul_stream_list_readable(streams, stream);
    else
        stream->read_state = UL_READ_IDLE;
}

static bool ul_stream_has_room(const struct ul_stream *stream) {
    int bytes = 0;
    socklen_t length = sizeof bytes;
    return getsockopt(stream->fd, SOL_SOCKET, SO_RCVBUF, &bytes, &length) == 0 && bytes >= UL_COALESCE_ROOM_BYTES;
}

static void ul_stream_count_unanswered(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->unanswered < UL_UNANSWERED_MANY && ++stream->unanswered == UL_UNANSWERED_MANY && !ul_stream_has_room(stream))
        stream->unanswered = 0; /* asked again after as many more; of a pipe always */
    if (stream->unanswered == UL_UNANSWERED_MANY)
        streams->coalescing = stream->entry.token;
}

uint32_t ul_streams_coalesce_us(struct ul_streams *streams) {
    const struct ul_stream *stream = ul_table_get(&streams->table, streams->coalescing);
    streams->coalescing = -1;
    return stream && stream->unanswered == UL_UNANSWERED_MANY && stream->read_state == UL_READ_ARMED ? UL_COALESCE_US : 0;
}

/* What to do next is settled before the owner makes anything of the bytes: it may stop reading, or close, while it does. */
int ul_stream_received(struct ul_streams *streams, int32_t token, int32_t result) {
    struct ul_engine *engine = streams->engine;
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream || stream->read_state != UL_READ_TOLD)
        return 0;
    stream->read_state = UL_READ_IDLE;
    if (result < 0) {
        ul_stream_on_recv_end(streams, stream, result);
    } else if (result == 0) {
        stream->read_state = UL_READ_ENDED; /* its owner knows */
    } else {
        engine->stats.receives++;
        engine->stats.receives_bulk++;
        engine->stats.bytes_received += (uint64_t)result;
        ul_stream_count_unanswered(streams, stream);
        if (!ul_stream_outgrows_mode(streams, stream, (uint32_t)result) && result >= UL_BULK_BYTES_MAX)
            ul_stream_list_readable(streams, stream); /* there is most likely more */
        else
            ul_stream_arm(streams, stream);
    }
    return 0;
}

void ul_streams_tell_readable(struct ul_streams *streams) {
    struct ul_engine *engine = streams->engine;
    int32_t token;
    while (engine->event_count < UL_EVENTS_MAX && ul_token_list_pop(&streams->readable, &token)) {
        struct ul_stream *stream = ul_table_get(&streams->table, token);
        if (!stream)
            continue;
        stream->in_readable = false;
        if (stream->read_state != UL_READ_READABLE)
            continue;
        stream->read_state = UL_READ_TOLD;
        ul_emit(engine, UL_EVENT_READABLE, token, UL_FAULT_LENGTH(&engine->ring, SHORT_READ, UL_BULK_BYTES_MAX), 0);
    }
}

void ul_streams_feed_starved(struct ul_streams *streams) {
    /* No more than there are buffers: an arm that finds none ends at once and would only come back here. One that finds no bytes leaves its
     * buffer to the others, so while any are left over there may be some with bytes, and the loop must not sleep. */
    const struct ul_buffers *buffers = &streams->engine->buffers;
    uint32_t arms = buffers->incremental && buffers->size > UL_ARM_BYTES ? buffers->size / UL_ARM_BYTES : 1; /* a buffer */
    uint32_t budget = buffers->kernel_count * arms;
    bool any = budget > 0;
    int32_t token;
    while (budget && ul_token_list_pop(&streams->starved, &token)) {
        struct ul_stream *stream = ul_table_get(&streams->table, token);
        if (!stream || stream->read_state != UL_READ_STARVED)
            continue;
        ul_stream_arm_again(streams, stream);
        budget--;
    }
    if (any && streams->starved.count)
        streams->urgent = true;
}
