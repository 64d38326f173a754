#include "peers.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "check.h"

#define READ_BYTES 65536

/* --- bytes ------------------------------------------------------------------------------------------------------------------------- */

void bytes_append(struct bytes *bytes, const char *data, size_t length) {
    while (bytes->length + length > bytes->capacity) {
        bytes->capacity = bytes->capacity ? bytes->capacity * 2 : 4096;
        bytes->data = realloc(bytes->data, bytes->capacity);
        CHECK(bytes->data);
    }
    memcpy(bytes->data + bytes->length, data, length);
    bytes->length += length;
}

void bytes_free(struct bytes *bytes) {
    free(bytes->data);
    *bytes = (struct bytes){0};
}

char pattern_byte(uint32_t stream, uint64_t at) { return (char)((at + ((uint64_t)stream << 40)) * UINT64_C(0x9E3779B97F4A7C15) >> 56); }

void pattern_fill(char *data, size_t length, uint32_t stream, uint64_t at) {
    for (size_t i = 0; i < length; i++)
        data[i] = pattern_byte(stream, at + i);
}

void pattern_check(const struct bytes *bytes, uint32_t stream) {
    for (size_t i = 0; i < bytes->length; i++)
        if (bytes->data[i] != pattern_byte(stream, i))
            check_fail(__FILE__, __LINE__, "stream %u: byte %zu of %zu is wrong", stream, i, bytes->length);
}

/* --- sockets ----------------------------------------------------------------------------------------------------------------------- */

const char *const family_names[] = {"unix", "tcp"};

static struct sockaddr_in loopback(uint16_t port) {
    return (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
}

/* A TCP socket that may have a port which only connections in TIME_WAIT still have. */
static int open_socket(int flags) {
    int fd = SYSTEM(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0)), yes = 1;
    SYSTEM(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes));
    return fd;
}

int listen_on_loopback(int backlog) {
    struct sockaddr_in address = loopback(0);
    int listener = open_socket(SOCK_NONBLOCK);
    SYSTEM(bind(listener, (struct sockaddr *)&address, sizeof address));
    SYSTEM(listen(listener, backlog));
    return listener;
}

uint16_t port_of(int listener) {
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    SYSTEM(getsockname(listener, (struct sockaddr *)&address, &length));
    return ntohs(address.sin_port);
}

bool port_is_free(uint16_t port) {
    struct sockaddr_in address = loopback(port);
    int fd = open_socket(0);
    int error = bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ? errno : 0;
    close(fd);
    CHECK(error == 0 || error == EADDRINUSE);
    return error == 0;
}

int connect_to(int listener) {
    struct sockaddr_in address = loopback(port_of(listener));
    int fd = open_socket(0);
    SYSTEM(connect(fd, (struct sockaddr *)&address, sizeof address)); /* the backlog has room, so it is done when it returns */
    SYSTEM(fcntl(fd, F_SETFL, O_NONBLOCK));
    return fd;
}

static int connect_over_tcp(struct peer *peer) {
    int listener = listen_on_loopback(1);
    peer->fd = connect_to(listener);
    int fd = SYSTEM(accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
    close(listener);
    return fd;
}

int peer_connect(struct peer *peer, enum family family) {
    int ends[2];
    *peer = (struct peer){0};
    if (family == FAMILY_TCP)
        return connect_over_tcp(peer);
    SYSTEM(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends));
    peer->fd = ends[1];
    return ends[0];
}

void shrink_send_buffer(int fd) {
    int bytes = 4096; /* the kernel makes some more of it */
    SYSTEM(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes));
}

/* --- the peer ---------------------------------------------------------------------------------------------------------------------- */

size_t peer_send(struct peer *peer, const char *data, size_t length) {
    ssize_t sent = send(peer->fd, data, length, MSG_NOSIGNAL);
    CHECK(sent >= 0 || errno == EAGAIN || errno == EPIPE || errno == ECONNRESET);
    return sent > 0 ? (size_t)sent : 0;
}

bool peer_read(struct peer *peer, size_t most) {
    char data[READ_BYTES];
    if (peer->ended)
        return false;
    ssize_t length = recv(peer->fd, data, most < sizeof data ? most : sizeof data, 0);
    if (length < 0 && errno == EAGAIN)
        return false;
    if (length <= 0) {
        peer->ended = true;
        peer->error = length < 0 ? errno : 0;
    } else {
        bytes_append(&peer->got, data, (size_t)length);
    }
    return true;
}

bool peer_has(struct peer *peer, size_t length) {
    while (peer_read(peer, READ_BYTES))
        continue;
    return peer->got.length >= length;
}

bool peer_is_at_the_end(struct peer *peer) {
    peer_has(peer, 0);
    return peer->ended;
}

void peer_shut(struct peer *peer) { SYSTEM(shutdown(peer->fd, SHUT_WR)); }

void peer_close(struct peer *peer) {
    if (peer->fd >= 0)
        close(peer->fd);
    peer->fd = -1;
}

void peer_reset(struct peer *peer) {
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    SYSTEM(setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once));
    peer_close(peer);
}

void peer_free(struct peer *peer) {
    peer_close(peer);
    bytes_free(&peer->got);
}
