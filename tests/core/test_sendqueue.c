/* The send queue against a flat model: one array of all bytes ever queued, and a mark for how many have been sent. */
#include "sendqueue.h"

#include "check.h"

#define STEPS 3000
#define WRITE_MOST (3 * UL_BLOCK_BYTES)
#define WRITES_MOST 4096

struct model {
    char *bytes; /* room for all writes of a test */
    size_t queued, sent;
    size_t pin_ends[WRITES_MOST]; /* where each pinned write ends, in order */
    uint32_t pins, pins_released;
};

static struct ul_sendqueue queue;
static struct ul_blocks blocks;
static struct model model;

static void begin(void) {
    model.bytes = malloc((size_t)STEPS * WRITE_MOST);
    CHECK(model.bytes);
}

static void end(void) {
    ul_sendqueue_clear(&queue, &blocks);
    CHECK_INT(queue.bytes, ==, 0);
    CHECK(!queue.first && !queue.last);
    ul_blocks_destroy(&blocks);
    CHECK(!blocks.kept && blocks.kept_count == 0);
    free(model.bytes);
}

/* Appends random bytes to the model; where they are. */
static char *model_write(size_t length) {
    char *bytes = model.bytes + model.queued;
    for (size_t i = 0; i < length; i++)
        bytes[i] = (char)check_random();
    model.queued += length;
    return bytes;
}

static void copy(size_t length) {
    char *bytes = model_write(length);
    char *lent = malloc(length + 1);
    memcpy(lent, bytes, length);
    CHECK_INT(ul_sendqueue_copy(&queue, &blocks, lent, length), ==, 0);
    free(lent); /* a copied write is the caller's again at once */
}

static void pin(size_t length) {
    char *bytes = model_write(length);
    CHECK_INT(ul_sendqueue_pin(&queue, bytes, length), ==, 0);
    model.pin_ends[model.pins++] = model.queued;
}

static uint32_t model_release(void) {
    uint32_t before = model.pins_released;
    while (model.pins_released < model.pins && model.pin_ends[model.pins_released] <= model.sent)
        model.pins_released++;
    return model.pins_released - before;
}

static void advance(size_t bytes) {
    model.sent += bytes;
    CHECK_INT(ul_sendqueue_advance(&queue, &blocks, bytes), ==, model_release());
}

/* What would be sent next is what the model says comes next. The bytes offered. */
static size_t gather_and_compare(void) {
    struct iovec iov[UL_GATHER_MAX];
    size_t offered = 0;
    int count = ul_sendqueue_gather(&queue, iov);
    CHECK_INT(count, <=, UL_GATHER_MAX);
    for (int i = 0; i < count; i++) {
        CHECK_INT(iov[i].iov_len, >, 0);
        CHECK_INT(model.sent + offered + iov[i].iov_len, <=, model.queued);
        CHECK(memcmp(iov[i].iov_base, model.bytes + model.sent + offered, iov[i].iov_len) == 0);
        offered += iov[i].iov_len;
    }
    CHECK_INT(queue.bytes, ==, model.queued - model.sent);
    CHECK(count == UL_GATHER_MAX || offered == queue.bytes);
    return offered;
}

static size_t some_length(void) {
    switch (check_below(4)) {
    case 0:
        return 1 + check_below(10);
    case 1:
        return UL_BLOCK_BYTES - 5 + check_below(10);
    default:
        return 1 + check_below(WRITE_MOST);
    }
}

static void random_writes_and_sends_are_as_in_the_model(void) {
    begin();
    for (int step = 0; step < STEPS; step++) {
        switch (check_below(4)) {
        case 0:
            pin(some_length());
            break;
        case 1:
            copy(some_length());
            break;
        default: {
            size_t offered = gather_and_compare();
            if (offered)
                advance(check_one_in(3) ? offered : 1 + check_random() % offered);
        }
        }
    }
    for (size_t offered; (offered = gather_and_compare());)
        advance(offered);
    CHECK_INT(model.pins_released, ==, model.pins);
    CHECK_INT(model.pins, >, STEPS / 10);
    end();
}

static void small_writes_join_in_one_block(void) {
    struct iovec iov[UL_GATHER_MAX];
    begin();
    for (int i = 0; i < 100; i++)
        copy(UL_BLOCK_BYTES / 100);
    CHECK_INT(ul_sendqueue_gather(&queue, iov), ==, 1);
    CHECK_INT(gather_and_compare(), ==, queue.bytes);
    end();
}

static void a_write_joins_behind_bytes_that_are_being_sent(void) {
    struct iovec iov[UL_GATHER_MAX];
    begin();
    copy(100);
    ul_sendqueue_gather(&queue, iov); /* the kernel now reads from here */
    char in_flight[100];
    memcpy(in_flight, iov[0].iov_base, sizeof in_flight);
    const void *place = iov[0].iov_base;
    copy(200);
    CHECK(memcmp(place, in_flight, sizeof in_flight) == 0);
    advance(100);
    CHECK_INT(ul_sendqueue_gather(&queue, iov), ==, 1);
    CHECK(iov[0].iov_base == (const char *)place + 100);
    gather_and_compare();
    end();
}

static void nothing_joins_a_pinned_write(void) {
    struct iovec iov[UL_GATHER_MAX];
    begin();
    pin(10);
    copy(10);
    pin(10);
    CHECK_INT(ul_sendqueue_gather(&queue, iov), ==, 3);
    gather_and_compare();
    end();
}

static void a_pinned_write_is_released_with_its_last_byte(void) {
    begin();
    pin(10);
    pin(10);
    pin(10);
    model.sent += 9;
    CHECK_INT(ul_sendqueue_advance(&queue, &blocks, 9), ==, 0);
    model.sent += 1;
    CHECK_INT(ul_sendqueue_advance(&queue, &blocks, 1), ==, 1);
    model.sent += 15;
    CHECK_INT(ul_sendqueue_advance(&queue, &blocks, 15), ==, 1);
    gather_and_compare();
    end();
}

static void more_sent_than_queued_ends_at_the_queue(void) {
    begin();
    pin(10);
    copy(10);
    CHECK_INT(ul_sendqueue_advance(&queue, &blocks, SIZE_MAX), ==, 1);
    CHECK_INT(queue.bytes, ==, 0);
    CHECK(!queue.first && !queue.last);
    end();
}

static void blocks_are_used_again(void) {
    begin();
    copy(100);
    const char *place = queue.first->data;
    advance(100);
    CHECK_INT(blocks.kept_count, ==, 1);
    copy(100);
    CHECK(queue.first->data == place);
    CHECK_INT(blocks.kept_count, ==, 0);
    end();
}

static void no_more_blocks_are_kept_than_the_cap(void) {
    begin();
    copy((UL_BLOCKS_KEPT + 10) * UL_BLOCK_BYTES);
    advance(queue.bytes);
    CHECK_INT(blocks.kept_count, ==, UL_BLOCKS_KEPT);
    end();
}

static void pinned_writes_are_not_kept_as_blocks(void) {
    begin();
    pin(UL_BLOCK_BYTES);
    advance(UL_BLOCK_BYTES);
    CHECK_INT(blocks.kept_count, ==, 0);
    end();
}

int main(int count, char **arguments) {
    (void)count;
    check_begin(arguments);
    check_seed();
    RUN(random_writes_and_sends_are_as_in_the_model);
    RUN(small_writes_join_in_one_block);
    RUN(a_write_joins_behind_bytes_that_are_being_sent);
    RUN(nothing_joins_a_pinned_write);
    RUN(a_pinned_write_is_released_with_its_last_byte);
    RUN(more_sent_than_queued_ends_at_the_queue);
    RUN(blocks_are_used_again);
    RUN(no_more_blocks_are_kept_than_the_cap);
    RUN(pinned_writes_are_not_kept_as_blocks);
    return check_end();
}
