#include "channel.h"

#include <sys/socket.h>
#include <unistd.h>

const bool channel_short_is_empty = true;

struct channel channel_open(int fd) { return (struct channel){.fd = fd}; }

ssize_t channel_send(struct channel *channel, const void *bytes, size_t length) {
    return send(channel->fd, bytes, length, MSG_NOSIGNAL);
}

ssize_t channel_receive(struct channel *channel, void *bytes, size_t length) {
    return recv(channel->fd, bytes, length, 0);
}

void channel_close(struct channel *channel) {
    close(channel->fd);
    channel->fd = -1;
}
