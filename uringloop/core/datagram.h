/* Datagram endpoints: sockets on which every message comes and goes whole, with the address of its other end.
 *
 *   life    OPEN -> CLOSING (send what is queued, then end) -> LOST
 *           OPEN or CLOSING -> ABORTING (send what the socket has room for, drop the rest) -> LOST
 *   read    IDLE <-> ARMED -> STOPPING (cancel on its way) -> IDLE;  ARMED -> STARVED (no buffer) -> ARMED;  any -> ENDED
 *   send    IDLE -> OFFERED (a request that is over when its enter returns) -> IDLE;  IDLE -> FULL (waits for room in the socket) -> IDLE
 *
 * An error concerns one datagram, or tells of one sent earlier, and the endpoint goes on: nothing but its owner ends it.
 */
#ifndef UL_DATAGRAM_H
#define UL_DATAGRAM_H

#include <sys/socket.h>

#include "engine.h"

/* What the kernel puts before a datagram's bytes in its buffer: a header, and this much room for the sender's address. */
#define UL_NAME_BYTES 128U /* struct sockaddr_storage */
/* The largest datagram that is received whole. UDP's own limit is 64 KiB, a Unix socket's is its send buffer; asyncio asks for as much. */
#define UL_DATAGRAM_BYTES_MAX (256U * 1024U)
#define UL_DATAGRAM_BUFFER_BYTES ((uint32_t)sizeof(struct io_uring_recvmsg_out) + UL_NAME_BYTES + UL_DATAGRAM_BYTES_MAX)
/* A DATAGRAM event's second value: the length of the bytes, and in the bits below it that of the address. */
#define UL_NAME_BITS 8

enum ul_endpoint_life { UL_ENDPOINT_OPEN, UL_ENDPOINT_CLOSING, UL_ENDPOINT_ABORTING, UL_ENDPOINT_LOST };
enum ul_endpoint_read {
    UL_ENDPOINT_READ_IDLE,
    UL_ENDPOINT_READ_ARMED,
    UL_ENDPOINT_READ_STOPPING,
    UL_ENDPOINT_READ_STARVED,
    UL_ENDPOINT_READ_ENDED,
};
enum ul_endpoint_send { UL_ENDPOINT_SEND_IDLE, UL_ENDPOINT_SEND_OFFERED, UL_ENDPOINT_SEND_FULL };

/* One that is to be sent; needed until the request that sends it is over. */
struct ul_datagram {
    struct ul_datagram *next;
    uint32_t length;
    uint32_t name_length; /* 0: to the address that the socket is connected to */
    char bytes[];         /* the address, then the datagram's own */
};

struct ul_endpoint {
    struct ul_entry entry;
    int fd;              /* the owner's; it must stay open until LOST */
    uint32_t overhead;   /* what a queued datagram counts beside its bytes */
    uint32_t in_flight;  /* waiting requests */
    uint32_t join_below; /* shorter ones may be sent several as one; 0: none, see ul_may_join */
    int64_t low_water;   /* tell when the queue is at or below this; negative: do not */
    uint64_t asked_at;   /* the ring's count of enters when the last send was offered; valid while to_confirm */
    uint64_t queued;     /* bytes and overheads */
    struct ul_datagram *first, *last;
    uint8_t life, read_state, send_state;
    bool read_wanted;
    bool cancel_due; /* there was no memory for a request that ends another */
    bool to_flush, to_confirm, starved; /* in the list of that name */
};

struct ul_endpoints {
    struct ul_engine *engine;
    struct ul_table table;
    struct ul_buffers buffers; /* made with the first endpoint; a datagram takes a buffer to itself */
    uint32_t buffer_count;
    /* By token; tokens gone stale are skipped. An endpoint stands once at the most in each, and room for it is made when it is opened. */
    struct ul_token_list to_flush;   /* has something to send, or to tell of what was sent */
    struct ul_token_list to_confirm; /* has a send submitted, or about to be */
    struct ul_token_list starved;    /* waits for a buffer */
    struct ul_token_list lost;       /* over, but not reported yet */
    /* The next enter must not sleep: what it confirms has something to tell, endpoints starve while there are buffers, or memory was out. */
    bool urgent;
};

void ul_endpoints_init(struct ul_endpoints *endpoints, struct ul_engine *engine, uint32_t buffer_count);
void ul_endpoints_destroy(struct ul_endpoints *endpoints);

/* An endpoint on this datagram socket, reading nothing yet: its token, or -errno. */
int32_t ul_endpoint_open(struct ul_endpoints *endpoints, int fd, uint32_t overhead);

/* Start, resume or stop receiving. Datagrams already received may still come after a stop. */
int ul_endpoint_read(struct ul_endpoints *endpoints, int32_t token, bool wanted);

/* Queue a copy of the bytes; they are sent at the end of the turn, in the order of the calls. What is now queued, or -errno. */
int64_t ul_endpoint_write(struct ul_endpoints *endpoints, int32_t token, const char *data, size_t length, const char *name, uint32_t name_length);

int64_t ul_endpoint_queued(const struct ul_endpoints *endpoints, int32_t token);

/* Ask to be told ENDPOINT_DRAINED once no more than this is queued; negative: no more. */
int ul_endpoint_set_low_water(struct ul_endpoints *endpoints, int32_t token, int64_t bytes);

/* End it: after what is queued, or at once, with what the socket has room for. ENDPOINT_LOST follows, never before the next tick. */
int ul_endpoint_close(struct ul_endpoints *endpoints, int32_t token);
int ul_endpoint_abort(struct ul_endpoints *endpoints, int32_t token);

/* For the reactor: queue or send what is due; take a completion; conclude what was submitted, once every completion of it has been taken;
 * report what is over; make every request again, for the ring that had them is gone; and the bytes in all queues. */
void ul_endpoints_flush(struct ul_endpoints *endpoints);
void ul_endpoints_send_early(struct ul_endpoints *endpoints); /* outside a tick, where nothing can be told: what goes, goes */
void ul_endpoint_complete(struct ul_endpoints *endpoints, enum ul_request request, int32_t token, const struct io_uring_cqe *cqe);
void ul_endpoints_confirm(struct ul_endpoints *endpoints);
void ul_endpoints_report_lost(struct ul_endpoints *endpoints);
void ul_endpoints_on_ring_lost(struct ul_endpoints *endpoints);
uint64_t ul_endpoints_queued(const struct ul_endpoints *endpoints);

/* In a forked child: what is queued is the parent's to send, and not the child's once more. */
void ul_endpoints_abandon(struct ul_endpoints *endpoints);

#endif
