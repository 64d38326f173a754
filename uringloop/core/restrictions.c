#include "restrictions.h"

/* What the engines submit: a test compares. */
static const uint8_t operations[] = {
    IORING_OP_ACCEPT,       IORING_OP_RECV,     IORING_OP_SEND,
    IORING_OP_SENDMSG,      IORING_OP_RECVMSG,  IORING_OP_POLL_ADD,
    IORING_OP_FILES_UPDATE, /* fixed files */
    IORING_OP_ASYNC_CANCEL,
};
static const uint8_t sqe_flags = IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT | IOSQE_CQE_SKIP_SUCCESS;

/* What may still be registered once the ring is enabled. */
static const uint8_t registrations[] = {
    IORING_REGISTER_RING_FDS,  IORING_UNREGISTER_RING_FDS,   /* with each run of the loop */
    IORING_REGISTER_PBUF_RING, IORING_UNREGISTER_PBUF_RING,  /* the datagrams' pool comes with the first endpoint */
    IORING_UNREGISTER_FILES,                                 /* at the end */
    IORING_REGISTER_PROBE,                                   /* asks, and changes nothing */
};

#define UL_COUNT(array) (sizeof(array) / sizeof *(array))

int ul_restrictions_register(struct ul_ring *ring) {
    struct io_uring_restriction all[UL_COUNT(operations) + UL_COUNT(registrations) + 1] = {
        {.opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED, .what = sqe_flags},
    };
    uint32_t count = 1;
    for (size_t i = 0; i < UL_COUNT(operations); i++)
        all[count++] = (struct io_uring_restriction){.opcode = IORING_RESTRICTION_SQE_OP, .what = operations[i]};
    for (size_t i = 0; i < UL_COUNT(registrations); i++)
        all[count++] = (struct io_uring_restriction){.opcode = IORING_RESTRICTION_REGISTER_OP, .what = registrations[i]};
    int error = ul_ring_register(ring, IORING_REGISTER_RESTRICTIONS, all, count);
    return error < 0 ? error : 0;
}

bool ul_restrictions_allow(uint8_t opcode) {
    for (size_t i = 0; i < UL_COUNT(operations); i++)
        if (operations[i] == opcode)
            return true;
    return false;
}
