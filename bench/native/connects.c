/*
 * Connections that do not last: each connects, sends one message, compares what comes back and closes; a fixed number of
 * them at a time. A place whose connection has closed opens the next at once. Everything that goes wrong ends the run.
 *
 * The latency is that of all but the close. The result is one line of JSON on stdout.
 */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    EVENTS = 256,
    AT_ONCE_MOST = 4096,
    SIZE_MOST = 4096, /* what a fresh socket takes in one send */
    /* A connection takes well under a second, unless the server hangs or its backlog overflows. */
    PATIENCE_SECONDS = 5,
    /* Before the next source address is taken: its ports last for this many, and the next 250 addresses for a minute. */
    CONNECTIONS_A_GROUP = 20 * 1000,
};

struct place {
    int fd;
    bool sent;
    size_t received;
    uint64_t begun_ns;
};

static struct address address;
static size_t at_once = 20, size = 64;
static uint64_t warm_ns = NS_PER_SECOND / 4, measure_ns = NS_PER_SECOND;
static pid_t server;

static uint8_t message[SIZE_MOST];
static int epoll;
static size_t opened;
static uint64_t finished;
static struct histogram latency;
static bool measuring;

static void place_open(struct place *place) {
    *place = (struct place){.begun_ns = now_ns()};
    place->fd = connect_to(&address, opened++ / CONNECTIONS_A_GROUP);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = place};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, place->fd, &event) != 0) die("epoll_ctl: %s", strerror(errno));
}

static void place_send(struct place *place) {
    ssize_t n = send(place->fd, message, size, MSG_NOSIGNAL);
    if (n < 0 && errno == EAGAIN) return; /* not connected yet */
    if (n < 0) die("send: %s", strerror(errno));
    if ((size_t)n != size) die("a fresh socket took %zd bytes only", n);
    place->sent = true;
}

/* True when the message has come back. */
static bool place_receive(struct place *place) {
    uint8_t buffer[SIZE_MOST];
    while (place->received < size) {
        ssize_t n = recv(place->fd, buffer, sizeof buffer, 0);
        if (n < 0 && errno == EAGAIN) return false;
        if (n < 0) die("recv: %s", strerror(errno));
        if (n == 0) die("closed by the server");
        if ((size_t)n > size - place->received) die("more came back than was sent");
        if (memcmp(buffer, message + place->received, (size_t)n) != 0) die("other bytes came back than were sent");
        place->received += (size_t)n;
    }
    return true;
}

static void place_finish(struct place *place) {
    finished++;
    if (measuring) histogram_add(&latency, now_ns() - place->begun_ns);
    close(place->fd);
    place->fd = -1;
}

/* Runs until the deadline; then, if it is to drain, until all places are closed. */
static void run_until(uint64_t deadline, bool drain, size_t *open) {
    struct epoll_event events[EVENTS];
    uint64_t progress = now_ns();
    while (drain ? *open > 0 : now_ns() < deadline) {
        int n = epoll_wait(epoll, events, EVENTS, 10);
        if (n < 0 && errno != EINTR) die("epoll_wait: %s", strerror(errno));
        if (n > 0) progress = now_ns();
        if (now_ns() - progress > PATIENCE_SECONDS * NS_PER_SECOND) die("%zu connections got no answer in time", *open);
        for (int i = 0; i < n; i++) {
            struct place *place = events[i].data.ptr;
            if (place->fd < 0) continue;
            if (!place->sent) place_send(place);
            if (!place->sent || !place_receive(place)) continue;
            place_finish(place);
            if (drain) {
                (*open)--;
            } else {
                place_open(place);
            }
        }
    }
}

static void parse_options(int argc, char **argv) {
    int option;
    while ((option = getopt(argc, argv, "c:s:w:t:p:")) != -1) {
        switch (option) {
        case 'c': at_once = parse_number(optarg, "number of connections", AT_ONCE_MOST); break;
        case 's': size = parse_number(optarg, "message size", SIZE_MOST); break;
        case 'w': warm_ns = parse_seconds(optarg); break;
        case 't': measure_ns = parse_seconds(optarg); break;
        case 'p': server = (pid_t)parse_number(optarg, "process id", INT32_MAX); break;
        default: optind = argc;
        }
    }
    if (argc - optind != 1 || server == 0) {
        die("usage: connects -p SERVER-PID [-c CONNECTIONS-AT-A-TIME] [-s MESSAGE-BYTES] [-w WARM-UP-SECONDS]"
            " [-t MEASURED-SECONDS] 127.0.0.1:PORT|unix:PATH");
    }
    address = parse_address(argv[optind]);
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    raise_file_limit();
    fill_random(message, size);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) die("epoll_create1: %s", strerror(errno));
    struct place *places = allocate(at_once, sizeof *places);
    for (size_t i = 0; i < at_once; i++) place_open(&places[i]);

    size_t open = at_once;
    run_until(now_ns() + warm_ns, false, &open);
    struct usage from = read_usage(server);
    measuring = true;
    run_until(now_ns() + measure_ns, false, &open);
    struct usage to = read_usage(server);
    measuring = false;
    run_until(0, true, &open);
    print_result(&latency, finished, 0, &from, &to);
    free(places);
    return 0;
}
