/*
 * How far apart are two cores? A cache line that both write goes to and fro between them; the nanoseconds of a round trip
 * are printed. The least of some batches: a core that is taken away in the middle of one says nothing of the distance.
 */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

enum { BATCHES = 8, ROUND_TRIPS = 2000, CORE_MOST = CPU_SETSIZE - 1 };

enum side { HERE, THERE };

/* Two lines: processors fetch them in pairs. Relaxed is enough, for nothing else is handed over with it. */
static alignas(128) atomic_int at;

static void pass(enum side from, enum side to) {
    while (atomic_load_explicit(&at, memory_order_relaxed) != (int)from) {
    }
    atomic_store_explicit(&at, (int)to, memory_order_relaxed);
}

static void move_to(uint32_t core) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    int error = pthread_setaffinity_np(pthread_self(), sizeof set, &set);
    if (error != 0) die("cannot run on core %u: %s", core, strerror(error));
}

static uint32_t parse_core(const char *text) {
    return strcmp(text, "0") == 0 ? 0 : parse_number(text, "core", CORE_MOST);
}

static void *send_back(void *core) {
    move_to(*(uint32_t *)core);
    for (size_t i = 0; i < BATCHES * ROUND_TRIPS; i++) pass(THERE, HERE);
    return NULL;
}

static uint64_t batch_ns(void) {
    uint64_t from = now_ns();
    for (size_t i = 0; i < ROUND_TRIPS; i++) pass(HERE, THERE);
    return now_ns() - from;
}

int main(int argc, char **argv) {
    if (argc != 3) die("usage: distance CORE CORE");
    uint32_t here = parse_core(argv[1]), there = parse_core(argv[2]);
    if (here == there) die("that is one core");
    move_to(here);
    pthread_t thread;
    int error = pthread_create(&thread, NULL, send_back, &there);
    if (error != 0) die("pthread_create: %s", strerror(error));
    uint64_t least = UINT64_MAX;
    for (size_t i = 0; i < BATCHES; i++) {
        uint64_t ns = batch_ns();
        if (ns < least) least = ns;
    }
    pthread_join(thread, NULL);
    printf("%.1f\n", (double)least / ROUND_TRIPS);
    return 0;
}
