/* Between memory.c and kernel.c. */
#ifndef MEMORY_H
#define MEMORY_H

#include <stddef.h>

/* The core has mapped the queues of this ring. */
void ring_mapped(int fd, long offset, char *memory, size_t bytes);

/* Frees what the core has not: how many blocks. */
size_t memory_end(void);

#endif
