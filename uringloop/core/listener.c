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
    listener->in_flight++;
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

static void ul_listener_settle(struct ul_listeners *listeners, struct ul_listener *listener) {
    if (listener->state == UL_LISTENER_CLOSING && listener->in_flight == 0)
        ul_table_free(&listeners->table, listener);
}

int ul_listener_close(struct ul_listeners *listeners, int32_t token) {
    struct ul_listener *listener = ul_table_get(&listeners->table, token);
    if (!listener)
        return -ENOENT;
    bool armed = listener->state == UL_LISTENER_ARMED;
    listener->state = UL_LISTENER_CLOSING;
    if (armed && ul_cancel(listeners->engine, ul_user_data(UL_REQUEST_ACCEPT, token), UL_REQUEST_ACCEPT_CANCEL, token) == 0)
        listener->in_flight++;
    ul_listener_settle(listeners, listener);
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

static void ul_listener_on_accept(struct ul_listeners *listeners, struct ul_listener *listener, const struct io_uring_cqe *cqe) {
    struct ul_engine *engine = listeners->engine;
    bool ended = !(cqe->flags & IORING_CQE_F_MORE);
    if (listener->state == UL_LISTENER_CLOSING) {
        if (cqe->res >= 0)
            close(cqe->res);
        return;
    }
    if (cqe->res >= 0) {
        engine->stats.accepts++;
        ul_emit(engine, UL_EVENT_ACCEPTED, listener->entry.token, cqe->res, 0);
    } else if (!ul_accept_goes_on_after(-cqe->res)) {
        listener->state = UL_LISTENER_IDLE;
        ul_emit(engine, UL_EVENT_ACCEPTED, listener->entry.token, cqe->res, 0);
        return;
    }
    if (ended) {
        engine->stats.accept_rearms++;
        ul_listener_arm(listeners, listener);
    }
}

void ul_listener_complete(struct ul_listeners *listeners, enum ul_request request, int32_t token, const struct io_uring_cqe *cqe) {
    struct ul_listener *listener = ul_table_get(&listeners->table, token);
    if (!listener) {
        listeners->engine->stats.stale_completions++;
        if (request == UL_REQUEST_ACCEPT && cqe->res >= 0)
            close(cqe->res);
        return;
    }
    if (!(cqe->flags & IORING_CQE_F_MORE))
        listener->in_flight--;
    if (request == UL_REQUEST_ACCEPT)
        ul_listener_on_accept(listeners, listener, cqe);
    ul_listener_settle(listeners, listener);
}
