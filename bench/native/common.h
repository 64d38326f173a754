/* What the load generators have in common: clocks, latencies, the server's use of the machine, addresses, the result. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>

#define NS_PER_SECOND UINT64_C(1000000000)
#define NS_PER_MS UINT64_C(1000000)

_Noreturn void die(const char *format, ...);
void *allocate(size_t count, size_t size);
uint64_t now_ns(void);
void raise_file_limit(void);
void fill_random(uint8_t *bytes, size_t length);

/* ---- options ---- */

uint32_t parse_number(const char *text, const char *name, uint32_t most);
uint64_t parse_seconds(const char *text);

/* ---- latencies: 128 linear steps in each power of two, so a reading is off by 0.4% at most ---- */

enum { STEP_BITS = 7, STEPS = 1 << STEP_BITS, BUCKETS = (64 - STEP_BITS + 1) * STEPS };

struct histogram {
    uint64_t total;
    uint64_t counts[BUCKETS];
};

void histogram_add(struct histogram *h, uint64_t value);

/* ---- addresses: [udp:]127.0.0.1:PORT or unix:PATH, since nothing leaves the machine ---- */

struct address {
    struct sockaddr_storage storage;
    socklen_t length;
    int socket_type;
};

struct address parse_address(const char *text);

/*
 * A non-blocking socket that connects to the address. Over TCP its source is an address of 127.0.0.0/8 that this process
 * has to itself, one for each value of `group`: so no port is waited for that another run has left in TIME_WAIT, and
 * there are 28,232 of them (by default) a group.
 */
int connect_to(const struct address *address, size_t group);

/* ---- what the server used ---- */

struct usage {
    uint64_t wall_ns;
    uint64_t cpu_ns;    /* user and system, all threads, the ring's kernel workers among them */
    uint64_t sleeps;    /* voluntary context switches of the main thread */
    uint64_t preempted; /* involuntary ones: how much it was disturbed */
};

struct usage read_usage(pid_t server);

/* One line of JSON. `all` counts the requests of the whole run, `latency` those of the measured window. */
void print_result(const struct histogram *latency, uint64_t all, uint64_t errors, const struct usage *from,
                  const struct usage *to);

#endif
