#include "buffers.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static void *ul_map_private(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    /* A fork would otherwise mark these pages copy-on-write under requests in flight, and the parent would read stale bytes. */
    if (madvise(memory, bytes, MADV_DONTFORK) < 0) {
        munmap(memory, bytes);
        return NULL;
    }
    return memory;
}

static size_t ul_ring_bytes(const struct ul_buffers *buffers) { return buffers->count * sizeof(struct io_uring_buf); }

size_t ul_buffers_bytes(const struct ul_buffers *buffers) { return (size_t)buffers->count * buffers->size; }

static void ul_buffers_free(struct ul_buffers *buffers) {
    if (buffers->pool)
        munmap(buffers->pool, ul_buffers_bytes(buffers));
    if (buffers->ring)
        munmap(buffers->ring, ul_ring_bytes(buffers));
    free(buffers->consumed);
    free(buffers->places);
    free(buffers->returned);
    memset(buffers, 0, sizeof *buffers);
}

/* All of the buffer, in this entry of the ring. */
static void ul_buffers_write_entry(struct ul_buffers *buffers, uint16_t place, uint16_t bid) {
    struct io_uring_buf *entry = &buffers->ring[place & (buffers->count - 1)];
    entry->addr = (uint64_t)(uintptr_t)(buffers->pool + (size_t)bid * buffers->size);
    entry->len = buffers->size;
    entry->bid = bid; /* entry->resv stays untouched: in entry 0 it is the ring's tail */
    buffers->consumed[bid] = 0;
}

static void ul_buffers_put(struct ul_buffers *buffers, uint16_t bid) {
    buffers->places[bid] = buffers->tail++;
    ul_buffers_write_entry(buffers, buffers->places[bid], bid);
}

static void ul_buffers_publish(struct ul_buffers *buffers) {
    /* Release: the kernel must see the entries before the tail that covers them. */
    atomic_store_explicit((_Atomic uint16_t *)&buffers->ring[0].resv, buffers->tail, memory_order_release);
}

int ul_buffers_register(struct ul_buffers *buffers, struct ul_ring *ring) {
    struct io_uring_buf_reg registration = {
        .ring_addr = (uint64_t)(uintptr_t)buffers->ring,
        .ring_entries = buffers->count,
        .bgid = buffers->group,
        .flags = buffers->incremental ? IOU_PBUF_RING_INC : 0,
    };
    int error = ul_ring_register(ring, IORING_REGISTER_PBUF_RING, &registration, 1);
    if (error < 0)
        return error;
    buffers->tail = 0;
    buffers->filling = UL_NO_BUFFER;
    for (uint32_t bid = 0; bid < buffers->count; bid++)
        ul_buffers_put(buffers, (uint16_t)bid);
    ul_buffers_publish(buffers);
    buffers->kernel_count = buffers->count;
    buffers->returned_count = 0;
    buffers->registered = true;
    return 0;
}

int ul_buffers_open(struct ul_buffers *buffers, struct ul_ring *ring, uint16_t group, uint32_t count, uint32_t size, bool incremental) {
    memset(buffers, 0, sizeof *buffers);
    buffers->count = count;
    buffers->size = size;
    buffers->group = group;
    buffers->incremental = incremental;
    buffers->ring = ul_map_private(ul_ring_bytes(buffers));
    buffers->pool = ul_map_private(ul_buffers_bytes(buffers));
    buffers->consumed = calloc(count, sizeof *buffers->consumed);
    buffers->places = calloc(count, sizeof *buffers->places);
    buffers->returned = calloc(count, sizeof *buffers->returned);
    if (!buffers->ring || !buffers->pool || !buffers->consumed || !buffers->places || !buffers->returned) {
        ul_buffers_free(buffers);
        return -ENOMEM;
    }
    int error = ring ? ul_buffers_register(buffers, ring) : 0;
    if (error) {
        ul_buffers_free(buffers);
        return error;
    }
    buffers->open = true;
    return 0;
}

void ul_buffers_close(struct ul_buffers *buffers, struct ul_ring *ring, bool leak) {
    if (!buffers->open)
        return;
    if (leak) {
        free(buffers->consumed);
        free(buffers->places);
        free(buffers->returned);
        memset(buffers, 0, sizeof *buffers);
        return;
    }
    struct io_uring_buf_reg registration = {.bgid = buffers->group};
    ul_ring_register(ring, IORING_UNREGISTER_PBUF_RING, &registration, 1);
    ul_buffers_free(buffers);
}

void ul_buffers_abandon(struct ul_buffers *buffers) {
    buffers->ring = NULL;
    buffers->pool = NULL;
    ul_buffers_free(buffers);
}

static void ul_buffers_give_back(struct ul_buffers *buffers, uint16_t bid) {
    buffers->kernel_count--;
    buffers->returned[buffers->returned_count++] = bid;
}

struct ul_span ul_buffers_take(struct ul_buffers *buffers, uint32_t cqe_flags, int32_t result) {
    struct ul_span nothing = {0, 0};
    uint32_t bid = cqe_flags >> IORING_CQE_BUFFER_SHIFT;
    if (!(cqe_flags & IORING_CQE_F_BUFFER) || bid >= buffers->count || buffers->returned_count >= buffers->count)
        return nothing;
    uint32_t length = result > 0 ? (uint32_t)result : 0;
    uint32_t offset = buffers->consumed[bid];
    if (length > buffers->size - offset)
        return nothing;
    buffers->consumed[bid] = offset + length;
    buffers->filling = (int32_t)bid;
    if (!(cqe_flags & IORING_CQE_F_BUF_MORE)) {
        buffers->filling = UL_NO_BUFFER;
        ul_buffers_give_back(buffers, (uint16_t)bid);
    }
    return (struct ul_span){.start = bid * buffers->size + offset, .length = length};
}

void ul_buffers_recycle(struct ul_buffers *buffers) {
    if (!buffers->returned_count)
        return;
    /* Last used, first given: the bytes just read are the ones most likely still in the cache. */
    buffers->kernel_count += buffers->returned_count;
    while (buffers->returned_count)
        ul_buffers_put(buffers, buffers->returned[--buffers->returned_count]);
    ul_buffers_publish(buffers);
}

void ul_buffers_rewind(struct ul_buffers *buffers) {
    if (buffers->filling == UL_NO_BUFFER)
        return;
    const uint16_t bid = (uint16_t)buffers->filling;
    ul_buffers_write_entry(buffers, buffers->places[bid], bid);
    buffers->filling = UL_NO_BUFFER;
}
