#include "kernel.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "engine.h"
#include "memory.h"

#define RINGS 16         /* one for each change of threads */
#define FIRST_RING 1000  /* descriptors that are none of the process's */
#define FIRST_SOCKET 2000
#define GATHER_MAX 8
#define GROUPS 2

struct request {
    int ring;
    struct io_uring_sqe sqe;
    int iov_count; /* of a gathered send: copied at submit, which is all that the core promises (SUBMIT_STABLE) */
    struct iovec iov[GATHER_MAX];
    uint64_t bytes;
};

struct group {
    struct io_uring_buf *ring;
    uint32_t entries;
    uint16_t head;
    bool incremental;
};

struct fake_ring {
    bool open, enabled;
    int owner;
    struct io_uring_params params;
    char *map;
    struct io_uring_sqe *sqes;
    struct group groups[GROUPS];
};

struct kernel kernel;
static struct fake_ring rings[RINGS];
static int ring_count;
static struct request *requests; /* that have not ended */
static size_t request_count, request_capacity;
static struct io_uring_cqe *held; /* completions that are not in the CQ yet, all of the newest ring */
static size_t held_count, held_capacity;

/* --- the input --------------------------------------------------------------------------------------------------------------------- */

static const uint8_t *input_at, *input_end;

void input_begin(const uint8_t *data, size_t size) {
    input_at = data;
    input_end = data + size;
}

bool input_left(void) { return input_at < input_end; }

uint8_t input_byte(void) { return input_left() ? *input_at++ : 0; }

uint32_t input_word(void) {
    uint32_t word = 0;
    for (int i = 0; i < 4; i++)
        word = word << 8 | input_byte();
    return word;
}

uint32_t input_below(uint32_t limit) { return limit ? input_byte() % limit : 0; }

bool input_one_in(uint32_t count) { return input_byte() % count == 1; }

/* --- memory that the core has promised --------------------------------------------------------------------------------------------- */

static void read_memory(const void *memory, size_t bytes) {
    volatile uint8_t sum = 0;
    for (size_t i = 0; i < bytes; i += i + 64 < bytes ? 64 : 1)
        sum = (uint8_t)(sum + ((const uint8_t *)memory)[i]);
}

static void *pointer(uint64_t address) { return (void *)(uintptr_t)address; }

/* --- rings ------------------------------------------------------------------------------------------------------------------------- */

static struct fake_ring *ring_of(int fd) {
    int index = fd - FIRST_RING;
    if (index < 0 || index >= ring_count || !rings[index].open)
        abort(); /* the core uses a descriptor that is not its own */
    return &rings[index];
}

static _Atomic uint32_t *word_at(const struct fake_ring *ring, uint32_t offset) { return (_Atomic uint32_t *)(void *)(ring->map + offset); }

void ring_mapped(int fd, long offset, char *memory, size_t bytes) {
    struct fake_ring *ring = ring_of(fd);
    (void)bytes;
    if (offset == (long)IORING_OFF_SQES)
        ring->sqes = (struct io_uring_sqe *)(void *)memory;
    else
        ring->map = memory;
}

static int fake_setup(uint32_t entries, struct io_uring_params *params) {
    if (kernel.old && params->flags & IORING_SETUP_NO_SQARRAY)
        return -EINVAL;
    if (ring_count == RINGS)
        return -EMFILE;
    params->sq_entries = entries;
    params->features = IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_EXT_ARG;
    params->features |= kernel.old ? 0 : IORING_FEAT_MIN_TIMEOUT;
    params->sq_off = (struct io_sqring_offsets){.head = 0, .tail = 64, .flags = 128};
    params->cq_off = (struct io_cqring_offsets){.head = 192, .tail = 256, .cqes = 320};
    params->sq_off.array = 320 + params->cq_entries * (uint32_t)sizeof(struct io_uring_cqe);
    rings[ring_count] = (struct fake_ring){.open = true, .params = *params};
    return FIRST_RING + ring_count++;
}

static int register_buffers(struct fake_ring *ring, const struct io_uring_buf_reg *wanted) {
    if (kernel.old && wanted->flags & IOU_PBUF_RING_INC)
        return -EINVAL;
    struct group *group = &ring->groups[wanted->bgid % GROUPS];
    *group = (struct group){.ring = pointer(wanted->ring_addr), .entries = wanted->ring_entries, .incremental = wanted->flags & IOU_PBUF_RING_INC};
    return 0;
}

static int fake_register(int fd, uint32_t operation, void *argument) {
    struct fake_ring *ring = ring_of(fd);
    if (ring->enabled && ring->owner != kernel.thread)
        return -EEXIST;
    switch (operation) {
    case IORING_REGISTER_ENABLE_RINGS:
        ring->enabled = true;
        ring->owner = kernel.thread;
        return 0;
    case IORING_REGISTER_RING_FDS:
        if (kernel.old || input_one_in(8))
            return -EBUSY;
        ((struct io_uring_rsrc_update *)argument)->offset = (uint32_t)fd;
        return 1;
    case IORING_UNREGISTER_RING_FDS:
        return 1;
    case IORING_REGISTER_PBUF_RING:
        return register_buffers(ring, argument);
    case IORING_UNREGISTER_PBUF_RING:
        ring->groups[((struct io_uring_buf_reg *)argument)->bgid % GROUPS].ring = NULL;
        return 0;
    default:
        return 0;
    }
}

/* --- completions ------------------------------------------------------------------------------------------------------------------- */

static void complete(uint64_t user_data, int32_t result, uint32_t flags) {
    if (held_count == held_capacity) {
        held_capacity = held_capacity ? held_capacity * 2 : 64;
        held = realloc(held, held_capacity * sizeof *held);
    }
    held[held_count++] = (struct io_uring_cqe){.user_data = user_data, .res = result, .flags = flags};
}

/* As many as there is room for, in order; the flag says whether that was all. */
static void post_completions(struct fake_ring *ring) {
    struct io_uring_cqe *cqes = (struct io_uring_cqe *)(void *)(ring->map + ring->params.cq_off.cqes);
    uint32_t head = atomic_load(word_at(ring, ring->params.cq_off.head));
    uint32_t tail = atomic_load(word_at(ring, ring->params.cq_off.tail));
    size_t posted = 0;
    while (posted < held_count && tail - head < ring->params.cq_entries)
        cqes[tail++ & (ring->params.cq_entries - 1)] = held[posted++];
    held_count -= posted;
    if (posted)
        memmove(held, held + posted, held_count * sizeof *held);
    atomic_store(word_at(ring, ring->params.cq_off.tail), tail);
    atomic_store(word_at(ring, ring->params.sq_off.flags), held_count ? IORING_SQ_CQ_OVERFLOW : 0);
}

static void forget_request(size_t index) { requests[index] = requests[--request_count]; }

/* --- the honest kernel ------------------------------------------------------------------------------------------------------------- */

/* Fill a buffer of the request's group. False if there is none. */
static bool receive_into_buffer(const struct request *request, uint32_t header, uint32_t *flags, int32_t *result) {
    struct group *group = &rings[request->ring].groups[request->sqe.buf_group % GROUPS];
    if (!group->ring)
        return false;
    uint16_t tail = atomic_load((_Atomic uint16_t *)&group->ring[0].resv);
    if (tail == group->head)
        return false;
    struct io_uring_buf *entry = &group->ring[group->head & (group->entries - 1)];
    uint32_t length = header + input_word() % (entry->len - header + 1);
    if (!length)
        length = 1;
    memset(pointer(entry->addr), (int)(length & 0xff), length);
    if (header) {
        const struct io_uring_recvmsg_out out = {.namelen = input_below(UINT8_MAX), .payloadlen = length - header};
        memcpy(pointer(entry->addr), &out, sizeof out);
    }
    *flags = IORING_CQE_F_BUFFER | (uint32_t)entry->bid << IORING_CQE_BUFFER_SHIFT;
    *result = (int32_t)length;
    if (group->incremental && length < entry->len) {
        entry->addr += length;
        entry->len -= length;
        *flags |= IORING_CQE_F_BUF_MORE;
    } else {
        group->head++;
    }
    return true;
}

static int32_t some_error(void) {
    static const int32_t errors[] = {-ECANCELED, -EAGAIN, -EINTR, -ENOBUFS, -EBADF, -EPIPE, -ECONNRESET, -EMFILE, -ECONNREFUSED, -EINVAL};
    return errors[input_below(sizeof errors / sizeof *errors)];
}

/* Something happens to a waiting request. True if it has ended. */
static bool advance(const struct request *request) {
    const struct io_uring_sqe *sqe = &request->sqe;
    uint32_t flags = 0;
    int32_t result = 0;
    bool multishot = false, error = input_one_in(4);
    switch (sqe->opcode) {
    case IORING_OP_RECV:
    case IORING_OP_RECVMSG:
        multishot = true;
        if (!error && !receive_into_buffer(request, sqe->opcode == IORING_OP_RECVMSG ? 144 : 0, &flags, &result))
            result = -ENOBUFS;
        break;
    case IORING_OP_ACCEPT:
        multishot = true;
        result = FIRST_SOCKET + input_byte();
        break;
    case IORING_OP_SEND:
    case IORING_OP_SENDMSG:
        for (int i = 0; i < request->iov_count; i++)
            read_memory(request->iov[i].iov_base, request->iov[i].iov_len);
        result = request->bytes ? (int32_t)(1 + input_word() % request->bytes) : 0;
        break;
    case IORING_OP_POLL_ADD:
        multishot = sqe->len & IORING_POLL_ADD_MULTI;
        result = input_byte();
        break;
    default:
        result = input_byte();
    }
    if (error)
        result = input_one_in(4) ? 0 : some_error();
    bool more = multishot && result > 0 && !input_one_in(4);
    complete(sqe->user_data, result, flags | (more ? IORING_CQE_F_MORE : 0));
    return !more;
}

static bool is_of_waiting_kind(const struct io_uring_sqe *sqe) { return !(sqe->flags & IOSQE_CQE_SKIP_SUCCESS); }

static void cancel(const struct io_uring_sqe *sqe) {
    bool all = sqe->op_flags & IORING_ASYNC_CANCEL_ANY, any = false;
    for (size_t i = request_count; i-- > 0;) {
        if (!all && requests[i].sqe.user_data != sqe->addr)
            continue;
        complete(requests[i].sqe.user_data, -ECANCELED, 0);
        forget_request(i);
        any = true;
    }
    if (!any)
        complete(sqe->user_data, -ENOENT, 0);
}

static void run_inline(const struct request *request) {
    const struct io_uring_sqe *sqe = &request->sqe;
    if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
        cancel(sqe);
        return;
    }
    if (!input_one_in(4))
        return;
    bool stream_send = sqe->user_data >> 32 == UL_REQUEST_SEND_INLINE && request->bytes > 1;
    complete(sqe->user_data, stream_send && !input_one_in(3) ? (int32_t)(input_word() % request->bytes) : some_error(), 0);
}

/* --- the hostile kernel ------------------------------------------------------------------------------------------------------------ */

static void scribble_datagram(void) {
    size_t buffers = kernel.datagram_buffer_bytes ? kernel.datagram_bytes / kernel.datagram_buffer_bytes : 0;
    if (!kernel.datagram_pool || !buffers)
        return;
    const uint32_t header[] = {input_word(), input_word(), input_word(), input_word()};
    memcpy(kernel.datagram_pool + input_below((uint32_t)buffers) * kernel.datagram_buffer_bytes, header, sizeof header);
}

static void lie(void) {
    uint64_t user_data = (uint64_t)input_byte() << 32 | input_byte();
    uint8_t how = input_byte();
    if (how & 1 && request_count)
        user_data = requests[input_below((uint32_t)request_count)].sqe.user_data;
    if (how & 2)
        user_data ^= (uint64_t)input_byte() << (how & 4 ? 20 : 32); /* another life, or another kind of request */
    int32_t result = how & 8 ? some_error() : how & 16 ? (int32_t)input_word() : how & 32 ? 144 + input_byte() * 16 : input_byte();
    if (result == INT32_MIN)
        result++; /* no errno: it has no positive */
    uint32_t flags = how & 64 ? input_word() : input_below(16) | input_below(4) << IORING_CQE_BUFFER_SHIFT;
    if (how & 128)
        flags |= IORING_CQE_F_BUFFER | IORING_CQE_F_MORE;
    scribble_datagram();
    complete(user_data, result, flags);
}

/* --- submit and wait --------------------------------------------------------------------------------------------------------------- */

static struct request prepare(int ring, const struct io_uring_sqe *sqe) {
    struct request request = {.ring = ring, .sqe = *sqe};
    uint64_t kind = sqe->user_data >> 32;
    if (sqe->opcode == IORING_OP_SENDMSG) {
        const struct msghdr *message = pointer(sqe->addr);
        request.iov_count = (int)message->msg_iovlen;
        memcpy(request.iov, message->msg_iov, message->msg_iovlen * sizeof *message->msg_iov);
    } else if (sqe->opcode == IORING_OP_SEND) {
        request.iov_count = 1;
        request.iov[0] = (struct iovec){.iov_base = pointer(sqe->addr), .iov_len = sqe->len};
        uint16_t name_length;
        memcpy(&name_length, &sqe->file_index, sizeof name_length);
        if (kind == UL_REQUEST_DATAGRAM && name_length)
            read_memory(pointer(sqe->off), name_length);
    } else if (sqe->opcode == IORING_OP_RECVMSG) {
        read_memory(pointer(sqe->addr), sizeof(struct msghdr));
    } else if (sqe->opcode == IORING_OP_FILES_UPDATE) {
        read_memory(pointer(sqe->addr), sizeof(int32_t));
    }
    for (int i = 0; i < request.iov_count; i++) {
        read_memory(request.iov[i].iov_base, request.iov[i].iov_len);
        request.bytes += request.iov[i].iov_len;
    }
    return request;
}

static void submit(int ring, const struct io_uring_sqe *sqe) {
    struct request request = kernel.hostile ? (struct request){.ring = ring, .sqe = *sqe} : prepare(ring, sqe);
    bool waits = is_of_waiting_kind(sqe);
    if (!waits && !kernel.hostile)
        run_inline(&request);
    if (!waits)
        return;
    if (request_count == request_capacity) {
        request_capacity = request_capacity ? request_capacity * 2 : 64;
        requests = realloc(requests, request_capacity * sizeof *requests);
    }
    requests[request_count++] = request;
}

static int32_t interruption(void) {
    static const int32_t errors[] = {-EINTR, -EBUSY, -EAGAIN, -ETIME};
    return errors[input_below(4)];
}

static long fake_enter(int fd, uint32_t to_submit) {
    struct fake_ring *ring = ring_of(fd);
    if (!ring->enabled)
        return -EBADFD;
    if (ring->owner != kernel.thread)
        return -EEXIST;
    uint32_t trouble = input_below(32);
    if (trouble == 1)
        return interruption();
    if (trouble == 2)
        to_submit /= 2;
    uint32_t head = atomic_load(word_at(ring, ring->params.sq_off.head));
    if (to_submit > ring->params.sq_entries)
        abort();
    for (uint32_t i = 0; i < to_submit; i++) {
        uint32_t slot = head++ & (ring->params.sq_entries - 1);
        if (!(ring->params.flags & IORING_SETUP_NO_SQARRAY))
            slot = ((uint32_t *)(void *)(ring->map + ring->params.sq_off.array))[slot];
        submit(fd - FIRST_RING, &ring->sqes[slot]);
    }
    atomic_store(word_at(ring, ring->params.sq_off.head), head);
    for (uint32_t count = input_below(16); count && input_left(); count--) {
        size_t index = input_below((uint32_t)request_count);
        if (kernel.hostile)
            lie();
        else if (request_count && advance(&requests[index]))
            forget_request(index);
    }
    post_completions(ring);
    return trouble == 3 ? interruption() : (long)to_submit;
}

/* --- the system calls -------------------------------------------------------------------------------------------------------------- */

static long answer(long result) {
    if (result >= 0)
        return result;
    errno = (int)-result;
    return -1;
}

long fuzz_syscall(long number, ...) {
    va_list arguments;
    va_start(arguments, number);
    long result = -ENOSYS;
    if (number == UL_NR_io_uring_setup) {
        uint32_t entries = va_arg(arguments, uint32_t);
        result = fake_setup(entries, va_arg(arguments, struct io_uring_params *));
    } else if (number == UL_NR_io_uring_register) {
        int fd = va_arg(arguments, int);
        uint32_t operation = va_arg(arguments, uint32_t);
        result = fake_register(fd, operation, va_arg(arguments, void *));
    } else if (number == UL_NR_io_uring_enter) {
        int fd = va_arg(arguments, int);
        result = fake_enter(fd, va_arg(arguments, uint32_t));
    }
    va_end(arguments);
    return answer(result);
}

int fuzz_close(int fd) {
    if (fd < FIRST_RING || fd >= FIRST_RING + ring_count)
        return 0; /* a socket that nobody wanted, or the eventfd */
    ring_of(fd)->open = false;
    held_count = 0;
    for (size_t i = request_count; i-- > 0;)
        if (requests[i].ring == fd - FIRST_RING)
            forget_request(i);
    return 0;
}

int fuzz_eventfd(unsigned int value, int flags) {
    (void)value, (void)flags;
    return FIRST_RING - 1;
}

ssize_t fuzz_write(int fd, const void *data, size_t bytes) {
    (void)fd;
    read_memory(data, bytes);
    return (ssize_t)bytes;
}

ssize_t fuzz_send(int fd, const void *data, size_t bytes, int flags) {
    (void)fd, (void)flags;
    read_memory(data, bytes);
    if (input_one_in(4))
        return answer(some_error());
    return (ssize_t)(input_one_in(2) ? bytes : input_word() % (bytes + 1));
}

int fuzz_sendmmsg(int fd, struct mmsghdr *messages, unsigned int count, int flags) {
    (void)fd, (void)flags;
    for (unsigned int i = 0; i < count; i++) {
        read_memory(messages[i].msg_hdr.msg_name, messages[i].msg_hdr.msg_namelen);
        read_memory(messages[i].msg_hdr.msg_control, messages[i].msg_hdr.msg_controllen);
        for (size_t j = 0; j < messages[i].msg_hdr.msg_iovlen; j++)
            read_memory(messages[i].msg_hdr.msg_iov[j].iov_base, messages[i].msg_hdr.msg_iov[j].iov_len);
    }
    if (input_one_in(4))
        return (int)answer(some_error());
    return (int)(1 + input_below(count));
}

/* A socket's protocol, the length that it cuts datagrams into, or the bytes of its receive buffer. */
int fuzz_getsockopt(int fd, int level, int name, void *value, socklen_t *length) {
    (void)fd, (void)level;
    if (input_one_in(4))
        return (int)answer(some_error());
    const int told = name == SO_RCVBUF ? (int)(input_word() % (4U << 20)) : input_one_in(2) ? IPPROTO_UDP : 0;
    memcpy(value, &told, *length);
    return 0;
}

int fuzz_shutdown(int fd, int how) {
    (void)fd, (void)how;
    return input_one_in(4) ? (int)answer(-ENOTCONN) : 0;
}

/* --- the beginning and the end ------------------------------------------------------------------------------------------------------ */

void kernel_begin(void) {
    kernel = (struct kernel){0};
    ring_count = 0;
    request_count = held_count = 0;
}

size_t kernel_end(void) { return memory_end(); }
