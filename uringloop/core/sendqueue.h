/* The bytes that a stream has yet to send, in order: copied ones joined in blocks of our own, large ones in place.
 *
 * Lifetime: a segment is needed until the completion of the send that covers its last byte. Our blocks are then reused; a pinned
 * segment's memory belongs to the caller, who must keep it until told that it is released.
 */
#ifndef UL_SENDQUEUE_H
#define UL_SENDQUEUE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

/* Room for a typical response, so that the writes of a tick join into one send. */
#define UL_BLOCK_BYTES (16U * 1024U)
/* Blocks kept for reuse, last used first: 4 MiB. */
#define UL_BLOCKS_KEPT 256U
/* Segments that one SENDMSG gathers: a header and a body, several times over. */
#define UL_GATHER_MAX 8

struct ul_segment {
    struct ul_segment *next;
    const char *data; /* the first byte not yet sent */
    size_t length;    /* bytes from there */
    size_t room;      /* bytes that can still be joined; 0 for a pinned segment */
    bool pinned;
};

/* Blocks between uses; one store for all streams of a reactor. */
struct ul_blocks {
    struct ul_segment *kept;
    uint32_t kept_count;
};
void ul_blocks_destroy(struct ul_blocks *blocks);

struct ul_sendqueue {
    struct ul_segment *first, *last;
    uint64_t bytes;
};

/* Append a copy of the bytes. 0 or -ENOMEM, and then nothing is queued. */
int ul_sendqueue_copy(struct ul_sendqueue *queue, struct ul_blocks *blocks, const char *data, size_t length);

/* Append the caller's bytes themselves. 0 or -ENOMEM. */
int ul_sendqueue_pin(struct ul_sendqueue *queue, const char *data, size_t length);

/* The first segments as an iovec array of at most UL_GATHER_MAX; how many. */
int ul_sendqueue_gather(const struct ul_sendqueue *queue, struct iovec *iov);

/* Drop the first `bytes` bytes, which have been sent; how many pinned segments this released. */
int ul_sendqueue_advance(struct ul_sendqueue *queue, struct ul_blocks *blocks, size_t bytes);

/* Drop everything. */
void ul_sendqueue_clear(struct ul_sendqueue *queue, struct ul_blocks *blocks);

#endif
