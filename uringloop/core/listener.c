#include "listener.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void ul_listeners_init(struct ul_listeners *listeners, struct ul_engine *engine) {
    listeners->engine = engine;
    ul_table_init(&listeners->table, sizeof(struct ul_listener));
}

void ul_listeners_destroy(struct ul_listeners *listeners) { ul_table_destroy(&listeners->table); }

static int ul_listener_arm(struct ul_listeners *listeners, struct ul_listener *listener) {
    struct io_uring_sqe *sqe = ul_request(listeners->engine, IORING_OP_ACCEPT, UL_REQUEST_ACCEPT, listener->entry.token);
    if (!sqe)
        return -ENOMEM;
    sqe->fd = listener->fd;
    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    sqe->op_flags = SOCK_NONBLOCK | SOCK_CLOEXEC; /* no address: a multishot accept would overwrite it at each connection */
    listener->state = UL_LISTENER_ARMED;
    return 0;
}

int32_t ul_listener_open(struct ul_listeners *listeners, int fd) {
    struct ul_listener *listener = ul_table_allocate(&listeners->table);
    if (!listener)
        return -ENOMEM;
    listener->fd = fd;
    if (ul_listener_arm(listeners, listener) < 0) {
        ul_table_free(&listeners->table, listener);
        return -ENOMEM;
    }
    return listener->entry.token;
}

int ul_listener_start(struct ul_listeners *listeners, int32_t token) {
    struct ul_listener *listener = ul_table_get(&listeners->table, token);
    if (!listener)
        return -ENOENT;
    return listener->state == UL_LISTENER_IDLE ? ul_listener_arm(listeners, listener) : 0;
}

int ul_listener_close(struct ul_listeners *listeners, int32_t token) {
    struct ul_listener *listener = ul_table_get(&listeners->table, token);
    if (!listener)
        return -ENOENT;
    if (listener->state == UL_LISTENER_ARMED) {
        listener->state = UL_LISTENER_CLOSING;
        ul_cancel(listeners->engine, ul_user_data(UL_REQUEST_ACCEPT, token));
    } else if (listener->state == UL_LISTENER_IDLE) {
        ul_table_free(&listeners->table, listener);
    }
    return 0;
}

/* Errors of one connection, or of the moment; accept(2) says to go on after them. What is left is either a lack that the owner must wait
 * out (EMFILE, ENFILE, ENOBUFS, ENOMEM) or a listener that is broken. */
static bool ul_accept_goes_on_after(int error) {
    switch (error) {
    case EINTR:
    case EAGAIN:
    case ECANCELED:
    case ECONNABORTED:
    case EPERM: /* a firewall rule forbade this connection */
    case EPROTO:
    case ENETDOWN:
    case ENOPROTOOPT:
    case EHOSTDOWN:
    case ENONET:
    case EHOSTUNREACH:
    case ENETUNREACH:
        return true;
    default:
        return false;
    }
}

static void ul_listener_stop(struct ul_listeners *listeners, struct ul_listener *listener, int error) {
    listener->state = UL_LISTENER_IDLE;
    ul_emit(listeners->engine, UL_EVENT_ACCEPTED, listener->entry.token, -error, 0);
}

static void ul_listener_on_accept(struct ul_listeners *listeners, struct ul_listener *listener, const struct io_uring_cqe *cqe) {
    if (cqe->res >= 0) {
        listeners->engine->stats.accepts++;
        ul_emit(listeners->engine, UL_EVENT_ACCEPTED, listener->entry.token, cqe->res, 0);
    }
    if (cqe->flags & IORING_CQE_F_MORE)
        return;
    if (cqe->res < 0 && !ul_accept_goes_on_after(-cqe->res)) {
        ul_listener_stop(listeners, listener, -cqe->res);
        return;
    }
    listeners->engine->stats.accept_rearms++;
    listeners->engine->stats.accept_ends[ul_end_of(cqe->res)]++;
    if (ul_listener_arm(listeners, listener) < 0 && cqe->res < 0)
        ul_listener_stop(listeners, listener, ENOMEM);
}

void ul_listener_complete(struct ul_listeners *listeners, int32_t token, const struct io_uring_cqe *cqe) {
    struct ul_listener *listener = ul_table_get(&listeners->table, token);
    if (listener && listener->state == UL_LISTENER_ARMED) {
        ul_listener_on_accept(listeners, listener, cqe);
        return;
    }
    if (cqe->res >= 0)
        close(cqe->res);
    if (!listener)
        listeners->engine->stats.stale_completions++;
    else if (listener->state == UL_LISTENER_CLOSING && !(cqe->flags & IORING_CQE_F_MORE))
        ul_table_free(&listeners->table, listener);
}

void ul_listeners_on_ring_lost(struct ul_listeners *listeners) {
    static const struct io_uring_cqe cancelled = {.res = -ECANCELED};
    uint32_t index = 0;
    struct ul_listener *listener;
    while ((listener = ul_table_next(&listeners->table, &index)))
        if (listener->state != UL_LISTENER_IDLE)
            ul_listener_complete(listeners, listener->entry.token, &cancelled);
}
