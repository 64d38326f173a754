#include "wake.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct ul_wake *ul_wake_open(int *error) {
    struct ul_wake *wake = malloc(sizeof *wake);
    if (!wake) {
        *error = -ENOMEM;
        return NULL;
    }
    atomic_init(&wake->references, 1);
    atomic_init(&wake->pending, false);
    wake->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake->fd < 0) {
        *error = -errno;
        free(wake);
        return NULL;
    }
    return wake;
}

struct ul_wake *ul_wake_retain(struct ul_wake *wake) {
    /* Relaxed: whoever retains it holds a reference already. */
    atomic_fetch_add_explicit(&wake->references, 1, memory_order_relaxed);
    return wake;
}

void ul_wake_release(struct ul_wake *wake) {
    /* Acquire and release: the last one must see all that the others did before it closes and frees. */
    if (atomic_fetch_sub_explicit(&wake->references, 1, memory_order_acq_rel) > 1)
        return;
    close(wake->fd);
    free(wake);
}

void ul_wake(struct ul_wake *wake) {
    const uint64_t one = 1;
    /* Acquire and release: what the waker left for the loop is visible to it once it has taken this wake, or the one that it joins. */
    if (atomic_exchange_explicit(&wake->pending, true, memory_order_acq_rel))
        return;
    while (write(wake->fd, &one, sizeof one) < 0 && errno == EINTR)
        continue;
}

void ul_wake_empty(struct ul_wake *wake) {
    uint64_t count;
    while (read(wake->fd, &count, sizeof count) < 0 && errno == EINTR)
        continue; /* EAGAIN: it was empty */
}

void ul_wake_taken(struct ul_wake *wake) {
    /* Acquire and release, as above: an exchange, because a plain store would not order the loads that follow it. */
    atomic_exchange_explicit(&wake->pending, false, memory_order_acq_rel);
}
