#include "sendfile.h"

#include <errno.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

#define UL_READ_AHEAD_BYTES (128u * 1024) /* the kernel's usual read-ahead */

/* Bytes from `offset` on that can be sent without waiting for the disk, `count` at the most; -ENODATA: none. */
static int64_t ul_cached_bytes(int file, uint64_t offset, size_t count) {
    size_t cached = 0;
    for (; cached < count; cached += UL_READ_AHEAD_BYTES) {
        char byte;
        struct iovec one = {.iov_base = &byte, .iov_len = 1};
        ssize_t found = preadv2(file, &one, 1, (off_t)(offset + cached), RWF_NOWAIT);
        if (found == 0)
            return (int64_t)count; /* the file ends here, and so will sendfile */
        if (found < 0)
            return cached ? (int64_t)cached : -ENODATA;
    }
    return (int64_t)count;
}

int64_t ul_sendfile_cached(int socket, int file, uint64_t offset, size_t count) {
    int64_t cached = ul_cached_bytes(file, offset, count);
    if (cached <= 0)
        return cached;
    off_t position = (off_t)offset;
    ssize_t sent = sendfile(socket, file, &position, (size_t)cached);
    return sent < 0 ? -errno : sent;
}
