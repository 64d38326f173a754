/*
 * The load generator: many connections, each with a fixed number of requests in flight, against an echo server.
 *
 * It is written in C so that the server is what limits the run: a client in Python would spend more on a request than
 * the loops under test do. Three things are asked of it.
 *
 * - No wrong answer counts. Every byte that comes back is compared with what was sent. Message m of connection c is a
 *   window into one table of random bytes, at an offset that c and m determine, so that a byte that is lost, doubled,
 *   swapped between messages or handed to another connection shows. Sending and checking need no buffer per
 *   connection: both read the table.
 * - The cost is read where the requests are counted. The server's CPU clock is read by this program in the instants at
 *   which the measured window opens and closes; a harness that reads it from outside is late by a scheduling delay.
 * - It ends. Connecting, measuring and draining each have a deadline.
 *
 * The run has four phases. In CONNECTING each connection sends one message, and is open when the answer is there: this
 * paces the connects by the server's accepts. WARMING and MEASURING differ in what is recorded. In DRAINING nothing
 * new begins, and all that is outstanding must come back.
 *
 * Over UDP a message is a datagram, and one that is lost is a failure as any other: with few in flight on the loopback
 * interface none is. Idle connections (-i) are opened as all are, and then ask for nothing. Lines (-l) are messages whose
 * last byte, and no other, is a line feed.
 *
 * The result is one line of JSON on stdout. What went wrong first is on stderr, and the exit status is then 1.
 */
#define _GNU_SOURCE
#include "channel.h"
#include "common.h"

#include <errno.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
    /* Connects in flight. Below asyncio's default backlog of 100, since a SYN that finds it full is retried after 1 s. */
    CONNECT_BATCH = 64,
    /* For 10,000 connections this asks the server for 330 accepts a second: any loop does thousands. */
    CONNECT_SECONDS = 30,
    /* The most that is outstanding is 10,000 messages or 10 MiB; either takes well under a second. */
    DRAIN_SECONDS = 5,
    /* Events taken from epoll at a time: few enough that the end of a phase is noticed within a millisecond or two. */
    EVENTS = 256,
    /* Bytes taken from a socket at a time: enough for a large message, and small enough to stay in the L2 cache. */
    RECEIVE_BYTES = 128 * 1024,
    /* Different windows into the table. A power of two, so that an odd factor gives each connection its own. */
    WINDOWS = 64 * 1024,
    /* As many, so each connection has windows of its own. */
    CONNECTIONS_MOST = WINDOWS,
    /* Fewer than an address has ports (28,232 by default). */
    CONNECTIONS_A_GROUP = 20 * 1000,
    /* Different lines, if the messages are lines: they do not overlap, so these have to be fewer. */
    LINES = 4096,
    LINE_MOST = 64 * 1024,
    /* Keeps the table in memory, and a pipeline's clock readings: 64 KiB a connection. */
    SIZE_MOST = 256 * 1024 * 1024,
    DEPTH_MOST = 8192,
};

/* ---- state ---- */

struct options {
    const char *address;
    size_t connections;
    size_t size;
    size_t depth;
    size_t idle; /* of the connections */
    bool lines;
    uint64_t warm_ns;
    uint64_t measure_ns;
    pid_t server;
};

enum phase { CONNECTING, WARMING, MEASURING, DRAINING };

/* A place in a connection's endless row of messages. */
struct cursor {
    uint64_t message;
    size_t offset;
};

/* received <= sent <= begun, counted in messages; begun - received.message are outstanding, `depth` at the most. */
struct connection {
    struct channel channel; /* its fd is -1 once the connection has failed */
    size_t index;
    uint64_t begun;
    struct cursor sent;
    struct cursor received;
    uint64_t *begun_ns; /* a ring of `depth`, by message */
};

struct load {
    struct options options;
    struct address address;
    int epoll;
    enum phase phase;
    uint8_t *table;
    struct connection *connections;
    size_t created;
    size_t opened;
    uint64_t outstanding; /* messages, over all connections */
    uint64_t answered;
    uint64_t errors;
    struct histogram latency; /* of the messages that came back while MEASURING */
    uint8_t buffer[RECEIVE_BYTES];
};

/* ---- messages ---- */

static void fill_table(struct load *load) {
    size_t size = load->options.size;
    size_t length = load->options.lines ? LINES * size : WINDOWS + size;
    load->table = allocate(length, 1);
    fill_random(load->table, length);
    if (!load->options.lines) return;
    for (size_t i = 0; i < length; i++) {
        bool last = i % size == size - 1;
        if (last || load->table[i] == '\n') load->table[i] = last ? '\n' : ' ';
    }
}

static const uint8_t *message_bytes(const struct load *load, const struct connection *c, uint64_t message) {
    uint64_t chosen = c->index * 40503 + message * 27061;
    return load->table + (load->options.lines ? chosen % LINES * load->options.size : chosen % WINDOWS);
}

/* Counts what was wrong, tells the first of it, and takes the connection out of the run. */
static void connection_fail(struct load *load, struct connection *c, const char *what, int error) {
    if (load->errors++ == 0) {
        fprintf(stderr, "connection %zu, message %" PRIu64 ", byte %zu: %s%s%s\n", c->index, c->received.message,
                c->received.offset, what, error ? ": " : "", error ? strerror(error) : "");
    }
    load->outstanding -= c->begun - c->received.message;
    channel_close(&c->channel);
}

static void advance(struct cursor *cursor, size_t bytes, size_t size) {
    cursor->offset += bytes;
    if (cursor->offset < size) return;
    cursor->offset = 0;
    cursor->message++;
}

static bool may_begin(const struct load *load, const struct connection *c) {
    switch (load->phase) {
    case CONNECTING: return c->begun == 0;
    case DRAINING: return false;
    default:
        if (c->index >= load->options.connections - load->options.idle) return false;
        return c->begun - c->received.message < load->options.depth;
    }
}

/* Begins and sends what the phase allows, until the socket takes no more; epoll tells when it does again. */
static void connection_send(struct load *load, struct connection *c) {
    size_t size = load->options.size;
    while (c->channel.fd >= 0) {
        if (c->sent.message == c->begun) {
            if (!may_begin(load, c)) return;
            c->begun_ns[c->begun++ % load->options.depth] = now_ns();
            load->outstanding++;
        }
        const uint8_t *rest = message_bytes(load, c, c->sent.message) + c->sent.offset;
        ssize_t n = channel_send(&c->channel, rest, size - c->sent.offset);
        if (n >= 0) {
            advance(&c->sent, (size_t)n, size);
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            connection_fail(load, c, "send", errno);
        }
    }
}

static void message_done(struct load *load, const struct connection *c, uint64_t message) {
    load->outstanding--;
    load->answered++;
    if (message == 0) load->opened++;
    if (load->phase == MEASURING) {
        histogram_add(&load->latency, now_ns() - c->begun_ns[message % load->options.depth]);
    }
}

/* Compares what arrived with what was sent, and counts the messages that it completes. */
static void connection_check(struct load *load, struct connection *c, const uint8_t *bytes, size_t length) {
    size_t size = load->options.size;
    while (length > 0) {
        uint64_t message = c->received.message;
        size_t left = size - c->received.offset, part = length < left ? length : left;
        if (message == c->begun) {
            connection_fail(load, c, "more came back than was sent", 0);
            return;
        }
        if (memcmp(bytes, message_bytes(load, c, message) + c->received.offset, part) != 0) {
            connection_fail(load, c, "other bytes came back than were sent (at or after this byte)", 0);
            return;
        }
        advance(&c->received, part, size);
        if (c->received.message != message) message_done(load, c, message);
        bytes += part;
        length -= part;
    }
}

/* Epoll is edge-triggered here: a short read means that the socket is empty, unless the peer has finished as well, or
 * what is read are TLS records. */
static void connection_receive(struct load *load, struct connection *c, bool until_end) {
    ssize_t n;
    if (!channel_short_is_empty) until_end = true;
    do {
        n = channel_receive(&c->channel, load->buffer, sizeof load->buffer);
        if (n > 0) {
            connection_check(load, c, load->buffer, (size_t)n);
        } else if (n == 0) {
            connection_fail(load, c, "closed by the server", 0);
        } else if (errno == EAGAIN) {
            return;
        } else if (errno != EINTR) {
            connection_fail(load, c, "recv", errno);
        }
        if (load->address.socket_type == SOCK_DGRAM) until_end = true; /* a datagram is never more than one message */
    } while (c->channel.fd >= 0 && (until_end || n < 0 || (size_t)n == sizeof load->buffer));
}

/* Handles one batch of events; waits for it until the deadline at the most. */
static void poll_once(struct load *load, uint64_t deadline) {
    struct epoll_event events[EVENTS];
    uint64_t now = now_ns();
    int timeout_ms = now >= deadline ? 0 : (int)((deadline - now) / NS_PER_MS) + 1;
    int n = epoll_wait(load->epoll, events, EVENTS, timeout_ms);
    if (n < 0 && errno != EINTR) die("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < n; i++) {
        struct connection *c = events[i].data.ptr;
        uint32_t what = events[i].events;
        bool ended = what & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
        if (ended || (what & EPOLLIN)) connection_receive(load, c, ended);
        connection_send(load, c);
    }
}

/* ---- phases ---- */

static void connection_create(struct load *load, struct connection *c) {
    c->index = load->created++;
    c->begun_ns = allocate(load->options.depth, sizeof *c->begun_ns);
    c->channel = channel_open(connect_to(&load->address, c->index / CONNECTIONS_A_GROUP));
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(load->epoll, EPOLL_CTL_ADD, c->channel.fd, &event) != 0) die("epoll_ctl: %s", strerror(errno));
}

static void open_connections(struct load *load) {
    size_t count = load->options.connections;
    uint64_t deadline = now_ns() + CONNECT_SECONDS * NS_PER_SECOND;
    load->phase = CONNECTING;
    while (load->opened < count) {
        while (load->created < count && load->created - load->opened < CONNECT_BATCH) {
            connection_create(load, &load->connections[load->created]);
        }
        poll_once(load, deadline);
        if (load->errors > 0) die("a connection failed before the load began");
        if (now_ns() >= deadline) die("only %zu of %zu connections are open in time", load->opened, count);
    }
}

static void run_phase(struct load *load, enum phase phase, uint64_t duration) {
    uint64_t deadline = now_ns() + duration;
    load->phase = phase;
    while (now_ns() < deadline && load->errors < load->options.connections) poll_once(load, deadline);
}

static void start_all(struct load *load) {
    load->phase = WARMING;
    for (size_t i = 0; i < load->created; i++) connection_send(load, &load->connections[i]);
}

static void drain(struct load *load) {
    uint64_t deadline = now_ns() + DRAIN_SECONDS * NS_PER_SECOND;
    load->phase = DRAINING;
    while (load->outstanding > 0 && now_ns() < deadline) poll_once(load, deadline);
    for (size_t i = 0; i < load->created; i++) {
        struct connection *c = &load->connections[i];
        if (c->channel.fd >= 0 && c->received.message < c->begun) connection_fail(load, c, "no answer in time", 0);
    }
}

/* ---- start ---- */

static struct options parse_options(int argc, char **argv) {
    struct options o = {.connections = 1, .size = 1024, .depth = 1, .warm_ns = NS_PER_SECOND / 2,
                        .measure_ns = 2 * NS_PER_SECOND};
    int option;
    while ((option = getopt(argc, argv, "c:s:d:i:lw:t:p:")) != -1) {
        switch (option) {
        case 'c': o.connections = parse_number(optarg, "number of connections", CONNECTIONS_MOST); break;
        case 's': o.size = parse_number(optarg, "message size", SIZE_MOST); break;
        case 'd': o.depth = parse_number(optarg, "pipeline depth", DEPTH_MOST); break;
        case 'i': o.idle = parse_number(optarg, "number of idle connections", CONNECTIONS_MOST); break;
        case 'l': o.lines = true; break;
        case 'w': o.warm_ns = parse_seconds(optarg); break;
        case 't': o.measure_ns = parse_seconds(optarg); break;
        case 'p': o.server = (pid_t)parse_number(optarg, "process id", INT32_MAX); break;
        default: optind = argc;
        }
    }
    if (argc - optind != 1 || o.server == 0) {
        die("usage: load -p SERVER-PID [-c CONNECTIONS] [-s MESSAGE-BYTES] [-d PIPELINE-DEPTH] [-i IDLE-CONNECTIONS]"
            " [-l] [-w WARM-UP-SECONDS] [-t MEASURED-SECONDS] [udp:]127.0.0.1:PORT|unix:PATH");
    }
    if (o.idle >= o.connections) die("of %zu connections %zu cannot be idle", o.connections, o.idle);
    if (o.lines && o.size > LINE_MOST) die("a line has at most %d bytes", LINE_MOST);
    o.address = argv[optind];
    return o;
}

int main(int argc, char **argv) {
    struct load *load = allocate(1, sizeof *load);
    load->options = parse_options(argc, argv);
    load->address = parse_address(load->options.address);
    raise_file_limit();
    fill_table(load);
    load->connections = allocate(load->options.connections, sizeof *load->connections);
    load->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (load->epoll < 0) die("epoll_create1: %s", strerror(errno));

    open_connections(load);
    start_all(load);
    run_phase(load, WARMING, load->options.warm_ns);
    struct usage from = read_usage(load->options.server);
    run_phase(load, MEASURING, load->options.measure_ns);
    struct usage to = read_usage(load->options.server);
    drain(load);

    print_result(&load->latency, load->answered, load->errors, &from, &to);
    return load->errors == 0 ? 0 : 1;
}
