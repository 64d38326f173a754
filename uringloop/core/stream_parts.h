/* What the three files of the stream engine share: stream.c (life), stream_receive.c, stream_send.c. */
#ifndef UL_STREAM_PARTS_H
#define UL_STREAM_PARTS_H

#include "stream.h"

/* An SQE on the stream's file, by its slot if it holds one; counted if it waits, listed for confirmation if it is inline. */
struct io_uring_sqe *ul_stream_request(struct ul_streams *streams, struct ul_stream *stream, uint8_t opcode, enum ul_request request);

/* True if this request failed only because it was made on a slot that the kernel then refused to fill. */
bool ul_stream_forgives(struct ul_stream *stream, int32_t result);

/* What there was no memory for is done again by the next flush. */
void ul_stream_try_again(struct ul_streams *streams, struct ul_stream *stream);

/* Cancel a request of this stream. */
void ul_stream_cancel(struct ul_streams *streams, struct ul_stream *stream, enum ul_request request);

/* End with this errno, dropping what is queued. */
void ul_stream_fail(struct ul_streams *streams, struct ul_stream *stream, int error);

/* Before a send. With late slots the second one, and what is asked for after it, go by a slot in the table of files, if one is free: a receive
 * keeps the file that it began with, so a connection that answers once would fill a slot and empty it for nothing, 6 % of all that it costs. */
void ul_stream_take_slot(struct ul_streams *streams, struct ul_stream *stream);
void ul_stream_leave_slot(struct ul_streams *streams, struct ul_stream *stream);

/* stream_receive.c */
void ul_stream_stop_reading(struct ul_streams *streams, struct ul_stream *stream, enum ul_read_state at_rest);
void ul_stream_on_readable(struct ul_streams *streams, struct ul_stream *stream, int32_t result);
void ul_stream_on_recv(struct ul_streams *streams, struct ul_stream *stream, const struct io_uring_cqe *cqe, struct ul_span span);

/* stream_send.c */
void ul_stream_send(struct ul_streams *streams, struct ul_stream *stream);
/* What the socket has room for, at once: the queue is about to be dropped. */
void ul_stream_send_at_last(struct ul_streams *streams, struct ul_stream *stream);
void ul_stream_on_send(struct ul_streams *streams, struct ul_stream *stream, int32_t result);
void ul_stream_confirm_send(struct ul_streams *streams, struct ul_stream *stream);

#endif
