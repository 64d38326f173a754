/* What ends the sleep of a loop from another thread: an eventfd that the ring reads.
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
    _Atomic bool pending; /* written and not yet read: writing again would tell nothing new */
};

/* NULL with *error = -errno when it cannot be made. */
struct ul_wake *ul_wake_open(int *error);
struct ul_wake *ul_wake_retain(struct ul_wake *wake);
void ul_wake_release(struct ul_wake *wake);

/* End the sleep, or the next one. From any thread. */
void ul_wake(struct ul_wake *wake);

/* It has been read. To be called before looking at what the wakers have left, so that a wake from then on writes again. */
void ul_wake_taken(struct ul_wake *wake);

#endif
