#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) die("out of memory");
    return memory;
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t) != 0) die("cannot read a clock: %s", strerror(errno));
    return (uint64_t)t.tv_sec * NS_PER_SECOND + (uint64_t)t.tv_nsec;
}

uint64_t now_ns(void) { return clock_ns(CLOCK_MONOTONIC); }

/* As many open files as there may be; root may raise the hard limit too, which can be lower than a case needs. */
void raise_file_limit(void) {
    enum { FILES_WANTED = 65536 };
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max >= FILES_WANTED) return;
    limit.rlim_cur = limit.rlim_max = FILES_WANTED;
    setrlimit(RLIMIT_NOFILE, &limit); /* not allowed to others than root */
}

void fill_random(uint8_t *bytes, size_t length) {
    uint64_t x = UINT64_C(88172645463325252); /* xorshift64; the seed is fixed, so that a failure can be repeated */
    for (size_t i = 0; i < length; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        bytes[i] = (uint8_t)(x >> 32);
    }
}

/* ---- options ---- */

uint32_t parse_number(const char *text, const char *name, uint32_t most) {
    char *end;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || value < 1 || value > most) die("bad %s: %s", name, text);
    return (uint32_t)value;
}

uint64_t parse_seconds(const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 0 && value <= 3600)) die("bad time: %s", text);
    return (uint64_t)(value * (double)NS_PER_SECOND);
}

/* ---- latencies ---- */

void histogram_add(struct histogram *h, uint64_t value) {
    unsigned shift = value < STEPS ? 0 : (unsigned)(63 - __builtin_clzll(value)) - STEP_BITS;
    h->counts[shift * STEPS + (value >> shift)]++;
    h->total++;
}

/* The middle of the bucket in which the given share of all values is reached. */
static uint64_t histogram_quantile(const struct histogram *h, double share) {
    uint64_t rank = (uint64_t)(share * (double)h->total), seen = 0;
    for (size_t i = 0; i < BUCKETS; i++) {
        seen += h->counts[i];
        if (seen <= rank) continue;
        if (i < 2 * STEPS) return i;
        unsigned shift = (unsigned)(i / STEPS) - 1;
        return ((uint64_t)(i % STEPS + STEPS) << shift) + ((UINT64_C(1) << shift) / 2);
    }
    return 0;
}

/* ---- addresses ---- */

struct address parse_address(const char *text) {
    static const char tcp[] = "127.0.0.1:", local[] = "unix:", udp[] = "udp:";
    struct address address = {.socket_type = SOCK_STREAM};
    if (strncmp(text, udp, sizeof udp - 1) == 0) {
        address.socket_type = SOCK_DGRAM;
        text += sizeof udp - 1;
    }
    if (strncmp(text, tcp, sizeof tcp - 1) == 0) {
        uint32_t port = parse_number(text + sizeof tcp - 1, "port", UINT16_MAX);
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
        in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        memcpy(&address.storage, &in, address.length = sizeof in);
    } else if (strncmp(text, local, sizeof local - 1) == 0) {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        const char *path = text + sizeof local - 1;
        if (strlen(path) >= sizeof un.sun_path) die("path too long: %s", path);
        memcpy(un.sun_path, path, strlen(path));
        memcpy(&address.storage, &un, address.length = sizeof un);
    } else {
        die("an address is [udp:]127.0.0.1:PORT or unix:PATH, not %s", text);
    }
    return address;
}

/* 127.x.y.z, where x and y come from the process id and z is the group. */
static void bind_source(int fd, size_t group) {
    uint32_t pid = (uint32_t)getpid();
    uint32_t host = UINT32_C(127) << 24 | (1 + (pid >> 8) % 254) << 16 | (pid & 255) << 8 | (uint32_t)(1 + group % 254);
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(host)};
    /* The port is chosen when the peer is known: a port that is in use towards another peer will do. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
    if (bind(fd, (struct sockaddr *)&in, sizeof in) != 0) die("bind: %s", strerror(errno));
}

int connect_to(const struct address *address, size_t group) {
    int family = address->storage.ss_family;
    int fd = socket(family, address->socket_type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    if (family == AF_INET && address->socket_type == SOCK_STREAM) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        bind_source(fd, group);
    }
    if (connect(fd, (const struct sockaddr *)&address->storage, address->length) != 0 && errno != EINPROGRESS) {
        die("connect: %s", strerror(errno));
    }
    return fd;
}

/* ---- what the server used ---- */

static void read_switches(pid_t server, struct usage *usage) {
    char line[256];
    snprintf(line, sizeof line, "/proc/%d/status", (int)server);
    FILE *status = fopen(line, "re");
    if (status == NULL) die("the server is gone");
    while (fgets(line, sizeof line, status) != NULL) {
        if (sscanf(line, "voluntary_ctxt_switches: %" SCNu64, &usage->sleeps) == 1) continue;
        sscanf(line, "nonvoluntary_ctxt_switches: %" SCNu64, &usage->preempted);
    }
    fclose(status);
}

struct usage read_usage(pid_t server) {
    struct usage usage = {0};
    clockid_t clock;
    read_switches(server, &usage);
    if (clock_getcpuclockid(server, &clock) != 0) die("the server is gone");
    usage.cpu_ns = clock_ns(clock);
    usage.wall_ns = now_ns();
    return usage;
}

void print_result(const struct histogram *latency, uint64_t all, uint64_t errors, const struct usage *from,
                  const struct usage *to) {
    printf("{\"requests\": %" PRIu64 ", \"seconds\": %.6f, \"all\": %" PRIu64 ", \"errors\": %" PRIu64, latency->total,
           (double)(to->wall_ns - from->wall_ns) / (double)NS_PER_SECOND, all, errors);
    printf(", \"p50_ns\": %" PRIu64 ", \"p99_ns\": %" PRIu64 ", \"p999_ns\": %" PRIu64,
           histogram_quantile(latency, 0.5), histogram_quantile(latency, 0.99), histogram_quantile(latency, 0.999));
    printf(", \"cpu_ns\": %" PRIu64 ", \"sleeps\": %" PRIu64 ", \"preempted\": %" PRIu64 "}\n",
           to->cpu_ns - from->cpu_ns, to->sleeps - from->sleeps, to->preempted - from->preempted);
}
