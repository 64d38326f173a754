/* The life of a stream: made, closed or aborted, its requests concluded, reported lost. See stream.h for the states. */
#include <stdlib.h>
#include <string.h>

#include "ring_fault.h"
#include "stream_parts.h"

void ul_streams_init(struct ul_streams *streams, struct ul_engine *engine) {
    memset(streams, 0, sizeof *streams);
    streams->engine = engine;
    ul_table_init(&streams->table, sizeof(struct ul_stream));
    streams->coalescing = -1;
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
    ul_token_list_destroy(&streams->to_flush);
    ul_token_list_destroy(&streams->to_confirm);
    ul_token_list_destroy(&streams->readable);
    ul_token_list_destroy(&streams->starved);
    ul_token_list_destroy(&streams->lost);
}

/* --- requests ---------------------------------------------------------------------------------------------------------------------- */

static void ul_stream_list_for_confirmation(struct ul_streams *streams, struct ul_stream *stream) {
    stream->asked_at = streams->engine->ring.enters;
    if (stream->to_confirm)
        return;
    stream->to_confirm = true;
    ul_token_list_push(&streams->to_confirm, stream->entry.token);
}

struct io_uring_sqe *ul_stream_request(struct ul_streams *streams, struct ul_stream *stream, uint8_t opcode, enum ul_request request) {
    struct io_uring_sqe *sqe = ul_request(streams->engine, opcode, request, stream->entry.token);
    if (!sqe)
        return NULL;
    if (ul_request_waits(request))
        stream->in_flight++;
    else
        ul_stream_list_for_confirmation(streams, stream);
    sqe->fd = stream->fd;
    if (stream->slot_state == UL_SLOT_HELD) {
        sqe->fd = stream->slot;
        sqe->flags |= IOSQE_FIXED_FILE;
    }
    return sqe;
}

void ul_stream_try_again(struct ul_streams *streams, struct ul_stream *stream) {
    streams->urgent = true;
    if (stream->to_flush)
        return;
    stream->to_flush = true;
    ul_token_list_push(&streams->to_flush, stream->entry.token);
}

void ul_stream_cancel(struct ul_streams *streams, struct ul_stream *stream, enum ul_request request) {
    if (ul_cancel(streams->engine, ul_user_data(request, stream->entry.token)) == 0)
        return;
    stream->cancel_due = true;
    ul_stream_try_again(streams, stream);
}

static void ul_stream_cancel_again(struct ul_streams *streams, struct ul_stream *stream) {
    if (!stream->cancel_due)
        return;
    stream->cancel_due = false;
    if (stream->read_state == UL_READ_STOPPING) {
        ul_stream_cancel(streams, stream, UL_REQUEST_RECV);
        ul_stream_cancel(streams, stream, UL_REQUEST_READABLE);
    }
    if (stream->life == UL_STREAM_ABORTING && stream->send_state == UL_SEND_WAITING)
        ul_stream_cancel(streams, stream, UL_REQUEST_SEND_WAITING);
}

bool ul_stream_forgives(struct ul_stream *stream, int32_t result) {
    if (result != -EBADF || !stream->slot_retries)
        return false;
    stream->slot_retries--;
    return true;
}

/* --- the beginning ----------------------------------------------------------------------------------------------------------------- */

static int ul_streams_reserve_lists(struct ul_streams *streams) {
    uint32_t live = streams->table.live;
    bool reserved = ul_token_list_reserve(&streams->to_flush, live) == 0 && ul_token_list_reserve(&streams->to_confirm, live) == 0 &&
                    ul_token_list_reserve(&streams->readable, live) == 0 && ul_token_list_reserve(&streams->lost, live) == 0;
    return reserved ? 0 : -ENOMEM;
}

static void ul_stream_fill_slot(struct ul_streams *streams, struct ul_stream *stream) {
    struct io_uring_sqe *sqe = ul_stream_request(streams, stream, IORING_OP_FILES_UPDATE, UL_REQUEST_SLOT_FILL);
    if (!sqe) {
        ul_files_give_back(&streams->engine->files, stream->slot);
        return;
    }
    ul_files_prepare_update(&streams->engine->files, sqe, stream->slot, stream->fd);
    stream->slot_state = UL_SLOT_HELD;
}

void ul_stream_take_slot(struct ul_streams *streams, struct ul_stream *stream) {
    struct ul_engine *engine = streams->engine;
    if (stream->slot_state == UL_SLOT_NEVER && engine->late_slots) {
        stream->slot_state = UL_SLOT_DUE;
        return;
    }
    if (stream->slot_state > UL_SLOT_DUE || stream->life != UL_STREAM_OPEN)
        return;
    stream->slot_state = UL_SLOT_WITHOUT;
    stream->slot = UL_FAULT(&engine->ring, SLOTS_FULL) ? UL_NO_SLOT : ul_files_take(&engine->files);
    if (stream->slot == UL_NO_SLOT) {
        engine->stats.fixed_file_fallbacks++;
        return;
    }
    ul_stream_fill_slot(streams, stream);
}

static struct ul_stream *ul_stream_make(struct ul_streams *streams, int fd) {
    struct ul_stream *stream = ul_table_allocate(&streams->table);
    if (!stream)
        return NULL;
    /* Room in the lists is made now, so that the way to the end cannot fail for want of memory. */
    if (ul_streams_reserve_lists(streams) < 0) {
        ul_table_free(&streams->table, stream);
        return NULL;
    }
    stream->fd = fd;
    stream->low_water = -1;
    return stream;
}

int32_t ul_stream_open(struct ul_streams *streams, int fd) {
    struct ul_stream *stream = ul_stream_make(streams, fd);
    if (!stream)
        return -ENOMEM;
    return stream->entry.token;
}

/* Without a slot: a poll is all that is asked of the ring, and most pipes do not live long. */
int32_t ul_stream_open_pipe(struct ul_streams *streams, int fd) {
    struct ul_stream *stream = ul_stream_make(streams, fd);
    if (!stream)
        return -ENOMEM;
    stream->is_pipe = true;
    stream->read_mode = UL_READ_BULK;
    return stream->entry.token;
}

static void ul_stream_on_slot_refused(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->slot_state != UL_SLOT_HELD && stream->slot_state != UL_SLOT_CLEARING)
        return;
    stream->slot_retries = 2; /* a recv and a send may have been submitted with it */
    streams->engine->stats.fixed_file_fallbacks++;
    if (stream->slot_state == UL_SLOT_CLEARING)
        return; /* the request that empties it is on its way, and what confirms that one gives it back */
    ul_files_give_back(&streams->engine->files, stream->slot);
    stream->slot_state = UL_SLOT_WITHOUT;
}

/* --- the end ----------------------------------------------------------------------------------------------------------------------- */

/* Requests submitted before this hold the file for themselves, so it rides in one batch with the last send; should that be short, the rest
 * goes out on the plain fd. */
void ul_stream_leave_slot(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->slot_state != UL_SLOT_HELD)
        return;
    struct io_uring_sqe *sqe = ul_stream_request(streams, stream, IORING_OP_FILES_UPDATE, UL_REQUEST_SLOT_CLEAR);
    if (!sqe) {
        ul_stream_try_again(streams, stream);
        return;
    }
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    ul_files_prepare_update(&streams->engine->files, sqe, stream->slot, -1);
    stream->slot_state = UL_SLOT_CLEARING;
    streams->urgent = true;
}

static void ul_stream_settle(struct ul_streams *streams, struct ul_stream *stream) {
    if (stream->life == UL_STREAM_OPEN || stream->life == UL_STREAM_LOST)
        return;
    if (stream->to_confirm)
        streams->urgent = true; /* no completion will end a sleep for it */
    if (stream->in_flight || stream->to_confirm || stream->queue.bytes || stream->awaits_owner)
        return;
    ul_stream_leave_slot(streams, stream);
    if (stream->slot_state == UL_SLOT_HELD || stream->slot_state == UL_SLOT_CLEARING)
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

void ul_stream_fail(struct ul_streams *streams, struct ul_stream *stream, int error) {
    if (stream->life == UL_STREAM_ABORTING || stream->life == UL_STREAM_LOST)
        return;
    stream->life = UL_STREAM_ABORTING;
    stream->error = error;
    stream->awaits_owner = false;
    ul_stream_stop_reading(streams, stream, UL_READ_ENDED);
    if (stream->send_state == UL_SEND_WAITING)
        ul_stream_cancel(streams, stream, UL_REQUEST_SEND_WAITING);
    if (stream->send_state == UL_SEND_IDLE)
        ul_sendqueue_clear(&stream->queue, &streams->blocks); /* else it is being read from, and is dropped when that is over */
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
        if (!stream->to_flush)
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
    if (!error && (stream->life == UL_STREAM_OPEN || stream->life == UL_STREAM_CLOSING))
        ul_stream_send_at_last(streams, stream);
    ul_stream_fail(streams, stream, error);
    return 0;
}

/* --- the reactor's side ------------------------------------------------------------------------------------------------------------ */

void ul_streams_flush(struct ul_streams *streams) {
    uint32_t count = streams->to_flush.count; /* those that find no memory are listed again */
    int32_t token;
    while (count-- && ul_token_list_pop(&streams->to_flush, &token)) {
        struct ul_stream *stream = ul_table_get(&streams->table, token);
        if (!stream)
            continue;
        stream->to_flush = false;
        ul_stream_send(streams, stream);
        ul_stream_cancel_again(streams, stream);
        ul_stream_settle(streams, stream);
    }
    ul_streams_feed_starved(streams);
}

void ul_stream_complete(struct ul_streams *streams, enum ul_request request, int32_t token, const struct io_uring_cqe *cqe) {
    struct ul_span span = ul_buffers_take(&streams->engine->buffers, cqe->flags, cqe->res);
    struct ul_stream *stream = ul_table_get(&streams->table, token);
    if (!stream) {
        streams->engine->stats.stale_completions++;
        return;
    }
    if (ul_request_waits(request) && !(cqe->flags & IORING_CQE_F_MORE) && stream->in_flight)
        stream->in_flight--;
    switch (request) {
    case UL_REQUEST_RECV:
        ul_stream_on_recv(streams, stream, cqe, span);
        break;
    case UL_REQUEST_READABLE:
        ul_stream_on_readable(streams, stream, cqe->res);
        break;
    case UL_REQUEST_SEND_INLINE:
        if (stream->send_state == UL_SEND_OFFERED)
            ul_stream_on_send(streams, stream, cqe->res);
        break;
    case UL_REQUEST_SEND_WAITING:
        if (stream->send_state == UL_SEND_WAITING)
            ul_stream_on_send(streams, stream, cqe->res);
        break;
    case UL_REQUEST_SLOT_FILL:
        ul_stream_on_slot_refused(streams, stream);
        break;
    default: /* emptying a slot cannot fail */
        break;
    }
    ul_stream_settle(streams, stream);
}

static void ul_stream_confirm(struct ul_streams *streams, struct ul_stream *stream) {
    stream->to_confirm = false;
    if (stream->slot_state == UL_SLOT_CLEARING) {
        ul_files_give_back(&streams->engine->files, stream->slot);
        stream->slot_state = UL_SLOT_WITHOUT;
    }
    ul_stream_confirm_send(streams, stream);
    ul_stream_settle(streams, stream);
}

/* Every inline request that did not fail has succeeded: that is known once all completions of the enter that submitted it are taken. */
void ul_streams_confirm(struct ul_streams *streams) {
    uint32_t count = streams->to_confirm.count;
    int32_t token;
    streams->urgent = false;
    while (count-- && streams->engine->event_count < UL_EVENTS_MAX && ul_token_list_pop(&streams->to_confirm, &token)) {
        struct ul_stream *stream = ul_table_get(&streams->table, token);
        if (stream && stream->asked_at == streams->engine->ring.enters)
            ul_token_list_push(&streams->to_confirm, token); /* asked while completions were taken: the next enter submits it */
        else if (stream)
            ul_stream_confirm(streams, stream);
    }
    streams->urgent |= streams->to_confirm.count > 0;
}

/* --- another ring ------------------------------------------------------------------------------------------------------------------ */

static void ul_stream_on_ring_lost(struct ul_streams *streams, struct ul_stream *stream) {
    static const struct io_uring_cqe cancelled = {.res = -ECANCELED}, interrupted = {.res = -EINTR};
    int32_t token = stream->entry.token;
    if (stream->slot_state == UL_SLOT_HELD) {
        stream->slot_state = UL_SLOT_WITHOUT; /* the request that fills it is on the plain fd */
        ul_stream_fill_slot(streams, stream);
    }
    if (stream->send_state == UL_SEND_WAITING)
        ul_stream_complete(streams, UL_REQUEST_SEND_WAITING, token, &interrupted);
    if (stream->read_state == UL_READ_ARMED || stream->read_state == UL_READ_STOPPING)
        ul_stream_complete(streams, UL_REQUEST_RECV, token, &cancelled);
}

void ul_streams_on_ring_lost(struct ul_streams *streams) {
    uint32_t index = 0;
    struct ul_stream *stream;
    while ((stream = ul_table_next(&streams->table, &index)))
        ul_stream_on_ring_lost(streams, stream);
}

void ul_streams_abandon(struct ul_streams *streams) {
    uint32_t index = 0;
    struct ul_stream *stream;
    while ((stream = ul_table_next(&streams->table, &index)))
        ul_sendqueue_clear(&stream->queue, &streams->blocks);
}
