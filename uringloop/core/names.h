/* The addresses of a socket, for the binding: Python has no way to them but through a socket object. */
#ifndef UL_NAMES_H
#define UL_NAMES_H

#define UL_SOCKET_NAME_BYTES 128 /* sizeof(struct sockaddr_storage), asserted */

/* Its own name to `names`, its peer's UL_SOCKET_NAME_BYTES behind that. The two lengths, the peer's shifted by 16; 0 for one it has not. An IPv4
 * address is without the zeros at its end: each connection keeps its peer's. */
int ul_socket_names(int fd, char *names);

#endif
