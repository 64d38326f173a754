/*
 * The echo server that the loops are held against: C on io_uring, by bare system calls, with nothing else in it.
 *
 * It shows what the kernel's share of a request is, and so what a loop adds. It uses what there is to use:
 *
 * - One thread, whose completions run only when it asks for them (SINGLE_ISSUER, DEFER_TASKRUN), and a registered ring.
 * - Connections that are accepted straight into the table of fixed files: no fd is ever made.
 * - Multishot accept and receive, into a ring of provided buffers.
 * - A send straight out of the buffer that was received into, which goes back to the ring when the send is complete. So
 *   nothing is copied in user space.
 *
 * It is a server for one measurement, and does not survive what a server has to: what it does not expect ends it.
 */
#define _GNU_SOURCE
#include "common.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <signal.h>
#include <unistd.h>

enum {
    ENTRIES = 4096, /* requests in one batch: more than there are connections */
    CONNECTIONS = 2048,
    BUFFERS = 1024, /* of this many bytes each: what a request does not fit into arrives in pieces */
    BUFFER_BYTES = 4096,
    GROUP = 0,
    BACKLOG = 1024,
};

enum kind { ACCEPTED, RECEIVED, SENT };

static struct {
    int fd;
    unsigned registered;
    _Atomic unsigned *sq_tail, *cq_head, *cq_tail;
    unsigned sq_mask, cq_mask, tail, submitted;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
} ring;

static struct io_uring_buf_ring *free_buffers;
static unsigned short free_tail;
static uint8_t *memory;

/* ---- the ring ---- */

static int ring_register(unsigned opcode, void *argument, unsigned count) {
    return (int)syscall(SYS_io_uring_register, ring.fd, opcode, argument, count);
}

static void *map(size_t length, off_t offset) {
    void *mapped = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, offset);
    if (mapped == MAP_FAILED) die("mmap: %s", strerror(errno));
    return mapped;
}

static void ring_open(void) {
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                                         IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP};
    ring.fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
    if (ring.fd < 0) die("io_uring_setup: %s", strerror(errno));
    size_t queues = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    size_t array = p.sq_off.array + p.sq_entries * sizeof(unsigned);
    uint8_t *base = map(queues > array ? queues : array, IORING_OFF_SQ_RING); /* FEAT_SINGLE_MMAP: both queues */
    ring.sqes = map(p.sq_entries * sizeof *ring.sqes, IORING_OFF_SQES);
    ring.cqes = (struct io_uring_cqe *)(base + p.cq_off.cqes);
    ring.sq_tail = (_Atomic unsigned *)(base + p.sq_off.tail);
    ring.cq_head = (_Atomic unsigned *)(base + p.cq_off.head);
    ring.cq_tail = (_Atomic unsigned *)(base + p.cq_off.tail);
    ring.sq_mask = p.sq_entries - 1;
    ring.cq_mask = p.cq_entries - 1;
    unsigned *indices = (unsigned *)(base + p.sq_off.array);
    for (unsigned i = 0; i < p.sq_entries; i++) indices[i] = i;

    struct io_uring_rsrc_update self = {.offset = ~0U, .data = (uint64_t)ring.fd};
    if (ring_register(IORING_REGISTER_RING_FDS, &self, 1) != 1) die("REGISTER_RING_FDS: %s", strerror(errno));
    ring.registered = self.offset;
    struct io_uring_rsrc_register files = {.nr = CONNECTIONS, .flags = IORING_RSRC_REGISTER_SPARSE};
    if (ring_register(IORING_REGISTER_FILES2, &files, sizeof files) != 0) die("REGISTER_FILES2: %s", strerror(errno));
}

/* A request; there is always room, since each connection has two at the most. */
static struct io_uring_sqe *request(unsigned char opcode, int fd, enum kind kind, unsigned slot, unsigned buffer) {
    struct io_uring_sqe *sqe = &ring.sqes[ring.tail++ & ring.sq_mask];
    *sqe = (struct io_uring_sqe){.opcode = opcode, .fd = fd};
    sqe->user_data = (uint64_t)kind << 56 | (uint64_t)slot << 16 | buffer;
    return sqe;
}

static void submit_and_wait(void) {
    /* Release: the kernel reads the requests behind the tail. */
    atomic_store_explicit(ring.sq_tail, ring.tail, memory_order_release);
    unsigned flags = IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING;
    long n = syscall(SYS_io_uring_enter, ring.registered, ring.tail - ring.submitted, 1, flags, NULL, 0);
    if (n < 0 && errno != EINTR && errno != EAGAIN && errno != EBUSY) die("io_uring_enter: %s", strerror(errno));
    if (n > 0) ring.submitted += (unsigned)n;
}

/* ---- buffers ---- */

static void buffer_free(unsigned index) {
    struct io_uring_buf *entry = &free_buffers->bufs[free_tail++ & (BUFFERS - 1)];
    entry->addr = (uint64_t)(uintptr_t)(memory + (size_t)index * BUFFER_BYTES);
    entry->len = BUFFER_BYTES;
    entry->bid = (unsigned short)index;
}

/* Release: the kernel reads the entries behind the tail. */
static void buffers_publish(void) {
    atomic_store_explicit((_Atomic unsigned short *)&free_buffers->tail, free_tail, memory_order_release);
}

static void buffers_open(void) {
    size_t length = BUFFERS * sizeof(struct io_uring_buf);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    free_buffers = mmap(NULL, length, PROT_READ | PROT_WRITE, flags, -1, 0);
    memory = mmap(NULL, (size_t)BUFFERS * BUFFER_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (free_buffers == MAP_FAILED || memory == MAP_FAILED) die("mmap: %s", strerror(errno));
    struct io_uring_buf_reg group = {
        .ring_addr = (uint64_t)(uintptr_t)free_buffers, .ring_entries = BUFFERS, .bgid = GROUP};
    if (ring_register(IORING_REGISTER_PBUF_RING, &group, 1) != 0) die("REGISTER_PBUF_RING: %s", strerror(errno));
    for (unsigned i = 0; i < BUFFERS; i++) buffer_free(i);
    buffers_publish();
}

/* ---- the server ---- */

static void receive(unsigned slot) {
    struct io_uring_sqe *sqe = request(IORING_OP_RECV, (int)slot, RECEIVED, slot, 0);
    sqe->flags = IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->buf_group = GROUP;
}

static void echo(unsigned slot, unsigned buffer, int length) {
    struct io_uring_sqe *sqe = request(IORING_OP_SEND, (int)slot, SENT, slot, buffer);
    sqe->flags = IOSQE_FIXED_FILE;
    sqe->addr = (uint64_t)(uintptr_t)(memory + (size_t)buffer * BUFFER_BYTES);
    sqe->len = (unsigned)length;
    sqe->msg_flags = MSG_WAITALL | MSG_NOSIGNAL;
}

static void close_slot(unsigned slot) {
    struct io_uring_sqe *sqe = request(IORING_OP_CLOSE, 0, SENT, slot, BUFFERS);
    sqe->file_index = slot + 1;
}

static void complete(const struct io_uring_cqe *cqe) {
    unsigned slot = (unsigned)(cqe->user_data >> 16), buffer = cqe->user_data & 0xffff;
    switch ((enum kind)(cqe->user_data >> 56)) {
    case ACCEPTED:
        if (cqe->res < 0) die("accept: %s", strerror(-cqe->res));
        if (!(cqe->flags & IORING_CQE_F_MORE)) die("accepting has ended");
        receive((unsigned)cqe->res);
        break;
    case RECEIVED:
        if (cqe->res > 0) {
            echo(slot, cqe->flags >> IORING_CQE_BUFFER_SHIFT, cqe->res);
            if (!(cqe->flags & IORING_CQE_F_MORE)) receive(slot);
        } else if (cqe->res == -ENOBUFS) {
            receive(slot);
        } else {
            close_slot(slot);
        }
        break;
    case SENT:
        if (buffer == BUFFERS) break; /* a close */
        buffer_free(buffer);
        break;
    }
}

static int listen_on_loopback(struct sockaddr_in *in) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t length = sizeof *in;
    *in = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); /* accepted sockets inherit it */
    if (fd < 0 || bind(fd, (struct sockaddr *)in, length) != 0 || listen(fd, BACKLOG) != 0 ||
        getsockname(fd, (struct sockaddr *)in, &length) != 0) {
        die("cannot listen: %s", strerror(errno));
    }
    return fd;
}

int main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* no server outlives its run */
    ring_open();
    buffers_open();
    struct sockaddr_in in;
    struct io_uring_sqe *sqe = request(IORING_OP_ACCEPT, listen_on_loopback(&in), ACCEPTED, 0, 0);
    sqe->ioprio = IORING_ACCEPT_MULTISHOT;
    sqe->file_index = IORING_FILE_INDEX_ALLOC;
    printf("ready 127.0.0.1:%d\n", ntohs(in.sin_port));
    fflush(stdout);
    for (;;) {
        submit_and_wait();
        /* Acquire: the kernel has written the completions before the tail. */
        unsigned head = atomic_load_explicit(ring.cq_head, memory_order_relaxed);
        unsigned tail = atomic_load_explicit(ring.cq_tail, memory_order_acquire);
        for (; head != tail; head++) complete(&ring.cqes[head & ring.cq_mask]);
        /* Release: the completions have been read. */
        atomic_store_explicit(ring.cq_head, head, memory_order_release);
        buffers_publish();
    }
}
