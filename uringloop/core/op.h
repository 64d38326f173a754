/* One-shot operations: a request, one completion, one DONE. Everything that is no stream, listener or datagram endpoint.
 *
 * Memory that an operation points at (`addr`) is the caller's, and must stay until DONE.
 */
#ifndef UL_OP_H
#define UL_OP_H

#include "engine.h"

struct ul_operation {
    struct ul_entry entry;
    bool cancelling;
    struct io_uring_sqe sqe; /* to make it again on another ring */
};

struct ul_operations {
    struct ul_engine *engine;
    struct ul_table table;
};

void ul_operations_init(struct ul_operations *operations, struct ul_engine *engine);
void ul_operations_destroy(struct ul_operations *operations);

/* Start one; the arguments are the SQE's fields (file_index is splice_fd_in of a splice). Above the eight bits of the opcode may stand
 * IOSQE_ASYNC, shifted as far. Its token, or -ENOMEM. */
int32_t ul_operation_start(struct ul_operations *operations, uint16_t opcode, int fd, uint64_t addr, uint32_t len, uint64_t off, uint32_t op_flags,
                           int32_t file_index, uint64_t addr3);

/* Start a wait until `fd` is ready for this mask (poll(2)). Its token, or -ENOMEM. */
int32_t ul_operation_poll(struct ul_operations *operations, int fd, uint32_t mask);

/* Ask for its end. DONE still comes: with -ECANCELED, or with the result if it was done by then. 0, or -ENOMEM: it may be asked again. */
int ul_operation_cancel(struct ul_operations *operations, int32_t token);

/* True if what it results in is an fd. */
bool ul_operation_opens(const struct ul_operations *operations, int32_t token);

/* True if the kernel may read or write memory for one of them: for all but polls. */
bool ul_operations_use_memory(const struct ul_operations *operations);

/* For the reactor: take a completion; make all of them again, for the ring that had them is gone: those for which there is no memory are DONE with
 * -ENOMEM. */
void ul_operation_complete(struct ul_operations *operations, int32_t token, const struct io_uring_cqe *cqe);
void ul_operations_on_ring_lost(struct ul_operations *operations);

#endif
