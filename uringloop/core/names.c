#include "names.h"

#include <netinet/in.h>
#include <stddef.h>
#include <sys/socket.h>

_Static_assert(sizeof(struct sockaddr_storage) == UL_SOCKET_NAME_BYTES, "room for every address");

typedef int (*ul_ask)(int fd, struct sockaddr *name, socklen_t *length);

static int ul_socket_name(ul_ask ask, int fd, char *name) {
    socklen_t length = UL_SOCKET_NAME_BYTES;
    if (ask(fd, (struct sockaddr *)(void *)name, &length) < 0)
        return 0;
    if (length == sizeof(struct sockaddr_in) && ((struct sockaddr *)(void *)name)->sa_family == AF_INET)
        return (int)offsetof(struct sockaddr_in, sin_zero);
    return length < UL_SOCKET_NAME_BYTES ? (int)length : UL_SOCKET_NAME_BYTES;
}

int ul_socket_names(int fd, char *names) {
    int own = ul_socket_name(getsockname, fd, names);
    return own | ul_socket_name(getpeername, fd, names + UL_SOCKET_NAME_BYTES) << 16;
}
