#include "op.h"

#include <unistd.h>

void ul_operations_init(struct ul_operations *operations, struct ul_engine *engine) {
    operations->engine = engine;
    ul_table_init(&operations->table, sizeof(struct ul_operation));
}

void ul_operations_destroy(struct ul_operations *operations) { ul_table_destroy(&operations->table); }

int32_t ul_operation_start(struct ul_operations *operations, uint16_t opcode, int fd, uint64_t addr, uint32_t len, uint64_t off, uint32_t op_flags,
                           int32_t file_index, uint64_t addr3) {
    struct ul_operation *operation = ul_table_allocate(&operations->table);
    if (!operation)
        return -ENOMEM;
    struct io_uring_sqe *sqe = ul_request(operations->engine, (uint8_t)opcode, UL_REQUEST_OPERATION, operation->entry.token);
    if (!sqe) {
        ul_table_free(&operations->table, operation);
        return -ENOMEM;
    }
    sqe->flags = (uint8_t)(opcode >> 8);
    sqe->fd = fd;
    sqe->addr = addr;
    sqe->len = len;
    sqe->off = off;
    sqe->op_flags = op_flags;
    sqe->file_index = file_index;
    sqe->addr3 = addr3;
    operation->sqe = *sqe;
    return operation->entry.token;
}

int32_t ul_operation_poll(struct ul_operations *operations, int fd, uint32_t mask) {
    return ul_operation_start(operations, IORING_OP_POLL_ADD, fd, 0, 0, 0, mask, 0, 0);
}

int ul_operation_cancel(struct ul_operations *operations, int32_t token) {
    struct ul_operation *operation = ul_table_get(&operations->table, token);
    if (!operation)
        return -ENOENT;
    if (operation->cancelling)
        return 0;
    int error = ul_cancel(operations->engine, ul_user_data(UL_REQUEST_OPERATION, token));
    operation->cancelling = error == 0;
    return error;
}

static int ul_operation_start_again(struct ul_operations *operations, struct ul_operation *operation) {
    struct io_uring_sqe *sqe = ul_request(operations->engine, operation->sqe.opcode, UL_REQUEST_OPERATION, operation->entry.token);
    if (!sqe)
        return -ENOMEM;
    *sqe = operation->sqe;
    if (operation->cancelling) /* without memory for it the cancel may be asked for again */
        operation->cancelling = ul_cancel(operations->engine, operation->sqe.user_data) == 0;
    return 0;
}

bool ul_operation_opens(const struct ul_operations *operations, int32_t token) {
    const struct ul_operation *operation = ul_table_get(&operations->table, token);
    return operation && operation->sqe.opcode == IORING_OP_OPENAT;
}

bool ul_operations_use_memory(const struct ul_operations *operations) {
    uint32_t index = 0;
    const struct ul_operation *operation;
    while ((operation = ul_table_next(&operations->table, &index)))
        if (operation->sqe.opcode != IORING_OP_POLL_ADD)
            return true;
    return false;
}

void ul_operation_complete(struct ul_operations *operations, int32_t token, const struct io_uring_cqe *cqe) {
    struct ul_operation *operation = ul_table_get(&operations->table, token);
    if (!operation) {
        operations->engine->stats.stale_completions++;
        return;
    }
    /* Cancelled, though nobody asked: the thread that ran the ring has ended. */
    bool orphaned = cqe->res == -ECANCELED && !operation->cancelling && !operations->engine->closing;
    if (orphaned && ul_operation_start_again(operations, operation) == 0)
        return;
    if (operations->engine->closing && cqe->res >= 0 && operation->sqe.opcode == IORING_OP_OPENAT)
        close(cqe->res); /* nobody hears of it any more */
    ul_emit(operations->engine, UL_EVENT_DONE, token, cqe->res, (int32_t)cqe->flags);
    ul_table_free(&operations->table, operation);
}

void ul_operations_on_ring_lost(struct ul_operations *operations) {
    uint32_t index = 0;
    struct ul_operation *operation;
    while ((operation = ul_table_next(&operations->table, &index))) {
        if (ul_operation_start_again(operations, operation) == 0 || operations->engine->event_count >= UL_EVENTS_MAX)
            continue;
        ul_emit(operations->engine, UL_EVENT_DONE, operation->entry.token, -ENOMEM, 0);
        ul_table_free(&operations->table, operation);
    }
}
