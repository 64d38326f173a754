#include "listener.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void ul_listeners_init(struct ul_listeners *listeners, struct ul_engine *engine) {
    listeners->engine = engine;
    ul_table_init(&listeners->table, sizeof(struct ul_listener));
}

void ul_listeners_destroy(struct ul_listeners *listeners) { ul_table_destroy(&listeners->table); }

static enum ul_request ul_listener_request(const struct ul_listener *listener) {
    return listener->polls ? UL_REQUEST_ACCEPTABLE : UL_REQUEST_ACCEPT;
}

static int ul_listener_arm(struct ul_listeners *listeners, struct ul_listener *listener) {
    uint8_t opcode = listener->polls ? IORING_OP_POLL_ADD : IORING_OP_ACCEPT;
    struct io_uring_sqe *sqe = ul_request(listeners->engine, opcode, ul_listener_request(listener), listener->entry.token);
    if (!sqe)
        return -ENOMEM;
    sqe->fd = listener->fd;
    if (listener->polls) {
        sqe->op_flags = POLLIN;
    } else {
        sqe->ioprio = IORING_ACCEPT_MULTISHOT;
        sqe->op_flags = SOCK_NONBLOCK | SOCK_CLOEXEC; /* no address: a multishot accept would overwrite it at each connection */
    }
    listener->state = UL_LISTENER_ARMED;
    return 0;
}

static int32_t ul_listener_make(struct ul_listeners *listeners, int fd, bool polls) {
    struct ul_listener *listener = ul_table_allocate(&listeners->table);
    if (!listener)
        return -ENOMEM;
    listener->fd = fd;
    listener->polls = polls;
    if (ul_listener_arm(listeners, listener) < 0) {
        ul_table_free(&listeners->table, listener);
        return -ENOMEM;
    }
    return listener->entry.token;
}

int32_t ul_listener_open(struct ul_listeners *listeners, int fd) { return ul_listener_make(listeners, fd, false); }

int32_t ul_listener_open_shared(struct ul_listeners *listeners, int fd) { return ul_listener_make(listeners, fd, true); }

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
    if (listener->state == UL_LISTENER_IDLE) {
        ul_table_free(&listeners->table, listener);
        return 0;
    }
    listener->state = UL_LISTENER_CLOSING;
    if (listener->cancelling)
        return 0;
    int error = ul_cancel(listeners->engine, ul_user_data(ul_listener_request(listener), token));
    listener->cancelling = error == 0;
    return error;
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

/* After the last completion of an accept: 0 if the next one is armed, or -errno. */
static int ul_listener_go_on(struct ul_listeners *listeners, struct ul_listener *listener, int32_t result) {
    if (result < 0 && !ul_accept_goes_on_after(-result))
        return result;
    listeners->engine->stats.accept_rearms++;
    listeners->engine->stats.accept_ends[ul_end_of(result)]++;
    return ul_listener_arm(listeners, listener);
}

/* A completion makes one event at the most, so a connection and the end of accepting are told in one. */
static void ul_listener_on_accept(struct ul_listeners *listeners, struct ul_listener *listener, const struct io_uring_cqe *cqe) {
    int stopped = cqe->flags & IORING_CQE_F_MORE ? 0 : ul_listener_go_on(listeners, listener, cqe->res);
    if (stopped < 0)
        listener->state = UL_LISTENER_IDLE;
    if (cqe->res >= 0) {
        listeners->engine->stats.accepts++;
        ul_emit(listeners->engine, UL_EVENT_ACCEPTED, listener->entry.token, cqe->res, stopped);
    } else if (stopped < 0) {
        ul_emit(listeners->engine, UL_EVENT_ACCEPTED, listener->entry.token, stopped, 0);
    }
}

static void ul_listener_on_acceptable(struct ul_listeners *listeners, struct ul_listener *listener, const struct io_uring_cqe *cqe) {
    struct io_uring_cqe accepted = {.res = cqe->res};
    if (cqe->res >= 0) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        accepted.res = fd < 0 ? -errno : fd;
    }
    ul_listener_on_accept(listeners, listener, &accepted);
}

void ul_listener_complete(struct ul_listeners *listeners, enum ul_request request, int32_t token, const struct io_uring_cqe *cqe) {
    struct ul_listener *listener = ul_table_get(&listeners->table, token);
    if (listener && listener->state == UL_LISTENER_ARMED) {
        (request == UL_REQUEST_ACCEPT ? ul_listener_on_accept : ul_listener_on_acceptable)(listeners, listener, cqe);
        return;
    }
    if (cqe->res >= 0 && request == UL_REQUEST_ACCEPT)
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
    while ((listener = ul_table_next(&listeners->table, &index))) {
        enum ul_request lost = ul_listener_request(listener);
        listener->polls = true;
        if (listener->state != UL_LISTENER_IDLE)
            ul_listener_complete(listeners, lost, listener->entry.token, &cancelled);
    }
}
