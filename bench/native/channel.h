/*
 * Bytes to and from a socket, plain or within TLS: which of the two is chosen by linking one of the sources or the other.
 *
 * Both calls are as send(2) and recv(2) on a non-blocking socket: -1 and EAGAIN mean that epoll will tell when to call
 * again. In TLS either may wait for either direction, so a caller tries both after any event.
 */
#ifndef BENCH_CHANNEL_H
#define BENCH_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct channel {
    int fd; /* -1 once it is closed */
    void *session;
};

/* Whether a receive that gives less than was asked for says that the socket is empty. */
extern const bool channel_short_is_empty;

struct channel channel_open(int fd);
ssize_t channel_send(struct channel *channel, const void *bytes, size_t length);
ssize_t channel_receive(struct channel *channel, void *bytes, size_t length);
void channel_close(struct channel *channel);

#endif
