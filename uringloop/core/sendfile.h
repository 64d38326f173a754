/* What the page cache has of a file, to a socket, without waiting for either.
 *
 * Facts: sendfile(2) to a socket that does not block still blocks on the disk, for what the page cache has not got; it has no RWF_NOWAIT. A
 * read of one byte has: it tells what the cache has, and does not wait.
 * So: a byte of each stretch that the kernel reads ahead as one is asked for, and sendfile gets the stretches up to the first that is missing.
 * Cost: a system call a stretch, a twentieth of what sending it takes. What leaves the cache between the look and the call is waited for.
 */
#ifndef UL_SENDFILE_H
#define UL_SENDFILE_H

#include <stddef.h>
#include <stdint.h>

/* Bytes sent, of `count` from `offset`; 0 at the end of the file; -EAGAIN: the socket has no room; -ENODATA: the cache has not got what comes
 * first, or this file system cannot tell; -errno of sendfile(2). */
int64_t ul_sendfile_cached(int socket, int file, uint64_t offset, size_t count);

#endif
