/* Receiving: one multishot recv per stream, armed again whenever it ends, fed from the provided buffers. */
#include "stream_parts.h"

/* An incremental buffer serves many receives; messages of an eighth of a buffer are already large. */
#define UL_ARMS_PER_INCREMENTAL_BUFFER 8

void ul_stream_stop_reading(struct ul_streams *streams, struct ul_stream *stream, enum ul_read_state at_rest) {
    stream->read_wanted = false;
    if (stream->read_state == UL_READ_ARMED) {
        stream->read_state = UL_READ_STOPPING;
        ul_cancel(streams->engine, ul_user_data(UL_REQUEST_RECV, stream->entry.token));
    } else if (stream->read_state != UL_READ_STOPPING && stream->read_state != UL_READ_ENDED) {
        stream->read_state = (uint8_t)at_rest;
    }
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
        if (stream->read_wanted)
            (again ? ul_stream_arm_again : ul_stream_starve)(streams, stream);
    } else if (stream->read_wanted) {
        ul_stream_fail(streams, stream, -result);
    } else {
        stream->receive_error = -result; /* an owner that does not read hears of it when it reads again, as on asyncio */
    }
}

void ul_stream_on_recv(struct ul_streams *streams, struct ul_stream *stream, const struct io_uring_cqe *cqe, struct ul_span span) {
    struct ul_engine *engine = streams->engine;
    if (span.length) {
        engine->stats.receives++;
        engine->stats.bytes_received += span.length;
        if (stream->life == UL_STREAM_OPEN)
            ul_emit(engine, UL_EVENT_DATA, stream->entry.token, (int32_t)span.start, (int32_t)(span.start + span.length));
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        ul_stream_on_recv_end(streams, stream, cqe->res);
}

void ul_streams_feed_starved(struct ul_streams *streams) {
    /* No more than there are buffers: an arm that finds none ends at once and would only come back here. One that finds no bytes leaves its
     * buffer to the others, so while any are left over there may be some with bytes, and the loop must not sleep. */
    const struct ul_buffers *buffers = &streams->engine->buffers;
    uint32_t budget = buffers->kernel_count * (buffers->incremental ? UL_ARMS_PER_INCREMENTAL_BUFFER : 1);
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
