/* The sparse table of fixed files: sockets that the kernel need not look up at each request.
 *
 * A slot is filled and emptied by FILES_UPDATE SQEs that ride in the same batch as the requests that use them; no system call of their own.
 * A file stays open as long as a slot holds it, whatever its owner closes, so the stream engine empties the slot before it reports
 * a stream as lost.
 */
#ifndef UL_FILES_H
#define UL_FILES_H

#include "ring.h"

#define UL_NO_SLOT (-1)

struct ul_files {
    int capacity;     /* 0: no table, plain fds everywhere */
    int first_unused; /* it and all behind it have never been taken: so what a table could hold takes memory only once it does */
    int returned_count;
    int *returned; /* a stack: the slot given back last is used next, while the kernel's entry is still in the cache */
    int32_t *fds;  /* one cell a slot: the argument of its FILES_UPDATE must stay in place until that is submitted */
};

/* Register a table of `capacity` empty slots. 0 or -errno, and then there is no table. */
int ul_files_open(struct ul_files *files, struct ul_ring *ring, int capacity);

/* The same table, empty, on another ring. 0 or -errno. */
int ul_files_register(const struct ul_files *files, struct ul_ring *ring);

void ul_files_close(struct ul_files *files);

/* A free slot, or UL_NO_SLOT when the table is full or absent: use the plain fd then. */
int ul_files_take(struct ul_files *files);
void ul_files_give_back(struct ul_files *files, int slot);
int ul_files_in_use(const struct ul_files *files);

/* Make this SQE the request that puts `fd` into `slot` (-1: empties it). */
void ul_files_prepare_update(struct ul_files *files, struct io_uring_sqe *sqe, int slot, int fd);

#endif
