/* What ends the sleep of a loop from another thread: an eventfd that the ring polls.
 *
 * A multishot poll tells of each write, also while the eventfd has not been read since the last one: so nobody reads it, and a wake needs no
 * request. Its count will not overflow: at a write a nanosecond that takes centuries.
 *
 * A thread may be about to wake a loop that another thread is closing. So the eventfd is shared by reference count: it stays open, and its
 * number is nobody else's, until the last who might write to it is gone.
 */
#ifndef UL_WAKE_H
#define UL_WAKE_H

#include <stdatomic.h>
#include <stdbool.h>

struct ul_wake {
    int fd;
    _Atomic int references;
    _Atomic bool pending; /* written and not yet taken: writing again would tell nothing new */
};

/* NULL with *error = -errno when it cannot be made. */
struct ul_wake *ul_wake_open(int *error);
struct ul_wake *ul_wake_retain(struct ul_wake *wake);
void ul_wake_release(struct ul_wake *wake);

/* End the sleep, or the next one. From any thread. */
void ul_wake(struct ul_wake *wake);

/* Let a new poll tell of what comes from now on only. To be called when one has ended, before `ul_wake_taken`: a wake in between writes nothing,
 * and is taken with this one. */
void ul_wake_empty(struct ul_wake *wake);

/* A poll has told of it. To be called before looking at what the wakers have left, so that a wake from then on writes again. */
void ul_wake_taken(struct ul_wake *wake);

#endif
