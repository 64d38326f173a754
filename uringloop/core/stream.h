/* A connected stream socket: one multishot recv armed, one send at a time, and the way to its end.
 *
 * Small machines, that meet in one place, ul_stream_settle: a stream that is to end is reported LOST once its queue is sent or dropped, its
 * slot is empty and no request of it is in flight.
 *
 *   life    OPEN -> CLOSING (send what is queued, then end) -> LOST
 *           OPEN or CLOSING -> ABORTING (drop what is queued) -> LOST
 *   read    IDLE <-> ARMED -> STOPPING (cancel on its way) -> IDLE;  ARMED -> STARVED (no buffer) -> ARMED;  any -> ENDED
 *           in bulk mode ARMED -> READABLE (has bytes) -> TOLD (its owner is to receive them) -> ARMED, or READABLE if there is more
 *   send    IDLE -> OFFERED (the socket takes it while it is submitted, or says how much it took) -> IDLE;
 *           IDLE -> WAITING (for room in the socket) -> IDLE
 *   slot    NEVER (nothing sent) -> DUE (one send made) -> HELD (from the next on) -> CLEARING -> WITHOUT;  emptied in one batch with the last
 *           send;  DUE or HELD -> WITHOUT: no slot is free, or the kernel refused it
 *   eof     NONE -> WANTED -> SENT
 */
#ifndef UL_STREAM_H
#define UL_STREAM_H

#include "engine.h"
#include "sendqueue.h"

enum ul_stream_life { UL_STREAM_OPEN, UL_STREAM_CLOSING, UL_STREAM_ABORTING, UL_STREAM_LOST };
enum ul_read_state { UL_READ_IDLE, UL_READ_ARMED, UL_READ_STOPPING, UL_READ_STARVED, UL_READ_READABLE, UL_READ_TOLD, UL_READ_ENDED };
enum ul_read_mode { UL_READ_MULTISHOT, UL_READ_BULK };
enum ul_send_state { UL_SEND_IDLE, UL_SEND_OFFERED, UL_SEND_WAITING };
enum ul_slot_state { UL_SLOT_NEVER, UL_SLOT_DUE, UL_SLOT_WITHOUT, UL_SLOT_HELD, UL_SLOT_CLEARING };
enum ul_eof_state { UL_EOF_NONE, UL_EOF_WANTED, UL_EOF_SENT };

struct ul_stream {
    struct ul_entry entry;
    int fd;             /* the owner's; it must stay open until LOST */
    int slot;           /* valid in HELD and CLEARING */
    int error;          /* errno for LOST; valid in ABORTING */
    int receive_error;  /* errno that ended a receive while none was wanted, or 0 */
    uint32_t in_flight; /* waiting requests */
    uint32_t usual;     /* bytes of a receive: a moving average */
    int64_t low_water;  /* tell when the queue is at or below this; negative: do not */
    uint64_t offered;   /* bytes of the send that is submitted; valid in OFFERED and WAITING */
    uint64_t asked_at;  /* the ring's count of enters when the last inline request was made; valid while to_confirm */
    uint8_t life, read_state, read_mode, send_state, slot_state, eof_state;
    bool is_pipe; /* always in bulk mode; it has no slot, and nothing is sent */
    bool read_wanted;
    bool to_flush, to_confirm; /* in the list of that name */
    bool in_readable;          /* in that list */
    bool socket_full;          /* it took less than it was offered: the next send waits for room at once */
    bool cancel_due;           /* there was no memory for a request that ends another */
    bool awaits_owner;         /* CLOSING, and the owner was told DRAINED: it may write more before it calls ul_stream_close again */
    uint8_t unanswered;        /* bulk receives since something was sent: counted up to UL_UNANSWERED_MANY */
    uint8_t slot_retries;      /* the kernel refused the fd its slot: how many requests made before that was known are made again */
    struct ul_sendqueue queue;
    struct ul_gather *gather; /* made at the first send of several segments; read by the kernel until submit */
};

struct ul_streams {
    struct ul_engine *engine;
    struct ul_table table;
    struct ul_blocks blocks;
    /* By token; tokens gone stale are skipped. A stream stands once at the most in each but `starved`. */
    struct ul_token_list to_flush;   /* has something to send at the end of the turn */
    struct ul_token_list to_confirm; /* has inline requests submitted or about to be */
    struct ul_token_list readable;   /* bulk streams that have bytes, of which no owner has been told yet */
    struct ul_token_list starved;    /* waits for a buffer */
    struct ul_token_list lost;       /* over, but not reported yet */
    int32_t coalescing; /* a stream to which much comes one way: see stream_receive.c; -1: none */
    bool urgent; /* the next enter must not sleep: what it confirms has something to tell, or streams starve while there are buffers */
};

void ul_streams_init(struct ul_streams *streams, struct ul_engine *engine);
void ul_streams_destroy(struct ul_streams *streams);

/* A stream on this connected socket, reading nothing yet: its token, or -ENOMEM. */
int32_t ul_stream_open(struct ul_streams *streams, int fd);

/* The same for what can be read but is no socket: a pipe, a terminal. Nothing is sent on it: its owner writes by itself. */
int32_t ul_stream_open_pipe(struct ul_streams *streams, int fd);

/* Start, resume or stop receiving. Bytes already received may still come after a stop. */
int ul_stream_read(struct ul_streams *streams, int32_t token, bool wanted);

/* Queue a copy of the bytes; all that a tick queues goes out in one send at its end. But if nothing is queued, much is offered to the socket at
 * once. The bytes now queued, or -errno; if a part was sent by then, LOST follows. So it does after -EPIPE: the stream has failed. */
int64_t ul_stream_write(struct ul_streams *streams, int32_t token, const char *data, size_t length);

/* Queue the bytes themselves, which must stay until released. */
int64_t ul_stream_write_pinned(struct ul_streams *streams, int32_t token, const char *data, size_t length);

/* Offer the bytes to the socket now, if nothing is queued before them. How many it took: the caller queues the rest, and must. */
int64_t ul_stream_send_now(struct ul_streams *streams, int32_t token, const char *data, size_t length);

int64_t ul_stream_queued(const struct ul_streams *streams, int32_t token);

/* The bytes queued on all streams. */
uint64_t ul_streams_queued(const struct ul_streams *streams);

/* Ask to be told DRAINED once the queue is at or below so many bytes; negative: no more. */
int ul_stream_set_low_water(struct ul_streams *streams, int32_t token, int64_t bytes);

/* Shut the sending side down once the queue is empty. 0, or -errno of a shutdown(2) done at once. */
int ul_stream_write_eof(struct ul_streams *streams, int32_t token);

/* End it: after what is queued, or at once with `error` as the reason; if that is 0, what the socket has room for is still sent, as it would
 * be if each write were a system call. LOST follows, never before the next tick. An owner that hears DRAINED
 * after it has closed may still write, as asyncio's TLS does, and closes again when it has. */
int ul_stream_close(struct ul_streams *streams, int32_t token);
int ul_stream_abort(struct ul_streams *streams, int32_t token, int error);

/* What a bulk stream receives at once: as much as stays in the cache until it is processed, and a little less than the 256 KiB of asyncio. Who
 * passes it on has it sent as whole segments, of which the largest, on the loopback interface, have 65,483 bytes: of 256 KiB 212 bytes would be
 * left over for a fifth, which costs as much as the others. An echo of 1 MiB takes 270 us so, and 430 with 256 KiB. */
#define UL_BULK_BYTES_MAX (248 * 1024)

/* The owner's answer to READABLE: what read(2) returned, or -errno. No EOF follows a 0, which its owner has seen; LOST follows an error. */
int ul_stream_received(struct ul_streams *streams, int32_t token, int32_t result);

/* For the reactor: queue what is due; take a completion; conclude what was submitted, once every completion of it has been taken; report
 * what is over; make every request again, for the ring that had them is gone. */
void ul_streams_flush(struct ul_streams *streams);
void ul_streams_tell_readable(struct ul_streams *streams);
/* So many microseconds the next sleep is to last, that what comes meanwhile is received at once; 0: it is not. */
uint32_t ul_streams_coalesce_us(struct ul_streams *streams);
void ul_streams_feed_starved(struct ul_streams *streams);
void ul_stream_complete(struct ul_streams *streams, enum ul_request request, int32_t token, const struct io_uring_cqe *cqe);
void ul_streams_confirm(struct ul_streams *streams);
void ul_streams_report_lost(struct ul_streams *streams);
void ul_streams_on_ring_lost(struct ul_streams *streams);

/* In a forked child: what is queued is the parent's to send, and not the child's once more. */
void ul_streams_abandon(struct ul_streams *streams);

#endif
