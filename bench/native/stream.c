/*
 * Bytes in one direction, over one connection, in writes of 64 KiB, as fast as they go.
 *
 * A request is nine bytes: `S`, the server is to send so many bytes, or `R`, it is to receive them; and the number, in
 * network order. It has received them when it says so with eight bytes, their number. What it sends is the bytes 0 to
 * 255, over and over, and each is compared. There are two requests: to warm up, and to measure.
 *
 * The result is one line of JSON on stdout; a request in it is a piece of 64 KiB.
 */
#define _GNU_SOURCE
#include "common.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

enum {
    PIECE = 64 * 1024,
    PATTERN = 256,
    /* For one send or receive. */
    PATIENCE_SECONDS = 10,
};

static uint8_t pattern[PIECE + PATTERN];

static void send_all(int fd, const void *bytes, size_t length) {
    for (const uint8_t *next = bytes; length > 0;) {
        ssize_t n = send(fd, next, length, MSG_NOSIGNAL);
        if (n < 0) die("send: %s", errno == EAGAIN ? "the server takes nothing" : strerror(errno));
        next += n;
        length -= (size_t)n;
    }
}

static size_t receive_some(int fd, void *bytes, size_t length) {
    ssize_t n = recv(fd, bytes, length, 0);
    if (n < 0) die("recv: %s", errno == EAGAIN ? "the server sends nothing" : strerror(errno));
    if (n == 0) die("closed by the server");
    return (size_t)n;
}

static void send_request(int fd, char direction, uint64_t count) {
    uint8_t request[9] = {(uint8_t)direction};
    uint64_t ordered = htobe64(count);
    memcpy(request + 1, &ordered, sizeof ordered);
    send_all(fd, request, sizeof request);
}

static void to_server(int fd, uint64_t count) {
    send_request(fd, 'R', count);
    for (uint64_t sent = 0; sent < count; sent += PIECE) send_all(fd, pattern, PIECE);
    uint64_t ordered;
    for (size_t have = 0; have < sizeof ordered;) {
        have += receive_some(fd, (uint8_t *)&ordered + have, sizeof ordered - have);
    }
    if (be64toh(ordered) != count) die("the server has received %" PRIu64 " of %" PRIu64, be64toh(ordered), count);
}

static void from_server(int fd, uint64_t count) {
    static uint8_t buffer[PIECE];
    send_request(fd, 'S', count);
    for (uint64_t have = 0; have < count;) {
        size_t n = receive_some(fd, buffer, sizeof buffer);
        if (memcmp(buffer, pattern + have % PATTERN, n) != 0) die("other bytes came than should");
        have += n;
        if (have > count) die("more came than should");
    }
}

/* Blocking, but not for ever. */
static int connect_blocking(const struct address *address) {
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    int fd = connect_to(address, 0);
    if (fcntl(fd, F_SETFL, 0) != 0) die("fcntl: %s", strerror(errno));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return fd;
}

int main(int argc, char **argv) {
    uint64_t pieces = 16 * 1024;
    bool from = false;
    pid_t server = 0;
    int option;
    while ((option = getopt(argc, argv, "rn:p:")) != -1) {
        switch (option) {
        case 'r': from = true; break;
        case 'n': pieces = parse_number(optarg, "number of pieces", INT32_MAX); break;
        case 'p': server = (pid_t)parse_number(optarg, "process id", INT32_MAX); break;
        default: optind = argc;
        }
    }
    if (argc - optind != 1 || server == 0) {
        die("usage: stream -p SERVER-PID [-n PIECES] [-r, to receive them] 127.0.0.1:PORT|unix:PATH");
    }
    for (size_t i = 0; i < sizeof pattern; i++) pattern[i] = (uint8_t)(i % PATTERN);
    struct address address = parse_address(argv[optind]);
    int fd = connect_blocking(&address);
    void (*transfer)(int, uint64_t) = from ? from_server : to_server;

    transfer(fd, (1 + pieces / 4) * PIECE);
    struct usage before = read_usage(server);
    uint64_t begun = now_ns();
    transfer(fd, pieces * PIECE);
    uint64_t took = now_ns() - begun;
    struct usage after = read_usage(server);

    static struct histogram latency;
    for (uint64_t i = 0; i < pieces; i++) histogram_add(&latency, took / pieces);
    print_result(&latency, pieces + 1 + pieces / 4, 0, &before, &after);
    close(fd);
    return 0;
}
