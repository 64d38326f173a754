/* TLS by OpenSSL. The certificate is not verified: what this program asks is whether its own bytes come back. */
#include "channel.h"
#include "common.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <unistd.h>

const bool channel_short_is_empty = false; /* a read gives one record at the most */

static SSL_CTX *context(void) {
    static SSL_CTX *made;
    if (made != NULL) return made;
    signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
    made = SSL_CTX_new(TLS_client_method());
    if (made == NULL) die("OpenSSL: no context");
    SSL_CTX_set_verify(made, SSL_VERIFY_NONE, NULL);
    /* As send(2): what fits is taken, and what is tried again may lie elsewhere. */
    SSL_CTX_set_mode(made, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    return made;
}

struct channel channel_open(int fd) {
    SSL *session = SSL_new(context());
    if (session == NULL || SSL_set_fd(session, fd) != 1) die("OpenSSL: no session");
    SSL_set_connect_state(session); /* the first send shakes hands */
    return (struct channel){.fd = fd, .session = session};
}

/* Of a call that gave this: its result and errno as those of a system call would be. */
static ssize_t as_system_call(struct channel *channel, int result) {
    if (result > 0) return result;
    int error = errno;
    switch (SSL_get_error(channel->session, result)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
    case SSL_ERROR_ZERO_RETURN: return 0;
    case SSL_ERROR_SYSCALL: errno = error != 0 ? error : ECONNRESET; return -1;
    default: die("OpenSSL: %s", ERR_error_string(ERR_get_error(), NULL));
    }
}

ssize_t channel_send(struct channel *channel, const void *bytes, size_t length) {
    ERR_clear_error();
    return as_system_call(channel, SSL_write(channel->session, bytes, (int)length));
}

ssize_t channel_receive(struct channel *channel, void *bytes, size_t length) {
    ERR_clear_error();
    return as_system_call(channel, SSL_read(channel->session, bytes, (int)length));
}

void channel_close(struct channel *channel) {
    SSL_free(channel->session);
    close(channel->fd);
    channel->fd = -1;
}
