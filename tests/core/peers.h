/* The other end of a connection: a plain socket, so that the core is judged by the kernel and not by itself. */
#ifndef PEERS_H
#define PEERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that have arrived, in order. */
struct bytes {
    char *data;
    size_t length, capacity;
};
void bytes_append(struct bytes *bytes, const char *data, size_t length);
void bytes_free(struct bytes *bytes);

/* Bytes that tell where they belong: byte `at` of the stream numbered `stream`. */
char pattern_byte(uint32_t stream, uint64_t at);
void pattern_fill(char *data, size_t length, uint32_t stream, uint64_t at);
/* Fails the test unless all the bytes are those of the stream, from its beginning. */
void pattern_check(const struct bytes *bytes, uint32_t stream);

enum family { FAMILY_UNIX, FAMILY_TCP };
extern const char *const family_names[];

struct peer {
    int fd;           /* non-blocking; -1 once closed */
    struct bytes got; /* all that it has read */
    bool ended;       /* FIN or a reset has come */
    int error;        /* of the reset */
};

/* A connected pair: a non-blocking socket, which is the caller's, and its peer. */
int peer_connect(struct peer *peer, enum family family);

/* The kernel's buffer for what is sent is as small as can be, so that sends are short. On TCP there is still the receiver's, some 100 KiB:
 * with a small one there, each window update takes 200 ms. */
void shrink_send_buffer(int fd);

/* Send what goes at once: how many bytes. */
size_t peer_send(struct peer *peer, const char *data, size_t length);

/* Read what is there, at most so many bytes: true if anything came, an end too. */
bool peer_read(struct peer *peer, size_t most);

/* Read what is there; then tell. */
bool peer_has(struct peer *peer, size_t length);
bool peer_is_at_the_end(struct peer *peer);

void peer_shut(struct peer *peer);  /* it will send no more */
void peer_reset(struct peer *peer); /* TCP: close with a reset */
void peer_close(struct peer *peer); /* keeps what it got */
void peer_free(struct peer *peer);  /* closes, and forgets that too */

/* A listening socket on loopback, and one that is connected to it. */
int listen_on_loopback(int backlog);
int connect_to(int listener);

/* The port of a listening socket, and whether another may have it now. */
uint16_t port_of(int listener);
bool port_is_free(uint16_t port);

#endif
