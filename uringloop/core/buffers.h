/* The provided-buffer ring: memory that the kernel picks a buffer from when bytes arrive, not before.
 *
 * One pool serves every stream. A buffer belongs to the kernel until a CQE names it, then to us until it is queued for return; all that
 * one tick handed to Python goes back at the start of the next, in one store. Plain buffers come back after one receive.
 * Incremental ones (IOU_PBUF_RING_INC, 6.12) are eaten from front to back by many receives of many streams, and come back when the kernel
 * says that nothing is left (no F_BUF_MORE). The CQE does not carry the offset, so we count it.
 *
 * An incremental buffer cuts the message that comes at its end in two, and while it is filled all of it passes through the cache. But the
 * kernel looks for what is left of the buffer in the ring's entry, which is ours too, anew for each receive; and it receives nothing outside of
 * an enter if completions are deferred. So there, once all that it received has been processed, the entry is written anew: the buffer begins
 * at its front again. No manual says so: it is done only where a probe has seen it work.
 */
#ifndef UL_BUFFERS_H
#define UL_BUFFERS_H

#include "ring.h"

struct ul_buffers {
    bool open;
    bool registered; /* with a ring: the first one, or that of a move */
    bool incremental;
    uint16_t group;
    uint32_t count;            /* a power of two */
    uint32_t size;             /* bytes each */
    struct io_uring_buf *ring; /* shared with the kernel, which reads entries below the tail */
    char *pool;                /* count * size bytes */
    uint32_t *consumed;        /* by buffer: bytes that receives have filled so far */
    uint16_t *places;          /* by buffer: where in the ring its entry is, or was */
    uint16_t *returned;        /* buffers to give back at the next tick */
    uint32_t returned_count;
    uint32_t kernel_count;     /* buffers that the kernel has */
    uint16_t tail;
    int32_t filling; /* the incremental buffer that the last receive has left some of, or UL_NO_BUFFER */
};

#define UL_NO_BUFFER (-1)

/* What one CQE with F_BUFFER delivered: bytes [start, start + length) of the pool. */
struct ul_span {
    uint32_t start;
    uint32_t length;
};

/* A pool, registered with the ring, or with none yet if that is NULL. 0 or -errno, and then there is no pool. */
int ul_buffers_open(struct ul_buffers *buffers, struct ul_ring *ring, uint16_t group, uint32_t count, uint32_t size, bool incremental);

/* The same pool, all of it the kernel's again, on another ring. 0 or -errno. */
int ul_buffers_register(struct ul_buffers *buffers, struct ul_ring *ring);

/* Unregister and free. With `leak`, requests may still be in flight: the memory is left to the kernel for good. */
void ul_buffers_close(struct ul_buffers *buffers, struct ul_ring *ring, bool leak);

/* In a forked child: forget the mappings, which the child does not have. */
void ul_buffers_abandon(struct ul_buffers *buffers);

/* Account for a CQE that names a buffer, and queue the buffer for return if the kernel is done with it. A CQE that cannot be true (a
 * buffer that does not exist, more bytes than it has) gives an empty span. */
struct ul_span ul_buffers_take(struct ul_buffers *buffers, uint32_t cqe_flags, int32_t result);

/* Give the returned buffers to the kernel: their bytes may be overwritten from now on. */
void ul_buffers_recycle(struct ul_buffers *buffers);

/* Let receives fill the buffer that they are filling from its front again: its bytes may be overwritten from now on. To be called only while the
 * kernel cannot receive, and when every completion is taken: of one that is not, the bytes would be overwritten too. */
void ul_buffers_rewind(struct ul_buffers *buffers);

/* Memory that the pool occupies, bytes. */
size_t ul_buffers_bytes(const struct ul_buffers *buffers);

#endif
