#include "sendqueue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static char *ul_block_storage(struct ul_segment *block) { return (char *)(block + 1); }

static struct ul_segment *ul_block_take(struct ul_blocks *blocks) {
    struct ul_segment *block = blocks->kept;
    if (block) {
        blocks->kept = block->next;
        blocks->kept_count--;
    } else {
        block = malloc(sizeof *block + UL_BLOCK_BYTES);
        if (!block)
            return NULL;
    }
    *block = (struct ul_segment){.data = ul_block_storage(block), .room = UL_BLOCK_BYTES};
    return block;
}

static void ul_segment_release(struct ul_blocks *blocks, struct ul_segment *segment) {
    if (segment->pinned || blocks->kept_count >= UL_BLOCKS_KEPT) {
        free(segment);
        return;
    }
    segment->next = blocks->kept;
    blocks->kept = segment;
    blocks->kept_count++;
}

void ul_blocks_destroy(struct ul_blocks *blocks) {
    while (blocks->kept) {
        struct ul_segment *next = blocks->kept->next;
        free(blocks->kept);
        blocks->kept = next;
    }
    blocks->kept_count = 0;
}

static void ul_sendqueue_append(struct ul_sendqueue *queue, struct ul_segment *segment) {
    if (queue->last)
        queue->last->next = segment;
    else
        queue->first = segment;
    queue->last = segment;
}

/* A chain of blocks for `length` bytes, or NULL. All or nothing, so that a write is never half queued. */
static struct ul_segment *ul_blocks_chain(struct ul_blocks *blocks, size_t length) {
    struct ul_segment *chain = NULL;
    for (size_t covered = 0; covered < length; covered += UL_BLOCK_BYTES) {
        struct ul_segment *block = ul_block_take(blocks);
        if (!block) {
            while (chain) {
                struct ul_segment *next = chain->next;
                ul_segment_release(blocks, chain);
                chain = next;
            }
            return NULL;
        }
        block->next = chain;
        chain = block;
    }
    return chain;
}

static size_t ul_segment_join(struct ul_segment *segment, const char *data, size_t length) {
    size_t joined = length < segment->room ? length : segment->room;
    /* Behind the bytes that are already there, which a send in flight may be reading; they do not move. */
    memcpy((char *)(uintptr_t)segment->data + segment->length, data, joined);
    segment->length += joined;
    segment->room -= joined;
    return joined;
}

int ul_sendqueue_copy(struct ul_sendqueue *queue, struct ul_blocks *blocks, const char *data, size_t length) {
    size_t room = queue->last ? queue->last->room : 0;
    struct ul_segment *chain = NULL;
    if (length > room) {
        chain = ul_blocks_chain(blocks, length - room);
        if (!chain)
            return -ENOMEM;
    }
    queue->bytes += length;
    if (room) {
        size_t joined = ul_segment_join(queue->last, data, length);
        data += joined;
        length -= joined;
    }
    while (chain) {
        struct ul_segment *block = chain;
        chain = block->next;
        block->next = NULL;
        size_t joined = ul_segment_join(block, data, length);
        data += joined;
        length -= joined;
        ul_sendqueue_append(queue, block);
    }
    return 0;
}

int ul_sendqueue_pin(struct ul_sendqueue *queue, const char *data, size_t length) {
    struct ul_segment *segment = malloc(sizeof *segment);
    if (!segment)
        return -ENOMEM;
    *segment = (struct ul_segment){.data = data, .length = length, .pinned = true};
    ul_sendqueue_append(queue, segment);
    queue->bytes += length;
    return 0;
}

int ul_sendqueue_gather(const struct ul_sendqueue *queue, struct iovec *iov) {
    int count = 0;
    for (const struct ul_segment *segment = queue->first; segment && count < UL_GATHER_MAX; segment = segment->next)
        iov[count++] = (struct iovec){.iov_base = (void *)(uintptr_t)segment->data, .iov_len = segment->length};
    return count;
}

static int ul_sendqueue_drop_first(struct ul_sendqueue *queue, struct ul_blocks *blocks) {
    struct ul_segment *segment = queue->first;
    int pinned = segment->pinned;
    queue->first = segment->next;
    if (!queue->first)
        queue->last = NULL;
    ul_segment_release(blocks, segment);
    return pinned;
}

int ul_sendqueue_advance(struct ul_sendqueue *queue, struct ul_blocks *blocks, size_t bytes) {
    int released = 0;
    while (queue->first && bytes) {
        struct ul_segment *segment = queue->first;
        size_t sent = bytes < segment->length ? bytes : segment->length;
        segment->data += sent;
        segment->length -= sent;
        queue->bytes -= sent;
        bytes -= sent;
        if (segment->length == 0)
            released += ul_sendqueue_drop_first(queue, blocks);
    }
    return released;
}

void ul_sendqueue_clear(struct ul_sendqueue *queue, struct ul_blocks *blocks) {
    while (queue->first)
        ul_sendqueue_drop_first(queue, blocks);
    queue->bytes = 0;
}
