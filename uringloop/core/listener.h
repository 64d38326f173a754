/* A listening socket: one multishot accept armed, re-armed whenever it ends.
 *
 * Facts: of all accepts that wait on a socket one is woken, the first, and a multishot accept stays the first: of the processes that share a socket
 * one would get all connections, however busy it is. And an accept of a ring that is closed waits until the kernel tears the ring down, some time
 * later; a connection that comes in between wakes it only, and it takes nothing.
 * So: where others may accept too, and once its ring has been lost to another thread, a listener waits by a poll, which is woken whoever else is,
 * and accepts with accept4(2).
 * Cost: a system call and a request a connection: with one request of 64 bytes each it takes half a percent more CPU time.
 */
#ifndef UL_LISTENER_H
#define UL_LISTENER_H

#include "engine.h"

enum ul_listener_state {
    UL_LISTENER_IDLE,    /* after an error that waiting may mend; the owner starts it again */
    UL_LISTENER_ARMED,   /* an accept, or a poll, is in flight */
    UL_LISTENER_CLOSING, /* it still is; connections that come are closed */
};

struct ul_listener {
    struct ul_entry entry;
    int fd;
    uint8_t state;
    bool polls;      /* others may accept too, or its ring was lost once */
    bool cancelling; /* what is in flight, as it is CLOSING */
};

struct ul_listeners {
    struct ul_engine *engine;
    struct ul_table table;
};

void ul_listeners_init(struct ul_listeners *listeners, struct ul_engine *engine);
void ul_listeners_destroy(struct ul_listeners *listeners);

/* Accept on this listening socket: its token, or -ENOMEM. Connections come as ACCEPTED, non-blocking and close-on-exec. An ACCEPTED with
 * -errno, in place of the connection or behind it, means that accepting has stopped until ul_listener_start: 0, or -ENOMEM. */
int32_t ul_listener_open(struct ul_listeners *listeners, int fd);
int32_t ul_listener_open_shared(struct ul_listeners *listeners, int fd); /* the same where other processes may accept, too */
int ul_listener_start(struct ul_listeners *listeners, int32_t token);

/* Stop accepting; nothing more comes from this token. -ENOMEM: it still takes connections, and closes them, until this is called again. */
int ul_listener_close(struct ul_listeners *listeners, int32_t token);

/* For the reactor. */
void ul_listener_complete(struct ul_listeners *listeners, enum ul_request request, int32_t token, const struct io_uring_cqe *cqe);
void ul_listeners_on_ring_lost(struct ul_listeners *listeners); /* accept again on another ring */

#endif
