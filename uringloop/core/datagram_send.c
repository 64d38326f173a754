/* Sending, in the order of the calls.
 *
 * Facts: requests of one batch run one by one, and each by itself: if the first finds the socket full and the second, a moment later, does
 * not, they have changed places. A chain of linked requests would keep the order, but the kernel runs each link in an enter of its own.
 * sendmmsg(2) keeps it, stops at the first that fails, and costs less a datagram than a request does. And a send that waits for room is not
 * to be had: where a Unix socket's receiver is full, the kernel has read the bytes by then, and sends an empty datagram later (seen on 6.18).
 * UDP takes several datagrams of one length to one address as one message, and cuts it itself, as late as it can (UDP_SEGMENT, udp(7),
 * Linux 4.18): a fifth of the time for 32 of them. It refuses if the way there cannot: a datagram longer than the MTU, or one that IPsec takes.
 * So: a datagram that is alone in its turn, as the answer of most servers is, is an inline SEND, which rides in the turn's enter. Several are
 * sent by one sendmmsg(2), joined where they can be; what is refused when joined is sent by itself, and nothing as long is joined again.
 * None of them waits: if the socket is full, a poll tells when it no longer is.
 * Cost: a system call for each endpoint that sends several in a turn. A Unix socket that is not connected says that it is writable while its
 * receiver is full, so the loop tries again in each turn without sleep until there is room, as asyncio does.
 */
#include <assert.h>
#include <netinet/in.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "datagram_parts.h"
#include "ring_fault.h"

/* Datagrams of one sendmmsg: their headers, 104 bytes each, are on the stack. It is also the most that Linux before 6.9 takes as one. */
#define UL_SEND_BATCH 64
/* Of those sent as one: with its headers, and an IPv4 header's options, it must fit an IP datagram's 64 KiB. */
#define UL_JOINED_BYTES_MAX 65000U

/* --- the queue --------------------------------------------------------------------------------------------------------------------- */

static const char *ul_datagram_data(const struct ul_datagram *datagram) { return datagram->bytes + datagram->name_length; }

static void ul_endpoint_drop_first(struct ul_endpoint *endpoint) {
    struct ul_datagram *datagram = endpoint->first;
    endpoint->first = datagram->next;
    if (!endpoint->first)
        endpoint->last = NULL;
    endpoint->queued -= datagram->length + endpoint->overhead;
    free(datagram);
}

void ul_endpoint_drop_queue(struct ul_endpoint *endpoint) {
    while (endpoint->first)
        ul_endpoint_drop_first(endpoint);
}

static void ul_endpoint_sent_first(struct ul_endpoint *endpoint, struct ul_stats *stats) {
    stats->datagrams_sent++;
    stats->bytes_sent += endpoint->first->length;
    ul_endpoint_drop_first(endpoint);
}

/* To be asked whenever more comes to matter than the memory of the send that is offered: its end comes without a completion. */
static void ul_endpoint_await_send(struct ul_endpoints *endpoints, const struct ul_endpoint *endpoint) {
    bool awaited = endpoint->life != UL_ENDPOINT_OPEN || endpoint->low_water >= 0 || endpoint->first != endpoint->last;
    if (endpoint->send_state == UL_ENDPOINT_SEND_OFFERED && awaited)
        endpoints->urgent = true;
}

int64_t ul_endpoint_write(struct ul_endpoints *endpoints, int32_t token, const char *data, size_t length, const char *name, uint32_t name_length) {
    struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
    if (!endpoint)
        return -ENOENT;
    if (endpoint->life != UL_ENDPOINT_OPEN)
        return (int64_t)endpoint->queued;
    if (length > INT32_MAX || name_length > UL_NAME_BYTES)
        return -EMSGSIZE; /* no protocol has datagrams of this size */
    struct ul_datagram *datagram = malloc(sizeof *datagram + name_length + length);
    if (!datagram)
        return -ENOMEM;
    *datagram = (struct ul_datagram){.length = (uint32_t)length, .name_length = name_length};
    memcpy(datagram->bytes, name, name_length);
    memcpy(datagram->bytes + name_length, data, length);
    if (endpoint->last)
        endpoint->last->next = datagram;
    else
        endpoint->first = datagram;
    endpoint->last = datagram;
    endpoint->queued += length + endpoint->overhead;
    if (endpoint->send_state == UL_ENDPOINT_SEND_IDLE)
        ul_endpoint_list_for_flush(endpoints, endpoint);
    ul_endpoint_await_send(endpoints, endpoint);
    return (int64_t)endpoint->queued;
}

int64_t ul_endpoint_queued(const struct ul_endpoints *endpoints, int32_t token) {
    const struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
    return endpoint ? (int64_t)endpoint->queued : 0;
}

int ul_endpoint_set_low_water(struct ul_endpoints *endpoints, int32_t token, int64_t bytes) {
    struct ul_endpoint *endpoint = ul_table_get(&endpoints->table, token);
    if (!endpoint)
        return -ENOENT;
    endpoint->low_water = bytes;
    if (bytes >= 0)
        ul_endpoint_list_for_flush(endpoints, endpoint); /* it may be as low already */
    ul_endpoint_await_send(endpoints, endpoint);
    return 0;
}

/* --- one at a time ----------------------------------------------------------------------------------------------------------------- */

static bool ul_endpoint_offer(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    const struct ul_datagram *datagram = endpoint->first;
    struct io_uring_sqe *sqe = ul_endpoint_request(endpoints, endpoint, IORING_OP_SEND, UL_REQUEST_DATAGRAM);
    if (!sqe)
        return false;
    sqe->op_flags = MSG_DONTWAIT;
    sqe->addr = (uint64_t)(uintptr_t)ul_datagram_data(datagram);
    sqe->len = datagram->length;
    if (datagram->name_length) {
        const uint16_t addr_len = (uint16_t)datagram->name_length;
        sqe->off = (uint64_t)(uintptr_t)datagram->bytes;     /* addr2 in the kernel */
        memcpy(&sqe->file_index, &addr_len, sizeof addr_len); /* a union with it */
    }
    endpoint->send_state = UL_ENDPOINT_SEND_OFFERED;
    ul_endpoint_await_send(endpoints, endpoint);
    return true;
}

void ul_endpoint_confirm_send(struct ul_endpoint *endpoint, struct ul_stats *stats) {
    if (endpoint->send_state != UL_ENDPOINT_SEND_OFFERED)
        return;
    endpoint->send_state = UL_ENDPOINT_SEND_IDLE;
    ul_endpoint_sent_first(endpoint, stats);
    if (endpoint->life == UL_ENDPOINT_ABORTING)
        ul_endpoint_drop_queue(endpoint);
}

/* --- a full socket ----------------------------------------------------------------------------------------------------------------- */

static void ul_endpoint_wait_for_room(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    struct io_uring_sqe *sqe = ul_endpoint_request(endpoints, endpoint, IORING_OP_POLL_ADD, UL_REQUEST_DATAGRAM_ROOM);
    if (!sqe) {
        ul_endpoint_try_again(endpoints, endpoint);
        return;
    }
    sqe->op_flags = POLLOUT;
    endpoint->send_state = UL_ENDPOINT_SEND_FULL;
    endpoints->engine->stats.datagram_waits++;
}

void ul_endpoint_on_room(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    endpoint->send_state = UL_ENDPOINT_SEND_IDLE; /* an error of the poll itself comes back from the send that follows */
    ul_endpoint_list_for_flush(endpoints, endpoint);
}

/* The completion of a send that was offered: it has failed. */
void ul_endpoint_on_offer_refused(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint, int32_t result) {
    endpoint->send_state = UL_ENDPOINT_SEND_IDLE;
    if (endpoint->life == UL_ENDPOINT_ABORTING) {
        ul_endpoint_drop_queue(endpoint);
        return;
    }
    if (result == -EAGAIN) {
        ul_endpoint_wait_for_room(endpoints, endpoint);
        return;
    }
    if (result >= 0) { /* it was sent, and the kernel says so though it was not asked to */
        ul_endpoint_sent_first(endpoint, &endpoints->engine->stats);
    } else if (result != -EINTR) {
        ul_endpoint_drop_first(endpoint);
        ul_endpoint_tell_error(endpoints, endpoint, -result);
    }
    ul_endpoint_list_for_flush(endpoints, endpoint);
}

/* --- several ----------------------------------------------------------------------------------------------------------------------- */

/* The segments' length, as an ancillary message: a struct cmsghdr and what follows it. */
struct ul_segment_control {
    size_t length;
    int level, type;
    uint16_t bytes;
};
static_assert(offsetof(struct ul_segment_control, level) == offsetof(struct cmsghdr, cmsg_level), "as in a cmsghdr");
static_assert(offsetof(struct ul_segment_control, type) == offsetof(struct cmsghdr, cmsg_type), "as in a cmsghdr");
static_assert(offsetof(struct ul_segment_control, bytes) == CMSG_LEN(0), "where the kernel looks for it");

struct ul_send_batch {
    unsigned int datagrams, messages;
    struct mmsghdr message[UL_SEND_BATCH];
    struct iovec iov[UL_SEND_BATCH];
    struct ul_segment_control control[UL_SEND_BATCH];
};

static bool ul_datagram_has_name_of(const struct ul_datagram *one, const struct ul_datagram *other) {
    return one->name_length == other->name_length && memcmp(one->bytes, other->bytes, one->name_length) == 0;
}

/* How many, from this one on, may be one message: all of one length but the last, which may be shorter, and none empty. */
static unsigned int ul_endpoint_joinable(const struct ul_endpoint *endpoint, const struct ul_datagram *first, unsigned int most) {
    if (!first->length || first->length >= endpoint->join_below)
        return 1;
    unsigned int count = 1;
    uint32_t bytes = first->length, last = first->length;
    for (const struct ul_datagram *next = first->next; next && count < most && last == first->length; next = next->next, count++) {
        last = next->length;
        bytes += last;
        if (!last || last > first->length || bytes > UL_JOINED_BYTES_MAX || !ul_datagram_has_name_of(first, next))
            break;
    }
    return count;
}

/* Make these one message; the first that is not of it. */
static struct ul_datagram *ul_send_batch_add(struct ul_send_batch *batch, struct ul_datagram *first, unsigned int count) {
    struct msghdr *header = &batch->message[batch->messages].msg_hdr;
    *header = (struct msghdr){.msg_iov = &batch->iov[batch->datagrams], .msg_iovlen = count};
    if (first->name_length) {
        header->msg_name = first->bytes;
        header->msg_namelen = first->name_length;
    }
    if (count > 1) {
        struct ul_segment_control *control = &batch->control[batch->messages];
        *control = (struct ul_segment_control){
            .length = CMSG_LEN(sizeof control->bytes),
            .level = IPPROTO_UDP,
            .type = UDP_SEGMENT,
            .bytes = (uint16_t)first->length,
        };
        header->msg_control = control;
        header->msg_controllen = sizeof *control;
    }
    batch->messages++;
    struct ul_datagram *datagram = first;
    for (; count; datagram = datagram->next, count--)
        batch->iov[batch->datagrams++] = (struct iovec){.iov_base = (void *)(uintptr_t)ul_datagram_data(datagram), .iov_len = datagram->length};
    return datagram;
}

/* How many datagrams were sent, or -errno of the first; zero if they were refused for being joined, as they will not be again. */
static int ul_endpoint_send_batch(const struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    struct ul_send_batch batch;
    batch.datagrams = batch.messages = 0;
    for (struct ul_datagram *datagram = endpoint->first; datagram && batch.datagrams < UL_SEND_BATCH;)
        datagram = ul_send_batch_add(&batch, datagram, ul_endpoint_joinable(endpoint, datagram, UL_SEND_BATCH - batch.datagrams));
    unsigned int count = (unsigned int)UL_FAULT_LENGTH(&endpoints->engine->ring, SHORT_SEND, batch.messages);
    if (UL_FAULT(&endpoints->engine->ring, EAGAIN))
        return -EAGAIN;
    int sent = sendmmsg(endpoint->fd, batch.message, count, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) {
        bool refused = batch.message[0].msg_hdr.msg_iovlen > 1 && (errno == EMSGSIZE || errno == EINVAL || errno == EIO);
        if (!refused)
            return -errno;
        endpoint->join_below = endpoint->first->length;
        return 0;
    }
    int datagrams = 0;
    for (int i = 0; i < sent; i++) {
        const int together = (int)batch.message[i].msg_hdr.msg_iovlen;
        datagrams += together;
        if (together > 1)
            endpoints->engine->stats.datagrams_joined += (uint64_t)together;
    }
    return datagrams;
}

/* Send what one call takes, or drop the first and tell why it failed; false if the socket is full. */
static bool ul_endpoint_send_some(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    struct ul_stats *stats = &endpoints->engine->stats;
    int sent = ul_endpoint_send_batch(endpoints, endpoint);
    stats->datagram_batches++;
    if (sent == -EAGAIN)
        return false;
    for (int i = 0; i < sent; i++)
        ul_endpoint_sent_first(endpoint, stats);
    if (sent < 0 && sent != -EINTR) {
        ul_endpoint_drop_first(endpoint);
        ul_endpoint_tell_error(endpoints, endpoint, -sent);
    }
    return true;
}

/* False if it stopped because there is no room for another event. */
static bool ul_endpoint_send_now(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    while (endpoint->first) {
        if (endpoints->engine->event_count >= UL_EVENTS_MAX)
            return false;
        if (!ul_endpoint_send_some(endpoints, endpoint)) {
            ul_endpoint_wait_for_room(endpoints, endpoint);
            return true;
        }
    }
    return true;
}

/* What was written in the turn of an abort asyncio has sent by then. It is of an endpoint that hears of no error any more. */
void ul_endpoint_send_at_last(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    while (endpoint->first && endpoint->send_state == UL_ENDPOINT_SEND_IDLE && ul_endpoint_send_some(endpoints, endpoint))
        continue;
}

/* What fails is left in the queue, to fail again where it can be told. */
void ul_endpoint_send_what_goes(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    struct ul_stats *stats = &endpoints->engine->stats;
    bool may = endpoint->life == UL_ENDPOINT_OPEN || endpoint->life == UL_ENDPOINT_CLOSING;
    int sent = 1;
    while (may && sent > 0 && endpoint->first && endpoint->send_state == UL_ENDPOINT_SEND_IDLE) {
        sent = ul_endpoint_send_batch(endpoints, endpoint);
        stats->datagram_batches++;
        for (int i = 0; i < sent; i++)
            ul_endpoint_sent_first(endpoint, stats);
    }
}

bool ul_endpoint_send_queued(struct ul_endpoints *endpoints, struct ul_endpoint *endpoint) {
    bool may = endpoint->life == UL_ENDPOINT_OPEN || endpoint->life == UL_ENDPOINT_CLOSING;
    if (!may || endpoint->send_state != UL_ENDPOINT_SEND_IDLE || !endpoint->first)
        return true;
    bool alone = !endpoint->first->next;
    if (alone && endpoints->engine->inline_sends && ul_endpoint_offer(endpoints, endpoint))
        return true;
    return ul_endpoint_send_now(endpoints, endpoint);
}
