#include "files.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int ul_files_register(const struct ul_files *files, struct ul_ring *ring) {
    if (!files->capacity)
        return 0;
    struct io_uring_rsrc_register table = {.nr = (uint32_t)files->capacity, .flags = IORING_RSRC_REGISTER_SPARSE};
    int error = ul_ring_register(ring, IORING_REGISTER_FILES2, &table, sizeof table);
    return error < 0 ? error : 0;
}

int ul_files_open(struct ul_files *files, struct ul_ring *ring, int capacity) {
    memset(files, 0, sizeof *files);
    if (capacity <= 0)
        return 0;
    files->capacity = capacity;
    int error = ul_files_register(files, ring);
    if (error) {
        files->capacity = 0;
        return error;
    }
    files->returned = malloc((size_t)capacity * sizeof *files->returned);
    files->fds = malloc((size_t)capacity * sizeof *files->fds);
    if (!files->returned || !files->fds) {
        ul_files_close(files);
        ul_ring_register(ring, IORING_UNREGISTER_FILES, NULL, 0);
        return -ENOMEM;
    }
    return 0;
}

void ul_files_close(struct ul_files *files) {
    /* The kernel's half of the table goes with the ring. */
    free(files->returned);
    free(files->fds);
    memset(files, 0, sizeof *files);
}

int ul_files_take(struct ul_files *files) {
    if (files->returned_count)
        return files->returned[--files->returned_count];
    return files->first_unused < files->capacity ? files->first_unused++ : UL_NO_SLOT;
}

void ul_files_give_back(struct ul_files *files, int slot) {
    if (files->returned_count < files->first_unused)
        files->returned[files->returned_count++] = slot;
}

int ul_files_in_use(const struct ul_files *files) { return files->first_unused - files->returned_count; }

void ul_files_prepare_update(struct ul_files *files, struct io_uring_sqe *sqe, int slot, int fd) {
    /* Emptying has a cell of its own: the filling of the same slot may not have been submitted yet. */
    static const int32_t nothing = -1;
    if (fd >= 0)
        files->fds[slot] = fd;
    sqe->fd = -1;
    sqe->addr = (uint64_t)(uintptr_t)(fd >= 0 ? &files->fds[slot] : &nothing);
    sqe->len = 1;
    sqe->off = (uint64_t)slot;
}
