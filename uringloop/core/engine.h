/* What the engines (streams, listeners, datagram endpoints, operations) share: the ring and its tables, the events for Python, the counts. */
#ifndef UL_ENGINE_H
#define UL_ENGINE_H

#include <errno.h>

#include "buffers.h"
#include "files.h"
#include "ring.h"
#include "table.h"

/* What Python hears. An event is four int32: kind, token, and two values. */
enum ul_event_kind {
    UL_EVENT_DATA = 0,     /* stream; start, stop: offsets into the buffer pool, good until the next tick */
    UL_EVENT_ACCEPTED = 1, /* listener; fd or -errno; behind an fd, 0 or -errno: accepting has stopped */
    UL_EVENT_EOF = 2,      /* stream; 0, 0: the peer will send no more */
    UL_EVENT_LOST = 3,     /* stream; errno or 0, 0: all its requests are done, its slot is empty, its token is void */
    UL_EVENT_DRAINED = 4,  /* stream; pinned buffers released, 0: how much is queued is to be asked, more may go in the same tick */
    UL_EVENT_DONE = 5,     /* operation; result or -errno, cqe flags: its token is void */
    UL_EVENT_DATAGRAM = 6, /* endpoint; where its bytes start in the datagram pool, with the address UL_NAME_BYTES before them; both lengths */
    UL_EVENT_ENDPOINT_ERROR = 7,   /* endpoint; errno, 0: of one datagram, the endpoint goes on */
    UL_EVENT_ENDPOINT_DRAINED = 8, /* endpoint; 0, 0: no more is queued than was asked for */
    UL_EVENT_ENDPOINT_LOST = 9,    /* endpoint; 0, 0: all its requests are done, its token is void */
    UL_EVENT_READABLE = 10,        /* stream; so many bytes at the most, 0: its owner is to receive them, and to call ul_stream_received */
};
#define UL_EVENT_INTS 4
#define UL_EVENTS_MAX 1024 /* a tick leaves what is more in the CQ for the next; 16 KiB, so that the array stays in the L1 cache */

/* What a completion is for: the top half of user_data; the token of its owner is the bottom half.
 *
 * Requests are of two kinds. Waiting ones (a receive, an accept, a send to a full socket) complete some time later, and are counted as in
 * flight. Inline ones (most sends, slot updates, cancels) are over when the enter that submits them returns, and are silent: a CQE comes only
 * if they failed (CQE_SKIP_SUCCESS). So one enter can submit them and sleep; with CQEs of their own they would end the sleep before it began.
 */
enum ul_request {
    UL_REQUEST_RECV,
    UL_REQUEST_READABLE,
    UL_REQUEST_SEND_INLINE,
    UL_REQUEST_SEND_WAITING,
    UL_REQUEST_SLOT_FILL,
    UL_REQUEST_SLOT_CLEAR,
    UL_REQUEST_CANCEL, /* of one request or of all; its token is 0 */
    UL_REQUEST_ACCEPT,
    UL_REQUEST_ACCEPTABLE,
    UL_REQUEST_RECVMSG,
    UL_REQUEST_DATAGRAM,
    UL_REQUEST_DATAGRAM_ROOM,
    UL_REQUEST_OPERATION,
    UL_REQUEST_WAKE,
    UL_REQUEST_KINDS,
};

static inline uint64_t ul_user_data(enum ul_request request, int32_t token) { return (uint64_t)request << 32 | (uint32_t)token; }

/* Why a multishot request had ended that was made again. */
enum ul_end {
    UL_END_BY_ITSELF,   /* with bytes, or a connection: the kernel may do so whenever it likes */
    UL_END_STARVED,     /* ENOBUFS: the buffer pool was empty */
    UL_END_CANCELLED,   /* the stream changed its mode or began to read again; or the thread that ran the ring is gone */
    UL_END_INTERRUPTED, /* EINTR */
    UL_END_NOT_READY,   /* EAGAIN */
    UL_END_FAILED,      /* an error after which it goes on: a slot refused, a connection that was over before it was accepted */
    UL_END_KINDS,
};

/* Always counted: an addition each on lines that are hot anyway. */
struct ul_stats {
    uint64_t ticks;
    uint64_t completions[UL_REQUEST_KINDS];
    uint64_t receive_ends[UL_END_KINDS]; /* of receives that are still wanted */
    uint64_t accept_ends[UL_END_KINDS];
    uint64_t receives;           /* completions that brought bytes */
    uint64_t receive_arms;       /* multishot receives submitted */
    uint64_t receive_rearms;     /* times that one was to go on after it had ended: by another, or in bulk mode by a poll */
    uint64_t receive_starved;    /* ENOBUFS: the buffer pool was empty */
    uint64_t receives_bulk;      /* receives of bulk streams, by their owners */
    uint64_t bytes_received;
    uint64_t sleeps_coalesced;   /* that were to last a little, see stream_receive.c */
    uint64_t sends;              /* send requests submitted */
    uint64_t sends_direct;       /* taken by the socket at once, or a part of them: large writes, and the last before an abort */
    uint64_t sends_short;        /* sends that took less than offered */
    uint64_t bytes_sent;
    uint64_t accepts;
    uint64_t accept_rearms;
    uint64_t datagrams_received;
    uint64_t datagrams_truncated; /* of them, those that were larger than a buffer */
    uint64_t datagrams_sent;
    uint64_t datagrams_joined;    /* of those sent, those that went to the kernel several as one */
    uint64_t datagram_batches;    /* sendmmsg(2) calls, each for several that were queued in one turn */
    uint64_t datagram_waits;      /* for room in a full socket */
    uint64_t datagram_errors;
    uint64_t fixed_file_fallbacks; /* streams that run on their plain fd because the table was full or absent */
    uint64_t stale_completions;
};

static inline uint64_t ul_completions_of_all_kinds(const struct ul_stats *stats) {
    uint64_t completions = 0;
    for (int kind = 0; kind < UL_REQUEST_KINDS; kind++)
        completions += stats->completions[kind];
    return completions;
}

struct ul_engine {
    struct ul_ring ring;
    struct ul_files files;
    struct ul_buffers buffers;
    struct ul_stats stats;
    uint64_t in_flight; /* waiting requests, submitted or about to be, less their last completions */
    int32_t *events;
    uint32_t event_count;
    bool moving;       /* the ring is another thread's, and what it had completed is still being taken */
    bool closing;      /* nothing is made again */
    bool limited_receives; /* this kernel ends a multishot recv after so many bytes, see stream_receive.c */
    bool inline_sends; /* this kernel tells short sends apart, see stream_send.c */
    bool late_slots;   /* see ul_stream_take_slot */
};

static inline void ul_emit(struct ul_engine *engine, enum ul_event_kind kind, int32_t token, int32_t a, int32_t b) {
    assert(engine->event_count < UL_EVENTS_MAX);
    int32_t *event = &engine->events[engine->event_count++ * UL_EVENT_INTS];
    event[0] = (int32_t)kind;
    event[1] = token;
    event[2] = a;
    event[3] = b;
}

static inline enum ul_end ul_end_of(int32_t result) {
    switch (result) {
    case -ENOBUFS:
        return UL_END_STARVED;
    case -ECANCELED:
        return UL_END_CANCELLED;
    case -EINTR:
        return UL_END_INTERRUPTED;
    case -EAGAIN:
        return UL_END_NOT_READY;
    default:
        return result < 0 ? UL_END_FAILED : UL_END_BY_ITSELF;
    }
}

static inline bool ul_request_waits(enum ul_request request) {
    switch (request) {
    case UL_REQUEST_RECV:
    case UL_REQUEST_READABLE:
    case UL_REQUEST_SEND_WAITING:
    case UL_REQUEST_ACCEPT:
    case UL_REQUEST_ACCEPTABLE:
    case UL_REQUEST_RECVMSG:
    case UL_REQUEST_DATAGRAM_ROOM:
    case UL_REQUEST_OPERATION:
    case UL_REQUEST_WAKE:
        return true;
    case UL_REQUEST_SEND_INLINE:
    case UL_REQUEST_DATAGRAM:
    case UL_REQUEST_SLOT_FILL:
    case UL_REQUEST_SLOT_CLEAR:
    case UL_REQUEST_CANCEL:
    case UL_REQUEST_KINDS:
        return false;
    }
    return false;
}

/* An SQE for this owner, or NULL when memory is out. */
static inline struct io_uring_sqe *ul_request(struct ul_engine *engine, uint8_t opcode, enum ul_request request, int32_t token) {
    struct io_uring_sqe *sqe = ul_ring_sqe(&engine->ring);
    if (!sqe)
        return NULL;
    sqe->opcode = opcode;
    sqe->user_data = ul_user_data(request, token);
    if (ul_request_waits(request))
        engine->in_flight++;
    else
        sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    return sqe;
}

/* Cancel the waiting request with this user_data. Its own last completion still comes, with -ECANCELED or with what it had got by then. */
static inline int ul_cancel(struct ul_engine *engine, uint64_t user_data) {
    struct io_uring_sqe *sqe = ul_request(engine, IORING_OP_ASYNC_CANCEL, UL_REQUEST_CANCEL, 0);
    if (!sqe)
        return -ENOMEM;
    sqe->fd = -1;
    sqe->addr = user_data;
    return 0;
}

#endif
