/* The heap of the core under the fuzzer: it fails when the input says so, and knows what is left at the end. */
#include <errno.h>
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kernel.h"
#include "memory.h"

/* Before each block, and out of bounds while the core has it. */
struct block {
    struct block *next, *previous;
    size_t bytes;
    size_t unused; /* keeps what follows aligned to 16 bytes */
};

static struct block all = {.next = &all, .previous = &all};

static bool fails(void) {
    bool now = kernel.allocations && --kernel.allocations == 0;
    kernel.memory_failed |= now;
    return now;
}

static struct block *block_of(void *memory) {
    struct block *block = (struct block *)memory - 1;
    ASAN_UNPOISON_MEMORY_REGION(block, sizeof *block);
    return block;
}

static void link_in(struct block *block) {
    ASAN_UNPOISON_MEMORY_REGION(all.next, sizeof *all.next);
    block->next = all.next;
    block->previous = &all;
    block->next->previous = block;
    if (block->next != &all)
        ASAN_POISON_MEMORY_REGION(block->next, sizeof *block->next);
    all.next = block;
    ASAN_POISON_MEMORY_REGION(block, sizeof *block);
}

static void unlink_block(struct block *block) {
    struct block *next = block->next, *previous = block->previous;
    ASAN_UNPOISON_MEMORY_REGION(next, sizeof *next);
    ASAN_UNPOISON_MEMORY_REGION(previous, sizeof *previous);
    next->previous = previous;
    previous->next = next;
    if (next != &all)
        ASAN_POISON_MEMORY_REGION(next, sizeof *next);
    if (previous != &all)
        ASAN_POISON_MEMORY_REGION(previous, sizeof *previous);
}

void *fuzz_calloc(size_t count, size_t bytes) {
    if (fails())
        return NULL;
    struct block *block = calloc(1, sizeof *block + count * bytes);
    block->bytes = count * bytes;
    link_in(block);
    return block + 1;
}

void *fuzz_malloc(size_t bytes) {
    char *memory = fuzz_calloc(1, bytes);
    if (memory)
        memset(memory, 0xa5, bytes); /* what is read before it is written is not mistaken for nothing */
    return memory;
}

void fuzz_free(void *memory) {
    if (!memory)
        return;
    struct block *block = block_of(memory);
    unlink_block(block);
    free(block);
}

void *fuzz_realloc(void *memory, size_t bytes) {
    char *larger = fuzz_malloc(bytes);
    if (!larger || !memory)
        return larger;
    struct block *block = block_of(memory);
    memcpy(larger, memory, block->bytes < bytes ? block->bytes : bytes);
    fuzz_free(memory);
    return larger;
}

/* The pools, and the mappings of the rings: kernel.c says of how many bytes. */
void *fuzz_mmap(void *at, size_t bytes, int protection, int flags, int fd, long offset) {
    (void)at, (void)protection, (void)flags;
    char *memory = fuzz_calloc(1, bytes);
    if (!memory) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    if (fd >= 0)
        ring_mapped(fd, offset, memory, bytes);
    return memory;
}

int fuzz_munmap(void *memory, size_t bytes) {
    struct block *block = block_of(memory);
    if (block->bytes != bytes)
        abort(); /* the core has lost count */
    fuzz_free(memory);
    return 0;
}

int fuzz_madvise(void *memory, size_t bytes, int advice) {
    (void)memory, (void)bytes, (void)advice;
    return 0;
}

size_t memory_end(void) {
    size_t left = 0;
    while (all.next != &all) {
        fuzz_free(all.next + 1);
        left++;
    }
    return left;
}
